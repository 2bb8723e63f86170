"""What a person should know before the start, one sentence with the figures each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from estimator_service.domain.estimate import GroupEstimate
from estimator_service.domain.makespan import binding
from estimator_service.domain.rates import Rate
from estimator_service.domain.workload import Workload

EXPENSIVE_NANOS = 100_000_000_000
LONG_S = 2 * 3_600
BUDGET_PROBABILITY_MIN = 0.8
RETIRES_WITHIN = timedelta(days=60)
NANOS_PER_DOLLAR = 1_000_000_000


class Kind(Enum):
    EXPENSIVE = auto()
    LONG = auto()
    LIMIT_BINDS = auto()
    OVER_BUDGET = auto()
    NO_PRICE = auto()
    MODEL_RETIRES = auto()


@dataclass(frozen=True, slots=True)
class Warning:
    kind: Kind
    message: str


def warnings(
    workload: Workload,
    estimates: Sequence[GroupEstimate],
    *,
    cost_mean_nanos: int,
    time_mean_s: float,
    within_budget: float | None,
    now: datetime,
) -> tuple[Warning, ...]:
    rates = {estimate.rate.model: estimate.rate for estimate in estimates}
    return (
        *_money(cost_mean_nanos, within_budget, workload.budget_nanos),
        *_time(workload, estimates, time_mean_s),
        *(warning for model in sorted(rates) for warning in _model(rates[model], now)),
    )


def _money(cost_mean_nanos: int, within_budget: float | None, budget_nanos: int | None) -> Iterator[Warning]:
    if cost_mean_nanos > EXPENSIVE_NANOS:
        yield Warning(Kind.EXPENSIVE, f"The expected cost is {_dollars(cost_mean_nanos)}.")
    if budget_nanos is not None and within_budget is not None and within_budget < BUDGET_PROBABILITY_MIN:
        budget, mean = _dollars(budget_nanos), _dollars(cost_mean_nanos)
        told = f"The cost stays within the budget of {budget} with a probability of only {within_budget:.0%}"
        yield Warning(Kind.OVER_BUDGET, f"{told}; the expected cost is {mean}.")


def _time(workload: Workload, estimates: Sequence[GroupEstimate], time_mean_s: float) -> Iterator[Warning]:
    if time_mean_s > LONG_S:
        yield Warning(Kind.LONG, f"The expected time is {time_mean_s / 3_600:.1f} hours.")
    bound = binding(workload, estimates)
    if bound:
        told = f"{bound.limit.capitalize()} a minute bind"
        yield Warning(
            Kind.LIMIT_BINDS, f"{told}: {bound.concurrency_enough} would be as fast as {workload.concurrency}."
        )


def _model(rate: Rate, now: datetime) -> Iterator[Warning]:
    if rate.free:
        yield Warning(Kind.NO_PRICE, f"The price of {rate.model} in the rate table is 0: its calls count as free.")
    if rate.retired or (rate.retire_time and rate.retire_time <= now):
        yield Warning(Kind.MODEL_RETIRES, f"{rate.model} has retired: its provider may refuse the calls.")
    elif rate.retire_time and rate.retire_time - now <= RETIRES_WITHIN:
        days = (rate.retire_time - now).days
        yield Warning(Kind.MODEL_RETIRES, f"{rate.model} retires on {rate.retire_time:%Y-%m-%d}, in {days} days.")


def _dollars(nanos: int) -> str:
    return f"${nanos / NANOS_PER_DOLLAR:,.2f}"
