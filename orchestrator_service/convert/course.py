"""A batch's course to what the estimator is asked and told of it: forecasts, the quote of its rest, its outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parley.v1 import batch_pb2, estimator_pb2, quote_pb2

from orchestrator_service.convert.values import duration, money, nanos, seconds, timestamp
from orchestrator_service.convert.workload import observation_of
from orchestrator_service.domain.ledger import Rate, Usage, cost_nanos
from orchestrator_service.domain.outcome import running_s
from orchestrator_service.storage.course import Course
from orchestrator_service.storage.estimates import checkpoint
from orchestrator_service.storage.outcomes import Outcome
from orchestrator_service.storage.tables import USAGE_COLUMNS


def forecast_request(course: Course, *, now_us: int) -> estimator_pb2.ForecastBatchRequest:
    row = course.row
    in_flight = [
        quote_pb2.InFlightCall(group=call["tier"], age=duration(max(0, now_us - call["created_us"]) / 1e6))
        for call in course.in_flight
        # One that warms a cache is of no tier.
        if call["tier"]
    ]
    return estimator_pb2.ForecastBatchRequest(
        quote=row["quote_name"],
        remaining=rest_of(course),
        finished=[observation_of(call) for call in course.finished],
        in_flight=in_flight,
        spent=money(row["confirmed_nanos"] + row["possibly_spent_nanos"]),
        elapsed=duration(running_s(course.changes, until_us=now_us)),
        batch=f"batches/{row['id']}",
        seed=row["seed"],
    )


def rest_of(course: Course) -> quote_pb2.Workload:
    """The batch's workload with what waits for its turn, and with the settings of now."""
    row = course.row
    workload = quote_pb2.Workload.FromString(row["workload"])
    pending = {tier["tier"]: tier["pending"] for tier in course.tiers}
    for group in workload.groups:
        group.count = pending.get(group.tier, 0)
    workload.concurrency = row["concurrency"]
    workload.provider, workload.speed_up = row["base_url"], row["speed_up"]
    workload.ClearField("budget")
    if row["budget_nanos"] is not None:
        workload.budget.CopyFrom(money(row["budget_nanos"]))
    return workload


def refined_request(course: Course) -> estimator_pb2.CreateQuoteRequest:
    """For the rest of a batch at a checkpoint. Where nothing changed it is the same, and so is the quote."""
    row = course.row
    request = estimator_pb2.CreateQuoteRequest(
        workload=rest_of(course),
        spec_sha256=row["spec_sha256"],
        seed=row["seed"],
        owner=row["owner"],
        batch=f"batches/{row['id']}",
    )
    if request.workload.HasField("budget"):
        # What the rest may still cost.
        left = row["budget_nanos"] - row["confirmed_nanos"] - row["possibly_spent_nanos"]
        request.workload.budget.CopyFrom(money(max(0, left)))
    # Settings may be changed while it holds: another question has another id.
    asked = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:16]
    request.request_id = f"rest-{row['id'][:20]}-{checkpoint(row)}-{asked}"[:64]
    return request


def refined_detail(quote: quote_pb2.Quote, course: Course) -> dict[str, Any]:
    """The facts of the event, of the rest alone."""
    costs = {round(each.p, 3): nanos(each.value) for each in quote.cost.quantiles}
    mean = nanos(quote.cost.mean)
    return {
        "made": sum(tier["generated"] for tier in course.tiers),
        "mean_nanos": mean,
        "p10_nanos": costs.get(0.1, mean),
        "p90_nanos": costs.get(0.9, mean),
        "time_left_s": seconds(quote.time.mean),
    }


def is_plausible_quote(quote: quote_pb2.Quote) -> bool:
    amounts = [quote.cost.mean, *[each.value for each in quote.cost.quantiles]]
    return bool(quote.name) and all(nanos(each) >= 0 for each in amounts) and seconds(quote.time.mean) >= 0


def outcome_request(
    outcome: Outcome, rate_of: Callable[[str | None], Rate | None]
) -> estimator_pb2.RecordOutcomeRequest:
    cost = sum(outcome.cost_by_tier.values())
    actuals = quote_pb2.Actuals(
        cost=money(cost),
        duration=duration(outcome.duration_s),
        conversations=outcome.made,
        cost_by_group={tier: money(nanos) for tier, nanos in outcome.cost_by_tier.items() if tier},
    )
    rate = rate_of(outcome.quoted_rate)
    if rate is not None and outcome.priced_otherwise:
        dearer = _dearer_nanos(outcome.priced_otherwise, rate)
        actuals.cost_at_quoted_prices.CopyFrom(money(cost - dearer))
    return estimator_pb2.RecordOutcomeRequest(
        quote=outcome.quote,
        batch=f"batches/{outcome.batch}",
        actuals=actuals,
        end_time=timestamp(outcome.ended_us),
    )


def stored_forecast(forecast: batch_pb2.Forecast, *, now_us: int) -> bytes:
    """As a batch keeps it: made at a time of our clock, for nobody compares it with the estimator's."""
    kept = batch_pb2.Forecast()
    kept.CopyFrom(forecast)
    kept.create_time.CopyFrom(timestamp(now_us) or kept.create_time)
    kept.stale = False
    return kept.SerializeToString(deterministic=True)


def _dearer_nanos(calls: Iterable[Mapping[Any, Any]], rate: Rate) -> int:
    """By how much the calls cost more than they would have at the rate; negative where less."""
    return sum(
        call["cost_nanos"] - cost_nanos(Usage(**{name: call[name] for name in USAGE_COLUMNS}), rate) for call in calls
    )
