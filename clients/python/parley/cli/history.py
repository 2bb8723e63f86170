"""History: what calls took so far, by tier and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from parley.cli import words
from parley.cli.failures import OK
from parley.cli.session import Session
from parley.v1 import quote_pb2

COLUMNS = ("", "mean", "sd", "p10", "p50", "p90", "p99")
PLAIN_COLUMNS = ("tier", "model", "calls", "batches", "failed", "drift", "of", *COLUMNS[1:])


async def history(session: Session, *, models: Sequence[str], provider: str) -> int:
    """Tokens and seconds of the observed calls; seconds are those of real speed."""
    async with session.estimating() as client:
        summary = await client.history(models=models, provider=provider)
    output = session.output
    if output.as_json:
        output.message(summary)
    elif not summary.slices:
        output.note(_nothing_yet(models, provider))
    elif output.live:
        groups = [(_heading(each), _rows(each)) for each in summary.slices]
        output.grouped_table(COLUMNS, groups, right=COLUMNS[1:])
    else:
        output.table(PLAIN_COLUMNS, [row for each in summary.slices for row in _plain_rows(each)])
    return OK


def _nothing_yet(models: Sequence[str], provider: str) -> str:
    narrowed = [*([f"of {' or '.join(models)}"] if models else []), *([f"at {provider}"] if provider else [])]
    if narrowed:
        return f"No call {' '.join(narrowed)} was observed. next: parley history, without these options"
    return "No call was observed yet. next: parley start spec.yaml; calls are learned from while it runs"


def _heading(slice: quote_pb2.HistorySlice) -> Text:
    batches = f"{slice.batches:,} {'batch' if slice.batches == 1 else 'batches'}"
    facts = [f"{words.counted(slice.calls, 'call')} of {batches}"]
    if slice.failed_calls:
        facts.append(f"{slice.failed_calls:,} more failed ({_failed_share(slice)})")
    if slice.drift_log_sd:
        facts.append(f"batches drift by {words.percent(slice.drift_log_sd, places=1)}")
    return Text.assemble((f"{slice.tier} by {slice.model}", "bold"), f"\n{', '.join(facts)}")


def _failed_share(slice: quote_pb2.HistorySlice) -> str:
    """Of all calls, those that were paid for nothing."""
    tried = slice.calls + slice.failed_calls
    return words.percent(slice.failed_calls / tried, places=1) if tried else ""


def _rows(slice: quote_pb2.HistorySlice) -> list[list[str]]:
    return [[f"  {of}", *_figures(spread)] for of, spread in _distributions(slice)]


def _plain_rows(slice: quote_pb2.HistorySlice) -> list[list[str]]:
    drift = words.percent(slice.drift_log_sd, places=1)
    about = [slice.tier, slice.model, str(slice.calls), str(slice.batches), _failed_share(slice), drift]
    return [[*about, of, *_figures(spread)] for of, spread in _distributions(slice)]


def _distributions(slice: quote_pb2.HistorySlice) -> Iterator[tuple[str, quote_pb2.Distribution]]:
    yield "input tokens", slice.input_tokens
    yield "output tokens", slice.output_tokens
    # Most models do not think, and most calls are not streamed.
    if slice.thinking_tokens.p99:
        yield "thinking tokens", slice.thinking_tokens
    yield "seconds", slice.seconds
    yield "tokens a second", slice.tokens_per_second
    if slice.HasField("first_token_seconds"):
        yield "first token, seconds", slice.first_token_seconds


def _figures(spread: quote_pb2.Distribution) -> list[str]:
    values = (spread.mean, spread.sd, spread.p10, spread.p50, spread.p90, spread.p99)
    return [words.figure(value) for value in values]
