"""The filter over batches against conditioning by hand, and what it learns of their drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain import level
from estimator_service.domain.level import (
    BATCHES_MAX,
    DRIFT_LOG_SD,
    DRIFT_MEDIAN,
    DRIFTS,
    WALK_WEIGHTS,
    WALKS,
    Array,
    Levels,
    Seen,
    fit,
)

COVARIANCE = np.array([[0.20, 0.12], [0.12, 0.30]])
ONE = np.array([[0.04]])


def seen(log_ratio: float, *, node: int = 0, noise: float = 0.001) -> Seen:
    return Seen(node=node, log_ratio=log_ratio, noise=noise)


PAST = [
    [seen(0.31), seen(-0.12, node=1, noise=0.004)],
    [seen(0.22, noise=0.002)],
    [seen(0.05, node=1), seen(0.40, noise=0.01)],
]
CURRENT = [seen(0.50, noise=0.02)]


def conditioned(drift: float, walk: float) -> tuple[Array, Array, float]:
    """All at once: 2 levels, then a step and a drift for each of 4 batches. Mean and covariance for the last batch,
    and the log likelihood."""
    prior = np.zeros((10, 10))
    prior[:2, :2] = COVARIANCE
    prior[2:6, 2:6] = np.eye(4) * walk * drift**2
    prior[6:, 6:] = np.eye(4) * drift**2
    rows: list[Array] = []
    values: list[float] = []
    noises: list[float] = []
    for batch, showed in enumerate([*PAST, CURRENT]):
        for each in showed:
            row = np.zeros(10)
            row[each.node] = row[6 + batch] = 1
            row[2 : 3 + batch] = 1
            rows.append(row)
            values.append(each.log_ratio)
            noises.append(each.noise)
    looks, found = np.array(rows), np.array(values)
    spread = looks @ prior @ looks.T + np.diag(noises)
    gain = prior @ looks.T @ np.linalg.inv(spread)
    mean, covariance = gain @ found, prior - gain @ looks @ prior
    of_batch = np.array([[1, 0, 1, 1, 1, 1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 0, 0, 0, 1]])
    likelihood = -0.5 * (np.linalg.slogdet(spread)[1] + found @ np.linalg.inv(spread) @ found)
    return of_batch @ mean, of_batch @ covariance @ of_batch.T, float(likelihood)


def drift_of(levels: Levels) -> float:
    """Its expected variance's root; the cells are ordered by drift, then by walk."""
    by_drift = levels.weights.reshape(len(DRIFTS), len(WALKS)).sum(axis=1)
    return math.sqrt(float(by_drift @ DRIFTS**2))


def test_every_cell_is_the_gaussian_conditioned_on_all_batches_at_once() -> None:
    levels = fit(COVARIANCE, PAST, CURRENT)
    cells = [(float(drift), float(walk)) for drift in DRIFTS for walk in WALKS]
    for cell, (drift, walk) in enumerate(cells):
        mean, covariance, _ = conditioned(drift, walk)
        assert np.allclose(levels.means[cell], mean, rtol=1e-9, atol=1e-10)
        assert np.allclose(levels.covariances[cell], covariance, rtol=1e-9, atol=1e-10)


def test_cells_are_weighted_by_their_prior_and_by_the_likelihood_of_everything_seen() -> None:
    log_weights = np.array(
        [
            conditioned(float(drift), float(walk))[2]
            - ((math.log(drift) - math.log(DRIFT_MEDIAN)) / DRIFT_LOG_SD) ** 2 / 2
            + math.log(weight)
            for drift in DRIFTS
            for walk, weight in zip(WALKS, WALK_WEIGHTS, strict=True)
        ]
    )
    weights = np.exp(log_weights - log_weights.max())
    assert np.allclose(fit(COVARIANCE, PAST, CURRENT).weights, weights / weights.sum(), rtol=1e-7)


def test_without_anything_seen_the_batch_is_as_uncertain_as_the_prior_and_its_drift() -> None:
    levels = fit(COVARIANCE, [])
    assert np.allclose(levels.mean, 0)
    walks = 1 + float(WALK_WEIGHTS @ WALKS)
    wanted = np.diagonal(COVARIANCE) + level.prior_drift_variance() * walks
    assert np.allclose(levels.variance, wanted)


