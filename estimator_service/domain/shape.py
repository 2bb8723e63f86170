"""How conversations of one kind spread about their mean: lognormal with an unknown spread, or as they were observed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# The prior of the spread counts as so many observations: inverse gamma, so that the predictive is log-t.
PRIOR_FREEDOM = 4.0
# From so many on, observed values are resampled where that predicts better.
RESAMPLED_MIN = 30
POOL_MAX = 1_000
GRID = 64
CENSORED_ROUNDS = 8
# The multiples of it, without their whole parts, are spread evenly however many of them are taken.
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Factors with mean 1."""

    log_sd: float
    # Degrees of freedom behind log_sd.
    freedom: float
    # Observed values over their batch's mean, ascending; None where the lognormal predicts as well.
    pool: Array | None = None

    @property
    def cv(self) -> float:
        """Coefficient of variation."""
        if self.pool is not None:
            return float(self.pool.std())
        return math.sqrt(math.expm1(min(self.log_sd, 3.0) ** 2))

    @property
    def variance(self) -> float:
        """Of a deviation."""
        return self.log_sd**2 if self.pool is None else self.cv**2

    def deviations(self, factors: Array) -> Array:
        """What each factor says of the log of the mean, less 0: lognormal ones by their logs, others by themselves."""
        return np.log(factors) + self.log_sd**2 / 2 if self.pool is None else factors - 1

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        """draws x conversations; the spread is one unknown of each draw."""
        if self.pool is not None:
            return self.pool[rng.integers(len(self.pool), size=shape)]
        log_sd = np.full((shape[0], 1), self.log_sd)
        if math.isfinite(self.freedom):
            log_sd = (log_sd * np.sqrt(self.freedom / rng.chisquare(self.freedom, log_sd.shape))).clip(max=3.0)
        drawn: Array = np.exp(rng.standard_normal(shape) * log_sd - log_sd**2 / 2)
        return drawn

    def grid(self) -> Array:
        """Equally likely values, ascending, with mean 1."""
        if self.pool is not None:
            grid = np.quantile(self.pool, (np.arange(GRID) + 0.5) / GRID)
        else:
            grid = np.exp(standard_grid() * self.log_sd)
        scaled: Array = grid / grid.mean()
        return scaled

    def narrowed(self, calls: float) -> Shape:
        """Of the mean over several calls of one conversation, which varies less than one call does."""
        if calls <= 1:
            return self
        return Shape(log_sd=math.sqrt(math.log1p(self.cv**2 / calls)), freedom=self.freedom)


@lru_cache(maxsize=1)
def standard_grid() -> Array:
    """Standard normal values in the middles of equally likely strata."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((at + 0.5) / GRID) for at in range(GRID)])


def learn(values: Array, batch: Integers, *, prior_log_sd: float) -> Shape:
    """Of positive values and the batches that they belong to: what all values of a batch share is no spread."""
    logs = np.log(values)
    _, at, counts = np.unique(batch, return_inverse=True, return_counts=True)
    deviations = logs - (np.bincount(at, logs) / counts)[at]
    freedom = float(len(values) - len(counts))
    squares = PRIOR_FREEDOM * prior_log_sd**2 + float(deviations @ deviations)
    log_sd = math.sqrt(squares / (PRIOR_FREEDOM + freedom))
    ratios = (values / (np.bincount(at, values) / counts)[at])[counts[at] >= 2]
    pool = _stretched(ratios, freedom=freedom)[-POOL_MAX:]
    if len(pool) < RESAMPLED_MIN or not _predicts_better(pool, log_sd):
        return Shape(log_sd=log_sd, freedom=PRIOR_FREEDOM + freedom)
    return Shape(log_sd=log_sd, freedom=PRIOR_FREEDOM + freedom, pool=np.sort(pool) / pool.mean())


def _stretched(ratios: Array, *, freedom: float) -> Array:
    """Values about their own batch's mean are too near to it, by the root of n / (n - batches)."""
    stretched: Array = 1 + (ratios - 1) * math.sqrt(len(ratios) / freedom) if freedom else ratios[:0]
    return stretched.clip(min=0.01)


def _predicts_better(pool: Array, log_sd: float) -> bool:
    """Each half of the values predicts the other, scored by CRPS against the lognormal of the same spread."""
    lognormal = np.exp(standard_grid() * log_sd - log_sd**2 / 2)
    halves = (pool[::2], pool[1::2])
    resampled = sum(
        _crps(np.quantile(halves[1 - at], (np.arange(GRID) + 0.5) / GRID), halves[at]) * len(halves[at])
        for at in (0, 1)
    )
    return resampled < _crps(lognormal, pool) * len(pool)


def _crps(ensemble: Array, values: Array) -> float:
    """Continuous ranked probability score of an ascending ensemble (Gneiting and Raftery 2007, equation 21)."""
    size = len(ensemble)
    spread = float(ensemble @ (2 * np.arange(size) - size + 1)) / size**2
    return float(np.abs(values[:, None] - ensemble).mean()) - spread


def uncensored(values: Array, censored: NDArray[np.bool_], *, prior_mean: float, prior_log_sd: float) -> Array:
    """Values that were cut are replaced by what a lognormal with the same mean and spread has beyond the cut; with the
    prior's where all of them were cut, for nothing else says where they would have ended."""
    if not censored.any():
        return values
    logs, normal = np.log(values), NormalDist()
    cut, filled = logs[censored], logs.copy()
    mean, log_sd = math.log(prior_mean) - prior_log_sd**2 / 2, prior_log_sd
    for _ in range(CENSORED_ROUNDS):
        if len(cut) < len(logs):
            mean, log_sd = float(filled.mean()), max(float(filled.std()), prior_log_sd / 4)
        beyond = np.array([normal.cdf(float(each)) for each in (cut - mean) / log_sd])
        # Spread over the tail, and in no order: what is newer, or of another batch, goes out as far.
        p = beyond + (1 - beyond) * ((0.5 + np.arange(len(cut)) * GOLDEN) % 1)
        tail = np.array([normal.inv_cdf(min(float(each), 1 - 1e-9)) for each in p])
        filled[censored] = np.maximum(cut, mean + log_sd * tail)
    return np.exp(filled)


def above(shape: Shape, bounds: Array) -> tuple[Array, Array]:
    """For values known to be over a bound (over their mean): the expected deviation, and how much of a value that tells
    (0 to 1).

    By the missing-information principle a censored value tells 1 - its remaining variance over the whole variance. What
    is beyond everything that was ever expected has stalled: it counts as the longest.
    """
    grid = shape.grid()
    deviations = shape.deviations(grid)
    deviations = deviations - deviations.mean()
    over = grid[None, :] >= np.minimum(bounds, grid[-1])[:, None]
    counts = over.sum(axis=1)
    mean = over @ deviations / counts
    variance = over @ deviations**2 / counts - mean**2
    told = 1 - np.minimum(variance / max(float(deviations.var()), 1e-12), 1.0)
    return mean, np.where(counts == GRID, 0.0, told)
