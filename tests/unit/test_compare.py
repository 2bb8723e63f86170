"""Quote and outcome side by side: causes that add up, whatever was quoted and whatever was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator_service.domain.compare import (
    Actual,
    CallsSeen,
    Quoted,
    QuotedGroup,
    Variance,
    by_cause,
    by_group,
    first_difference,
)
from estimator_service.domain.observation import Outcome

CAUSES = ["tokens", "price", "failures", "speed", "waiting"]
# 100 calls of 1,000 tokens and 10 s, one after the other twice as fast: 500 s of wall time and 10 dollars.
DOLLAR = 1_000_000_000


def group(**changes: Any) -> QuotedGroup:
    figures: dict[str, Any] = {
        "id": "g",
        "tier": "template",
        "model": "m",
        "cost_nanos": 10 * DOLLAR,
        "calls": 100.0,
        "output_tokens": 100_000.0,
        "seconds": 1_000.0,
        "failure_share": 0.0,
    }
    return QuotedGroup(**(figures | changes))


def quote(*groups: QuotedGroup, time_s: float = 500.0) -> Quoted:
    given_groups = groups or (group(),)
    return Quoted(cost_nanos=sum(each.cost_nanos for each in given_groups), time_s=time_s, groups=given_groups)


def actual(*, cost: int = 10 * DOLLAR, seconds: float = 500.0, **more: Any) -> Actual:
    figures: dict[str, Any] = {"cost_at_quoted_nanos": None, "conversations": 100, "cost_by_group": {}}
    return Actual(cost_nanos=cost, duration=timedelta(seconds=seconds), **(figures | more))


def calls(**changes: Any) -> CallsSeen:
    figures: dict[str, Any] = {
        "tier": "template",
        "model": "m",
        "outcome": Outcome.ANSWERED,
        "calls": 100,
        "output_tokens": 100_000,
        "seconds": 1_000.0,
        "first_token_calls": 0,
        "first_token_s": 0.0,
        "cost_nanos": 10 * DOLLAR,
    }
    return CallsSeen(**(figures | changes))


def causes(quoted: Quoted, ended: Actual, *seen: CallsSeen) -> dict[str, Variance]:
    found = by_cause(quoted, ended, seen)
    assert [each.cause for each in found] == CAUSES
    assert sum(each.cost_nanos for each in found) == ended.cost_nanos - quoted.cost_nanos
    assert math.isclose(
        sum(each.seconds for each in found), ended.duration.total_seconds() - quoted.time_s, abs_tol=1e-6
    )
    return {each.cause: each for each in found}


def changed(found: dict[str, Variance]) -> dict[str, tuple[int, float]]:
    """Those that are not nothing, in dollars and seconds."""
    rounded = {cause: (each.cost_nanos // DOLLAR, round(each.seconds, 6)) for cause, each in found.items()}
    return {cause: pair for cause, pair in rounded.items() if pair != (0, 0.0)}


def test_what_came_as_quoted_has_no_cause() -> None:
    assert changed(causes(quote(), actual(), calls())) == {}


def test_more_tokens_at_the_quoted_speed_are_tokens() -> None:
    seen = calls(output_tokens=120_000, seconds=1_200.0)
    assert changed(causes(quote(), actual(cost=12 * DOLLAR, seconds=600.0), seen)) == {"tokens": (2, 100.0)}


def test_the_first_token_takes_its_time_whatever_the_tokens() -> None:
    # 2 s to the first token and 8 s for 1,000 more: a fifth more tokens are 9.6 s instead.
    seen = calls(output_tokens=120_000, seconds=1_160.0, first_token_calls=100, first_token_s=200.0)
    assert changed(causes(quote(), actual(seconds=580.0), seen)) == {"tokens": (0, 80.0)}


def test_more_calls_of_the_same_size_are_tokens() -> None:
    seen = calls(calls=120, output_tokens=120_000, seconds=1_200.0, first_token_calls=120, first_token_s=240.0)
    assert changed(causes(quote(), actual(seconds=600.0), seen)) == {"tokens": (0, 100.0)}


def test_slower_calls_are_speed() -> None:
    seen = calls(seconds=1_500.0)
    assert changed(causes(quote(), actual(seconds=750.0), seen)) == {"speed": (0, 250.0)}


def test_a_later_first_token_is_speed() -> None:
    seen = calls(seconds=1_300.0, first_token_calls=100, first_token_s=500.0)
    assert changed(causes(quote(), actual(seconds=650.0), seen)) == {"speed": (0, 150.0)}


def test_a_first_token_later_than_the_quoted_call_is_speed_too() -> None:
    seen = calls(output_tokens=60_000, seconds=3_000.0, first_token_calls=100, first_token_s=2_500.0)
    assert changed(causes(quote(), actual(seconds=1_500.0), seen)) == {"speed": (0, 1_000.0)}


def test_time_that_no_call_took_is_waiting() -> None:
    assert changed(causes(quote(), actual(seconds=900.0), calls())) == {"waiting": (0, 400.0)}


def test_calls_that_were_refused_for_now_are_waiting() -> None:
    seen = (calls(), calls(outcome=Outcome.LIMITED, calls=50, seconds=60.0, output_tokens=0, cost_nanos=0))
    assert changed(causes(quote(), actual(seconds=530.0), *seen)) == {"waiting": (0, 30.0)}


def test_dearer_calls_are_price() -> None:
    ended = actual(cost=15 * DOLLAR, cost_at_quoted_nanos=10 * DOLLAR)
    assert changed(causes(quote(), ended, calls())) == {"price": (5, 0.0)}


def test_failures_are_what_they_cost_and_took_beyond_what_was_expected() -> None:
    # A twentieth was expected to fail: 0.5 dollars and 50 s of calls.
    quoted = quote(group(failure_share=0.05))
    answered = calls(calls=95, output_tokens=95_000, seconds=950.0)
    failed = calls(outcome=Outcome.MALFORMED, calls=15, output_tokens=15_000, seconds=150.0, cost_nanos=DOLLAR * 3 // 2)
    found = causes(quoted, actual(cost=11 * DOLLAR, seconds=550.0), answered, failed)
    assert changed(found) == {"failures": (1, 50.0)}


def test_a_model_that_was_not_quoted_counts_as_tokens() -> None:
    seen = (calls(), calls(model="other", seconds=100.0))
    assert changed(causes(quote(), actual(cost=11 * DOLLAR, seconds=550.0), *seen)) == {"tokens": (1, 50.0)}


def test_a_group_that_made_no_call_counts_as_tokens() -> None:
    quoted = quote(group(), group(id="h", tier="scenario"), time_s=1_000.0)
    assert changed(causes(quoted, actual(seconds=500.0), calls())) == {"tokens": (-10, -500.0)}


def test_calls_that_were_quoted_without_tokens_take_what_a_call_was_quoted_to_take() -> None:
    seen = calls(calls=120, seconds=1_200.0)
    assert changed(causes(quote(group(output_tokens=0.0)), actual(seconds=600.0), seen)) == {"tokens": (0, 100.0)}


def test_without_observations_cost_is_price_and_tokens_and_time_is_waiting() -> None:
    quoted = quote(group(failure_share=0.05))
    ended = actual(cost=15 * DOLLAR, cost_at_quoted_nanos=12 * DOLLAR, seconds=700.0)
    assert changed(causes(quoted, ended)) == {"tokens": (2, 0.0), "price": (3, 0.0), "waiting": (0, 200.0)}


@pytest.mark.parametrize(
    "quoted",
    [
        Quoted(cost_nanos=0, time_s=0.0, groups=()),
        quote(group(cost_nanos=0, calls=0.0, output_tokens=0.0, seconds=0.0), time_s=0.0),
        quote(group(cost_nanos=0, calls=0.0, output_tokens=0.0, seconds=0.0), time_s=100.0),
        quote(group(calls=1e-300, output_tokens=1e-300, seconds=1e-300)),
    ],
)
def test_a_quote_of_nothing_gives_finite_causes(quoted: Quoted) -> None:
    found = causes(quoted, actual(cost_by_group={"g": DOLLAR}), calls(), calls(outcome=Outcome.CUT))
    assert all(math.isfinite(each.seconds) for each in found.values())
    groups = by_group(quoted, actual(cost_by_group={"g": DOLLAR}), [calls()])
    assert all(math.isfinite(each.seconds) for each in groups)


amounts = st.integers(0, 10**15)
seconds = st.floats(0, 1e7)


@given(
    quoted=st.lists(st.builds(group, cost_nanos=amounts, seconds=seconds, failure_share=st.floats(0, 0.9)), max_size=3),
    seen=st.lists(
        st.builds(
            calls,
            model=st.sampled_from(["m", "n"]),
            outcome=st.sampled_from(Outcome),
            output_tokens=st.integers(0, 10**7),
            seconds=seconds,
            first_token_calls=st.integers(0, 5),
            first_token_s=seconds,
            cost_nanos=amounts,
        ),
        max_size=6,
    ),
    cost=amounts,
    at_quoted=st.none() | amounts,
    time_s=seconds,
    took_s=seconds,
)
def test_the_causes_always_add_up(
    quoted: list[QuotedGroup], seen: list[CallsSeen], cost: int, at_quoted: int | None, time_s: float, took_s: float
) -> None:
    whole = Quoted(cost_nanos=sum(each.cost_nanos for each in quoted), time_s=time_s, groups=tuple(quoted))
    ended = actual(cost=cost, cost_at_quoted_nanos=at_quoted, seconds=took_s)
    found = by_cause(whole, ended, seen)
    assert sum(each.cost_nanos for each in found) == cost - whole.cost_nanos
    size = max([1.0, *(abs(each.seconds) for each in found)])
    told = sum(each.seconds for each in found)
    assert math.isclose(told, ended.duration.total_seconds() - time_s, abs_tol=1e-9 * size)


def groups_of(quoted: Quoted, ended: Actual, seen: Sequence[CallsSeen]) -> dict[str, tuple[float, float]]:
    found = by_group(quoted, ended, seen)
    return {each.cause: (each.cost_nanos / DOLLAR, round(each.seconds, 6)) for each in found}


def test_each_group_has_its_share_of_cost_and_time() -> None:
    quoted = quote(group(), group(id="h", tier="scenario"), time_s=1_000.0)
    ended = actual(cost_by_group={"g": 11 * DOLLAR, "h": 8 * DOLLAR})
    seen = [calls(seconds=1_100.0), calls(tier="scenario", seconds=700.0), calls(tier="scenario", outcome=Outcome.CUT)]
    assert groups_of(quoted, ended, seen) == {"g": (1.0, 50.0), "h": (-2.0, 350.0)}


def test_groups_of_one_tier_and_model_share_their_time_as_quoted() -> None:
    quoted = quote(group(seconds=300.0), group(id="h", seconds=900.0), time_s=600.0)
    assert groups_of(quoted, actual(cost_by_group={"h": DOLLAR}), [calls(seconds=2_000.0)]) == {
        "g": (-10.0, 100.0),
        "h": (-9.0, 300.0),
    }


def test_groups_have_no_time_without_observations_and_nothing_where_their_cost_was_not_told() -> None:
    assert groups_of(quote(), actual(cost_by_group={"g": 12 * DOLLAR}), []) == {"g": (2.0, 0.0)}
    assert groups_of(quote(), actual(), [calls()]) == {}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, None),
        ({"cost_nanos": 1}, "actuals.cost"),
        ({"cost_at_quoted_nanos": 1}, "actuals.cost_at_quoted_prices"),
        ({"duration": timedelta(seconds=1), "conversations": 1}, "actuals.duration"),
        ({"conversations": 1}, "actuals.conversations"),
        ({"cost_by_group": {"g": 1}}, "actuals.cost_by_group"),
    ],
)
def test_the_first_difference_of_two_outcomes_is_named(changes: dict[str, Any], field: str | None) -> None:
    assert first_difference(actual(), replace(actual(), **changes)) == field
