"""The estimator's forecast as a batch shows it, and what stands in for it while there never was one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.type.money_pb2 import Money
from parley.v1 import batch_pb2

from orchestrator_service.convert.values import duration, money, nanos, seconds, timestamp
from orchestrator_service.domain.batch import BatchState
from orchestrator_service.domain.forecast import Progress, project

# More than anybody shows.
QUANTILES_MAX = 100
NANOS_MAX = 1 << 62
SECONDS_MAX = 10 * 366 * 86_400


def forecast_message(row: Mapping[Any, Any], counts: batch_pb2.Counts, *, now_us: int | None) -> batch_pb2.Forecast:
    """The estimator's last word on this run; our own projection where it never had one. Never less than is spent."""
    if row["forecast"] is not None and row["forecast_run"] == row["run"]:
        forecast = batch_pb2.Forecast.FromString(row["forecast"])
        forecast.stale = row["forecast_stale"]
        _raise_to(forecast, row["confirmed_nanos"] + row["possibly_spent_nanos"])
    else:
        forecast = _projection(row, counts, now_us=now_us)
    if row["state"] == BatchState.CANCELLING:
        # What is left will not be made.
        forecast.ClearField("time_left")
        forecast.ClearField("time")
    return forecast


def is_plausible(forecast: batch_pb2.Forecast) -> bool:
    """Whether it can be shown to anybody: what another server says is not taken on trust."""
    cost, time = forecast.cost, forecast.time
    amounts = [forecast.projected_cost, cost.mean, *[quantile.value for quantile in cost.quantiles]]
    lengths = [forecast.time_left, time.mean, *[quantile.value for quantile in time.quantiles]]
    shares = [forecast.probability_within_budget]
    return (
        forecast.HasField("projected_cost")
        and all(_is_amount(amount) for amount in amounts)
        and all(0 <= seconds(length) <= SECONDS_MAX for length in lengths)
        and all(0 <= share <= 1 for share in shares)
        and _are_quantiles([(quantile.p, nanos(quantile.value)) for quantile in cost.quantiles])
        and _are_quantiles([(quantile.p, seconds(quantile.value)) for quantile in time.quantiles])
    )


def _is_amount(amount: Money) -> bool:
    return amount.currency_code in ("", "USD") and 0 <= nanos(amount) <= NANOS_MAX


def _are_quantiles(found: Sequence[tuple[float, float]]) -> bool:
    values = [value for _, value in found]
    shares = [p for p, _ in found]
    ascending = values == sorted(values) and shares == sorted(shares)
    return len(found) <= QUANTILES_MAX and ascending and all(0 <= p <= 1 for p in shares)


def _raise_to(forecast: batch_pb2.Forecast, committed_nanos: int) -> None:
    """It may be some seconds older than what is spent, or wrong."""
    amounts = [forecast.projected_cost, *[quantile.value for quantile in forecast.cost.quantiles]]
    if forecast.HasField("cost"):
        amounts.append(forecast.cost.mean)
    for amount in amounts:
        if nanos(amount) < committed_nanos:
            amount.CopyFrom(money(committed_nanos))


def _projection(row: Mapping[Any, Any], counts: batch_pb2.Counts, *, now_us: int | None) -> batch_pb2.Forecast:
    projected = project(
        Progress(
            total=counts.total,
            pending=counts.pending,
            running=counts.running,
            made=row["made"],
            committed_nanos=row["confirmed_nanos"] + row["possibly_spent_nanos"],
            confirmed_nanos=row["confirmed_nanos"],
            answered=row["answered"],
            answered_s=row["answered_s"],
            concurrency=row["concurrency"],
            quoted_cost_nanos=row["quoted_cost_nanos"],
            quoted_duration_s=row["quoted_duration_s"],
        )
    )
    basis = f"{projected.basis}, without the estimator"
    # Only just started, it was not asked for yet. A batch from before there were forecasts is never asked for.
    stale = row["forecast_stale"] is None or row["forecast_stale"]
    forecast = batch_pb2.Forecast(basis=basis, create_time=timestamp(now_us), stale=stale)
    forecast.projected_cost.CopyFrom(money(projected.cost_nanos))
    left = duration(projected.time_left_s)
    if left is not None:
        forecast.time_left.CopyFrom(left)
    return forecast
