"""Where a running batch is heading: what is spent, what is in flight, and what is left to make."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from estimator_service.domain import draws, makespan
from estimator_service.domain.basis import Basis, basis_of
from estimator_service.domain.draws import Array, BatchDraws
from estimator_service.domain.estimate import GroupEstimate, estimate_groups
from estimator_service.domain.history import CallKey, History, real_seconds
from estimator_service.domain.nodes import key_of
from estimator_service.domain.quote import CostRange, TimeRange, cost_range, share, time_range
from estimator_service.domain.rates import RateTable
from estimator_service.domain.workload import Workload

# The seconds of what is in flight are drawn call by call; of more of them, the oldest say enough.
IN_FLIGHT_MAX = 1_000
# It is made again every few seconds, beside the batch: of a large one fewer draws than a quote has.
DRAWS_MIN = 300
VALUES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A call under way: the id of its group and the wall seconds since it was sent."""

    group: str
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`cost` is of the whole batch, what is spent included; `time` is what is left."""

    cost: CostRange
    time: TimeRange
    # None without a budget.
    within_budget: float | None
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlook:
    """Outcomes, draw by draw: the cost of what is not spent yet, and the wall time left."""

    cost_nanos: Array
    left_s: Array


def forecast(
    remaining: Workload,
    *,
    table: RateTable,
    history: History,
    batch: str,
    in_flight: Sequence[InFlight],
    spent_nanos: int,
    seed: int,
    now: datetime,
) -> Forecast:
    """`remaining` has every group of the batch, with the conversations that are neither made nor in flight; `history`
    has the batch's own finished calls under its name. Answers that have not come are longer than those that have:
    what is in flight counts as at least as long as it took by now."""
    rates = {rate.model: rate for rate in table.rates(remaining.models, time=now)}
    ages = _ages_s(remaining, in_flight)
    estimates = estimate_groups(remaining, rates, history, batch=batch, ages_s=_by_key(remaining, ages))
    drawn = draws.draw_batch(estimates, seed=seed, draws_min=DRAWS_MIN, values_max=VALUES_MAX)
    outlook = _outlook(remaining, estimates, ages, drawn)
    cost = outlook.cost_nanos + spent_nanos
    budget = remaining.budget_nanos
    return Forecast(
        cost=cost_range(cost, mean_nanos=round(float(cost.mean()))),
        time=time_range(outlook.left_s, mean_s=float(outlook.left_s.mean())),
        within_budget=None if budget is None else share(cost <= float(budget)),
        basis=basis_of(estimates),
    )


def _ages_s(remaining: Workload, in_flight: Sequence[InFlight]) -> Mapping[str, Array]:
    """By group, at real speed, oldest first; 0 where a sandbox is so fast that its age is our own overhead."""
    ages: defaultdict[str, list[float]] = defaultdict(list)
    for call in sorted(in_flight, key=lambda call: -call.age_s)[:IN_FLIGHT_MAX]:
        ages[call.group].append(float(np.nan_to_num(real_seconds(call.age_s, remaining.speed_up))))
    return {group: np.array(each) for group, each in ages.items()}


def _by_key(remaining: Workload, ages: Mapping[str, Array]) -> dict[CallKey, Array]:
    joined: defaultdict[CallKey, list[Array]] = defaultdict(list)
    for group in remaining.groups:
        if group.id in ages:
            joined[key_of(group)].append(ages[group.id])
    return {key: np.concatenate(each) for key, each in joined.items()}


def _outlook(
    remaining: Workload, estimates: Sequence[GroupEstimate], ages: Mapping[str, Array], batch: BatchDraws
) -> _Outlook:
    drawn = draws.draw(estimates, batch)
    cost = np.sum([draws.cost_nanos(*pair) for pair in zip(estimates, drawn, strict=True)], axis=0)
    busy: list[Array] = [np.zeros((batch.draws, 0))]
    for number, estimate in enumerate(estimates):
        if estimate.group.id in ages:
            running, left_s = draws.draw_in_flight(estimate, batch, ages_s=ages[estimate.group.id], number=number)
            cost = cost + draws.variable_nanos(estimate, running)
            busy.append(left_s / remaining.speed_up)
    # What is in flight takes up places until it ends, and the end waits for it.
    times = makespan.makespan_s(remaining, estimates, drawn, speed_up=remaining.speed_up, busy_s=np.hstack(busy))
    return _Outlook(cost_nanos=cost, left_s=times)
