"""Seconds of one call, and how observed speed moves the prior."""

from __future__ import annotations

import math

from estimator_service.domain.duration import OVERHEAD_CALL_S, Pace, PaceSeen, call_duration_s, estimate_pace


def seen(calls: int, *, tokens_per_s: float, first_token_s: float = 1.0, speed_up: float = 1.0) -> PaceSeen:
    """Calls of 2,000 tokens as a provider of that speed-up shows them, streamed."""
    each_s = first_token_s + 2_000 / tokens_per_s + OVERHEAD_CALL_S * speed_up
    return PaceSeen(
        calls=calls,
        output_tokens=2_000 * calls,
        seconds=calls * each_s,
        speed_ups=calls * speed_up,
        first_token_calls=calls,
        first_token_s=calls * first_token_s,
    )


def test_a_call_takes_its_first_token_and_then_the_output_at_speed() -> None:
    assert call_duration_s(Pace(), output_tokens=3_600) == 101


def test_the_prior_is_that_of_the_products_log() -> None:
    # 62 s for 2,292 tokens.
    assert 60 < call_duration_s(estimate_pace(None), output_tokens=2_292) < 66


def test_four_observations_change_nothing() -> None:
    assert estimate_pace(seen(4, tokens_per_s=72)) == Pace()


def test_ten_observations_weigh_as_much_as_the_prior() -> None:
    pace = estimate_pace(seen(10, tokens_per_s=72))
    assert math.isclose(pace.tokens_per_s, (36 + 72) / 2)
    assert pace.observations == 10


def test_the_first_token_is_learned_where_calls_were_streamed() -> None:
    assert math.isclose(estimate_pace(seen(10, tokens_per_s=36, first_token_s=3)).first_token_s, 2)


def test_calls_that_were_not_streamed_still_tell_the_speed() -> None:
    unstreamed = PaceSeen(calls=10, output_tokens=20_000, seconds=10 * (1 + 100) + 0.1, speed_ups=10)
    pace = estimate_pace(unstreamed)
    assert pace.first_token_s == 1
    assert math.isclose(pace.tokens_per_s, (36 + 20) / 2)


def test_our_own_overhead_is_not_taken_for_a_slow_sandbox() -> None:
    at_real_speed = estimate_pace(seen(50, tokens_per_s=36))
    at_forty_times = estimate_pace(seen(50, tokens_per_s=36, speed_up=40))
    assert math.isclose(at_real_speed.tokens_per_s, at_forty_times.tokens_per_s)


def test_answers_as_short_as_their_first_token_tell_nothing_about_speed() -> None:
    at_once = PaceSeen(calls=20, output_tokens=40_000, seconds=0.0, speed_ups=20)
    assert estimate_pace(at_once) == Pace()
