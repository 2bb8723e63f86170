"""The back-test's bounds: each row of the issue gives its figures, and one that is missed is seen."""

from __future__ import annotations

import pytest

from benchmarks.backtest.measure import BOUND_TRIALS_MIN, figures
from benchmarks.backtest.report import Summary, summaries, table
from benchmarks.backtest.trials import ALL_PAST, Result, Row
from benchmarks.figures import Figure
from estimator_service.domain.scores import Scored

COUNT = 100


def scored(actual: float, *, half_width: float) -> Scored:
    return Scored(actual, 1.0, tuple(1.0 + half_width * at for at in (-2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0)))


def summary(row: Row, *, held: int, half_width: float = 0.10, count: int = COUNT) -> Summary:
    """`held` of the outcomes lie in our range of 80 %, the others 1 % outside; the oracle's range is 0.10 wide."""
    results: list[Result] = []
    for at in range(count):
        actual = 1.0 if at < held else 1.01 + half_width
        oracle = scored(actual, half_width=0.10)
        ours = scored(actual, half_width=half_width)
        results.append(Result(row=row, series="made", ours=ours, oracle=oracle, clairvoyant=None))
    (made,) = summaries(results)
    return made


def verdicts(row: Row, *, held: int, half_width: float = 0.10, count: int = COUNT) -> dict[str, str]:
    found: list[Figure] = figures([summary(row, held=held, half_width=half_width, count=count)])
    return {figure.name.removeprefix("backtest: "): figure.verdict for figure in found}


@pytest.mark.parametrize("measure", ["cost", "time"])
@pytest.mark.parametrize(
    ("past", "kept", "missed"), [(3, "within bound", "BOUND MISSED"), (10, "aim met", "aim missed")]
)
@pytest.mark.parametrize(
    ("held", "is_enough", "is_not_more"), [(74, False, True), (75, True, True), (87, True, True), (88, True, False)]
)
def test_the_range_must_hold_75_to_87_percent(
    measure: str, past: int, kept: str, missed: str, held: int, is_enough: bool, is_not_more: bool
) -> None:
    found = verdicts(Row("sandbox", measure, 0.0, past), held=held)
    name = f"sandbox {measure}, share in the 80 % range, after {past} batches"
    assert found[f"{name}, at least"] == (kept if is_enough else missed)
    assert found[f"{name}, at most"] == (kept if is_not_more else missed)


@pytest.mark.parametrize(("measure", "near"), [("cost", 10), ("time", 20)])
@pytest.mark.parametrize(("held", "verdict"), [(89, "BOUND MISSED"), (90, "within bound")])
def test_90_of_100_must_be_near_after_3_batches(measure: str, near: int, held: int, verdict: str) -> None:
    found = verdicts(Row("sandbox", measure, 0.0, 3), held=held, half_width=near / 100)
    assert found[f"sandbox {measure} within {near} %, after 3 batches"] == verdict


@pytest.mark.parametrize(
    ("kind", "measure", "past", "half_width", "verdict"),
    [
        ("cost trace", "cost", 10, 0.104, "aim met"),
        ("cost trace", "cost", 10, 0.109, "aim missed"),
        ("cost trace", "cost", 10, 0.111, "BOUND MISSED"),
        ("time trace", "time", ALL_PAST, 0.111, "BOUND MISSED"),
    ],
)
def test_a_trace_is_held_to_the_oracles_interval_score(
    kind: str, measure: str, past: int, half_width: float, verdict: str
) -> None:
    assert list(verdicts(Row(kind, measure, 0.0, past), held=COUNT, half_width=half_width).values()) == [verdict]


@pytest.mark.parametrize("kind", ["sandbox", "cost trace", "time trace"])
@pytest.mark.parametrize(("held", "verdict"), [(79, "BOUND MISSED"), (80, "within bound"), (100, "within bound")])
def test_a_cold_start_must_hold_80_percent_and_shows_its_width(kind: str, held: int, verdict: str) -> None:
    row = Row(kind, "cost", 0.0, 0)
    assert list(verdicts(row, held=held).values()) == [verdict]
    assert "width 20% of the mean" in figures([summary(row, held=held)])[0].note


@pytest.mark.parametrize(
    ("row", "count"),
    [(Row("sandbox", "cost", 0.5, 3), 1), (Row("sandbox", "cost", 0.25, 3), 0), (Row("x", "y", 0, 3), 0)],
)
def test_half_way_after_3_batches_alone_is_held_to_the_oracles_error(row: Row, count: int) -> None:
    assert len(verdicts(row, held=80)) == count


def test_few_batches_are_shown_without_a_bound() -> None:
    row = Row("sandbox", "cost", 0.0, 0)
    assert list(verdicts(row, held=0, count=BOUND_TRIALS_MIN - 1).values()) == [""]
    assert list(verdicts(row, held=0, count=BOUND_TRIALS_MIN).values()) == ["BOUND MISSED"]


def test_the_table_fits_into_120_columns_with_ours_and_the_oracles_beside_each_other() -> None:
    lines = table([summary(Row("sandbox", "cost", 0.0, past), held=80) for past in (0, ALL_PAST)]).splitlines()
    assert lines[0] == "sandbox: cost"
    assert [line[20:26].strip() for line in lines[2:]] == ["ours", "oracle", "ours", "oracle"]
    assert max(map(len, lines)) <= 120
