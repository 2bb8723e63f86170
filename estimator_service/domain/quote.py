"""The promise for a workload: means and quantiles of cost and time, by group, and what a person should know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain import draws, makespan, rates
from estimator_service.domain.draws import Array
from estimator_service.domain.estimate import GroupEstimate, estimate_groups, expected_cost_nanos
from estimator_service.domain.history import History
from estimator_service.domain.rates import Rate, RateTable
from estimator_service.domain.scores import QUANTILES
from estimator_service.domain.warnings import Warning, warnings
from estimator_service.domain.workload import Workload

NEAR_COST = 0.10
NEAR_TIME = 0.20

REAL_TIME_DRAWS = 100

AGE_MAX = timedelta(hours=24)
COST_MOVE_MAX = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRange:
    mean_nanos: int
    # One for each of QUANTILES, ascending.
    quantiles_nanos: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRange:
    mean_s: float
    # One for each of QUANTILES, ascending.
    quantiles_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupQuote:
    estimate: GroupEstimate
    cost: CostRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that a quote says. The cost's mean is the sum of the groups' means, to the nano-dollar."""

    cost: CostRange
    time: TimeRange
    groups: tuple[GroupQuote, ...]
    rates: tuple[Rate, ...]
    rates_version: str
    warnings: tuple[Warning, ...]
    cost_within_10_percent: float
    time_within_20_percent: float
    # None without a budget.
    within_budget: float | None
    # None where the provider runs at real speed.
    real_time_mean_s: float | None
    # By how much the ranges were widened (over 1) or narrowed on the record of past quotes.
    cost_calibration: float = 1.0
    time_calibration: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """By how much the ranges are widened (over 1) or narrowed, about their medians on the log scale."""

    cost: float = 1.0
    time: float = 1.0


AS_DRAWN = Calibration()


def quote(
    workload: Workload,
    *,
    table: RateTable,
    history: History,
    seed: int,
    now: datetime,
    batch: str = "",
    calibration: Calibration = AS_DRAWN,
) -> Figures:
    """The same workload, prices, history, calibration and seed give the same figures. `batch`: whose rest the workload
    is. A calibration moves ranges and probabilities, never a mean."""
    used = table.rates(workload.models, time=now)
    estimates = estimate_groups(workload, {rate.model: rate for rate in used}, history, batch=batch)
    drawn = draws.draw(estimates, draws.draw_batch(estimates, seed=seed))
    costs = [draws.cost_nanos(*pair) for pair in zip(estimates, drawn, strict=True)]
    simulated = makespan.makespan_s(workload, estimates, drawn, speed_up=workload.speed_up)
    cost, times = (
        _calibrated(np.sum(costs, axis=0), calibration.cost),
        _calibrated(simulated, calibration.time),
    )
    mean_nanos, mean_s = expected_cost_nanos(estimates), float(simulated.mean())
    within_budget = share(cost <= float(workload.budget_nanos)) if workload.budget_nanos is not None else None
    return Figures(
        cost=cost_range(cost, mean_nanos=mean_nanos),
        time=time_range(times, mean_s=mean_s),
        groups=tuple(
            GroupQuote(
                estimate=estimate,
                cost=cost_range(_calibrated(each, calibration.cost), mean_nanos=estimate.cost_nanos),
            )
            for estimate, each in zip(estimates, costs, strict=True)
        ),
        rates=used,
        rates_version=rates.version(used),
        warnings=warnings(
            workload, estimates, cost_mean_nanos=mean_nanos, time_mean_s=mean_s, within_budget=within_budget, now=now
        ),
        cost_within_10_percent=share(abs(cost - mean_nanos) <= NEAR_COST * mean_nanos),
        time_within_20_percent=share(abs(times - mean_s) <= NEAR_TIME * mean_s),
        within_budget=within_budget,
        real_time_mean_s=_real_time_s(workload, estimates, drawn, simulated),
        cost_calibration=calibration.cost,
        time_calibration=calibration.time,
    )


def stale_reason(
    *,
    age: timedelta,
    workload: Workload,
    version: str,
    cost_mean_nanos: int,
    table: RateTable,
    history: History,
    now: datetime,
    expected_nanos: dict[Workload, int] | None = None,
) -> str:
    """Why a fresh quote would differ from the one with this version and mean; empty where it would not.

    `expected_nanos` keeps what was estimated for quotes of the same workload and history.
    """
    if age > AGE_MAX:
        return "it is older than 24 hours"
    used = table.rates(workload.models, time=now)
    if rates.version(used) != version:
        return f"prices changed: the rates were version {version} and are {rates.version(used)}"
    known = {} if expected_nanos is None else expected_nanos
    if workload not in known:
        known[workload] = expected_cost_nanos(estimate_groups(workload, {rate.model: rate for rate in used}, history))
    moved = known[workload] - cost_mean_nanos
    if abs(moved) > COST_MOVE_MAX * cost_mean_nanos:
        return f"observed calls moved the expected cost by {moved / max(cost_mean_nanos, 1):+.0%}"
    return ""


def _real_time_s(
    workload: Workload, estimates: Sequence[GroupEstimate], drawn: Sequence[draws.GroupDraws], simulated: Array
) -> float | None:
    """Few of the draws say how many times longer it takes than what was `simulated` at the provider's speed."""
    if workload.speed_up <= 1:
        return None
    some = [draws.first(each, REAL_TIME_DRAWS) for each in drawn]
    real = makespan.makespan_s(workload, estimates, some, speed_up=1.0)
    return float(simulated.mean() * real.sum() / max(float(simulated[: len(real)].sum()), 1e-9))


def cost_range(cost: Array, *, mean_nanos: int) -> CostRange:
    quantiles = tuple(round(value) for value in np.quantile(cost, QUANTILES).tolist())
    return CostRange(mean_nanos=mean_nanos, quantiles_nanos=quantiles)


def time_range(times: Array, *, mean_s: float) -> TimeRange:
    return TimeRange(mean_s=mean_s, quantiles_s=tuple(np.quantile(times, QUANTILES).tolist()))


def _calibrated(values: Array, factor: float) -> Array:
    """As calibration.apply does it to quantiles, done to every draw: probabilities follow."""
    median = float(np.median(values))
    # Nothing lies on the log scale at or below 0.
    if factor == 1 or median <= 0 or not (values > 0).all():
        return values
    scaled: Array = median * (values / median) ** factor
    return scaled


def share(hits: NDArray[np.bool_]) -> float:
    return float(np.mean(hits))
