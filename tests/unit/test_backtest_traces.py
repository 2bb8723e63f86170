"""The back-test's traces: files of two formats become batches, and a bad one is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.backtest import traces
from benchmarks.backtest.series import Series
from benchmarks.backtest.traces import COST_BATCH, TIME_BATCH, TIME_CONCURRENCY, TraceError
from estimator_service.domain.rates import Prices

COST_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
TIME_HEADER = "run,position,ttft_s,elapsed_s,output_tokens"


def cost_lines(count: int) -> list[str]:
    return [f"2023-11-16 18:{at // 60:02}:{at % 60:02}.6805900,{at + 1},{at % 7 + 2}" for at in range(count)]


def time_lines(count: int, *, run: str = "a") -> list[str]:
    return [f"{run},{at},0.25,{1 + at % 3}.5,151" for at in range(count)]


def written(folder: Path, header: str, lines: Sequence[str]) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def cost(path: Path) -> list[Series]:
    return traces.cost_series(path, prices=Prices(input=2_000_000_000, output=10_000_000_000))


def test_a_cost_trace_becomes_batches_of_90_in_time_order(tmp_path: Path) -> None:
    (found,) = cost(written(tmp_path, COST_HEADER, cost_lines(2 * COST_BATCH + 5)))
    first, second = found.lanes[0]
    assert [len(batch.calls) for batch in found.lanes[0]] == [COST_BATCH, COST_BATCH]
    assert first.calls[0].cost_nanos == 1 * 2_000 + 2 * 10_000
    assert second.calls[0].input_tokens == COST_BATCH + 1
    assert (second.began - first.began).total_seconds() == COST_BATCH
    assert max(call.output_tokens for call in first.calls) == 8
    assert first.calls[0].max_output_tokens == 16
    assert (found.is_timed, found.measures) == (False, ("cost",))


def test_a_time_trace_is_scheduled_at_its_concurrency_from_several_offsets(tmp_path: Path) -> None:
    found = traces.time_series(written(tmp_path, TIME_HEADER, [*time_lines(60), *time_lines(44, run="short")]))
    assert [each.name for each in found] == ["a"]
    assert [len(lane) for lane in found[0].lanes] == [4, 3, 3, 3, 3]
    batch = found[0].lanes[0][0]
    assert [call.start_s for call in batch.calls[: TIME_CONCURRENCY + 1]] == [0.0] * TIME_CONCURRENCY + [1.5]
    assert batch.calls[0].first_token_s == 0.25
    total_s = sum(call.end_s - call.start_s for call in batch.calls)
    assert total_s / TIME_CONCURRENCY <= batch.time_s <= total_s
    assert len({batch.name for batch in found[0].batches}) == 16


def test_our_own_traces_are_read() -> None:
    assert len(cost(traces.COST_TRACE)[0].batches) == 215
    assert len(traces.time_series(traces.TIME_TRACE)) == 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2023-11-16 18:00:05,12", "trace.csv, line 7: has 2 fields, the header has 3"),
        ("yesterday,12,5", "trace.csv, line 7: TIMESTAMP: 'yesterday' is not a time"),
        ("2023-11-16 18:30:00,-1,5", "trace.csv, line 7: ContextTokens: '-1' is not a whole number"),
        ("2023-11-16 18:30:00,1,5.5", "trace.csv, line 7: GeneratedTokens: '5.5' is not a whole number"),
        ("2023-11-16 18:30:00,1,99999999999", "trace.csv, line 7: GeneratedTokens: '99999999999' is not a whole"),
        ("2023-11-16 18:30:00,1,\u0665", "trace.csv, line 7: GeneratedTokens: '\u0665' is not a whole"),
        ("2023-11-15 18:00:00,1,5", "trace.csv, line 7: TIMESTAMP is earlier than on the line before"),
    ],
)
def test_a_bad_line_of_a_cost_trace_is_named(tmp_path: Path, line: str, said: str) -> None:
    lines = cost_lines(300)
    lines[5] = line
    assert refused(cost, written(tmp_path, COST_HEADER, lines)).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,5,0.2,nan,151", "trace.csv, line 7: elapsed_s: 'nan' is not a number of seconds"),
        ("a,5,0.2,inf,151", "trace.csv, line 7: elapsed_s: 'inf' is not a number of seconds"),
        ("a,5,0,1.5,151", "trace.csv, line 7: ttft_s: '0' is not a number of seconds"),
        ("a,5,2.5,1.5,151", "trace.csv, line 7: ttft_s is more than elapsed_s"),
        ("a,4,0.2,1.5,151", "trace.csv, line 7: position is not after the one before of its run"),
        ("a,5,0.2,1.5,", "trace.csv, line 7: output_tokens: '' is not a whole number"),
    ],
)
def test_a_bad_line_of_a_time_trace_is_named(tmp_path: Path, line: str, said: str) -> None:
    lines = time_lines(60)
    lines[5] = line
    assert refused(traces.time_series, written(tmp_path, TIME_HEADER, lines)).startswith(said)


@pytest.mark.parametrize(
    ("read", "header", "lines", "said"),
    [
        (cost, "TIMESTAMP,ContextTokens", [], "line 1: the header must name GeneratedTokens once"),
        (cost, COST_HEADER + ",TIMESTAMP", [], "line 1: the header must name TIMESTAMP once"),
        (cost, COST_HEADER, cost_lines(179), "line 180: ends before the second batch of 90 calls"),
        (traces.time_series, TIME_HEADER, time_lines(44), "no run has 45 calls or more"),
        (traces.time_series, "position", [], "line 1: the header must name run once"),
    ],
)
def test_a_trace_that_is_too_short_or_of_another_format_is_refused(
    tmp_path: Path, read: Callable[[Path], list[Series]], header: str, lines: Sequence[str], said: str
) -> None:
    assert said in refused(read, written(tmp_path, header, lines))


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    assert "none.csv: can't be read" in refused(cost, tmp_path / "none.csv")
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert "bytes.csv: can't be read" in refused(cost, path)


def refused(read: Callable[[Path], list[Series]], path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_size_of_a_batch_is_that_of_the_issue() -> None:
    assert (COST_BATCH, TIME_BATCH) == (90, 15)
