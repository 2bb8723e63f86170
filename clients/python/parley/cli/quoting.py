"""Quotes: what a spec would cost and how long it would take, shown before anything is spent."""

from __future__ import annotations

from collections import Counter
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
TIER_COLUMNS = ("tier", "conversations", "cost", "8 in 10", "tokens", "a call")


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
    parts: list[RenderableType] = [_tiers(quote), Text(), grid]
    parts += [Text(f"! {warning.message}", style="yellow") for warning in quote.warnings]
    return Panel.fit(
        Group(*parts), title=Text(f"Quote for {name}"), title_align="left", border_style="dim", padding=(0, 2)
    )


def _facts(quoted: orchestrator_pb2.QuoteBatchResponse) -> Iterator[tuple[str, RenderableType]]:
    quote = quoted.quote
    yield "cost", Text.assemble((money.show(quote.cost.mean), "bold"), f"   8 in 10: {cost_range(quote.cost)}")
    yield "", Text(f"within 10 % of that with a probability of {_near_cost(quote)}")
    if quote.HasField("probability_within_budget"):
        yield "budget", Text(f"{money.show(quote.workload.budget)}, kept with a probability of {_in_budget(quote)}")
    mean = words.span(words.seconds(quote.time.mean))
    yield "time", Text.assemble((mean, "bold"), f"   8 in 10: {time_range(quote.time)}")
    yield "", Text(f"within 20 % of that with a probability of {_near_time(quote)}")
    if quoted.provider.sandbox:
        yield "", Text(_sandbox(quoted))
    yield "model", Text(f"{quoted.model} at {quoted.provider.base_url}, {quoted.concurrency} calls at a time")
    yield "rests on", Text(basis(quote.basis))
    for group, text in _bases(quote):
        yield "", Text(f"{group}: {text}")
    if calibration := _calibration(quote):
        yield "ranges", Text(calibration)
    if coverage := _coverage(quoted):
        yield "coverage", Text(coverage)
    yield "quote", Text(words.bare_id(quote.name), style="dim")


def cost_range(cost: quote_pb2.CostRange) -> str:
    """P10 to P90."""
    return f"{words.cost_at(cost, 0.1)} to {words.cost_at(cost, 0.9)}"


def time_range(time: quote_pb2.TimeRange) -> str:
    """P10 to P90."""
    return f"{words.time_at(time, 0.1)} to {words.time_at(time, 0.9)}"


def _near_cost(quote: quote_pb2.Quote) -> str:
    return words.share(quote.probability_cost_within_10_percent)


def _near_time(quote: quote_pb2.Quote) -> str:
    return words.share(quote.probability_time_within_20_percent)


def _in_budget(quote: quote_pb2.Quote) -> str:
    return words.share(quote.probability_within_budget)


def basis(basis: quote_pb2.Basis) -> str:
    """What figures rest on, in the estimator's words where it has some."""
    if basis.text:
        return basis.text
    calls = words.counted(basis.observations, "observed call")
    if basis.source == quote_pb2.Basis.SOURCE_PILOT:
        return f"the pilot of this batch, {calls}"
    return "built-in prior" if basis.source == quote_pb2.Basis.SOURCE_PRIOR else calls


def _bases(quote: quote_pb2.Quote) -> list[tuple[str, str]]:
    """What each group rests on, where they differ."""
    names = group_names(quote)
    texts = [(names[group.group], basis(group.basis)) for group in quote.groups]
    return texts if len({text for _, text in texts}) > 1 else []


def _calibration(quote: quote_pb2.Quote) -> str:
    """Empty where the record of past quotes left the ranges as they were."""
    factors = (("cost", quote.cost_calibration), ("time", quote.time_calibration))
    moved = [f"{of} {factor:.2f} x as wide" for of, factor in factors if factor and abs(factor - 1) >= 0.005]
    return f"{', '.join(moved)}, by the record of past quotes" if moved else ""


def _sandbox(quoted: orchestrator_pb2.QuoteBatchResponse) -> str:
    real = f"{words.span(words.seconds(quoted.quote.real_time_mean))} at real speed; "
    real = real if quoted.quote.HasField("real_time_mean") else ""
    return f"{real}the sandbox runs {words.times(quoted.provider.speed_up)} as fast and bills nothing"


def _tiers(quote: quote_pb2.Quote) -> Table:
    names = group_names(quote)
    costs = [money.to_nanos(group.cost.mean) for group in quote.groups]
    # Expected values add up, whatever they depend on; quantiles do not, so the whole has its own.
    whole = [money.to_nanos(quote.cost.mean)] if len(costs) > 1 else []
    shown = money.show_column([*costs, *whole])
    rows = [
        (
            names[group.group],
            f"{group.count:,}",
            cost,
            cost_range(group.cost),
            f"{group.output_tokens_mean:,.0f}",
            words.span(words.seconds(group.call_duration_mean)),
        )
        for group, cost in zip(quote.groups, shown, strict=False)
    ]
    if whole:
        count = sum(group.count for group in quote.groups)
        rows.append(("all", f"{count:,}", shown[-1], cost_range(quote.cost), "", ""))
    return table(TIER_COLUMNS, rows, right=TIER_COLUMNS[1:])


def group_names(quote: quote_pb2.Quote) -> dict[str, str]:
    """Groups by id, as people know them: by tier, and by id as well where a tier has several."""
    tiers = {group.id: group.tier for group in quote.workload.groups}
    several = Counter(tiers.values())
    names = {id: tier if several[tier] == 1 else f"{tier} {id}" for id, tier in tiers.items()}
    return {group.group: names.get(group.group, group.group) for group in quote.groups}


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
    if quoted.HasField("quote"):
        yield from _quote_lines(quoted)
    else:
        for tier in quoted.tiers:
            yield "tier", tier.tier, tier.counts.total
    yield "model", quoted.model, quoted.provider.base_url, f"{quoted.concurrency} at a time"
    if coverage := _coverage(quoted):
        yield "coverage", coverage
    if quoted.HasField("quote"):
        yield "quote", quoted.quote.name


def _quote_lines(quoted: orchestrator_pb2.QuoteBatchResponse) -> Iterator[tuple[object, ...]]:
    quote = quoted.quote
    names = group_names(quote)
    for group in quote.groups:
        yield "tier", names[group.group], group.count, money.show(group.cost.mean), *_ends(group.cost)
    yield "cost", money.show(quote.cost.mean), *_ends(quote.cost), "within 10 %", _near_cost(quote)
    if quote.HasField("probability_within_budget"):
        yield "budget", money.show(quote.workload.budget), "kept", _in_budget(quote)
    time = quote.time
    ends = ("p10", words.time_at(time, 0.1), "p90", words.time_at(time, 0.9))
    yield "time", words.span(words.seconds(time.mean)), *ends, "within 20 %", _near_time(quote)
    if quoted.provider.sandbox:
        yield "sandbox", _sandbox(quoted)
    yield "rests on", basis(quote.basis)
    for group, text in _bases(quote):
        yield "rests on", text, group
    if calibration := _calibration(quote):
        yield "ranges", calibration
    for warning in quote.warnings:
        yield "warning", "quote", warning.message


def _ends(cost: quote_pb2.CostRange) -> tuple[str, ...]:
    return "p10", words.cost_at(cost, 0.1), "p90", words.cost_at(cost, 0.9)


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
