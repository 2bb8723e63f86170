"""The sliding window against the bounds of list scheduling, and what the limits do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain.draws import CONVERSATIONS_MAX, DRAWS, Array, draw
from estimator_service.domain.estimate import GroupEstimate, History, TokensKey, estimate_groups
from estimator_service.domain.makespan import Demand, Limit, Work, binding, bounded_s, makespan_s, walked_s
from estimator_service.domain.rates import Rate
from estimator_service.domain.tokens import TokensSeen
from estimator_service.domain.workload import Group, Limits, Workload

UNLIMITED = Limits()


def workload(*counts: int, concurrency: int = 3, limits: Limits = UNLIMITED, speed_up: float = 1.0) -> Workload:
    tiers = ("template", "scenario", "edge_case")
    groups = tuple(
        Group(id=tier, tier=tier, model="m", count=count) for tier, count in zip(tiers, counts, strict=False)
    )
    return Workload(groups=groups, concurrency=concurrency, limits=limits, speed_up=speed_up)


def estimates(of: Workload) -> tuple[GroupEstimate, ...]:
    return estimate_groups(of, {"m": Rate(model="m", known=False)}, History())


def times(of: Workload, *, seed: int = 1) -> Array:
    figures = estimates(of)
    return makespan_s(of, figures, draw(figures, seed=seed), speed_up=of.speed_up)


def work(*seconds: float, demands: tuple[Demand, ...] = ()) -> Work:
    return Work(seconds=np.array([seconds]), scale=np.ones(len(seconds)), demands=demands)


def demand(*amounts: float, capacity: float, per_second: float) -> Demand:
    return Demand(limit=Limit(name="tokens", capacity=capacity, per_second=per_second), amounts=np.array([amounts]))


def test_one_slot_does_one_after_the_other() -> None:
    assert walked_s(work(5, 4, 3), slots=1).tolist() == [12]


def test_a_slot_takes_the_next_as_soon_as_it_is_free() -> None:
    # 6 and 5 start; 4 follows 5, 3 follows 6: never a wave.
    assert walked_s(work(6, 5, 4, 3), slots=2).tolist() == [9]


def test_as_many_slots_as_conversations_take_the_longest() -> None:
    assert walked_s(work(6, 5, 4), slots=3).tolist() == [6]


def test_a_full_bucket_delays_nobody_and_an_empty_one_delays_by_its_refill() -> None:
    full = demand(10, 10, 10, capacity=30, per_second=1)
    assert walked_s(work(1, 1, 1, demands=(full,)), slots=3).tolist() == [1]
    empty = demand(10, 10, 10, capacity=20, per_second=1)
    assert walked_s(work(1, 1, 1, demands=(empty,)), slots=3).tolist() == [11]


def test_what_is_larger_than_the_bucket_waits_for_a_full_one() -> None:
    larger = demand(10, 50, capacity=20, per_second=1)
    assert walked_s(work(1, 1, demands=(larger,)), slots=2).tolist() == [11]


def test_a_bucket_does_not_fill_beyond_its_capacity() -> None:
    # After 100 s there are 20 again, not 110: the third waits for another 10.
    idle = demand(10, 20, 10, capacity=20, per_second=1)
    assert walked_s(work(100, 1, 1, demands=(idle,)), slots=1).tolist() == [100 + 1 + 9 + 1]


@pytest.mark.parametrize("concurrency", [1, 3, 10, 90, 200])
def test_the_time_is_never_under_the_bounds_of_list_scheduling(concurrency: int) -> None:
    seconds = np.random.default_rng(3).lognormal(4, 0.5, (20, 90))
    simulated = walked_s(Work(seconds=seconds, scale=np.ones(90)), slots=min(concurrency, 90))
    slots = min(concurrency, 90)
    average, longest = seconds.sum(axis=1) / slots, seconds.max(axis=1)
    assert (simulated >= np.maximum(average, longest) - 1e-9).all()
    assert (simulated <= average + longest).all()


@pytest.mark.parametrize("concurrency", [1, 10, 100])
def test_the_bound_for_large_workloads_is_what_the_walk_would_say(concurrency: int) -> None:
    seconds = np.random.default_rng(3).lognormal(4, 0.36, (DRAWS, 1_500))
    both = Work(seconds=seconds, scale=np.ones(1_500))
    walked = walked_s(both, slots=concurrency).mean()
    bounded = bounded_s(both, slots=concurrency, rng=np.random.default_rng(1)).mean()
    assert abs(bounded / walked - 1) < 0.02


def test_the_bound_knows_the_limits_too() -> None:
    amounts = np.full((DRAWS, 1_500), 100.0)
    limit = Limit(name="tokens", capacity=1_000, per_second=10)
    limited = Work(
        seconds=np.full((DRAWS, 1_500), 10.0), scale=np.ones(1_500), demands=(Demand(limit=limit, amounts=amounts),)
    )
    walked = walked_s(limited, slots=50).mean()
    bounded = bounded_s(limited, slots=50, rng=np.random.default_rng(1)).mean()
    assert abs(bounded / walked - 1) < 0.02


def test_ninety_at_three_take_about_half_an_hour_to_an_hour() -> None:
    # 30 each of 3,000, 4,000 and 5,000 tokens at 36 a second: 90 x 112 s / 3 and 3 % of repeats.
    assert math.isclose(times(workload(30, 30, 30)).mean(), 90 * 112 / 3 * 1.03, rel_tol=0.04)


def test_the_longest_expected_start_first_in_whatever_order_they_are_asked_for() -> None:
    short = Group(id="short", tier="template", model="m", count=30)
    long = Group(id="long", tier="novel", model="m", count=3)
    asked = Workload(groups=(short, long), concurrency=4)
    seen = TokensSeen(calls=10**9, input_tokens_mean=1, output_tokens_mean=20_000)
    history = History(tokens={TokensKey(tier="novel", model="m", turn_by_turn=False): seen})
    figures = estimate_groups(asked, {"m": Rate(model="m")}, history)
    drawn = draw(figures, seed=1)
    busy = sum(group.seconds.sum(axis=1) for group in drawn) / 4
    # Short ones first would take over 1.2 of it: 630 s of them, and then the longest of three of about 560 s.
    assert (makespan_s(asked, figures, drawn, speed_up=1.0) / busy).mean() < 1.1


def test_more_conversations_take_longer() -> None:
    means = [times(workload(count)).mean() for count in (1, 10, 100, 1_000, 3_000, 30_000)]
    assert means == sorted(means)
    assert len(set(means)) == len(means)


def test_no_conversation_takes_no_time() -> None:
    assert times(workload(0)).max() == 0


def test_concurrency_speeds_up_until_a_limit_binds() -> None:
    limits = Limits(output_tokens_per_minute=20_000)
    means = [times(workload(300, concurrency=each, limits=limits)).mean() for each in (1, 3, 8, 30, 100)]
    assert math.isclose(means[0] / means[1], 3, rel_tol=0.1)
    assert means[1] > means[2]
    # 300 x 3,093 tokens at 20,000 a minute, less the minute that is there at the start.
    assert math.isclose(means[3], (300 * 3_093 - 20_000) / 20_000 * 60, rel_tol=0.06)
    assert math.isclose(means[4], means[3], rel_tol=0.02)


def test_every_kind_of_limit_slows_down() -> None:
    free = times(workload(60, concurrency=30)).mean()
    for limits in (
        Limits(requests_per_minute=5),
        Limits(input_tokens_per_minute=5_000),
        Limits(output_tokens_per_minute=5_000),
    ):
        assert times(workload(60, concurrency=30, limits=limits)).mean() > 1.5 * free


def test_a_sandbox_is_faster_by_its_speed_up_limits_included() -> None:
    limits = Limits(output_tokens_per_minute=20_000)
    real = times(workload(60, concurrency=30, limits=limits)).mean()
    fast = times(workload(60, concurrency=30, limits=limits, speed_up=40)).mean()
    assert math.isclose(real / fast, 40, rel_tol=0.02)


def test_our_overhead_stays_however_fast_the_sandbox_is() -> None:
    assert times(workload(100, concurrency=1, speed_up=1e9)).mean() > 1.0


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    assert (times(workload(30)) == times(workload(30))).all()
    assert (times(workload(30)) != times(workload(30), seed=2)).any()


def test_large_groups_are_sampled_and_small_ones_beside_them_kept() -> None:
    drawn = draw(estimates(workload(1_000_000, 3, 0)), seed=1)
    assert [group.seconds.shape[1] for group in drawn] == [CONVERSATIONS_MAX, 3, 0]
    assert [group.scale for group in drawn] == [500, 1, 0]


def test_the_binding_limit_is_named_with_the_concurrency_that_is_enough() -> None:
    limited = workload(90, concurrency=10, limits=Limits(requests_per_minute=1_000, output_tokens_per_minute=8_000))
    bound = binding(limited, estimates(limited))
    assert bound is not None
    assert bound.limit == "output tokens"
    narrower = workload(90, concurrency=bound.concurrency_enough, limits=limited.limits)
    assert math.isclose(times(narrower).mean(), times(limited).mean(), rel_tol=0.12)


@pytest.mark.parametrize(
    "free",
    [
        workload(90, concurrency=10),
        workload(90, concurrency=2, limits=Limits(output_tokens_per_minute=8_000)),
        workload(1, concurrency=10, limits=Limits(output_tokens_per_minute=8_000)),
        workload(3, concurrency=3, limits=Limits(requests_per_minute=2)),
    ],
)
def test_no_limit_binds_where_less_concurrency_would_be_slower(free: Workload) -> None:
    assert binding(free, estimates(free)) is None
