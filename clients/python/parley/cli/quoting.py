"""Quotes: what a spec would cost and how long it would take, shown before anything is spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parley import money
from parley.cli import spec_file, words
from parley.cli.failures import BAD_USAGE, OK, CommandError, Fault
from parley.cli.output import Output, table
from parley.cli.session import Session
from parley.cli.spec_file import SpecFile
from parley.v1 import orchestrator_pb2, quote_pb2

# A small tier misses many; a list of them all tells nothing.
MISSED_NAMED_MAX = 3


async def quote(session: Session, path: Path, *, prompts: int) -> int:
    """The dry run of a spec file. Findings that CreateBatch would refuse end it with exit code 2."""
    file = spec_file.load(path)
    async with session.client() as client:
        quoted = await client.quote(file.spec, sample_prompts=prompts)
    show(session.output, quoted, file)
    show_prompts(session.output, quoted)
    refuse_errors(quoted, file)
    if session.output.live:
        session.output.show(Text(f"next: parley start {path}", style="dim"))
    return OK


def show(output: Output, quoted: orchestrator_pb2.QuoteBatchResponse, file: SpecFile) -> None:
    if output.as_json:
        output.message(quoted)
    elif output.live:
        if quoted.HasField("quote"):
            output.show(panel(quoted, file.spec.name))
        for finding in _warnings(quoted):
            output.show(Text(f"warning: {_place(finding, file)}: {finding.message}", style="yellow"))
    else:
        for line in lines(quoted):
            output.line(*line)
        for finding in _warnings(quoted):
            output.line("warning", _place(finding, file), finding.message)


def refuse_errors(quoted: orchestrator_pb2.QuoteBatchResponse, file: SpecFile) -> None:
    """Raises where the spec can't be made as it is."""
    errors = [finding for finding in quoted.findings if finding.severity == orchestrator_pb2.SEVERITY_ERROR]
    if errors:
        count = f"{len(errors)} faults" if len(errors) > 1 else "a fault"
        raise CommandError(
            f"{file.path} has {count}; nothing was started.",
            exit_code=BAD_USAGE,
            faults=[Fault(_place(finding, file), finding.message) for finding in errors],
            next_step="Correct the spec and run this again.",
            reason=errors[0].reason,
        )


def panel(quoted: orchestrator_pb2.QuoteBatchResponse, name: str) -> RenderableType:
    quote = quoted.quote
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, text in _facts(quoted):
        grid.add_row(label, text)
    parts: list[RenderableType] = [_tiers(quoted), Text(), grid]
    parts += [Text(f"! {warning.message}", style="yellow") for warning in quote.warnings]
    return Panel.fit(
        Group(*parts), title=Text(f"Quote for {name}"), title_align="left", border_style="dim", padding=(0, 2)
    )


def _facts(quoted: orchestrator_pb2.QuoteBatchResponse) -> Iterator[tuple[str, RenderableType]]:
    quote = quoted.quote
    yield (
        "cost",
        Text.assemble(
            (money.show(quote.cost.mean), "bold"),
            f"   8 in 10: {words.cost_at(quote.cost, 0.1)} to {words.cost_at(quote.cost, 0.9)}",
        ),
    )
    if quote.HasField("probability_within_budget"):
        budget = money.show(quote.workload.budget)
        yield "budget", Text(f"{budget}, kept with a probability of {words.share(quote.probability_within_budget)}")
    yield (
        "time",
        Text.assemble(
            (words.span(words.seconds(quote.time.mean)), "bold"),
            f"   8 in 10: {words.time_at(quote.time, 0.1)} to {words.time_at(quote.time, 0.9)}",
        ),
    )
    if quoted.provider.sandbox:
        yield "", Text(_sandbox(quoted))
    yield "model", Text(f"{quoted.model} at {quoted.provider.base_url}, {quoted.concurrency} calls at a time")
    yield "rests on", Text(quote.basis.text or f"{quote.basis.observations} observations")
    if coverage := _coverage(quoted):
        yield "coverage", Text(coverage)
    yield "quote", Text(words.bare_id(quote.name), style="dim")


