"""The trials: every batch that has enough before it, at every stage, said by the estimator and by the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context

from benchmarks.backtest import ours
from benchmarks.backtest.oracle import Oracle, Said, total
from benchmarks.backtest.series import Series, known
from estimator_service.domain.scores import Scored

# As many past batches as there are, but at least ALL_PAST_MIN.
ALL_PAST = -1
ALL_PAST_MIN = 5
# Of each kind of series: past batches, share done.
STAGES = ((0, 0.0), (1, 0.0), (3, 0.0), (10, 0.0), (ALL_PAST, 0.0), (0, 0.25), (0, 0.5), (3, 0.25), (3, 0.5))
# More of one row are thinned out evenly: their scores would move by less than their own error. Rows that no bound is
# on are shown, and may move by more.
TRIALS_MAX = 250
UNBOUND_TRIALS_MAX = 120
BOUND = {(0, 0.0), (3, 0.0), (10, 0.0), (ALL_PAST, 0.0), (3, 0.5)}
PROCESSES = 2
TRIALS_A_TASK = 25


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """What is averaged into one row of the table."""

    kind: str
    measure: str
    done: float
    past: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    kind: str
    series: int
    lane: int
    batch: int
    # ALL_PAST where the row is of all.
    past: int
    done: float

    @property
    def earlier(self) -> int:
        return self.batch if self.past == ALL_PAST else self.past


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All in shares of the series' mean, so that series of other levels weigh the same."""

    row: Row
    series: str
    ours: Scored
    oracle: Scored
    # The oracle that knows the batch's own drift as well; None before the start.
    clairvoyant: Scored | None


def trials(series: Sequence[Series]) -> list[Trial]:
    found: list[Trial] = []
    for kind in dict.fromkeys(each.kind for each in series):
        for past, done in STAGES:
            row = [
                Trial(kind=kind, series=number, lane=lane, batch=batch, past=past, done=done)
                for number, each in enumerate(series)
                if each.kind == kind
                for lane, batches in enumerate(each.lanes)
                for batch in range(ALL_PAST_MIN if past == ALL_PAST else past, len(batches))
            ]
            most = TRIALS_MAX if (past, done) in BOUND else UNBOUND_TRIALS_MAX
            step = max(1.0, len(row) / most)
            found += [row[int(at * step)] for at in range(min(len(row), most))]
    return found


def run(series: Sequence[Series]) -> list[Result]:
    """All trials, in their order, on two processes."""
    todo = trials(series)
    # Trials of one series stand together: its oracle is drawn once in a process.
    order = sorted(range(len(todo)), key=lambda at: (todo[at].series, at))
    tasks = [tuple(todo[at] for at in part) for part in _parts(order, TRIALS_A_TASK)]
    results: list[Result] = []
    context = get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_begin, initargs=(tuple(series),)) as pool:
        for part in pool.map(_run_all, tasks):
            results += part
    return results


def _parts(order: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    left = iter(order)
    while part := tuple(islice(left, size)):
        yield part


# What a process of the pool works on, set once at its start.
_series: tuple[Series, ...] = ()
_oracles: dict[tuple[int, str], Oracle] = {}


def _begin(series: tuple[Series, ...]) -> None:
    global _series
    _series = series


def _oracle(number: int, measure: str) -> Oracle:
    key = (number, measure)
    if key not in _oracles:
        _oracles[key] = Oracle(_series[number], measure=measure)
    return _oracles[key]


def _run_all(part: Sequence[Trial]) -> list[Result]:
    return [result for trial in part for result in _run(trial)]


def _run(trial: Trial) -> Iterator[Result]:
    series = _series[trial.series]
    seen = known(series, trial.lane, trial.batch, past=trial.earlier, done=trial.done)
    try:
        said = ours.said(series, seen)
    except Exception as error:
        error.add_note(f"{series.name}: {trial}")
        raise
    batch = series.lanes[trial.lane][trial.batch]
    for measure in series.measures:
        oracle = _oracle(trial.series, measure)
        actual = total(batch, measure)
        begun = seen.has_begun
        oracles = oracle.forecast(seen) if begun else oracle.quote(actual)
        clairvoyant = oracle.forecast(seen, drift=oracle.drift_of(batch)) if begun else None
        yield Result(
            row=Row(kind=trial.kind, measure=measure, done=trial.done, past=trial.past),
            series=series.name,
            ours=_scored(actual, said[measure], unit=oracle.mean),
            oracle=_scored(actual, oracles, unit=oracle.mean),
            clairvoyant=_scored(actual, clairvoyant, unit=oracle.mean) if clairvoyant else None,
        )


def _scored(actual: float, said: Said, *, unit: float) -> Scored:
    return Scored(actual / unit, said.mean / unit, tuple(each / unit for each in said.quantiles))
