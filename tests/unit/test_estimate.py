"""The expected figures of a group, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated_calls import batch, call, history, key

from estimator_service.domain.estimate import GroupEstimate, estimate_groups, expected_cost_nanos
from estimator_service.domain.history import NOTHING_SEEN, CallKey, History
from estimator_service.domain.rates import Prices, Rate
from estimator_service.domain.workload import Assumed, Group, Workload

PRICES = Prices(input=2_000_000_000, output=10_000_000_000, cache_write_5m=2_500_000_000, cache_read=200_000_000)
GROUP = Group(id="g", tier="template", model="m", count=10)
CERTAIN = Assumed(input_tokens_mean=2_000, output_tokens_mean=3_000, call_seconds_mean=60, failure_share=0)


def estimated(group: Group = GROUP, seen: History = NOTHING_SEEN, **more: Any) -> GroupEstimate:
    (made,) = estimate_groups(
        Workload(groups=(group,)), {group.model: Rate(model=group.model, prices=PRICES)}, seen, **more
    )
    return made


def test_what_is_assumed_wins_over_the_prior_and_over_history() -> None:
    seen = history([call(9_000, input_tokens=9_000, seconds=900)] * 100)
    made = estimated(replace(GROUP, assumed=CERTAIN), seen)
    assert (made.input_tokens_mean, made.output_tokens_mean, made.calls_mean) == (2_000, 3_000, 1)
    assert made.call_duration_mean_s == made.conversation_duration_mean_s == 60
    assert made.cost_nanos == 10 * (2_000 * 2_000 + 3_000 * 10_000)


def test_an_assumed_spread_is_cut_at_the_maximum() -> None:
    free = estimated(replace(GROUP, assumed=replace(CERTAIN, output_tokens_cv=0.5)))
    cut = estimated(replace(GROUP, max_output_tokens=3_000, assumed=replace(CERTAIN, output_tokens_cv=0.5)))
    assert free.tokens.output_mean == pytest.approx(3_000)
    assert free.tokens.cut_share == 0
    assert cut.tokens.output_mean < 2_700
    assert 0.35 < cut.tokens.cut_share < 0.45
    assert cut.calls_mean == 1 + cut.tokens.cut_share


def test_a_call_takes_its_line_times_its_level() -> None:
    seen = history([call(3_600, seconds=50.0)] * 200)
    made = estimated(GROUP, seen)
    pace = made.learned.pace
    by_hand = (pace.line.first_token_s + made.tokens.output_mean / pace.line.tokens_per_s) * pace.factor_mean
    assert made.call_duration_mean_s == pytest.approx(by_hand)


def test_a_conversation_takes_its_calls_and_what_is_around_them() -> None:
    around = replace(GROUP, calls_each=6, assumed=replace(CERTAIN, overhead_share=0.25))
    assert estimated(around).conversation_duration_mean_s == pytest.approx(6 * 60 * 1.25)


def test_thinking_is_part_of_the_output() -> None:
    made = estimated(GROUP, history([call(3_000, thinking_tokens=1_500)] * 495))
    assert made.thinking_tokens_mean == pytest.approx(made.output_tokens_mean * 0.5 * 495 / 500)
    assert estimated().thinking_tokens_mean == 0


def test_a_cache_is_written_once_and_read_by_all_other_calls() -> None:
    made = estimated(replace(GROUP, cacheable_tokens=1_500, assumed=CERTAIN))
    assert made.fresh_tokens == 500
    assert made.cache_nanos == pytest.approx(1_500 * (2_500 + 9 * 200))
    assert estimated(replace(GROUP, count=0, cacheable_tokens=1_500)).cache_nanos == 0


def test_each_model_is_learned_on_its_own() -> None:
    other = replace(GROUP, id="other", model="n")
    rates = {model: Rate(model=model, prices=PRICES) for model in ("m", "n")}
    seen = history([call(1_000)] * 100)
    made = estimate_groups(Workload(groups=(other, GROUP)), rates, seen)
    assert [each.observations for each in made] == [0, 100]
    alone = estimate_groups(Workload(groups=(other,)), rates, NOTHING_SEEN)
    assert made[0].cost_nanos == alone[0].cost_nanos
    assert expected_cost_nanos(made) == made[0].cost_nanos + made[1].cost_nanos


def test_calls_under_way_raise_what_is_expected_of_their_kind_up_to_their_maximum() -> None:
    past = history(*(batch(f"b{at}", rng=np.random.default_rng(at)) for at in range(3)))
    ages: dict[CallKey, Any] = {key(): np.full(10, 150.0), key(model="n"): np.full(10, 150.0)}
    without, under_way = estimated(GROUP, past), estimated(GROUP, past, ages_s=ages)
    assert under_way.tokens.output_mean > 1.1 * without.tokens.output_mean
    stalled: dict[CallKey, Any] = {key(): np.full(10, 1e9)}
    limited = replace(GROUP, max_output_tokens=4_000)
    # 4,000 tokens at 36 a second.
    reached: dict[CallKey, Any] = {key(): np.full(10, 112.0)}
    most, near = (estimated(limited, past, ages_s=each).learned.tokens.output.mean(0) for each in (stalled, reached))
    assert most == pytest.approx(near, rel=0.06)
    assert most < 0.9 * estimated(GROUP, past, ages_s=stalled).learned.tokens.output.mean(0)
