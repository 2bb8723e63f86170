"""The back-test as `make bench` runs it: series in, the table and its bounds out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.backtest import histories, ours, traces, trials
from benchmarks.backtest.report import Summary, summaries, worlds
from benchmarks.backtest.series import Series
from benchmarks.backtest.trials import Row
from benchmarks.figures import Figure, Limit
from benchmarks.work import progress

# The scores of fewer batches are mostly chance: they are shown, and no bound is on them.
BOUND_TRIALS_MIN = 30
NEAR, COVERS_LEAST, COVERS_MOST = Limit(0.90, is_least=True), Limit(0.75, is_least=True), Limit(0.87)
COLD_COVERS = Limit(0.80, is_least=True)
HALFWAY = Limit(1.25)
SCORE, SCORE_AIM = Limit(1.10), Limit(1.05)


def traces_of(*, cost: Path | None, time: Path | None) -> list[Series]:
    """The traces that are named, or ours."""
    prices = ours.table().rate(traces.MODEL, time=traces.BEGAN).prices
    found = traces.cost_series(cost or traces.COST_TRACE, prices=prices)
    return found + traces.time_series(time or traces.TIME_TRACE)


async def histories_of(folder: Path, *, batches: int, saved: Path | None) -> list[Series]:
    """Those that are saved; where there are none yet, they are recorded there, or in the folder."""
    path = saved or folder / "histories.jsonl"
    if not path.exists():
        if not path.parent.is_dir():
            raise histories.HistoryError(f"{path.parent}: is no folder to record histories in")
        progress(f"backtest: {len(histories.WORLDS)} worlds of {batches} batches on the sandbox")
        await histories.record(folder / "worlds", path, batches=batches)
    return histories.read(path)


async def measure(series: Sequence[Series]) -> tuple[list[Figure], list[Summary]]:
    progress(worlds(series))
    progress(f"backtest: {len(trials.trials(series))} trials")
    rows = summaries(await asyncio.to_thread(trials.run, series))
    return figures(rows), rows


def figures(rows: Sequence[Summary]) -> list[Figure]:
    """Only of rows that the series were long enough for."""
    return [
        figure if row.ours.count >= BOUND_TRIALS_MIN else _unbound(figure) for row in rows for figure in _figures(row)
    ]


def _figures(row: Summary) -> Iterator[Figure]:
    match row.row:
        case Row(past=0, done=0.0):
            yield _covers(row, COLD_COVERS, "cold start", note=f"; width {row.ours.width_80:.0%} of the mean")
        case Row(kind="sandbox", past=3, done=0.0):
            yield _near(row)
            yield _covers(row, COVERS_LEAST, "after 3 batches, at least")
            yield _covers(row, COVERS_MOST, "after 3 batches, at most")
        case Row(kind="sandbox", past=10, done=0.0):
            # Fewer batches have ten before them: their share is one of half as many.
            oracle = f"; the oracle has {row.oracle.coverage_80:.3f}"
            for limit, which in ((COVERS_LEAST, "at least"), (COVERS_MOST, "at most")):
                yield _aimed(_covers(row, limit, f"after 10 batches, {which}", note=oracle))
        case Row(kind="sandbox", past=3, done=0.5):
            yield _halfway(row)
        case Row(kind="cost trace", past=10, done=0.0):
            yield _score(row, "after 10 batches")
        case Row(kind="time trace", past=trials.ALL_PAST, done=0.0):
            yield _score(row, "after all past, 5 or more")
        case _:
            pass


def _unbound(figure: Figure) -> Figure:
    return replace(figure, bound=None, aim=None, note=f"{figure.note}; too few batches for a bound")


def _aimed(figure: Figure) -> Figure:
    return replace(figure, bound=None, aim=figure.bound)


def _near(row: Summary) -> Figure:
    is_cost = row.row.measure == "cost"
    ours, oracle = ((each.within_10_percent if is_cost else each.within_20_percent) for each in (row.ours, row.oracle))
    return Figure(
        name=f"backtest: {_what(row)} within {'10' if is_cost else '20'} %, after 3 batches",
        measured=ours,
        bound=NEAR,
        note=f"{row.ours.count} batches; the oracle has {oracle:.3f}",
    )


def _covers(row: Summary, bound: Limit, when: str, *, note: str = "") -> Figure:
    held = row.ours
    return Figure(
        name=f"backtest: {_what(row)}, share in the 80 % range, {when}",
        measured=held.coverage_80,
        bound=bound,
        note=f"95 % interval {held.coverage_80_low:.2f} to {held.coverage_80_high:.2f}{note}",
    )


def _halfway(row: Summary) -> Figure:
    return Figure(
        name=f"backtest: {_what(row)}, half-way error over the oracle's",
        measured=row.error_ratio,
        bound=HALFWAY,
        note=f"{row.ours.mape:.2%} and {row.oracle.mape:.2%} of the whole",
    )


def _score(row: Summary, when: str) -> Figure:
    return Figure(
        name=f"backtest: {_what(row)}, interval score over the oracle's, {when}",
        measured=row.ratio,
        bound=SCORE,
        aim=SCORE_AIM,
        note=f"{row.ours.count} batches",
    )


def _what(row: Summary) -> str:
    return f"sandbox {row.row.measure}" if row.row.kind == "sandbox" else row.row.kind
