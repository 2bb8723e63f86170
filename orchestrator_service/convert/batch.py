"""Snapshots and events of the storage to the contract's Batch and BatchEvent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from google.protobuf.message import Message
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2

from orchestrator_service.convert.forecast import forecast_message
from orchestrator_service.convert.values import duration, money, number_of, timestamp
from orchestrator_service.domain.batch import FINAL, NEXT_STEPS, BatchState, HoldReason
from orchestrator_service.domain.budget import Amount, BudgetScope, next_day_us
from orchestrator_service.storage.batches import Snapshot, etag_of
from orchestrator_service.storage.events import LoggedEvent
from orchestrator_service.storage.tables import USAGE_COLUMNS

_STATES = batch_pb2.BatchState.DESCRIPTOR
_HOLDS = batch_pb2.HoldReason.DESCRIPTOR
_CONVERSATION_STATES = conversation_pb2.ConversationState.DESCRIPTOR
_REVIEWS = conversation_pb2.Review.DESCRIPTOR
_FAILURES = conversation_pb2.FailureReason.DESCRIPTOR
_COUNTS = ("total", "pending", "running", "generated", "failed", "cancelled", "deliverable", "quarantined")
_PRIORITIES = {1: batch_pb2.PRIORITY_LOW, 2: batch_pb2.PRIORITY_NORMAL, 3: batch_pb2.PRIORITY_HIGH}


def batch_message(
    snapshot: Snapshot, *, limit_wait_s: float | None = None, now_us: int | None = None
) -> batch_pb2.Batch:
    row = snapshot.row
    message = batch_pb2.Batch(
        name=f"batches/{row['id']}",
        display_name=row["display_name"],
        owner=row["owner"],
        labels=snapshot.labels,
        state=cast("Any", number_of(_STATES, row["state"])),
        holds=[_hold(hold) for hold in snapshot.holds],
        counts=_counts(snapshot.tiers),
        tiers=[_tier(tier) for tier in snapshot.tiers],
        spend=spend_message(row),
        concurrency=row["concurrency"],
        error_mode=batch_pb2.ERROR_MODE_STOP if row["stop_on_error"] else batch_pb2.ERROR_MODE_CONTINUE,
        priority=_PRIORITIES[row["priority"]],
        model=row["model"],
        quote=row["quote_name"],
        refined_quote=row["refined_quote"],
        run=row["run"],
        etag=etag_of(row),
        fingerprint=row["fingerprint"],
        create_time=timestamp(row["created_us"]),
        start_time=timestamp(row["started_us"]),
        end_time=timestamp(row["ended_us"]),
        last_event=row["last_event"],
        provider=batch_pb2.ProviderInfo(base_url=row["base_url"], sandbox=row["sandbox"], speed_up=row["speed_up"]),
        waiting_for_limit=limit_wait_s is not None,
        limit_wait=duration(limit_wait_s),
        quoted_duration=duration(row["quoted_duration_s"]),
    )
    _set_optional(message, snapshot, now_us=now_us)
    return message


def _set_optional(message: batch_pb2.Batch, snapshot: Snapshot, *, now_us: int | None) -> None:
    row = snapshot.row
    if row["budget_nanos"] is not None:
        message.budget.CopyFrom(money(row["budget_nanos"]))
    if row["hold_after"] is not None:
        message.hold_after = row["hold_after"]
    if row["quoted_cost_nanos"] is not None:
        message.quoted_cost.CopyFrom(money(row["quoted_cost_nanos"]))
    if BatchState(row["state"]) not in FINAL:
        message.forecast.CopyFrom(forecast_message(row, message.counts, now_us=now_us))


def spend_message(row: Mapping[Any, Any]) -> batch_pb2.Spend:
    """Of a batch row, or of a row of sums over the ledger."""
    return batch_pb2.Spend(
        confirmed=money(row["confirmed_nanos"]),
        reserved=money(row["reserved_nanos"]),
        possibly_spent=money(row["possibly_spent_nanos"]),
        calls_settled=row["calls_settled"],
        calls_possibly_spent=row["calls_possibly_spent"],
        usage=usage_message(row),
    )


def daily_budget_message(owner: str, budget_nanos: int, amount: Amount, *, now_us: int) -> orchestrator_pb2.DailyBudget:
    return orchestrator_pb2.DailyBudget(
        owner=owner,
        budget=money(budget_nanos),
        committed=money(amount.committed_nanos + amount.reserved_nanos),
        resets_at=timestamp(next_day_us(now_us)),
    )


def usage_message(row: Mapping[Any, Any]) -> conversation_pb2.Usage:
    return conversation_pb2.Usage(**{name: row[name] for name in USAGE_COLUMNS})


def event_message(event: LoggedEvent) -> batch_pb2.BatchEvent:
    message = batch_pb2.BatchEvent(number=event.number, create_time=timestamp(event.created_us))
    detail: Message = getattr(message, event.kind)
    detail.CopyFrom(_DETAILS[event.kind](event.detail))
    return message


def _state_changed(detail: Mapping[Any, Any]) -> Message:
    changed = batch_pb2.StateChanged(to=cast("Any", number_of(_STATES, detail["to"])))
    setattr(changed, "from", number_of(_STATES, detail["from"]))
    return changed


def _hold_added(detail: Mapping[Any, Any]) -> Message:
    return batch_pb2.HoldAdded(hold=_hold(detail))


def _hold_cleared(detail: Mapping[Any, Any]) -> Message:
    return batch_pb2.HoldCleared(reason=cast("Any", number_of(_HOLDS, detail["reason"])))


def _conversation_ended(detail: Mapping[Any, Any]) -> Message:
    ended = batch_pb2.ConversationEnded(
        number=detail["number"],
        tier=detail["tier"],
        state=cast("Any", number_of(_CONVERSATION_STATES, detail["state"])),
        review=cast("Any", number_of(_REVIEWS, detail.get("review"))),
        cost=money(detail["cost_nanos"]),
    )
    if detail.get("failure_reason"):
        ended.failure.CopyFrom(failure_message(detail))
    return ended


def _budget_mark(detail: Mapping[Any, Any]) -> Message:
    return batch_pb2.BudgetMark(
        share=detail["share"], spent=money(detail["spent_nanos"]), budget=money(detail["budget_nanos"])
    )


def _call_settled(detail: Mapping[Any, Any]) -> Message:
    return batch_pb2.CallSettled(
        call=detail["call"], cost=money(detail["cost_nanos"]), by=detail["by"], note=detail["note"]
    )


def _quote_refined(detail: Mapping[Any, Any]) -> Message:
    return batch_pb2.QuoteRefined(
        quote=detail["quote"],
        made=detail["made"],
        projected_cost=money(detail["mean_nanos"]),
        projected_cost_p10=money(detail["p10_nanos"]),
        projected_cost_p90=money(detail["p90_nanos"]),
        time_left=duration(detail["time_left_s"]),
    )


def failure_message(detail: Mapping[Any, Any]) -> conversation_pb2.Failure:
    reason = number_of(_FAILURES, detail["failure_reason"])
    return conversation_pb2.Failure(reason=cast("Any", reason), message=detail["failure_message"])


def _plain(message: type[Message]) -> Callable[[Mapping[Any, Any]], Message]:
    """For a detail whose facts have the names of the message's fields."""
    return lambda detail: message(**detail)


