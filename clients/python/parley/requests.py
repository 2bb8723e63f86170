"""Requests: what each verb of the clients sends, from keyword arguments. Pure; both clients use it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypedDict

from google.protobuf import field_mask_pb2, timestamp_pb2
from google.type import money_pb2

from parley import money
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2

# The servers answer with at most this many of a kind at a time; large pages mean few round trips.
PAGE_SIZE = 200

Until = Literal["ended", "settled"]
UNTIL: Mapping[Until, orchestrator_pb2.WatchUntil.ValueType] = {
    "ended": orchestrator_pb2.WATCH_UNTIL_ENDED,
    "settled": orchestrator_pb2.WATCH_UNTIL_SETTLED,
}


class Settings(TypedDict, total=False):
    """What may be changed of a batch. A budget or hold_after of None takes the limit away."""

    display_name: str
    labels: Mapping[str, str]
    budget: Decimal | money_pb2.Money | None
    concurrency: int
    hold_after: int | None
    priority: batch_pb2.Priority.ValueType


def batch_name(name: str) -> str:
    """batches/x from batches/x or the bare x."""
    return name if name.startswith("batches/") else f"batches/{name}"


def quote_name(name: str) -> str:
    """quotes/x from quotes/x or the bare x."""
    return name if name.startswith("quotes/") else f"quotes/{name}"


def conversation_name(name: str, number: int) -> str:
    return f"{batch_name(name)}/conversations/{number}"


def call_name(name: str) -> str:
    """batches/x/calls/7 from what `Call.name` says, or from x/calls/7."""
    return batch_name(name)


def new_request_id() -> str:
    return uuid.uuid4().hex


def quote_batch(spec: batch_pb2.BatchSpec, sample_prompts: int, owner: str) -> orchestrator_pb2.QuoteBatchRequest:
    return orchestrator_pb2.QuoteBatchRequest(spec=spec, sample_prompts=sample_prompts, owner=owner)


def create_batch(
    spec: batch_pb2.BatchSpec, *, request_id: str | None, quote: str, allow_unquoted: bool, owner: str
) -> orchestrator_pb2.CreateBatchRequest:
    return orchestrator_pb2.CreateBatchRequest(
        spec=spec,
        request_id=request_id or new_request_id(),
        quote=quote,
        allow_unquoted=allow_unquoted,
        owner=owner,
    )


def retry_batch(
    name: str, filter: conversation_pb2.ConversationFilter | None, request_id: str | None, etag: str
) -> orchestrator_pb2.RetryBatchRequest:
    return orchestrator_pb2.RetryBatchRequest(
        name=batch_name(name), filter=filter, request_id=request_id or new_request_id(), etag=etag
    )


def update_batch(name: str, etag: str, fields: Settings) -> orchestrator_pb2.UpdateBatchRequest:
    """The mask names every field that was given, so that None takes a limit away."""
    batch = batch_pb2.Batch(name=batch_name(name), etag=etag, labels=fields.get("labels"))
    for field, value in fields.items():
        if field == "budget" and isinstance(value, Decimal):
            batch.budget.CopyFrom(money.from_decimal(value))
        elif field == "budget" and isinstance(value, money_pb2.Money):
            batch.budget.CopyFrom(value)
        elif field != "labels" and value is not None:
            setattr(batch, field, value)
    return orchestrator_pb2.UpdateBatchRequest(batch=batch, update_mask=field_mask_pb2.FieldMask(paths=sorted(fields)))


def list_batches(
    filter: orchestrator_pb2.BatchFilter | None, page_token: str, page_size: int
) -> orchestrator_pb2.ListBatchesRequest:
    return orchestrator_pb2.ListBatchesRequest(filter=filter, page_token=page_token, page_size=page_size)


def list_conversations(
    name: str, filter: conversation_pb2.ConversationFilter | None, *, full: bool, page_token: str, page_size: int
) -> orchestrator_pb2.ListConversationsRequest:
    view = conversation_pb2.CONVERSATION_VIEW_FULL if full else conversation_pb2.CONVERSATION_VIEW_BASIC
    return orchestrator_pb2.ListConversationsRequest(
        parent=batch_name(name), filter=filter, view=view, page_token=page_token, page_size=page_size
    )


def list_calls(name: str, page_token: str, page_size: int) -> orchestrator_pb2.ListCallsRequest:
    return orchestrator_pb2.ListCallsRequest(parent=batch_name(name), page_token=page_token, page_size=page_size)


def settle_call(name: str, cost: Decimal | money_pb2.Money | None, note: str) -> orchestrator_pb2.SettleCallRequest:
    return orchestrator_pb2.SettleCallRequest(name=call_name(name), cost=amount(cost), note=note)


def export_dataset(
    names: str | Sequence[str],
    format: orchestrator_pb2.DatasetFormat.ValueType,
    split: orchestrator_pb2.DatasetSplit | None,
    filter: conversation_pb2.ConversationFilter | None,
) -> orchestrator_pb2.ExportDatasetRequest:
    listed = [names] if isinstance(names, str) else names
    return orchestrator_pb2.ExportDatasetRequest(
        names=[batch_name(name) for name in listed], format=format, split=split, filter=filter
    )


def get_spend(
    *,
    start: datetime | None,
    end: datetime | None,
    group_by: Sequence[orchestrator_pb2.SpendKey.ValueType],
    label_key: str,
    owner: str,
    batch: str,
) -> orchestrator_pb2.GetSpendRequest:
    return orchestrator_pb2.GetSpendRequest(
        start_time=timestamp(start),
        end_time=timestamp(end),
        group_by=group_by,
        label_key=label_key,
        owner=owner,
        batch=batch_name(batch) if batch else "",
    )


def amount(dollars: Decimal | money_pb2.Money | None) -> money_pb2.Money | None:
    return money.from_decimal(dollars) if isinstance(dollars, Decimal) else dollars


def timestamp(at: datetime | None) -> timestamp_pb2.Timestamp | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise ValueError("times must be aware, such as datetime(2026, 1, 1, tzinfo=UTC)")
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at)
    return stamp
