"""What requests choose: batches, settings to change, sums of spend."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.wire.auth import Identity

from orchestrator_service.convert.spec import budget_of, priority_of
from orchestrator_service.convert.values import is_time, microseconds, word_of
from orchestrator_service.domain.errors import InvalidRequest, ParleyError
from orchestrator_service.storage.batches import Filter
from orchestrator_service.storage.ledger import SpendQuery
from orchestrator_service.storage.verbs import Settings

UPDATABLE = ("display_name", "labels", "budget", "concurrency", "hold_after", "priority")


def filter_of(chosen: orchestrator_pb2.BatchFilter, caller: Identity) -> Filter:
    """A caller who may not act for others sees their own batches only."""
    return Filter(
        states=tuple(word_of(batch_pb2.BatchState.DESCRIPTOR, state) for state in chosen.states),
        owner=_visible_owner(chosen.owner, caller),
        labels=tuple(sorted(chosen.labels.items())),
    )


def settings_of(request: orchestrator_pb2.UpdateBatchRequest) -> Settings:
    """Raises FIELD_MASK_INVALID for a field that can't be changed, INVALID_FIELD for a value that makes no sense."""
    fields = list(dict.fromkeys(request.update_mask.paths))
    unknown = [path for path in fields if path not in UPDATABLE]
    if unknown or not fields:
        named = ", ".join(unknown) or "nothing"
        message = f"the mask names {named}; it may name {', '.join(UPDATABLE)}"
        raise InvalidRequest("update_mask", message, reason="FIELD_MASK_INVALID")
    batch = request.batch
    if not batch.name:
        raise InvalidRequest("batch.name", "the name of the batch is missing")
    if "concurrency" in fields and batch.concurrency < 1:
        raise InvalidRequest("batch.concurrency", "must be at least 1")
    return Settings(
        fields=fields,
        display_name=batch.display_name,
        labels=dict(batch.labels) if "labels" in fields else None,
        budget_nanos=budget_of(batch.budget, "batch.budget")
        if "budget" in fields and batch.HasField("budget")
        else None,
        concurrency=batch.concurrency if "concurrency" in fields else 0,
        hold_after=batch.hold_after if batch.HasField("hold_after") else None,
        priority=priority_of(batch.priority),
    )


def spend_query_of(request: orchestrator_pb2.GetSpendRequest, caller: Identity) -> SpendQuery:
    keys = tuple(word_of(orchestrator_pb2.SpendKey.DESCRIPTOR, key).lower() for key in request.group_by)
    if "label" in keys and not request.label_key:
        raise InvalidRequest("label_key", "group_by names LABEL, so label_key must say which")
    return SpendQuery(
        keys=keys,
        label_key=request.label_key,
        start_us=_us(request, "start_time"),
        end_us=_us(request, "end_time"),
        owner=_visible_owner(request.owner, caller),
        batch=request.batch.removeprefix("batches/"),
    )


def _visible_owner(asked: str, caller: Identity) -> str:
    if asked and asked != caller.name and not caller.may_act_for_others:
        raise ParleyError("OWNER_FORBIDDEN", f"{caller.name} may not act for {asked}.", metadata={"owner": asked})
    return asked if caller.may_act_for_others else caller.name


def _us(request: orchestrator_pb2.GetSpendRequest, field: Any) -> int | None:
    if not request.HasField(field):
        return None
    time: Timestamp = getattr(request, field)
    if not is_time(time):
        raise InvalidRequest(field, "is not a time from the year 1 to 9999")
    return microseconds(time)