_DETAILS: dict[str, Callable[[Mapping[Any, Any]], Message]] = {
    "state_changed": _state_changed,
    "hold_added": _hold_added,
    "hold_cleared": _hold_cleared,
    "conversation_ended": _conversation_ended,
    "settings_changed": _plain(batch_pb2.SettingsChanged),
    "conversations_requeued": _plain(batch_pb2.ConversationsRequeued),
    "recovered": _plain(batch_pb2.Recovered),
    "budget_mark": _budget_mark,
    "rates_changed": _plain(batch_pb2.RatesChanged),
    "call_settled": _call_settled,
    "quote_refined": _quote_refined,
}


def _hold(hold: Mapping[Any, Any]) -> batch_pb2.Hold:
    reason = HoldReason(hold["reason"])
    # Holds that were logged before there were daily budgets have neither.
    needs_nanos, scope = hold.get("needs_nanos"), hold.get("scope")
    return batch_pb2.Hold(
        reason=cast("Any", number_of(_HOLDS, reason)),
        message=hold["message"],
        next_step=NEXT_STEPS[reason],
        create_time=timestamp(hold["created_us"]),
        clears_at=timestamp(hold["clears_us"]),
        needed_budget=money(needs_nanos) if needs_nanos is not None and scope == BudgetScope.BATCH else None,
    )


def _counts(rows: Iterable[Mapping[Any, Any]]) -> batch_pb2.Counts:
    sums = dict.fromkeys(_COUNTS, 0)
    for row in rows:
        for name in _COUNTS:
            sums[name] += row[name]
    # A running conversation is one with a call in flight, and no other is.
    return batch_pb2.Counts(in_flight=sums["running"], **sums)


def _tier(row: Mapping[Any, Any]) -> batch_pb2.TierProgress:
    return batch_pb2.TierProgress(tier=row["tier"], counts=_counts([row]), cost=money(row["cost_nanos"]))
