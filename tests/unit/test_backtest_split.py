"""The back-test's split: by batch in time, and of a batch under way nothing that had not happened yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.backtest import trials
from benchmarks.backtest.series import Batch, Call, Series, known
from benchmarks.backtest.trials import ALL_PAST, ALL_PAST_MIN, STAGES
from benchmarks.scheduling import list_starts_s

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
CONVERSATIONS = 12
CONCURRENCY = 3
AT = 14


def batch(number: int, *, factor: float = 1.0) -> Batch:
    sizes = [factor * (1.0 + (7 * at + 3 * number) % 11) for at in range(CONVERSATIONS)]
    starts = list_starts_s(sizes, concurrency=CONCURRENCY)
    calls = tuple(
        Call(
            tier="chat",
            input_tokens=100 + at,
            output_tokens=round(10 * size),
            start_s=start,
            end_s=start + size,
            cost_nanos=size,
            max_output_tokens=1_000,
        )
        for at, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )
    began = BEGAN + timedelta(hours=number)
    return Batch(name=f"batches/{number}", began=began, calls=calls, time_s=max(call.end_s for call in calls))


def series(batches: tuple[Batch, ...], *, is_timed: bool = True) -> Series:
    return Series(
        name="made",
        kind="made",
        model="claude-sonnet-5",
        concurrency=CONCURRENCY,
        lanes=(batches,),
        measures=("cost", "time"),
        is_timed=is_timed,
    )


BATCHES = tuple(batch(number) for number in range(20))


def earlier(past: int) -> int:
    return AT if past == ALL_PAST else past


@pytest.mark.parametrize(("past", "done"), STAGES)
@pytest.mark.parametrize("is_timed", [True, False])
def test_nothing_that_happens_later_changes_what_is_known(past: int, done: float, is_timed: bool) -> None:
    """The rest of the batch and all that follow are made ten times as long."""
    seen = known(series(BATCHES, is_timed=is_timed), 0, AT, past=earlier(past), done=done)
    had_started = {(call.start_s, call.end_s) for call in seen.finished}
    other = tuple(
        call
        if (call.start_s, call.end_s) in had_started
        else replace(
            call,
            output_tokens=10 * call.output_tokens,
            cost_nanos=10 * call.cost_nanos,
            end_s=call.end_s + 9 * (call.end_s - call.start_s),
            start_s=call.start_s if call.start_s <= seen.elapsed_s else call.start_s + 100,
        )
        for call in BATCHES[AT].calls
    )
    later = tuple(batch(number, factor=10.0) for number in range(AT + 1, 20))
    changed = (*BATCHES[:AT], replace(BATCHES[AT], calls=other, time_s=1e6), *later)
    assert known(series(changed, is_timed=is_timed), 0, AT, past=earlier(past), done=done) == seen


@pytest.mark.parametrize(("past", "done"), STAGES)
def test_the_history_is_of_whole_batches_before_and_of_the_own_batch_what_finished(past: int, done: float) -> None:
    seen = known(series(BATCHES), 0, AT, past=earlier(past), done=done)
    counts: dict[str, int] = {}
    for each in seen.observations:
        counts[each.batch] = counts.get(each.batch, 0) + 1
    before = {f"batches/{number}": CONVERSATIONS for number in range(AT - earlier(past), AT)}
    own = {f"batches/{AT}": round(done * CONVERSATIONS)} if done else {}
    assert counts == before | own
    assert all(each.end_time and each.end_time <= seen.now for each in seen.observations)


def test_half_way_is_when_half_have_ended_and_the_next_are_in_flight_with_their_ages() -> None:
    seen = known(series(BATCHES), 0, AT, past=3, done=0.5)
    assert len(seen.finished) == CONVERSATIONS // 2
    assert seen.elapsed_s == sorted(call.end_s for call in BATCHES[AT].calls)[CONVERSATIONS // 2 - 1]
    assert len(seen.in_flight) == CONCURRENCY
    assert all(0 <= call.age_s < seen.elapsed_s for call in seen.in_flight)
    assert len(seen.finished) + len(seen.in_flight) + sum(seen.waiting.values()) == CONVERSATIONS


def test_before_the_start_all_wait() -> None:
    seen = known(series(BATCHES), 0, AT, past=3, done=0.0)
    assert (seen.waiting, seen.finished, seen.in_flight) == ({"chat": CONVERSATIONS}, (), ())


def test_a_sample_of_prompts_is_counted_only_where_no_batch_was_seen() -> None:
    cold = known(series(BATCHES), 0, AT, past=0, done=0.0)
    warm = known(series(BATCHES), 0, AT, past=1, done=0.0)
    always = known(replace(series(BATCHES), counts_prompts=True), 0, AT, past=1, done=0.0)
    assert (cold.counted, warm.counted, always.counted) == ({"chat": 102.0}, {}, {"chat": 102.0})


def test_each_row_has_only_batches_with_enough_before_them() -> None:
    found = trials.trials([series(BATCHES)])
    assert {(trial.past, trial.done) for trial in found} == set(STAGES)
    for trial in found:
        assert trial.batch >= (ALL_PAST_MIN if trial.past == ALL_PAST else trial.past)
    assert sum(trial.past == 10 for trial in found) == len(BATCHES) - 10


def test_a_row_of_too_many_trials_is_thinned_out_evenly() -> None:
    many = tuple(replace(BATCHES[0], name=f"batches/{number}") for number in range(4 * trials.TRIALS_MAX))
    cold = [trial.batch for trial in trials.trials([series(many)]) if (trial.past, trial.done) == (0, 0.0)]
    assert cold == list(range(0, 4 * trials.TRIALS_MAX, 4))
