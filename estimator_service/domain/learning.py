"""What history says of one quantity of calls (tokens, seconds over their expectation): levels by node, and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain import level, shape
from estimator_service.domain.level import Levels, Seen
from estimator_service.domain.shape import Shape

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Of level, learned anew with what is in flight, until neither moves.
ROUNDS = 4
# A node with fewer calls has the spread of all nodes together.
SHAPE_MIN = 5
# What happened longer ago says less of today: a log variance of 0.05^2 a quarter of a year.
AGE_VARIANCE_A_DAY = 0.05**2 / 90
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Values of calls, oldest first; rows of no node are left out before."""

    values: Array
    node: Integers
    # Ascending by their begin.
    batch: Integers
    censored: NDArray[np.bool_]
    ended_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    # Of each node, in the unit of the values.
    means: Array
    covariance: Array
    log_sd: float

    @property
    def medians(self) -> Array:
        """A level that may be off by a factor either way has its mean above its median."""
        variances = np.diagonal(self.covariance) + level.prior_drift_variance()
        medians: Array = self.means * np.exp(-variances / 2)
        return medians


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a node of the batch at hand before any of its calls: the log of its mean over the median."""

    node: int
    log_ratio: float
    # Variance of log_ratio for what it was measured by.
    noise: float
    # It was measured on so many conversations, which may be unlike the others.
    conversations: float

    def seen(self, of: Shape) -> Seen:
        noise = self.noise + of.variance / self.conversations
        return Seen(node=self.node, log_ratio=self.log_ratio, noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """For one batch: its level of each node is medians x exp(levels)."""

    medians: Array
    levels: Levels
    shapes: tuple[Shape, ...]
    # Calls behind each node, and those of the batch itself.
    observations: Integers
    of_batch: Integers

    def mean(self, node: int) -> float:
        """Expected value of one call."""
        grid = self.level_grid(node)
        return float(grid.mean())

    def level_grid(self, node: int) -> Array:
        """Equally likely means of this node for the batch."""
        sd = math.sqrt(float(self.levels.variance[node]))
        grid: Array = self.medians[node] * np.exp(float(self.levels.mean[node]) + sd * shape.standard_grid())
        return grid


def learn(
    sample: Sample,
    prior: Prior,
    *,
    current: int | None = None,
    in_flight: Mapping[int, Array] | None = None,
    told: Sequence[Told] = (),
) -> Learned:
    """`current`: the number of the batch at hand in `sample`; `in_flight`: by node, what its calls have surpassed so
    far; `told`: what else is known of the batch."""
    values = _uncensored(sample, prior)
    shapes = _shapes(sample, values, prior)
    seen = dict(_seen(sample, values, shapes, prior.medians))
    past = [seen[batch] for batch in sorted(seen) if batch != current]
    finished = seen.get(current, []) if current is not None else []
    besides = [each.seen(shapes[each.node]) for each in told]
    levels = level.fit(prior.covariance, past, [*finished, *besides])
    for _ in range(ROUNDS if in_flight else 0):
        running = _running(sample, values, shapes, prior.medians, levels, current=current, bounds=in_flight or {})
        levels = level.fit(prior.covariance, past, [*running, *besides])
    nodes = len(prior.means)
    own = sample.node[sample.batch == (-1 if current is None else current)]
    return Learned(
        medians=prior.medians,
        levels=levels,
        shapes=shapes,
        observations=np.bincount(sample.node, minlength=nodes),
        of_batch=np.bincount(own, minlength=nodes),
    )


def _uncensored(sample: Sample, prior: Prior) -> Array:
    values = sample.values.copy()
    for node in np.unique(sample.node[sample.censored]):
        of_node = sample.node == node
        values[of_node] = shape.uncensored(
            values[of_node],
            sample.censored[of_node],
            prior_mean=float(prior.means[node]),
            prior_log_sd=prior.log_sd,
        )
    return values


def _shapes(sample: Sample, values: Array, prior: Prior) -> tuple[Shape, ...]:
    # Batch and node together are what has one mean.
    nodes = len(prior.means)
    both = sample.batch * nodes + sample.node
    pooled = shape.learn(values, both, prior_log_sd=prior.log_sd)
    counts = np.bincount(sample.node, minlength=nodes)
    return tuple(
        shape.learn(values[sample.node == node], both[sample.node == node], prior_log_sd=pooled.log_sd)
        if counts[node] >= SHAPE_MIN
        else Shape(log_sd=pooled.log_sd, freedom=pooled.freedom)
        for node in range(nodes)
    )


def _seen(sample: Sample, values: Array, shapes: Sequence[Shape], medians: Array) -> Iterator[tuple[int, list[Seen]]]:
    """By batch: what it showed of each of its nodes."""
    ages = _age_days(sample)
    order = np.lexsort((sample.node, sample.batch))
    starts = np.flatnonzero(np.diff(sample.batch[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(order) else ():
        batch = int(sample.batch[rows[0]])
        yield (
            batch,
            [
                seen_of(
                    values[of_node],
                    shapes[node],
                    node=node,
                    median=float(medians[node]),
                    aged=float(ages[of_node].min()),
                )
                for node in _distinct(sample.node[rows])
                for of_node in [rows[sample.node[rows] == node]]
            ],
        )


def _distinct(values: Integers) -> list[int]:
    distinct: list[int] = np.unique(values).tolist()
    return distinct


def seen_of(values: Array, of: Shape, *, node: int, median: float, aged: float = 0.0) -> Seen:
    """Lognormal: from the mean of the logs. Resampled: from the mean itself, less the bias of its log."""
    if of.pool is None:
        log_mean, noise = float(np.log(values).mean()) + of.log_sd**2 / 2, of.log_sd**2 / len(values)
    else:
        noise = math.log1p(of.cv**2 / len(values))
        log_mean = math.log(float(values.mean())) + noise / 2
    return Seen(node=node, log_ratio=log_mean - math.log(median), noise=noise + AGE_VARIANCE_A_DAY * aged)


def _age_days(sample: Sample) -> Array:
    """Against the newest; 0 where a time was not told."""
    if not len(sample.ended_s) or np.isnan(sample.ended_s).all():
        return np.zeros(len(sample.ended_s))
    ages: Array = (np.nanmax(sample.ended_s) - sample.ended_s) / DAY_S
    return np.nan_to_num(ages)


def _running(
    sample: Sample,
    values: Array,
    shapes: Sequence[Shape],
    medians: Array,
    levels: Levels,
    *,
    current: int | None,
    bounds: Mapping[int, Array],
) -> list[Seen]:
    """The batch at hand, finished and in flight, as one observation of each node: by Newton's method from `levels`.

    Finished calls alone are the short ones of those that were started. One that is in flight counts by its expected
    deviation from the mean, and as far as it has told of it.
    """
    own = sample.batch == (-1 if current is None else current)
    found: list[Seen] = []
    for node in sorted({*_distinct(sample.node[own]), *bounds}):
        level_mean = float(levels.mean[node])
        mean = float(medians[node]) * math.exp(level_mean)
        finished = shapes[node].deviations(values[own & (sample.node == node)] / mean)
        expected, told = shape.above(shapes[node], bounds.get(node, np.zeros(0)) / mean)
        size = len(finished) + float(told.sum())
        if size < 0.01:
            continue
        missed = (float(finished.sum()) + float(expected.sum())) / size
        found.append(Seen(node=node, log_ratio=level_mean + missed, noise=shapes[node].variance / size))
    return found
