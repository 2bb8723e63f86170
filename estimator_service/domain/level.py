"""The level of a quantity by group, learned over batches that differ: a Kalman filter over a grid of drifts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Batches further back tell nothing that these do not.
BATCHES_MAX = 64
# How far the mean of one batch is from the level, as log-SD, and what is thought of each before any batch was seen:
# lognormal about 0.02 with a log-SD of 1.2. A choice: providers and prompts that are left alone stay within a few
# percent from batch to batch, other people's traffic wanders by a tenth and more. Of the priors tried it gave the best
# interval scores over made-up worlds (drift 0 to 0.12, steady and walking) after 1, 3 and 7 batches.
DRIFTS = np.geomspace(0.004, 0.5, 13)
DRIFT_MEDIAN = 0.02
DRIFT_LOG_SD = 1.2
# Means of thousands of calls that are all alike are still not known to more than a hundredth of a percent.
NOISE_MIN = 1e-8
# The level itself may walk: its step from batch to batch, as a share of the drift's variance, and the weight of each.
WALKS = np.array([0.0, 0.1, 0.6])
WALK_WEIGHTS = np.array([0.7, 0.2, 0.1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one batch showed of one node: the log of its mean, over the prior's mean."""

    node: int
    log_ratio: float
    # Variance of log_ratio for the batch's size alone, without drift.
    noise: float


@dataclass(frozen=True, slots=True)
class Levels:
    """The posterior for one batch, of its nodes' log ratios to the prior: a mixture of normals.

    Shapes: weights (cells), means (cells, nodes), covariances (cells, nodes, nodes).
    """

    weights: Array
    means: Array
    covariances: Array

    @property
    def mean(self) -> Array:
        return self.weights @ self.means

    @property
    def variance(self) -> Array:
        """Of each node."""
        variances = np.diagonal(self.covariances, axis1=1, axis2=2)
        # What is known to the last digit may come out a hair below nothing.
        return (self.weights @ (variances + (self.means - self.mean) ** 2)).clip(min=0.0)

    def draw(self, draws: int, rng: np.random.Generator) -> Array:
        """Log ratios: draws x nodes. Cells by their weights; what the nodes share most is drawn from equal strata."""
        cells = np.searchsorted(np.cumsum(self.weights), (np.arange(draws) + 0.5) / draws).clip(
            max=len(self.weights) - 1
        )
        values, vectors = np.linalg.eigh(self.covariances)
        standard = rng.standard_normal((draws, self.means.shape[1]))
        # The last eigenvalue is the largest.
        standard[:, -1] = _spread_over_cells(cells, rng)
        scaled = standard * np.sqrt(values.clip(min=0.0))[cells]
        found: Array = self.means[cells] + np.einsum("dij,dj->di", vectors[cells], scaled)
        # In the order of the cells, draws with a small drift of one quantity would meet those of another's.
        return rng.permutation(found, axis=0)


def fit(covariance: Array, past: Sequence[Sequence[Seen]], current: Sequence[Seen] = ()) -> Levels:
    """`covariance` is the prior's of the nodes' levels; `past` one entry a batch, oldest first; `current` is what the
    batch itself showed so far. The prior's means are 0.

    Model: log_ratio = level + drift of the batch (one for all nodes) + noise; drift ~ N(0, t^2); the level walks by
    N(0, w t^2) from batch to batch, for all nodes alike. (t, w) are on a grid, weighted by the likelihood.
    """
    nodes = len(covariance)
    drifts, walks = (grid.ravel() for grid in np.meshgrid(DRIFTS, WALKS, indexing="ij"))
    log_weights = (_log_prior()[:, None] + np.log(WALK_WEIGHTS)).ravel()
    # The drift of the batch at hand is one more unknown behind the levels: drawn anew for each batch.
    means = np.zeros((len(drifts), nodes + 1))
    covariances = np.zeros((len(drifts), nodes + 1, nodes + 1))
    covariances[:, :nodes, :nodes] = covariance
    for batch in [*past[-BATCHES_MAX:], current]:
        means[:, nodes] = 0.0
        covariances[:, nodes, :] = covariances[:, :, nodes] = 0.0
        covariances[:, nodes, nodes] = drifts**2
        covariances[:, :nodes, :nodes] += (walks * drifts**2)[:, None, None]
        for seen in batch:
            means, covariances, gained = _update(means, covariances, seen, nodes)
            log_weights = log_weights + gained
    weights = np.exp(log_weights - log_weights.max())
    to_batch = np.hstack([np.eye(nodes), np.ones((nodes, 1))])
    return Levels(weights / weights.sum(), means @ to_batch.T, to_batch @ covariances @ to_batch.T)


def _update(means: Array, covariances: Array, seen: Seen, drift: int) -> tuple[Array, Array, Array]:
    """One scalar observation of level + drift, in every cell; the log likelihood of it."""
    with_seen = covariances[:, :, seen.node] + covariances[:, :, drift]
    variance = with_seen[:, seen.node] + with_seen[:, drift] + max(seen.noise, NOISE_MIN)
    missed = seen.log_ratio - means[:, seen.node] - means[:, drift]
    gain = with_seen / variance[:, None]
    covariances = covariances - gain[:, :, None] * with_seen[:, None, :]
    log_likelihood = -0.5 * (np.log(variance) + missed**2 / variance)
    return means + gain * missed[:, None], covariances, log_likelihood


def _log_prior() -> Array:
    log_prior: Array = -0.5 * ((np.log(DRIFTS) - math.log(DRIFT_MEDIAN)) / DRIFT_LOG_SD) ** 2
    return log_prior


def prior_drift_variance() -> float:
    """Expected, before any batch was seen."""
    weights = np.exp(_log_prior())
    return float(weights @ DRIFTS**2 / weights.sum())


def _spread_over_cells(cells: NDArray[np.intp], rng: np.random.Generator) -> Array:
    """Standard normals, stratified within each cell."""
    counts = np.bincount(cells)
    normal = NormalDist()
    return np.concatenate(
        [
            rng.permutation(np.array([normal.inv_cdf((at + 0.5) / count) for at in range(count)]))
            for count in counts.tolist()
            if count
        ]
    )
