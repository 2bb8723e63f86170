"""Outcomes draw by draw: their mean is the expected figure, and what is assumed is taken as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_calls import batch, call, history

from estimator_service.domain import draws
from estimator_service.domain.draws import (
    CONVERSATIONS_MAX,
    DRAWS,
    DRAWS_MIN,
    GROUP_CONVERSATIONS_MIN,
    GroupDraws,
    draw,
    draw_batch,
    draw_in_flight,
)
from estimator_service.domain.estimate import GroupEstimate, estimate_groups
from estimator_service.domain.history import NOTHING_SEEN, History, Kind
from estimator_service.domain.rates import Prices, Rate
from estimator_service.domain.workload import NOTHING_ASSUMED, Assumed, Group, InputSource, Workload

RATE = Rate(model="m", prices=Prices(input=2_000_000_000, output=10_000_000_000))
GROUP = Group(id="g", tier="template", model="m", count=50)
CERTAIN = Assumed(input_tokens_mean=2_000, output_tokens_mean=3_000, call_seconds_mean=60, failure_share=0)


def known(size: int = 20) -> History:
    rng = np.random.default_rng(1)
    return history(*(batch(f"b{at}", calls=40, rng=rng) for at in range(size)))


def estimated(*groups: Group, seen: History = NOTHING_SEEN) -> tuple[GroupEstimate, ...]:
    return estimate_groups(Workload(groups=groups), {"m": RATE}, seen)


def outcomes(*groups: Group, seen: History = NOTHING_SEEN, seed: int = 1) -> tuple[GroupDraws, ...]:
    made = estimated(*groups, seen=seen)
    return draw(made, draw_batch(made, seed=seed))


def certain(**changes: Any) -> Group:
    return replace(GROUP, assumed=replace(CERTAIN, **changes))


@pytest.mark.parametrize(
    "group",
    [
        GROUP,
        replace(GROUP, calls_each=6),
        replace(GROUP, max_output_tokens=3_000),
        replace(GROUP, cacheable_tokens=1_000, input_source=InputSource.COUNTED, input_tokens_mean=2_000),
        certain(output_tokens_cv=0.5, call_seconds_cv=0.5, failure_share=0.2),
    ],
    ids=["plain", "turn by turn", "cut", "cached", "assumed"],
)
def test_the_mean_over_all_draws_is_the_expected_figure(group: Group) -> None:
    (estimate,), (drawn,) = estimated(group, seen=known()), outcomes(group, seen=known())
    assert drawn.calls.mean() == pytest.approx(estimate.calls_mean, rel=0.02)
    assert drawn.output_tokens.mean() == pytest.approx(estimate.output_tokens_mean, rel=0.03)
    assert drawn.fresh_input_tokens.mean() == pytest.approx(estimate.calls_mean * estimate.fresh_tokens, rel=0.03)
    assert drawn.seconds.mean() == pytest.approx(estimate.conversation_duration_mean_s, rel=0.08)
    assert draws.cost_nanos(estimate, drawn).mean() == pytest.approx(estimate.cost_nanos, rel=1e-6)


def test_assumptions_are_taken_as_they_are() -> None:
    (drawn,) = outcomes(certain(overhead_share=0.1), seen=known())
    assert set(drawn.calls.ravel().tolist()) == {1.0}
    assert set(drawn.fresh_input_tokens.ravel().tolist()) == {2_000.0}
    assert drawn.output_tokens == pytest.approx(3_000, rel=1e-12)
    assert drawn.seconds == pytest.approx(66, rel=1e-12)


@pytest.mark.parametrize("cv", [0.3, 2.0])
def test_an_assumed_spread_is_that_of_the_draws(cv: float) -> None:
    (drawn,) = outcomes(certain(output_tokens_cv=cv, call_seconds_cv=0.1))
    assert drawn.output_tokens.mean() == pytest.approx(3_000, rel=0.04)
    assert drawn.output_tokens.std() / drawn.output_tokens.mean() == pytest.approx(cv, rel=0.1 if cv < 1 else 0.3)
    assert drawn.seconds.std() / 60 == pytest.approx(0.1, rel=0.05)


def test_an_assumed_share_of_failures_makes_calls_again() -> None:
    (drawn,) = outcomes(certain(failure_share=0.5))
    assert drawn.calls.mean() == pytest.approx(2, rel=0.02)
    assert np.allclose(drawn.output_tokens, 3_000 * drawn.calls)
    assert np.allclose(drawn.seconds, 60 * drawn.calls)


def test_an_answer_that_is_cut_is_asked_for_once_more() -> None:
    group = replace(certain(), max_output_tokens=2_000)
    (estimate,), (drawn,) = estimated(group), outcomes(group)
    assert estimate.tokens.cut_share == 1
    assert set(drawn.calls.ravel().tolist()) == {2.0}
    assert drawn.output_tokens == pytest.approx(2_000 + 3_000)
    assert estimate.output_tokens_mean == pytest.approx(5_000)
    (tiny,) = outcomes(replace(certain(), max_output_tokens=1))
    assert tiny.output_tokens == pytest.approx(1 + 2)


def test_calls_that_are_not_paid_take_time_and_no_money() -> None:
    lost = history([call(kind=Kind.FREE_FAILURE, seconds=100)] * 300, [call(seconds=84.0)] * 300)
    (estimate,), (drawn,) = estimated(GROUP, seen=lost), outcomes(GROUP, seen=lost)
    (fine,) = outcomes(GROUP, seen=history([call(seconds=84.0)] * 300))
    assert drawn.calls.mean() == pytest.approx(fine.calls.mean(), rel=0.01)
    assert drawn.seconds.mean() == pytest.approx(fine.seconds.mean() + 91, rel=0.07)
    assert estimate.conversation_duration_mean_s == pytest.approx(drawn.seconds.mean(), rel=0.05)


def test_the_same_seed_gives_the_same_outcomes() -> None:
    one, same, other = (outcomes(GROUP, seed=seed)[0].output_tokens for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_group_of_nothing_has_no_outcomes() -> None:
    nothing, some = outcomes(replace(GROUP, id="none", count=0), GROUP)
    assert nothing.calls.shape == (DRAWS, 0)
    assert nothing.scale == 0
    assert some.calls.shape == (DRAWS, 50)


def test_many_conversations_are_sampled_and_each_stands_for_several() -> None:
    drawn = outcomes(*(replace(GROUP, id=str(at), count=each) for at, each in enumerate((100_000, 3, 900))))
    assert [each.scale * each.calls.shape[1] for each in drawn] == pytest.approx([100_000, 3, 900])
    assert drawn[1].calls.shape[1] == 3
    assert drawn[2].calls.shape[1] >= GROUP_CONVERSATIONS_MIN
    assert DRAWS_MIN <= len(drawn[0].calls) < DRAWS
    assert sum(each.calls.shape[1] for each in drawn) <= CONVERSATIONS_MAX + 10


def test_a_thousand_groups_are_drawn() -> None:
    groups = [replace(GROUP, id=str(at), count=at % 3, prompt_fingerprint=str(at)) for at in range(1_000)]
    assert sum(each.calls.shape[1] for each in outcomes(*groups)) == 999


@pytest.mark.parametrize(
    "group",
    [
        replace(GROUP, calls_each=1_000),
        replace(GROUP, calls_each=0.001),
        replace(GROUP, input_source=InputSource.COUNTED, input_tokens_mean=0.0001),
        replace(GROUP, max_output_tokens=1, calls_each=1_000),
        certain(output_tokens_mean=0.0, call_seconds_mean=0.0),
        certain(output_tokens_cv=10, call_seconds_cv=10, failure_share=0.9),
    ],
)
@pytest.mark.parametrize("tokens", [1.0, 1e7])
def test_figures_at_the_edge_of_the_contract_are_finite(group: Group, tokens: float) -> None:
    seen = history([call(tokens, seconds=1e-3)] * 40, [call(tokens, kind=Kind.CUT)] * 3)
    (drawn,) = outcomes(group, seen=seen)
    for each in (drawn.calls, drawn.fresh_input_tokens, drawn.output_tokens, drawn.seconds):
        assert np.isfinite(each).all()
        assert (each >= 0).all()
    assert math.isfinite(estimated(group, seen=seen)[0].conversation_duration_mean_s)


def in_flight(*ages_s: float, group: Group = GROUP) -> tuple[GroupDraws, np.ndarray[Any, np.dtype[np.float64]]]:
    (made,) = estimated(group, seen=known())
    return draw_in_flight(made, draw_batch([made], seed=1), ages_s=np.array(ages_s), number=0)


def test_a_call_in_flight_takes_longer_than_it_took_already() -> None:
    drawn, left = in_flight(0.0, 60.0, 120.0, 1e9)
    assert (left >= 0).all()
    assert drawn.output_tokens.mean(axis=0)[0] == pytest.approx(3_000, rel=0.04)
    # 120 s are 4,284 tokens at 36 a second.
    means = drawn.output_tokens.mean(axis=0)
    assert means[0] < means[1] < means[2]
    assert 4_284 < means[2] < 6_500
    assert left.mean(axis=0)[0] == pytest.approx(84.3, rel=0.05)
    assert left.mean(axis=0)[2] < left.mean(axis=0)[0]


def test_a_call_that_outlives_every_try_has_the_tokens_of_the_longest() -> None:
    drawn, left = in_flight(1e9)
    assert drawn.output_tokens.mean() > 4_500
    assert left == pytest.approx(0.05e9)


def test_a_call_in_flight_has_no_more_tokens_than_its_maximum() -> None:
    drawn, _ = in_flight(100.0, group=replace(GROUP, max_output_tokens=2_500))
    assert drawn.output_tokens.max() == 2_500


def test_what_is_in_flight_is_assumed_as_what_is_left() -> None:
    assert NOTHING_ASSUMED.input_tokens_mean is None
    drawn, left = in_flight(10.0, group=certain())
    assert left == pytest.approx(50)
    assert drawn.output_tokens == pytest.approx(3_000)
    assert drawn.fresh_input_tokens == pytest.approx(2_000)
    at_once, _ = in_flight(0.0, group=certain(call_seconds_mean=0.0))
    assert at_once.output_tokens == pytest.approx(3_000)
