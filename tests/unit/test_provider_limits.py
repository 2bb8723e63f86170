"""An account's rate limit against a provider's buckets: what is refused, what is used, how long all takes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_provider import Door, Provider, Story, calls_of, play

from orchestrator_service.domain.bucket import JITTER_S
from orchestrator_service.domain.rate_limit import RateLimit


def limit_of(requests_per_minute: int | None) -> RateLimit:
    return RateLimit(requests_per_minute=requests_per_minute, speed_up=1.0, now_s=0.0)


def told_of(provider: Provider, limit: RateLimit) -> RateLimit:
    told = provider.told(0.0)
    assert told is not None
    limit.learn(told, 0.0)
    return limit


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    per_minute=st.integers(30, 6_000),
    burst_s=st.floats(1, 60),
    level=st.floats(0, 1),
    answer_s=st.sampled_from([(0.0, 0.1), (0.5, 2.0), (10.0, 60.0)]),
    span_s=st.sampled_from([0.0, 5.0, 120.0]),
    concurrency=st.sampled_from([3, 40, 1_000]),
)
def test_a_provider_that_tells_its_limits_never_refuses(
    seed: int,
    per_minute: int,
    burst_s: float,
    level: float,
    answer_s: tuple[float, float],
    span_s: float,
    concurrency: int,
) -> None:
    door = Door(per_minute, burst_s, share=level)
    # Where one request is all that fits, what comes later than it was sent is refused whatever we do.
    transit_max_s = 0.0 if door.full < 2 else min(JITTER_S, int(door.full) / 2 / door.per_s)
    calls = calls_of(
        Random(seed), 150, span_s=span_s, transit_max_s=transit_max_s, answer_s=answer_s, output=(1_500, 3_500)
    )
    # Answers may be counted in another order than they were granted, by as much as they differ in length; a bucket
    # that holds less than what comes of that is empty at times.
    output = Door(per_minute * 4_000, max(burst_s, answer_s[1] + 12.0), share=level)
    provider = Provider(door, input=Door(per_minute * 3_000, burst_s + 12.0, share=level), output=output)
    story = play(calls, provider, told_of(provider, limit_of(None)), concurrency=concurrency)
    assert len(story.admitted_s) == 150
    assert story.refused_s == []


@pytest.mark.parametrize("burst_s", [1.0, 6.0, 60.0])
def test_all_that_a_provider_admits_is_used(burst_s: float) -> None:
    door = Door(600, burst_s)
    provider = Provider(door)
    story = play(calls_of(Random(1), 900, transit_max_s=0.05), provider, told_of(provider, limit_of(None)))
    ideal_s = (900 - door.full) / door.per_s
    assert story.admitted_s[-1] <= ideal_s * 1.01 + 0.2
    assert story.refused_s == []


def test_output_binds_where_it_is_what_lacks() -> None:
    provider = Provider(Door(600, 60), output=Door(230_000, 60))
    calls = calls_of(Random(1), 600, transit_max_s=0.1, reserved=2_500.0)
    story = play(calls, provider, told_of(provider, limit_of(None)))
    ideal_s = (sum(call.output_tokens for call in calls) - 230_000) / 230_000 * 60
    assert story.refused_s == []
    assert story.admitted_s[-1] <= ideal_s * 1.03


def test_answers_that_end_together_do_not_lead_to_refusals_at_a_small_bucket_of_output() -> None:
    rng = Random(5)
    provider = Provider(Door(100_000, 6), output=Door(300_000, 6))
    calls = calls_of(rng, 600, transit_max_s=0.02, answer_s=(30.0, 90.0), reserved=2_500.0)
    story = play(calls, provider, told_of(provider, limit_of(None)), retry_after=True)
    ideal_s = (sum(call.output_tokens for call in calls) - 30_000) / 5_000
    assert len(story.refused_s) <= 6
    assert story.admitted_s[-1] <= ideal_s * 1.15


def test_output_that_is_longer_than_estimated_costs_time_and_few_refusals() -> None:
    provider = Provider(Door(600, 60), output=Door(230_000, 60))
    calls = calls_of(Random(1), 600, transit_max_s=0.1, reserved=1_500.0)
    story = play(calls, provider, told_of(provider, limit_of(None)), retry_after=True)
    assert len(story.refused_s) <= 6


def test_after_a_restart_at_an_exhausted_provider_that_tells_so_nothing_is_refused() -> None:
    provider = Provider(Door(600, 60, share=0.0))
    story = play(calls_of(Random(1), 300, transit_max_s=0.1), provider, told_of(provider, limit_of(None)))
    assert story.refused_s == []
    assert story.admitted_s[-1] <= 300 / 10 * 1.05


def test_after_a_restart_at_an_exhausted_provider_only_the_first_in_flight_are_refused() -> None:
    provider = Provider(Door(600, 60, share=0.0))
    calls = calls_of(Random(1), 600, transit_max_s=0.1, answer_s=(1.0, 2.0))
    story = play(calls, provider, limit_of(600), concurrency=20, retry_after=True)
    assert len(story.refused_s) <= 20
    assert len(story.admitted_s) == 600


def test_a_limit_that_nobody_told_is_found() -> None:
    rng = Random(1)
    provider = Provider(Door(300, 60), tells=False)
    calls = calls_of(rng, 3_000, transit_max_s=0.1)
    story = play(calls, provider, limit_of(600), again_s=lambda: rng.uniform(0, 1))
    assert len(story.refused_s) < 3_000 * 0.05
    assert story.admitted_s[-1] <= 2_700 / 5 * 1.02


def refused_story(share: float, *, per_minute: int = 600, count: int = 3_000) -> Story:
    rng = Random(3)
    provider = Provider(Door(per_minute, 60), fault=lambda: "overload" if rng.random() < share else None)
    return play(calls_of(rng, count, transit_max_s=0.1), provider, told_of(provider, limit_of(None)))


@pytest.mark.parametrize(("per_minute", "count"), [(50, 600), (600, 3_000), (6_000, 6_000)])
def test_five_percent_of_random_overloads_cost_little(per_minute: int, count: int) -> None:
    story = refused_story(0.05, per_minute=per_minute, count=count)
    assert sum(story.share) / len(story.share) > 0.9
    assert min(story.share) > 0.5


def test_more_overloads_make_it_slower() -> None:
    story = refused_story(0.2)
    assert 0.1 < sum(story.share[2_000:]) / len(story.share[2_000:]) < 0.5
