"""How good quoted ranges were: proper scores of quantiles and intervals, coverage, bias and relative error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The probabilities of a quote's quantiles, in their order.
QUANTILES = (0.025, 0.05, 0.10, 0.50, 0.90, 0.95, 0.975)
P2_5, _, P10, _, P90, _, P97_5 = range(len(QUANTILES))
# Half of what the binomial interval leaves out.
_TAIL = 0.025
# Halvings of [0, 1]: the last one is finer than a double.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Scored:
    """What happened beside what was quoted for it. The mean is over 0."""

    actual: float
    mean: float
    # One for each of QUANTILES, ascending.
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Shares are 0 to 1; losses and scores are in the unit of the outcomes."""

    count: int
    # Mean of (actual - mean) / mean.
    bias: float
    # Mean of |actual - mean| / actual; an actual of 0 counts as an error of 100 %.
    mape: float
    within_10_percent: float
    within_20_percent: float
    # Share between P10 and P90, with its 95 % binomial interval.
    coverage_80: float
    coverage_80_low: float
    coverage_80_high: float
    # Share between P2.5 and P97.5.
    coverage_95: float
    # Mean of (P90 - P10) / mean.
    width_80: float
    # Mean over all outcomes and all seven quantiles.
    pinball_loss: float
    interval_score_80: float
    interval_score_95: float


def summarize(scored: Sequence[Scored]) -> Scores:
    """The scores of at least one outcome."""
    if not scored:
        raise ValueError("there is nothing to score")
    if any(each.mean <= 0 for each in scored):
        raise ValueError("a quoted mean of 0 or less can't be scored")
    held = sum(_holds(each, P10, P90) for each in scored)
    low, high = binomial_interval(held, len(scored))
    return Scores(
        count=len(scored),
        bias=_mean([each.actual / each.mean - 1 for each in scored]),
        mape=_mean([_relative_error(each) for each in scored]),
        within_10_percent=_mean([_within(each, 0.10) for each in scored]),
        within_20_percent=_mean([_within(each, 0.20) for each in scored]),
        coverage_80=held / len(scored),
        coverage_80_low=low,
        coverage_80_high=high,
        coverage_95=_mean([_holds(each, P2_5, P97_5) for each in scored]),
        width_80=_mean([(each.quantiles[P90] - each.quantiles[P10]) / each.mean for each in scored]),
        pinball_loss=_mean([_pinball(each) for each in scored]),
        interval_score_80=_mean([_interval(each, P10, P90, 0.80) for each in scored]),
        interval_score_95=_mean([_interval(each, P2_5, P97_5, 0.95) for each in scored]),
    )


def pinball_loss(actual: float, *, quantile: float, p: float) -> float:
    """The loss of a quantile quoted for probability p, in the unit of `actual`: least on average at the true one.

    p * (actual - quantile) above the quantile, (1 - p) * (quantile - actual) below it (Koenker and Bassett 1978).
    """
    above = actual - quantile
    return p * above if above >= 0 else (p - 1) * above


def interval_score(actual: float, *, low: float, high: float, coverage: float) -> float:
    """Width plus 2 / (1 - coverage) of what lies outside (Gneiting and Raftery 2007, section 6.2); lower is better."""
    outside = max(low - actual, 0.0) + max(actual - high, 0.0)
    return (high - low) + 2 / (1 - coverage) * outside


def binomial_interval(hits: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934): never narrower than it claims.

    Its ends are the shares at which so many hits, or more (fewer), are seen in 2.5 % of all trials. Nothing tried
    gives (0, 1).
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    return _low_end(hits, n), 1.0 - _low_end(n - hits, n)


def _low_end(hits: int, n: int) -> float:
    if hits == 0:
        return 0.0
    # Logarithms of the binomial coefficients of `hits` to n, by summing those of the ratios of neighbours.
    drawn = np.arange(1, n + 1)
    coefficients = np.cumsum(np.log((n + 1 - drawn) / drawn))[hits - 1 :]
    more = drawn[hits - 1 :]
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        tail = np.exp(coefficients + more * np.log(share) + (n - more) * np.log1p(-share)).sum()
        low, high = (share, high) if tail < _TAIL else (low, share)
    return low


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _holds(scored: Scored, low: int, high: int) -> bool:
    return scored.quantiles[low] <= scored.actual <= scored.quantiles[high]


def _within(scored: Scored, share: float) -> bool:
    return abs(scored.actual - scored.mean) <= share * scored.mean


def _relative_error(scored: Scored) -> float:
    return abs(scored.actual - scored.mean) / scored.actual if scored.actual > 0 else 1.0


def _pinball(scored: Scored) -> float:
    pairs = zip(QUANTILES, scored.quantiles, strict=True)
    return _mean([pinball_loss(scored.actual, quantile=quantile, p=p) for p, quantile in pairs])


def _interval(scored: Scored, low: int, high: int, coverage: float) -> float:
    return interval_score(scored.actual, low=scored.quantiles[low], high=scored.quantiles[high], coverage=coverage)
