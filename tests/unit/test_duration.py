"""Seconds of one call: the line through what was seen, and the level of a batch about it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulated_calls import batch, call, history

from estimator_service.domain.duration import FIRST_TOKEN_MIN_S, Line, Pace, estimate_pace
from estimator_service.domain.history import NOTHING_SEEN, CallSeen, Kind


def calls(
    *,
    first_token_s: float = 1.0,
    tokens_per_s: float = 36.0,
    streamed: bool = True,
    count: int = 60,
    log_sd: float = 0.03,
    tokens: tuple[float, float] = (500, 4_000),
) -> list[CallSeen]:
    rng = np.random.default_rng(1)
    sizes = rng.uniform(*tokens, count)
    took = (first_token_s + sizes / tokens_per_s) * np.exp(log_sd * rng.standard_normal(count))
    told = first_token_s if streamed else math.nan
    return [
        call(size, seconds=seconds, first_token_s=told)
        for size, seconds in zip(sizes.tolist(), took.tolist(), strict=True)
    ]


def expected_s(pace: Pace, output_tokens: float) -> float:
    return float(pace.line.seconds(np.array(output_tokens))) * pace.factor_mean


def test_a_call_takes_its_first_token_and_then_the_output_at_speed() -> None:
    assert Line().seconds(np.array([3_600.0])).tolist() == [101.0]


def test_the_prior_is_that_of_the_products_log() -> None:
    pace = estimate_pace(NOTHING_SEEN)
    assert pace.observations == 0
    # 62 s for 2,292 tokens.
    assert 60 < expected_s(pace, 2_292) < 66


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("first_token_s", "tokens_per_s"), [(1.0, 80.0), (4.0, 36.0), (12.0, 150.0)])
def test_the_line_finds_first_token_and_speed(streamed: bool, first_token_s: float, tokens_per_s: float) -> None:
    # Where calls are not streamed, only many of them tell the first token.
    count = 60 if streamed else 2_000
    seen = calls(first_token_s=first_token_s, tokens_per_s=tokens_per_s, streamed=streamed, count=count)
    pace = estimate_pace(history(seen))
    assert pace.line.first_token_s == pytest.approx(first_token_s, rel=0.01 if streamed else 0.15)
    assert pace.line.tokens_per_s == pytest.approx(tokens_per_s, rel=0.05)
    for tokens in (600, 2_000, 4_000):
        assert expected_s(pace, tokens) == pytest.approx(first_token_s + tokens / tokens_per_s, rel=0.04)
    assert pace.observations == count


def test_a_few_streamed_calls_do_not_set_the_first_token_alone() -> None:
    seen = [*calls(streamed=False), *(replace(each, first_token_s=20.0) for each in calls(count=4))]
    assert estimate_pace(history(seen)).line.first_token_s < 3


def test_one_call_moves_the_expected_seconds_a_part_of_the_way() -> None:
    pace = estimate_pace(history([call(3_600, seconds=202)]))
    assert 110 < expected_s(pace, 3_600) < 205


def test_answers_that_are_all_of_one_length_give_no_absurd_line() -> None:
    pace = estimate_pace(history(calls(tokens=(2_000, 2_000.001), tokens_per_s=72, streamed=False)))
    assert expected_s(pace, 2_000) == pytest.approx(1 + 2_000 / 72, rel=0.03)
    assert 20 < pace.line.tokens_per_s < 200
    assert 13 < expected_s(pace, 1_000) < 25


def test_answers_as_long_however_few_tokens_they_have_give_a_flat_line() -> None:
    seen = [call(size, seconds=30.0) for size in (100.0, 1_000.0, 4_000.0) * 100]
    pace = estimate_pace(history(seen))
    assert expected_s(pace, 100) == pytest.approx(30, rel=0.1)
    assert expected_s(pace, 4_000) == pytest.approx(30, rel=0.1)


def test_a_first_token_is_never_before_the_call() -> None:
    # Long answers took more than their share: the line would begin below 0.
    seen = [call(size, seconds=(size / 100) ** 1.5) for size in (500.0, 1_000.0, 4_000.0) * 10]
    assert estimate_pace(history(seen)).line.first_token_s == FIRST_TOKEN_MIN_S


def test_first_tokens_that_take_longer_than_their_calls_leave_a_finite_speed() -> None:
    seen = [call(1_000, seconds=10, first_token_s=100)] * 10
    pace = estimate_pace(history(seen))
    assert math.isfinite(expected_s(pace, 1_000))
    assert expected_s(pace, 1_000) == pytest.approx(10, rel=0.3)


def test_a_slow_call_now_and_then_is_part_of_the_mean() -> None:
    rng = np.random.default_rng(2)
    seen = [replace(each, seconds=each.seconds * (6 if rng.random() < 0.05 else 1)) for each in calls(count=1_000)]
    pace = estimate_pace(history(seen))
    steady = estimate_pace(history(calls(count=1_000)))
    # One in twenty takes six times as long: a quarter more in all.
    assert expected_s(pace, 2_000) == pytest.approx(1.25 * expected_s(steady, 2_000), rel=0.08)
    drawn = pace.factor.shapes[0].draw((200, 200), rng)
    assert 0.02 < np.mean(drawn > 3) < 0.08


@pytest.mark.parametrize(
    "useless",
    [
        call(2_000, seconds=math.nan),
        call(2_000, seconds=0.0),
        call(0, seconds=500),
        call(2_000, seconds=500, kind=Kind.CUT),
        call(2_000, seconds=500, kind=Kind.PAID_FAILURE),
        call(2_000, seconds=500, kind=Kind.FREE_FAILURE),
    ],
    ids=["untold", "at once", "empty", "cut", "paid for nothing", "not paid"],
)
def test_only_whole_answers_whose_time_is_known_tell_the_speed(useless: CallSeen) -> None:
    assert expected_s(estimate_pace(history([useless] * 20)), 2_000) == expected_s(estimate_pace(NOTHING_SEEN), 2_000)


def test_the_rest_of_a_batch_has_its_own_speed() -> None:
    rng = np.random.default_rng(3)
    past = [batch(f"b{at}", factor=(0.8, 1.25)[at % 2], rng=rng) for at in range(10)]
    seen = history(*past, batch("own", factor=1.6, rng=rng))
    rest, new = estimate_pace(seen, batch="own"), estimate_pace(seen)
    assert rest.factor_mean > 1.35 * new.factor_mean
    assert estimate_pace(seen, batch="unheard of").factor_mean == new.factor_mean


def test_the_tokens_of_a_call_follow_from_its_age() -> None:
    pace = estimate_pace(history(calls()))
    assert pace.tokens_by(np.array([0.0, 0.5])).tolist() == [0, 0]
    aged = pace.tokens_by(np.array([expected_s(pace, 1_800)]))
    assert aged[0] == pytest.approx(1_800, rel=0.001)