def _sandbox(quoted: orchestrator_pb2.QuoteBatchResponse) -> str:
    real = f"{words.span(words.seconds(quoted.quote.real_time_mean))} at real speed; "
    real = real if quoted.quote.HasField("real_time_mean") else ""
    return f"{real}the sandbox runs {words.times(quoted.provider.speed_up)} as fast and bills nothing"


def _tiers(quoted: orchestrator_pb2.QuoteBatchResponse) -> Table:
    costs = _cost_by_tier(quoted.quote)
    rows = [(tier.tier, tier.counts.total, costs.get(tier.tier, 0)) for tier in quoted.tiers]
    if len(rows) > 1:
        rows.append(("all", sum(count for _, count, _ in rows), money.to_nanos(quoted.quote.cost.mean)))
    shown = money.show_column([nanos for _, _, nanos in rows])
    columns = ("tier", "conversations", "expected cost")
    cells = [(tier, count, cost) for (tier, count, _), cost in zip(rows, shown, strict=True)]
    return table(columns, cells, right=columns[1:])


def _cost_by_tier(quote: quote_pb2.Quote) -> dict[str, int]:
    tier_of = {group.id: group.tier for group in quote.workload.groups}
    costs: defaultdict[str, int] = defaultdict(int)
    for group in quote.groups:
        # Expected values add up, whatever they depend on; quantiles would not.
        costs[tier_of.get(group.group, group.group)] += money.to_nanos(group.cost.mean)
    return dict(costs)


def _coverage(quoted: orchestrator_pb2.QuoteBatchResponse) -> str:
    cells = quoted.coverage.cells
    if not cells:
        return ""
    missed = [cell for cell in cells if not cell.count]
    repeats = sum(quoted.coverage.repeats.values())
    values = f"{len(cells) - len(missed)} of {len(cells)} axis values come up"
    named = ", ".join(f"{cell.tier} {cell.axis}={cell.value}" for cell in missed)
    without = f" (not {named})" if 0 < len(missed) <= MISSED_NAMED_MAX else ""
    return f"{values}{without}; {repeats} conversations repeat a combination"


def lines(quoted: orchestrator_pb2.QuoteBatchResponse) -> Iterator[tuple[object, ...]]:
    """The same for a pipe: a word, then its values."""
    costs = _cost_by_tier(quoted.quote)
    for tier in quoted.tiers:
        yield "tier", tier.tier, tier.counts.total, money.show_nanos(costs.get(tier.tier, 0))
    if quoted.HasField("quote"):
        cost, time = quoted.quote.cost, quoted.quote.time
        yield "cost", money.show(cost.mean), "p10", words.cost_at(cost, 0.1), "p90", words.cost_at(cost, 0.9)
        mean = words.span(words.seconds(time.mean))
        yield "time", mean, "p10", words.time_at(time, 0.1), "p90", words.time_at(time, 0.9)
        if quoted.provider.sandbox:
            yield "sandbox", _sandbox(quoted)
        for warning in quoted.quote.warnings:
            yield "warning", "quote", warning.message
    yield "model", quoted.model, quoted.provider.base_url, f"{quoted.concurrency} at a time"
    if coverage := _coverage(quoted):
        yield "coverage", coverage
    if quoted.HasField("quote"):
        yield "quote", quoted.quote.name


def show_prompts(output: Output, quoted: orchestrator_pb2.QuoteBatchResponse) -> None:
    if output.as_json:
        return
    for prompt in quoted.prompts:
        drawn = ", ".join(f"{axis}={value}" for axis, value in sorted(prompt.axis_values.items()))
        output.text(f"\n--- prompt of conversation {prompt.number}, {prompt.tier} ({drawn or 'no axes'})\n")
        output.text("\n\n".join(part.strip() for part in (prompt.system, prompt.user) if part.strip()))


def _warnings(quoted: orchestrator_pb2.QuoteBatchResponse) -> list[orchestrator_pb2.Finding]:
    return [finding for finding in quoted.findings if finding.severity != orchestrator_pb2.SEVERITY_ERROR]


def _place(finding: orchestrator_pb2.Finding, file: SpecFile) -> str:
    line = file.line_of(finding.field)
    where = [f"{file.path}:{line}" if line else str(file.path)]
    where += [finding.field] if finding.field else []
    where += [f"tier {finding.tier}"] if finding.tier else []
    where += [f"conversation {finding.conversation}"] if finding.conversation else []
    return " ".join(where)
