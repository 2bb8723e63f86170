"""An account's rate limit: what it lets through, what it learns of the provider, what refusals do to it."""

from __future__ import annotations

import pytest

from orchestrator_service.domain.rate_limit import Amounts, Grant, PerMinute, RateLimit, Refusal, Told

REQUEST: Amounts = (1.0, 0.0, 0.0)
UNTOLD = (None, None)


def limit_of(requests_per_minute: int | None = 600, *, speed_up: float = 1.0) -> RateLimit:
    return RateLimit(requests_per_minute=requests_per_minute, speed_up=speed_up, now_s=0.0)


def requests(limit: int | None, remaining: int | None = None) -> Told:
    return (limit, remaining), UNTOLD, UNTOLD


def output(limit: int, remaining: int) -> Told:
    return UNTOLD, UNTOLD, (limit, remaining)


def taken(limit: RateLimit, amounts: Amounts = REQUEST, *, now_s: float = 0.0) -> list[Grant]:
    """All that can be had at this moment."""
    grants: list[Grant] = []
    while len(grants) < 10_000 and (grant := limit.take(amounts, now_s)):
        grants.append(grant)
    return grants


def settled(
    limit: RateLimit,
    grant: Grant,
    *,
    now_s: float,
    told: Told | None = None,
    refusal: Refusal | None = None,
    output_tokens: int | None = None,
    input_tokens: int | None = None,
) -> None:
    limit.settle(grant, input_tokens=input_tokens, output_tokens=output_tokens, told=told, refusal=refusal, now_s=now_s)


# A bucket by itself.


def test_a_small_burst_goes_at_once_and_the_rest_at_the_full_rate() -> None:
    limit = limit_of(600)
    assert len(taken(limit)) == 60
    assert limit.wait_s(REQUEST, 0.0) == pytest.approx(0.1)
    assert sum(len(taken(limit, now_s=tenths / 10)) for tenths in range(1, 601)) == 600


def test_one_request_fits_however_low_the_limit_is() -> None:
    limit = limit_of(1)
    assert len(taken(limit)) == 1
    assert len(taken(limit, now_s=59.0)) == 0
    assert len(taken(limit, now_s=60.0)) == 1
    assert len(taken(limit, now_s=600.0)) == 1


def test_without_a_setting_it_begins_at_fifty_a_minute() -> None:
    limit = limit_of(None)
    assert limit.per_minute() == PerMinute(requests=50, input_tokens=None, output_tokens=None)
    assert len(taken(limit, (1.0, 1e9, 1e9))) == 5


def test_a_setting_of_zero_latency_never_waits() -> None:
    assert len(taken(limit_of(4_000, speed_up=1e6), now_s=1e-3)) > 300
    assert limit_of(4_000, speed_up=1e6).wait_s(REQUEST, 0.0, ahead=(5_000.0, 0, 0)) < 1e-3


def test_all_three_limits_hold_at_once() -> None:
    limit = limit_of(600)
    limit.learn(((600, 600), (60_000, 60_000), (6_000, 5_525)), 0.0)
    amounts = (1.0, 1_000.0, 1_000.0)
    assert len(taken(limit, amounts)) == 5
    # Output is what lacks: 500 at 100 a second.
    assert limit.wait_s(amounts, 0.0) == pytest.approx(5.0)


def test_what_is_larger_than_the_burst_waits_until_so_much_is_there_and_costs_no_rate() -> None:
    limit = limit_of(600)
    limit.learn(output(6_000, 0), 0.0)
    amounts = (1.0, 0.0, 3_000.0)
    assert limit.take(amounts, 0.0) is None
    assert limit.wait_s(amounts, 0.0) == pytest.approx(30.0)
    assert [len(taken(limit, amounts, now_s=float(second))) for second in (29, 30, 59, 60, 90)] == [0, 1, 0, 1, 1]


def test_what_is_larger_than_a_minutes_worth_goes_once_that_is_there() -> None:
    limit = limit_of(600)
    limit.learn(output(6_000, 0), 0.0)
    amounts = (1.0, 0.0, 9_000.0)
    assert len(taken(limit, amounts, now_s=59.0)) == 0
    assert len(taken(limit, amounts, now_s=60.0)) == 1
    # It owes what it took too much.
    assert limit.wait_s(amounts, 60.0) == pytest.approx(90.0)


