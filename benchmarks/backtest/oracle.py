"""The oracle: knows the whole series, and so its true mean, spread and drift; and nothing of the one batch to come.

It draws batches: each conversation from all of the series that are of its tier, times a lognormal drift that the
batch shares. The drift's size is what the batches' totals vary by beyond what the conversations alone account for
(method of moments). Of a batch under way it knows how its own draws went on that were as far at the same moment: a
linear regression of the logarithm of the rest on what was seen, which is the normal conjugate update where nothing is
in flight, and stays right where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.backtest.series import Batch, Known, Series
from estimator_service.domain.scores import QUANTILES

Array = NDArray[np.float64]
DRAWS = 4_000


@dataclass(frozen=True, slots=True)
class Said:
    """Mean and one value for each of QUANTILES, of the whole batch."""

    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Batches drawn: draws x conversations in the order of their start."""

    amounts: Array
    start_s: Array
    end_s: Array
    # Logarithm of the factor that the batch shares, a value for each draw.
    drift: Array

    def ages_s(self, now_s: Array) -> Array:
        """Of all that are in flight at that moment, added up."""
        age_s = now_s[:, None] - self.start_s
        return np.where((age_s >= 0) & (self.end_s > now_s[:, None]), age_s, 0.0).sum(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halfway:
    """Every draw at the moment when so many had finished: what was seen, and the logarithm of what was left."""

    seen: Array
    rest_log: Array


class Oracle:
    """Of one series and one measure, "cost" or "time"."""

    def __init__(self, series: Series, *, measure: str, seed: int = 0) -> None:
        self._series = series
        self._measure = measure
        # Lanes go through the same calls again.
        self._count = max(len(series.lanes[0]), 2)
        batches = series.batches
        actual = np.array([total(batch, measure) for batch in batches])
        self.mean = float(actual.mean())
        undrifted = self._draw(batches, np.random.default_rng([seed, 0]), drift_sd=0.0)
        # Where a batch takes longer than its calls alone do, all draws do.
        self._scale = self.mean / self._totals(undrifted).mean()
        spread, alone = actual.std(ddof=1) / self.mean, self._totals(undrifted).std() * self._scale / self.mean
        self.drift_sd = float(np.sqrt(max(spread**2 - alone**2, 0.0)))
        # A plan that gives every batch the same mix makes them more alike than conversations by chance would be.
        self._narrowing = min(1.0, float(spread / alone))
        self._drawn = self._draw(batches, np.random.default_rng([seed, 1]), drift_sd=self.drift_sd)
        self._halfways: dict[int, Halfway] = {}

    def quote(self, actual: float | None = None) -> Said:
        """`actual`: what became of the batch in question, where it is one of the series.

        The mean of n batches has a share of this one in it, so its error is too small by sqrt(1 - 1 / n): of ten
        batches by 5 %. That is given back; the true mean errs as much.
        """
        totals = self._totals(self._drawn) * self._scale
        leaked = 0.0 if actual is None else (self.mean - actual) * (math.sqrt(self._count / (self._count - 1)) - 1)
        return _said(totals.mean() + leaked + self._narrowing * (totals - totals.mean()))

    def forecast(self, seen: Known, *, drift: float | None = None) -> Said:
        """Of the whole batch, from what was seen; with `drift`, from what nobody can know as well."""
        halfway = self._halfway(len(seen.finished))
        so_far, features = self._seen(seen)
        regressors, own = halfway.seen, features
        if drift is not None:
            regressors = np.column_stack([regressors, self._drawn.drift])
            own = np.append(own, drift)
        design = np.column_stack([np.ones(len(regressors)), regressors])
        weights, *_ = np.linalg.lstsq(design, halfway.rest_log, rcond=None)
        left = np.exp(np.append(1.0, own) @ weights + self._narrowing * (halfway.rest_log - design @ weights))
        return _said(so_far + left)

    def drift_of(self, batch: Batch) -> float:
        """As the world set it; where nobody knows, as far as its total tells it (normal conjugate)."""
        if batch.drift is not None:
            # Nearly all of the cost is output, nearly all of a call's time is writing.
            return batch.drift.tokens - (batch.drift.speed if self._measure == "time" else 0.0)
        totals = np.log(self._totals(self._drawn))
        share = self.drift_sd**2 / max(float(totals.var()), self.drift_sd**2, 1e-12)
        return share * float(np.log(total(batch, self._measure) / self.mean))

    def _halfway(self, finished: int) -> Halfway:
        if finished not in self._halfways:
            self._halfways[finished] = self._halfway_drawn(finished)
        return self._halfways[finished]

    def _halfway_drawn(self, finished: int) -> Halfway:
        drawn = self._drawn
        order = drawn.end_s.argsort(axis=1, kind="stable")[:, :finished]
        now_s = np.take_along_axis(drawn.end_s, order, axis=1).max(axis=1)
        ages = drawn.ages_s(now_s)
        if self._measure == "cost":
            spent = np.take_along_axis(drawn.amounts, order, axis=1).sum(axis=1)
            features = self._features(spent, ages, now_s)
            return Halfway(seen=features, rest_log=np.log(drawn.amounts.sum(axis=1) - spent))
        features = self._features(now_s, ages, now_s)
        left_s = np.maximum(self._totals(drawn) - now_s, 1e-9) * self._scale
        return Halfway(seen=features, rest_log=np.log(left_s))

    def _seen(self, seen: Known) -> tuple[float, Array]:
        ages = sum(call.age_s for call in seen.in_flight) / self._scale_s
        elapsed_s = seen.elapsed_s / self._scale_s
        so_far = seen.spent_nanos if self._measure == "cost" else elapsed_s
        told = self._features(np.array([so_far]), np.array([ages]), np.array([elapsed_s]))
        return (seen.spent_nanos if self._measure == "cost" else seen.elapsed_s), told[0]

    @property
    def _scale_s(self) -> float:
        return self._scale if self._measure == "time" else 1.0

    def _features(self, so_far: Array, ages: Array, now_s: Array) -> Array:
        """The age is of those in flight, in all, over the time since the start: free of the batch's speed."""
        columns = [np.log(so_far)]
        if self._series.is_timed:
            columns.append(ages / now_s)
        return np.column_stack(columns)

    def _totals(self, drawn: Drawn) -> Array:
        return drawn.amounts.sum(axis=1) if self._measure == "cost" else drawn.end_s.max(axis=1)

    def _draw(self, batches: Sequence[Batch], rng: np.random.Generator, *, drift_sd: float) -> Drawn:
        pools: dict[str, list[tuple[float, float]]] = {}
        for batch in batches:
            for call in batch.calls:
                pools.setdefault(call.tier, []).append((call.cost_nanos, call.end_s - call.start_s))
        # Batches of a series are alike: the tiers of its first one, in the order of their start.
        tiers = [call.tier for call in batches[0].calls]
        amounts, durations_s = np.empty((DRAWS, len(tiers))), np.empty((DRAWS, len(tiers)))
        for tier, pool in pools.items():
            columns = [at for at, each in enumerate(tiers) if each == tier]
            picked = rng.integers(len(pool), size=(DRAWS, len(columns)))
            amounts[:, columns], durations_s[:, columns] = np.moveaxis(np.array(pool)[picked], -1, 0)
        drift = drift_sd * rng.standard_normal(DRAWS) - drift_sd**2 / 2
        if self._measure == "cost":
            amounts = amounts * np.exp(drift)[:, None]
        else:
            durations_s = durations_s * np.exp(drift)[:, None]
        if self._series.is_timed:
            start_s = _starts_s(durations_s, concurrency=self._series.concurrency)
        else:
            start_s = np.tile(np.arange(len(tiers), dtype=np.float64), (DRAWS, 1))
            durations_s = np.ones_like(start_s)
        return Drawn(amounts=amounts, start_s=start_s, end_s=start_s + durations_s, drift=drift)


def total(batch: Batch, measure: str) -> float:
    return batch.cost_nanos if measure == "cost" else batch.time_s


def _said(totals: Array) -> Said:
    return Said(mean=float(totals.mean()), quantiles=tuple(np.quantile(totals, QUANTILES).tolist()))


def _starts_s(durations_s: Array, *, concurrency: int) -> Array:
    """List scheduling of every row: each call starts on the slot that is free first."""
    rows = np.arange(len(durations_s), dtype=np.intp)
    free_s = np.zeros((len(durations_s), concurrency))
    start_s = np.empty_like(durations_s)
    for column in range(durations_s.shape[1]):
        slot = free_s.argmin(axis=1)
        start_s[:, column] = free_s[rows, slot]
        free_s[rows, slot] += durations_s[:, column]
    return start_s
