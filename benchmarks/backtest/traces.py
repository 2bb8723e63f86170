"""Traces of real services: CSV files -> series of batches."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from benchmarks.backtest.series import Batch, Call, Series
from benchmarks.scheduling import list_starts_s
from estimator_service.domain.rates import Prices

FOLDER = Path(__file__).parent.parent / "traces"
COST_TRACE = FOLDER / "azure_2023_conv.csv"
TIME_TRACE = FOLDER / "llmperf_dev.csv"

MODEL = "claude-sonnet-5"
COST_BATCH = 90
# It matters to the time alone, which such a trace does not tell.
COST_CONCURRENCY = 10
TIME_BATCH = 15
TIME_CONCURRENCY = 5
# A run through the trace from each of these calls on: so every call is in several batches.
TIME_OFFSETS = (0, 3, 6, 9, 12)
TIME_BATCHES_MIN = 3
# The traces are of another year; what matters is how far the calls are apart.
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
TOKENS_MAX = 1_000_000_000
SECONDS_MAX = 86_400.0
LINES_MAX = 1_000_000


class TraceError(Exception):
    """The trace can't be used; the text is one line that names the file and its line."""


def cost_series(path: Path, *, prices: Prices) -> list[Series]:
    """TIMESTAMP, ContextTokens, GeneratedTokens."""
    lines = list(_lines(path, {"TIMESTAMP": _time, "ContextTokens": _tokens, "GeneratedTokens": _tokens}))
    times = [line["TIMESTAMP"] for line in lines]
    for number, (before, after) in enumerate(pairwise(times), start=3):
        if after < before:
            raise TraceError(f"{path.name}, line {number}: TIMESTAMP is earlier than on the line before")
    if len(lines) < 2 * COST_BATCH:
        raise TraceError(f"{path.name}, line {len(lines) + 1}: ends before the second batch of {COST_BATCH} calls")
    cap = _maximum(int(line["GeneratedTokens"]) for line in lines)
    batches = tuple(
        _cost_batch(f"batches/cost{at}", lines[at : at + COST_BATCH], cap, times[0], prices)
        for at in range(0, len(lines) - COST_BATCH + 1, COST_BATCH)
    )
    return [
        Series(
            name=path.stem,
            kind="cost trace",
            model=MODEL,
            concurrency=COST_CONCURRENCY,
            lanes=(batches,),
            measures=("cost",),
            is_timed=False,
        )
    ]


def _cost_batch(name: str, lines: Sequence[Mapping[str, float]], cap: int, first: float, prices: Prices) -> Batch:
    began = lines[0]["TIMESTAMP"]
    calls = tuple(
        Call(
            tier="chat",
            input_tokens=int(line["ContextTokens"]),
            output_tokens=int(line["GeneratedTokens"]),
            start_s=line["TIMESTAMP"] - began,
            end_s=line["TIMESTAMP"] - began,
            cost_nanos=(line["ContextTokens"] * prices.input + line["GeneratedTokens"] * prices.output) / 1e6,
            max_output_tokens=cap,
        )
        for line in lines
    )
    return Batch(name=name, began=BEGAN + timedelta(seconds=began - first), calls=calls, time_s=0.0)


def time_series(path: Path) -> list[Series]:
    """run, position, ttft_s, elapsed_s, output_tokens; a run with too few calls is left out."""
    columns = {"position": _tokens, "ttft_s": _seconds, "elapsed_s": _seconds, "output_tokens": _tokens}
    runs: dict[str, list[Mapping[str, float]]] = {}
    for number, (run, line) in enumerate(_named_lines(path, "run", columns), start=2):
        if line["ttft_s"] > line["elapsed_s"]:
            raise TraceError(f"{path.name}, line {number}: ttft_s is more than elapsed_s")
        of_run = runs.setdefault(run, [])
        if of_run and line["position"] <= of_run[-1]["position"]:
            raise TraceError(f"{path.name}, line {number}: position is not after the one before of its run")
        of_run.append(line)
    enough = {run: lines for run, lines in runs.items() if len(lines) >= TIME_BATCHES_MIN * TIME_BATCH}
    if not enough:
        raise TraceError(f"{path.name}: no run has {TIME_BATCHES_MIN * TIME_BATCH} calls or more")
    return [_time_series(run, lines) for run, lines in enough.items()]