def test_a_call_that_is_not_made_leaves_no_trace() -> None:
    limit = limit_of(600)
    for grant in taken(limit):
        limit.give_back(grant)
    assert len(taken(limit)) == 60


def test_a_place_given_back_above_the_burst_is_kept_too() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    limit.give_back(taken(limit)[0])
    grants = taken(limit)
    assert len(grants) == 1
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    grant = limit.take(REQUEST, 0.0)
    assert grant
    limit.give_back(grant)
    assert len(taken(limit)) == 597


@pytest.mark.parametrize(("actual", "wait_s"), [(1_000, 0.0), (3_000, 10.0), (None, 0.0), (0, 0.0)])
def test_the_truth_takes_the_place_of_the_estimate(actual: int | None, wait_s: float) -> None:
    limit = limit_of(600)
    limit.learn(((600, 600), (6_000, 4_000), (6_000, 4_000)), 0.0)
    amounts = (1.0, 2_000.0, 2_000.0)
    grant = limit.take(amounts, 0.0)
    assert grant
    settled(limit, grant, now_s=0.0, input_tokens=actual, output_tokens=actual)
    # 4,000 less a margin of 25; what is left is 2,000 where it was as estimated.
    rest = (1.0, 1_975.0, 1_975.0)
    assert limit.wait_s(rest, 0.0) == pytest.approx(wait_s, abs=0.01)


# What the provider tells.


def test_the_announced_limit_takes_the_place_of_the_start() -> None:
    limit = limit_of(None)
    limit.learn(((4_000, None), (2_000_000, None), (400_000, None)), 0.0)
    assert limit.per_minute() == PerMinute(requests=4_000, input_tokens=2_000_000, output_tokens=400_000)
    limit.learn(requests(3_000), 0.0)
    assert limit.per_minute().requests == 3_000
    limit.learn(requests(0, 0), 0.0)
    assert limit.per_minute() == PerMinute(requests=3_000, input_tokens=2_000_000, output_tokens=400_000)


def test_what_the_bucket_of_another_limit_held_says_nothing() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    limit.learn(requests(60, 3), 1.0)
    # Three, less a margin; a minute later it may hold more than that, and nobody said so.
    assert len(taken(limit, now_s=61.0)) == 2


def test_the_operators_own_setting_is_never_passed() -> None:
    limit = limit_of(100)
    limit.learn(requests(4_000, 4_000), 0.0)
    assert limit.per_minute().requests == 100
    assert len(taken(limit)) == 10
    limit.learn(requests(50), 0.0)
    assert limit.per_minute().requests == 50


def test_announced_limits_are_by_our_clock_and_settings_by_real_time() -> None:
    limit = limit_of(4_000, speed_up=40.0)
    assert limit.per_minute().requests == 4_000
    limit.learn(((24_000, None), UNTOLD, (16_000_000, None)), 0.0)
    assert limit.per_minute() == PerMinute(requests=600, input_tokens=None, output_tokens=400_000)
    limit.rescale(speed_up=80.0, now_s=0.0)
    assert limit.per_minute().requests == 300


def test_a_faster_clock_makes_the_rest_of_the_wait_shorter() -> None:
    limit = limit_of(60)
    taken(limit)
    assert limit.wait_s(REQUEST, 0.0) == pytest.approx(1.0)
    limit.rescale(speed_up=10.0, now_s=0.5)
    assert limit.wait_s(REQUEST, 0.5) == pytest.approx(0.05)


def test_what_the_provider_says_it_has_may_all_be_used_at_once() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    assert len(taken(limit)) == 597
    # Told again while they are on their way: nothing is there twice.
    limit.learn(requests(600, 600), 0.1)
    assert len(taken(limit, now_s=0.1)) <= 1


def test_what_others_used_is_not_ours() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    grant = limit.take(REQUEST, 0.0)
    assert grant
    settled(limit, grant, now_s=1.0, told=requests(600, 20))
    # It told 20 at some time in that second, rounded down, and ten more have come since.
    assert len(taken(limit, now_s=1.0)) == 31


def test_what_is_left_of_an_unknown_limit_says_nothing() -> None:
    limit = limit_of(None)
    limit.learn((UNTOLD, UNTOLD, (None, 0)), 0.0)
    assert limit.take((1.0, 0.0, 1e6), 0.0)


