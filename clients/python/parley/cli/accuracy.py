"""Accuracy: how good past quotes were, as a table and a small plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import get_args

from rich.text import Text

from parley import money
from parley.cli import comparing, plot, words
from parley.cli.failures import BAD_USAGE, OK, CommandError
from parley.cli.output import Output
from parley.cli.session import Session
from parley.estimator import AccuracyKey
from parley.v1 import estimator_pb2, quote_pb2

KEYS: tuple[AccuracyKey, ...] = get_args(AccuracyKey)
# With its table it fits a terminal of 24 lines.
PLOTTED_MAX = 10
COLUMNS = ("", "bias", "MAPE", "near", "80 % range", "95 %", "pinball", "score")
PLAIN_COLUMNS = (
    *("slice", "of", "n", "bias", "MAPE", "near", "held 80 %", "low", "high", "held 95 %", "pinball loss"),
    "interval score",
)
OUTCOME_COLUMNS = ("quote", "batch", "ended", "cost ratio", "p10", "p90", "cost held", "time ratio", "time held")
LEGEND = (
    "bias, MAPE: actual against quoted mean. near: within 10 % of the mean cost, 20 % of the mean time. "
    "range: how often the actual lay in it (95 % interval of that share). pinball, score: less is better."
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def accuracy(session: Session, quote: str | None, *, by: Sequence[str], since: str, provider: str) -> int:
    """How good the quotes of the batches were that ended, as a whole and by slices; or how one was."""
    if quote is not None:
        if by or since or provider:
            raise CommandError("--by, --since and --provider are for all quotes, not for one.", exit_code=BAD_USAGE)
        return await comparing.compare(session, quote)
    keys, start = group_keys(by), day(since, option="--since") if since else None
    async with session.estimating() as client:
        summary = await client.accuracy(start=start, group_by=keys, provider=provider)
    output = session.output
    if output.as_json:
        output.message(summary)
    elif not any(each.count for each in summary.slices):
        output.note(_nothing_yet(since, provider))
    elif output.live:
        _show(output, summary)
    else:
        output.table(PLAIN_COLUMNS, [row for each in summary.slices for row in _plain_rows(each)])
        output.table(OUTCOME_COLUMNS, [_outcome_row(each) for each in summary.outcomes])
    return OK


def group_keys(by: Sequence[str]) -> list[AccuracyKey]:
    """model,tier or several options; each counts once."""
    asked = dict.fromkeys(word.strip() for words in by for word in words.split(",") if word.strip())
    if unknown := [word for word in asked if word not in KEYS]:
        raise CommandError(f"--by {unknown[0]} is not known; there are {', '.join(KEYS)}.", exit_code=BAD_USAGE)
    return [key for key in KEYS if key in asked]


def day(text: str, *, option: str) -> datetime:
    """The start of a day, or a moment; UTC where no zone is named."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        read = None
    if read is not None and read.tzinfo is None:
        read = read.replace(tzinfo=UTC)
    if read is None or read < EPOCH:
        raise CommandError(f"{option} {text} is not a date such as 2026-11-23.", exit_code=BAD_USAGE)
    return read


def _nothing_yet(since: str, provider: str) -> str:
    narrowed = [*([f"at {provider}"] if provider else []), *([f"since {since}"] if since else [])]
    if narrowed:
        return f"No quoted batch has ended {' '.join(narrowed)}. next: parley accuracy, without these options"
    return "No quoted batch has ended yet. next: parley start spec.yaml, and this again when it has ended"


def _show(output: Output, summary: estimator_pb2.SummarizeAccuracyResponse) -> None:
    output.grouped_table(COLUMNS, [(_heading(each), _rows(each)) for each in summary.slices], right=COLUMNS[1:])
    output.show(Text(LEGEND, style="dim"))
    if not summary.outcomes:
        return
    output.show()
    ascii_only = output.out.options.ascii_only
    newest = summary.outcomes[-PLOTTED_MAX:]
    for line in plot.lines(newest, width=output.out.width, ascii_only=ascii_only):
        output.show(line)
    output.show(Text(plot.legend(ascii_only=ascii_only), style="dim"))
    if len(newest) < len(summary.outcomes):
        output.show(Text(f"the newest {len(newest)} of {len(summary.outcomes):,}; all with --json", style="dim"))


def _name(slice: quote_pb2.AccuracySlice) -> str:
    return slice.slice or "all"


def _heading(slice: quote_pb2.AccuracySlice) -> Text:
    return Text.assemble((_name(slice), "bold"), f": {words.counted(slice.count, 'quote')}")


def _rows(slice: quote_pb2.AccuracySlice) -> list[list[str]]:
    return [
        [f"  {of}", bias, mape, near, f"{held} ({low} to {high})", held_95, pinball, score]
        for of, bias, mape, near, held, low, high, held_95, pinball, score in _figures(slice)
    ]


def _plain_rows(slice: quote_pb2.AccuracySlice) -> list[list[str]]:
    return [[_name(slice), of, str(slice.count), *figures] for of, *figures in _figures(slice)]


def _figures(slice: quote_pb2.AccuracySlice) -> Iterator[tuple[str, ...]]:
    """Of cost and of time. What was quoted as nothing has no score, and no interval either."""
    percent = words.percent
    if slice.cost_coverage_80_high:
        yield (
            "cost",
            percent(slice.cost_bias, places=1, signed=True),
            percent(slice.cost_mape, places=1),
            percent(slice.cost_within_10_percent),
            percent(slice.cost_coverage_80),
            f"{100 * slice.cost_coverage_80_low:.0f}",
            f"{100 * slice.cost_coverage_80_high:.0f}",
            percent(slice.cost_coverage_95),
            _dollars(slice.cost_pinball_loss),
            _dollars(slice.cost_interval_score),
        )
    if slice.time_coverage_80_high:
        yield (
            "time",
            percent(slice.time_bias, places=1, signed=True),
            percent(slice.time_mape, places=1),
            percent(slice.time_within_20_percent),
            percent(slice.time_coverage_80),
            f"{100 * slice.time_coverage_80_low:.0f}",
            f"{100 * slice.time_coverage_80_high:.0f}",
            percent(slice.time_coverage_95),
            words.span(slice.time_pinball_loss),
            words.span(slice.time_interval_score),
        )


def _dollars(value: float) -> str:
    return money.show_nanos(round(value * money.NANOS_PER_DOLLAR))


def _outcome_row(outcome: quote_pb2.ScoredOutcome) -> tuple[str, ...]:
    ratios = (outcome.cost_ratio, outcome.cost_low_ratio, outcome.cost_high_ratio)
    return (
        outcome.quote,
        outcome.batch,
        words.day_and_time(outcome.end_time),
        *(f"{ratio:.4f}" for ratio in ratios),
        _yes(held=outcome.cost_held),
        f"{outcome.time_ratio:.4f}",
        _yes(held=outcome.time_held),
    )


def _yes(*, held: bool) -> str:
    return "yes" if held else "no"
