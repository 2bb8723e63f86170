"""Split conformal calibration: past outcomes widen or narrow the ranges of a quote, where that made them better.

A range is scaled about its median on the log scale: q' = median * (q / median) ** factor for every quantile q. The
factor is the one that four of five past outcomes needed at most to lie in their range, with the finite-sample
correction of split conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from estimator_service.domain.scores import QUANTILES, interval_score

# No calibration with fewer or as many outcomes.
OUTCOMES_MIN = 30
# Only the newest ones are asked: what was promised long ago was promised by other figures.
OUTCOMES_MAX = 300
COVERAGE = 0.80
FACTOR_MIN = 0.5
FACTOR_MAX = 3.0
_MEDIAN = QUANTILES.index(0.50)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRange:
    """An outcome beside the range that was quoted for it, as it was before any calibration."""

    actual: float
    p10: float
    p50: float
    p90: float

    @property
    def factor_needed(self) -> float:
        """The least one with which P10 to P90 holds the outcome; infinite where no factor does."""
        if self.actual == self.p50:
            return 0.0
        end = self.p90 if self.actual > self.p50 else self.p10
        if self.actual <= 0 or end <= 0 or end == self.p50:
            return math.inf
        return math.log(self.actual / self.p50) / math.log(end / self.p50)

    def score(self, factor: float) -> float:
        """The interval score with that factor, in medians: a batch of $100 counts as much as one of $1."""
        low, high = (_scaled(end, self.p50, factor) / self.p50 for end in (self.p10, self.p90))
        return interval_score(self.actual / self.p50, low=low, high=high, coverage=COVERAGE)


def calibrate(past: Sequence[PastRange]) -> float:
    """The factor for the next range, from outcomes in the order of time; 1 where none would be better.

    The older half gives a factor; it is used only if it would have made the interval score of the newer half better,
    and is then fitted again on all.
    """
    usable = [each for each in past if each.p50 > 0][-OUTCOMES_MAX:]
    if len(usable) <= OUTCOMES_MIN:
        return 1.0
    older, newer = usable[: len(usable) // 2], usable[len(usable) // 2 :]
    factor = _fitted(older)
    if sum(each.score(factor) for each in newer) >= sum(each.score(1.0) for each in newer):
        return 1.0
    return _fitted(usable)


def apply(quantiles: Sequence[float], factor: float) -> tuple[float, ...]:
    """The quantiles (one for each of QUANTILES) scaled about their median; 1 / factor undoes it."""
    median = quantiles[_MEDIAN]
    return tuple(quantile if quantile == median else _scaled(quantile, median, factor) for quantile in quantiles)


def _fitted(past: Sequence[PastRange]) -> float:
    needed = sorted(each.factor_needed for each in past)
    rank = math.ceil((len(needed) + 1) * COVERAGE)
    return min(max(needed[rank - 1], FACTOR_MIN), FACTOR_MAX)


def _scaled(quantile: float, median: float, factor: float) -> float:
    # Nothing lies on the log scale at or below 0: such a range is left as it is.
    return median * (quantile / median) ** factor if median > 0 and quantile > 0 else quantile