def test_output_in_flight_is_not_counted_yet_and_not_free() -> None:
    limit = limit_of(None)
    limit.learn(((600, 600), UNTOLD, (60_000, 60_000)), 0.0)
    grants = [limit.take((1.0, 0.0, 3_000.0), 0.0) for _ in range(10)]
    # Nothing has been counted at the provider, which says so; 30,000 are still to come.
    limit.learn(output(60_000, 60_000), 1.0)
    assert len(taken(limit, (1.0, 0.0, 3_000.0), now_s=1.0)) == 9
    assert all(grants)


def test_what_was_granted_a_moment_ago_may_not_be_counted_yet() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    assert limit.take(REQUEST, 0.0)
    for _ in range(99):
        assert limit.take(REQUEST, 0.45)
    limit.learn(requests(600, 600), 0.6)
    assert len(taken(limit, now_s=0.6)) == 497


def test_what_answers_used_less_than_estimated_is_not_in_flight_any_more() -> None:
    limit = limit_of(None)
    limit.learn(output(60_000, 60_000), 0.0)
    grant = limit.take((1.0, 0.0, 30_000.0), 0.0)
    assert grant
    settled(limit, grant, now_s=1.0, output_tokens=1_000)
    limit.learn(output(60_000, 1_000), 2.0)
    limit.learn(output(60_000, 50_000), 3.0)
    assert limit.take((1.0, 0.0, 49_000.0), 3.0)


def test_while_the_provider_has_no_output_left_nothing_is_sent() -> None:
    limit = limit_of(None)
    limit.learn(output(60_000, 60_000), 0.0)
    amounts = (1.0, 0.0, 10_000.0)
    first, second = (limit.take(amounts, 0.0) for _ in range(2))
    assert first
    assert second
    # Ours would have 30,000; others used the rest of theirs.
    settled(limit, first, now_s=60.0, output_tokens=10_000, told=output(60_000, 0))
    assert limit.wait_s(amounts, 60.0) == pytest.approx(0.1, abs=0.01)
    settled(limit, second, now_s=60.0, output_tokens=10_000, told=output(60_000, 0))
    assert limit.take(amounts, 69.9) is None
    assert limit.wait_s(amounts, 60.0) == pytest.approx(10.1, abs=0.01)
    assert limit.take(amounts, 70.2)


def test_a_limit_first_heard_of_counts_what_is_in_flight_already() -> None:
    limit = limit_of(600)
    for _ in range(3):
        assert limit.take((1.0, 0.0, 3_000.0), 0.0)
    limit.learn(output(60_000, 60_000), 0.0)
    assert len(taken(limit, (1.0, 0.0, 3_000.0))) == 16


def test_more_input_than_estimated_counts_against_what_the_provider_has_left() -> None:
    limit = limit_of(None)
    limit.learn(((6_000, 6_000), (60_000, 60_000), UNTOLD), 0.0)
    first = limit.take((1.0, 10.0, 0.0), 0.0)
    assert first
    settled(limit, first, now_s=0.1, input_tokens=50_000)
    # This was told before the 50,000 were counted, for all that is known.
    limit.learn((UNTOLD, (60_000, 60_000), UNTOLD), 0.1)
    assert len(taken(limit, (1.0, 1_000.0, 0.0), now_s=0.1)) == 9


# Refusals.


def test_refusals_lower_the_rate_by_their_share_and_it_comes_back_slowly() -> None:
    limit = limit_of(600)
    grants = taken(limit)
    for index, grant in enumerate(grants):
        settled(limit, grant, now_s=1.0, refusal=Refusal("rate") if index % 3 == 0 else None)
    assert limit.share == 1.0
    assert limit.wait_s(REQUEST, 5.0) == 0
    assert limit.share == pytest.approx(2 / 3)
    # The burst is as much smaller as the rate.
    assert len(taken(limit, now_s=5.0)) == 40
    limit.wait_s(REQUEST, 10.0)
    assert limit.share == pytest.approx(2 / 3 + 0.025)
    limit.wait_s(REQUEST, 100.0)
    assert limit.share == 1.0


def test_the_rate_never_falls_below_a_twentieth() -> None:
    limit = limit_of(600)
    for second in range(600):
        for grant in taken(limit, now_s=float(second)):
            settled(limit, grant, now_s=second + 0.1, refusal=Refusal("rate"))
    assert limit.share == 0.05


def test_one_refusal_among_few_calls_proves_little() -> None:
    limit = limit_of(600)
    grant = limit.take(REQUEST, 0.0)
    assert grant
    settled(limit, grant, now_s=1.0, refusal=Refusal("rate"))
    limit.wait_s(REQUEST, 5.0)
    assert limit.share == pytest.approx(0.8)


