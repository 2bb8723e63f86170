"""A workload's wall time: in the orchestrator's order, under limits, at a sandbox's pace; and which limit binds."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from estimator_service.domain.draws import Array, GroupDraws, draw, draw_batch
from estimator_service.domain.estimate import GroupEstimate, estimate_groups
from estimator_service.domain.history import NOTHING_SEEN, OVERHEAD_CALL_S
from estimator_service.domain.makespan import TURN_S, binding, makespan_s, work_of
from estimator_service.domain.rates import Rate
from estimator_service.domain.warnings import Kind
from estimator_service.domain.warnings import warnings as all_warnings
from estimator_service.domain.workload import Group, Limits, Workload

UNLIMITED = Limits()
OVERHEAD_S = OVERHEAD_CALL_S + TURN_S


def workload(*counts: int, concurrency: int = 3, limits: Limits = UNLIMITED, speed_up: float = 1.0) -> Workload:
    tiers = ("template", "scenario", "edge_case")
    groups = tuple(
        Group(id=tier, tier=tier, model="m", count=count) for tier, count in zip(tiers, counts, strict=False)
    )
    return Workload(groups=groups, concurrency=concurrency, limits=limits, speed_up=speed_up)


def estimates(of: Workload) -> tuple[GroupEstimate, ...]:
    return estimate_groups(of, {"m": Rate(model="m")}, NOTHING_SEEN)


def times(of: Workload, *, seed: int = 1) -> Array:
    figures = estimates(of)
    return makespan_s(of, figures, draw(figures, draw_batch(figures, seed=seed)), speed_up=of.speed_up)


def certain(count: int, *, seconds: float, calls: float = 1.0, output_tokens: float = 1_000.0) -> GroupDraws:
    shape = (2, count)
    return GroupDraws(
        scale=1.0,
        calls=np.full(shape, calls),
        fresh_input_tokens=np.full(shape, 2_000.0),
        output_tokens=np.full(shape, output_tokens),
        seconds=np.full(shape, seconds),
    )


def test_calls_take_their_seconds_and_what_is_around_them() -> None:
    asked = workload(4, concurrency=2)
    made = makespan_s(asked, estimates(asked), [certain(4, seconds=30, calls=2)], speed_up=1.0)
    assert made.tolist() == pytest.approx([2 * (30 + 2 * OVERHEAD_S)] * 2)


def test_a_sandbox_is_faster_limits_included_and_our_overhead_is_not() -> None:
    asked = workload(4, concurrency=4, limits=Limits(requests_per_minute=2))
    drawn = [certain(4, seconds=30)]
    real = makespan_s(asked, estimates(asked), drawn, speed_up=1.0)
    fast = makespan_s(asked, estimates(asked), drawn, speed_up=10.0)
    # Two start at once, the others 30 s and 60 s later; a quarter of a second of ours is never counted on.
    assert real.tolist() == pytest.approx([60 + 0.25 + 30 + OVERHEAD_S] * 2)
    assert fast.tolist() == pytest.approx([6 + 0.25 + 3 + OVERHEAD_S] * 2)


def test_tiers_start_in_the_orchestrators_order_whatever_is_known_of_them() -> None:
    asked = Workload(
        groups=tuple(
            Group(id=tier, tier=tier, model="m", count=1) for tier in ("template", "novel", "edge_case", "scenario")
        )
    )
    drawn = [certain(1, seconds=seconds) for seconds in (100, 2, 1, 4)]
    begun = work_of(asked, estimates(asked), drawn, speed_up=1.0).seconds[0] - OVERHEAD_S
    # Longest expected first; tiers of one's own are expected to be as long as a scenario.
    assert begun.tolist() == pytest.approx([1, 2, 4, 100])


def test_what_is_in_flight_keeps_its_place() -> None:
    asked = workload(2, concurrency=2)
    drawn = [certain(2, seconds=30)]
    made = makespan_s(asked, estimates(asked), drawn, speed_up=1.0, busy_s=np.array([[7.0], [100.0]]))
    assert made.tolist() == pytest.approx([7 + 30 + OVERHEAD_S, 100.0])


def test_a_batch_with_nothing_left_takes_as_long_as_what_is_in_flight() -> None:
    asked = workload(0, limits=Limits(output_tokens_per_minute=100))
    drawn = [certain(0, seconds=0)]
    assert makespan_s(asked, estimates(asked), drawn, speed_up=1.0, busy_s=np.array([[7.0], [3.0]])).tolist() == [7, 3]
    assert makespan_s(asked, estimates(asked), drawn, speed_up=1.0).tolist() == [0, 0]


def test_ninety_at_three_take_as_long_as_their_calls() -> None:
    asked = workload(30, 30, 30)
    figures = estimates(asked)
    busy_s = sum(each.group.count * each.conversation_duration_mean_s for each in figures)
    assert times(asked).mean() == pytest.approx(busy_s / 3, rel=0.08)


def test_more_conversations_take_longer() -> None:
    means = [times(workload(count)).mean() for count in (1, 10, 100, 1_000, 3_000, 30_000)]
    assert means == sorted(means)
    assert len(set(means)) == len(means)


def test_concurrency_speeds_up_until_a_limit_binds() -> None:
    limits = Limits(output_tokens_per_minute=20_000)
    drawn = [certain(300, seconds=90, output_tokens=3_000)]

    def mean(concurrency: int) -> float:
        asked = workload(300, concurrency=concurrency, limits=limits)
        return float(makespan_s(asked, estimates(asked), drawn, speed_up=1.0).mean())

    assert mean(1) == pytest.approx(300 * 90, rel=0.01)
    assert mean(3) == pytest.approx(100 * 90, rel=0.01)
    # 300 x 3,000 tokens at 20,000 a minute, less the minute that is there at the start.
    assert mean(30) == pytest.approx(44 * 60 + 90, rel=0.05)
    assert mean(100) == pytest.approx(mean(30), rel=0.01)


def test_every_kind_of_limit_slows_down() -> None:
    free = times(workload(60, concurrency=30)).mean()
    for limits in (
        Limits(requests_per_minute=5),
        Limits(input_tokens_per_minute=5_000),
        Limits(output_tokens_per_minute=5_000),
    ):
        assert times(workload(60, concurrency=30, limits=limits)).mean() > 1.5 * free


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    assert (times(workload(30)) == times(workload(30))).all()
    assert (times(workload(30)) != times(workload(30), seed=2)).any()


def test_the_binding_limit_is_named_with_the_concurrency_that_is_enough() -> None:
    limited = workload(90, concurrency=10, limits=Limits(requests_per_minute=1_000, output_tokens_per_minute=8_000))
    bound = binding(limited, estimates(limited))
    assert bound is not None
    assert bound.limit == "output tokens"
    narrower = workload(90, concurrency=bound.concurrency_enough, limits=limited.limits)
    assert times(narrower).mean() == pytest.approx(times(limited).mean(), rel=0.12)


def test_a_person_reads_which_limit_binds_and_what_would_be_as_fast() -> None:
    limited = workload(90, concurrency=10, limits=Limits(output_tokens_per_minute=5_000))
    told = all_warnings(
        limited,
        estimates(limited),
        cost_mean_nanos=0,
        time_mean_s=0.0,
        within_budget=None,
        now=datetime(2026, 11, 24, tzinfo=UTC),
    )
    (warning,) = [each for each in told if each.kind is Kind.LIMIT_BINDS]
    assert warning.message == "Output tokens a minute bind: 3 would be as fast as 10."


@pytest.mark.parametrize(
    "free",
    [
        workload(90, concurrency=10),
        workload(90, concurrency=1, limits=Limits(output_tokens_per_minute=8_000)),
        workload(1, concurrency=10, limits=Limits(output_tokens_per_minute=8_000)),
        workload(3, concurrency=3, limits=Limits(requests_per_minute=2)),
    ],
)
def test_no_limit_binds_where_less_concurrency_would_be_slower(free: Workload) -> None:
    assert binding(free, estimates(free)) is None