def _time_series(run: str, lines: Sequence[Mapping[str, float]]) -> Series:
    cap = _maximum(int(line["output_tokens"]) for line in lines)
    lanes = [
        tuple(
            _time_batch(f"batches/{run}from{offset}at{at}", lines[at : at + TIME_BATCH], cap, at)
            for at in range(offset, len(lines) - TIME_BATCH + 1, TIME_BATCH)
        )
        for offset in TIME_OFFSETS
    ]
    return Series(
        name=run,
        kind="time trace",
        model=MODEL,
        concurrency=TIME_CONCURRENCY,
        lanes=tuple(lanes),
        measures=("time",),
    )


def _time_batch(name: str, lines: Sequence[Mapping[str, float]], cap: int, at: int) -> Batch:
    starts_s = list_starts_s([line["elapsed_s"] for line in lines], concurrency=TIME_CONCURRENCY)
    calls = tuple(
        Call(
            tier="chat",
            input_tokens=0,
            output_tokens=int(line["output_tokens"]),
            start_s=start_s,
            end_s=start_s + line["elapsed_s"],
            first_token_s=line["ttft_s"],
            max_output_tokens=cap,
        )
        for start_s, line in zip(starts_s, lines, strict=True)
    )
    # The trace does not say when: a minute a call keeps the batches apart and in their order.
    began = BEGAN + timedelta(minutes=at)
    return Batch(name=name, began=began, calls=calls, time_s=max(call.end_s for call in calls))


def _maximum(output_tokens: Iterable[int]) -> int:
    """The max_tokens of a user who knows how long answers get: the next power of two, which cuts none of them."""
    return 1 << max(output_tokens).bit_length()


def _lines(path: Path, columns: Mapping[str, Callable[[str], float]]) -> Iterator[Mapping[str, float]]:
    for _, values in _rows(path, columns, name_column=None):
        yield values


def _named_lines(
    path: Path, name_column: str, columns: Mapping[str, Callable[[str], float]]
) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield from _rows(path, columns, name_column=name_column)


def _rows(
    path: Path, columns: Mapping[str, Callable[[str], float]], *, name_column: str | None
) -> Iterator[tuple[str, Mapping[str, float]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header: list[str] = next(reader, list[str]())
            wanted = [*([name_column] if name_column else []), *columns]
            for name in wanted:
                if header.count(name) != 1:
                    raise TraceError(f"{path.name}, line 1: the header must name {name} once")
            for row in reader:
                place = f"{path.name}, line {reader.line_num}"
                if len(row) != len(header):
                    raise TraceError(f"{place}: has {len(row)} fields, the header has {len(header)}")
                if reader.line_num > LINES_MAX:
                    raise TraceError(f"{place}: more than {LINES_MAX} lines")
                cells = dict(zip(header, row, strict=True))
                values = {name: _value(cells[name], read, f"{place}: {name}") for name, read in columns.items()}
                yield (cells[name_column] if name_column else ""), values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: can't be read: {error}") from None


def _value(text: str, read: Callable[[str], float], place: str) -> float:
    try:
        return read(text)
    except ValueError as error:
        raise TraceError(f"{place}: {text[:40]!r} {error}") from None


def _tokens(text: str) -> float:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= TOKENS_MAX):
        raise ValueError(f"is not a whole number from 0 to {TOKENS_MAX}")
    return float(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"is not a number of seconds over 0 and up to {SECONDS_MAX:g}")
    return seconds


def _time(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a time such as 2023-11-16 18:15:46.680590") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