def test_refusals_of_calls_from_before_the_rate_was_lowered_do_not_lower_it_again() -> None:
    limit = limit_of(600)
    grants = taken(limit)
    for grant in grants[:30]:
        settled(limit, grant, now_s=4.0, refusal=Refusal("rate"))
    for grant in grants[30:]:
        settled(limit, grant, now_s=5.0, refusal=Refusal("rate"))
    assert limit.share == pytest.approx(0.5)
    limit.wait_s(REQUEST, 10.0)
    assert limit.share == pytest.approx(0.525)


def test_a_refused_call_empties_the_bucket_once_for_all_that_went_with_it() -> None:
    limit = limit_of(600)
    grants = [limit.take(REQUEST, 0.0) for _ in range(20)]
    for at_s, grant in enumerate(grants):
        assert grant
        settled(limit, grant, now_s=1.0 + at_s / 100, refusal=Refusal("rate"))
    # Nothing came back, and nothing was taken a second time: it refills since the first.
    assert len(taken(limit, now_s=3.0)) == 20


def test_only_what_the_provider_says_is_used_up_is_emptied() -> None:
    limit = limit_of(600)
    limit.learn(((600, 600), UNTOLD, (60_000, 60_000)), 0.0)
    grant = limit.take((1.0, 0.0, 100.0), 0.0)
    assert grant
    told = ((600, 500), UNTOLD, (60_000, 0))
    settled(limit, grant, now_s=0.1, told=told, refusal=Refusal("rate"))
    assert limit.take((1.0, 0.0, 500.0), 0.1) is None
    assert limit.take((1.0, 0.0, 500.0), 0.3) is None
    assert len(taken(limit, now_s=0.3)) > 400


def test_an_overloaded_provider_counted_request_and_input_and_no_output() -> None:
    limit = limit_of(600)
    limit.learn(((600, 10), (60_000, 60_000), (60_000, 60_000)), 0.0)
    grant = limit.take((1.0, 20_000.0, 20_000.0), 0.0)
    assert grant
    settled(limit, grant, now_s=0.0, refusal=Refusal("overload"))
    assert limit.take((1.0, 45_000.0, 0.0), 0.0) is None
    assert limit.take((1.0, 0.0, 55_000.0), 0.0)
    # Ten were there, less a margin of 2.5.
    assert len(taken(limit)) == 5


@pytest.mark.parametrize(
    ("speed_up", "told_s", "stop_s"), [(1.0, 7.0, 7.0), (1.0, 900.0, 120.0), (40.0, 900.0, 3.0), (1e6, 0.5, 0.5)]
)
def test_nothing_goes_before_the_time_that_the_server_named(speed_up: float, told_s: float, stop_s: float) -> None:
    limit = limit_of(600, speed_up=speed_up)
    first, second = (limit.take(REQUEST, 0.0) for _ in range(2))
    assert first
    assert second
    settled(limit, first, now_s=1.0, refusal=Refusal("overload", told_s))
    # A shorter one does not take it back.
    settled(limit, second, now_s=1.0, refusal=Refusal("rate", stop_s / 2))
    assert limit.wait_s(REQUEST, 1.0) == pytest.approx(stop_s, abs=0.2)
    assert limit.take(REQUEST, 1.0 + stop_s * 0.99) is None
    assert limit.take(REQUEST, 1.2 + stop_s)


def test_while_refusals_hold_it_back_a_burst_does_not_go_around_them() -> None:
    limit = limit_of(None)
    limit.learn(requests(600, 600), 0.0)
    for index in range(10):
        grant = limit.take(REQUEST, 0.0)
        assert grant
        refusal = Refusal("overload") if index < 5 else None
        settled(limit, grant, now_s=1.0, told=requests(600, 600), refusal=refusal)
    limit.learn(requests(600, 600), 5.0)
    assert limit.share == pytest.approx(0.775)
    assert len(taken(limit, now_s=5.0)) == 46


def test_after_overloads_silence_is_no_proof_that_they_are_over() -> None:
    limit = limit_of(600)
    for grant in taken(limit):
        settled(limit, grant, now_s=1.0, refusal=Refusal("overload", 100.0))
    limit.wait_s(REQUEST, 100.0)
    assert limit.share == pytest.approx(0.525)
