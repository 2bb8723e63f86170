"""Scores of quoted ranges, beside figures worked out by hand or taken from tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain import quote
from estimator_service.domain.scores import (
    QUANTILES,
    Scored,
    binomial_interval,
    interval_score,
    pinball_loss,
    summarize,
)

# The range of a quote of 100: 2.5 % to 97.5 %.
RANGE = (60.0, 70.0, 80.0, 100.0, 120.0, 130.0, 140.0)


def scored(actual: float) -> Scored:
    return Scored(actual=actual, mean=100.0, quantiles=RANGE)


def test_the_quantiles_are_those_of_a_quote() -> None:
    assert QUANTILES == quote.QUANTILES


@pytest.mark.parametrize(
    ("actual", "loss"),
    [(110.0, 9.0), (100.0, 0.0), (90.0, 1.0)],
)
def test_a_high_quantile_is_punished_more_for_what_lies_above(actual: float, loss: float) -> None:
    assert math.isclose(pinball_loss(actual, quantile=100.0, p=0.9), loss)


def test_the_pinball_loss_is_least_at_the_true_quantile() -> None:
    drawn = np.random.default_rng(3).exponential(size=4_000)
    true = float(np.quantile(drawn, 0.9))
    losses = [
        sum(pinball_loss(float(each), quantile=true * factor, p=0.9) for each in drawn) for factor in (0.8, 1, 1.2)
    ]
    assert min(losses) == losses[1]


@pytest.mark.parametrize(("actual", "score"), [(100.0, 40.0), (80.0, 40.0), (70.0, 140.0), (125.0, 90.0)])
def test_the_interval_score_is_the_width_and_ten_times_the_miss_at_80_percent(actual: float, score: float) -> None:
    assert math.isclose(interval_score(actual, low=80.0, high=120.0, coverage=0.8), score)


# From R: binom.test(hits, n)$conf.int
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3084971),
        (10, 10, 0.6915029, 1.0),
        (8, 10, 0.4439045, 0.9747893),
        (80, 100, 0.7081573, 0.8733444),
        (1, 1, 0.025, 1.0),
    ],
)
def test_the_binomial_interval_is_that_of_clopper_and_pearson(hits: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(hits, n) == pytest.approx((low, high), abs=1e-6)


def test_nothing_tried_says_nothing_of_the_share() -> None:
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_many_trials_give_a_narrow_interval() -> None:
    low, high = binomial_interval(80_000, 100_000)
    assert 0.797 < low < 0.8 < high < 0.803


@pytest.mark.parametrize(("hits", "n"), [(-1, 10), (11, 10)])
def test_more_hits_than_trials_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{hits} hits of {n}"):
        binomial_interval(hits, n)


def test_the_summary_adds_up() -> None:
    scores = summarize([scored(actual) for actual in (100.0, 115.0, 80.0, 150.0)])
    assert scores.count == 4
    assert math.isclose(scores.bias, (0 + 0.15 - 0.2 + 0.5) / 4)
    assert math.isclose(scores.mape, (0 + 15 / 115 + 20 / 80 + 50 / 150) / 4)
    assert (scores.within_10_percent, scores.within_20_percent) == (0.25, 0.75)
    assert (scores.coverage_80, scores.coverage_95) == (0.75, 0.75)
    assert (scores.coverage_80_low, scores.coverage_80_high) == binomial_interval(3, 4)
    assert math.isclose(scores.width_80, 0.4)
    assert math.isclose(scores.interval_score_80, (4 * 40 + 10 * 30) / 4)
    assert math.isclose(scores.interval_score_95, (4 * 80 + 40 * 10) / 4)


def test_the_summary_has_the_mean_pinball_loss_of_all_seven_quantiles() -> None:
    lone = summarize([scored(100.0)])
    low = 0.025 * 40 + 0.05 * 30 + 0.1 * 20
    assert math.isclose(lone.pinball_loss, 2 * low / 7)


def test_an_outcome_of_nothing_is_an_error_of_100_percent() -> None:
    assert summarize([scored(0.0)]).mape == 1.0


def test_nothing_can_not_be_scored() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        summarize([])


def test_a_quoted_mean_of_zero_can_not_be_scored() -> None:
    with pytest.raises(ValueError, match="mean of 0"):
        summarize([scored(1.0), Scored(actual=1.0, mean=0.0, quantiles=RANGE)])
