"""What the estimator says of a batch: its quote before the start, its forecast on the way."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import estimator_service
from benchmarks.backtest.oracle import Said
from benchmarks.backtest.series import Known, Series
from estimator_service.domain.forecast import InFlight, forecast
from estimator_service.domain.history import history_of
from estimator_service.domain.quote import CostRange, TimeRange, quote
from estimator_service.domain.rate_file import parse_rates
from estimator_service.domain.rates import RateTable
from estimator_service.domain.workload import Group, InputSource, Workload

SEED = 1


@cache
def table() -> RateTable:
    return parse_rates((Path(estimator_service.__file__).parent / "data" / "prices.json").read_text())


def said(series: Series, seen: Known) -> dict[str, Said]:
    """By measure."""
    workload = _workload(series, seen)
    history = history_of(seen.observations)
    if not seen.has_begun:
        quoted = quote(workload, table=table(), history=history, seed=SEED, now=seen.now)
        return {"cost": _cost(quoted.cost), "time": _time(quoted.time, elapsed_s=0.0)}
    told = forecast(
        workload,
        table=table(),
        history=history,
        batch=seen.batch,
        in_flight=[InFlight(group=call.tier, age_s=call.age_s) for call in seen.in_flight],
        spent_nanos=round(seen.spent_nanos),
        seed=SEED,
        now=seen.now,
    )
    return {"cost": _cost(told.cost), "time": _time(told.time, elapsed_s=seen.elapsed_s)}


def _cost(cost: CostRange) -> Said:
    return Said(cost.mean_nanos, tuple(cost.quantiles_nanos))


def _time(time: TimeRange, *, elapsed_s: float) -> Said:
    """Of the whole batch: a forecast says what is left of it."""
    return Said(elapsed_s + time.mean_s, tuple(elapsed_s + each for each in time.quantiles_s))


def _workload(series: Series, seen: Known) -> Workload:
    groups = [
        Group(
            id=tier,
            tier=tier,
            model=series.model,
            count=count,
            input_source=InputSource.COUNTED if seen.counted.get(tier) else InputSource.PRIOR,
            input_tokens_mean=seen.counted.get(tier, 0.0),
            max_output_tokens=seen.max_output_tokens[tier],
        )
        for tier, count in seen.waiting.items()
    ]
    return Workload(
        groups=tuple(groups), concurrency=series.concurrency, speed_up=series.speed_up, provider=series.name
    )