def test_the_mixtures_variance_has_the_spread_between_its_cells() -> None:
    levels = Levels(np.array([0.5, 0.5]), np.array([[0.0], [2.0]]), np.full((2, 1, 1), 0.25))
    assert levels.mean.tolist() == [1.0]
    assert levels.variance.tolist() == [1.25]


@pytest.mark.parametrize("drift", [0.01, 0.05, 0.2])
def test_sixty_batches_show_how_far_batches_drift(drift: float) -> None:
    rng = np.random.default_rng(7)
    noise = 0.5 * drift
    past = [[seen(0.3 + math.hypot(drift, noise) * float(rng.standard_normal()), noise=noise**2)] for _ in range(60)]
    assert 0.75 * drift < drift_of(fit(ONE, past)) < 1.35 * drift


def test_one_batch_says_little_of_drift() -> None:
    before, after = fit(ONE, []), fit(ONE, [[seen(0.1)]])
    assert 0.8 < drift_of(after) / drift_of(before) < 1.1


def test_a_level_that_walks_is_followed() -> None:
    walked = [[seen(0.05 * at, noise=0.0001)] for at in range(40)]
    stayed = [[seen(0.05 * (at % 2), noise=0.0001)] for at in range(40)]
    assert 1.7 < fit(ONE * 10, walked).mean[0] < 2.1
    assert fit(ONE, stayed).mean[0] == pytest.approx(0.025, abs=0.01)


def test_what_the_batch_itself_shows_of_one_node_counts_for_its_others() -> None:
    past = [[seen(0.1 * (-1) ** at), seen(0.1 * (-1) ** at, node=1)] for at in range(30)]
    without = fit(COVARIANCE, past)
    alike = fit(COVARIANCE, past, [seen(0.1)])
    assert alike.mean[1] - without.mean[1] > 0.08
    assert alike.variance[1] < without.variance[1] / 4


def test_the_drift_of_a_past_batch_does_not_count_for_this_one() -> None:
    steady = [[seen(0.0)] for _ in range(30)]
    wild = [[seen(0.2 * (-1) ** at)] for at in range(30)]
    newest = [seen(0.2)]
    assert fit(ONE, [*wild, newest]).mean[0] < 0.1
    assert fit(ONE, wild, newest).mean[0] > 0.19
    assert fit(ONE, steady, newest).variance[0] > fit(ONE, steady).variance[0]


def test_batches_too_far_back_are_not_looked_at() -> None:
    newest = [[seen(0.1)]] * BATCHES_MAX
    assert np.array_equal(fit(ONE, [[seen(-3.0)], *newest]).means, fit(ONE, newest).means)


def test_draws_have_the_mean_and_the_covariance_of_the_mixture() -> None:
    levels = fit(COVARIANCE, PAST, CURRENT)
    drawn = levels.draw(20_000, np.random.default_rng(1))
    between = levels.means - levels.mean
    within = np.einsum("c,cij->ij", levels.weights, levels.covariances)
    wanted = within + np.einsum("c,ci,cj->ij", levels.weights, between, between)
    assert np.allclose(drawn.mean(axis=0), levels.mean, atol=0.005)
    assert np.allclose(np.cov(drawn.T), wanted, atol=0.005)


def test_draws_follow_the_seed_and_no_order() -> None:
    levels = fit(COVARIANCE, PAST, CURRENT)
    one, same, other = (levels.draw(1_000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    # What is drawn first is no calmer than what is drawn last, though cells of small drifts come first.
    drifts = fit(ONE / 1e6, []).draw(1_000, np.random.default_rng(1))
    assert 0.6 < drifts[:500].std() / drifts[500:].std() < 1.6


def test_the_draws_of_one_node_lie_as_evenly_as_strata_do() -> None:
    drawn = fit(ONE, []).draw(1_000, np.random.default_rng(3))
    # Independent draws would miss the mean by 0.2 / sqrt(1000) = 0.006.
    assert abs(float(drawn.mean())) < 0.0006


def test_figures_beyond_all_reason_leave_finite_levels() -> None:
    levels = fit(ONE, [[seen(20.0, noise=0.0), seen(-20.0, noise=0.0)]] * 3, [seen(40.0, noise=1e-12)])
    assert np.isfinite(levels.mean).all()
    assert np.isfinite(levels.draw(100, np.random.default_rng(0))).all()
    assert levels.weights.sum() == pytest.approx(1)
