"""Rows of conversations and calls to the contract's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from parley.v1 import conversation_pb2

from orchestrator_service.convert.batch import failure_message, usage_message
from orchestrator_service.convert.values import duration, money, number_of, timestamp, word_of
from orchestrator_service.domain.plan import Item
from orchestrator_service.generation.prompts import Filled
from orchestrator_service.storage.conversations import Which

_STATES = conversation_pb2.ConversationState.DESCRIPTOR
_REVIEWS = conversation_pb2.Review.DESCRIPTOR
_FAILURES = conversation_pb2.FailureReason.DESCRIPTOR
_ROLES = {"user": conversation_pb2.ROLE_USER, "assistant": conversation_pb2.ROLE_ASSISTANT}
_CHECKS = {
    "PASS": conversation_pb2.CHECK_OUTCOME_PASS,
    "WARN": conversation_pb2.CHECK_OUTCOME_WARN,
    "FAIL": conversation_pb2.CHECK_OUTCOME_FAIL,
}


@dataclass(frozen=True)
class Full:
    """What the FULL view has beyond the row."""

    turns: Sequence[tuple[str, str]]
    item: Item
    filled: Filled


def conversation_message(
    row: Mapping[Any, Any], *, model: str, fingerprint: str, full: Full | None = None
) -> conversation_pb2.Conversation:
    message = conversation_pb2.Conversation(
        name=f"batches/{row['batch']}/conversations/{row['number']}",
        number=row["number"],
        tier=row["tier"],
        state=cast("Any", number_of(_STATES, row["state"])),
        review=cast("Any", number_of(_REVIEWS, row["review"])),
        axis_values=json.loads(row["axis_values"]),
        checks=[_check(check) for check in json.loads(row["checks"] or "[]")],
        attempts=row["attempts"],
        usage=usage_message(row),
        cost=money(row["cost_nanos"]),
        model=model,
        prompt_sha256=row["prompt_sha256"],
        end_time=timestamp(row["ended_us"]),
        fingerprint=fingerprint,
    )
    if row["failure_reason"]:
        message.failure.CopyFrom(failure_message(row))
    if full is not None:
        _add_full(message, full)
    return message


def _add_full(message: conversation_pb2.Conversation, full: Full) -> None:
    message.turns.extend(conversation_pb2.Turn(role=_ROLES[role], content=content) for role, content in full.turns)
    message.prompt = full.filled.user
    message.prompt_system = full.filled.system
    own = {name: value for name, value in full.item.parameters.items() if name not in full.item.axis_values}
    json_format.ParseDict(own, message.parameters)


def _check(check: Sequence[str]) -> conversation_pb2.CheckResult:
    name, outcome, text = check
    return conversation_pb2.CheckResult(check=name, outcome=_CHECKS[outcome], message=text)


def which_of(filter: conversation_pb2.ConversationFilter) -> Which:
    return Which(
        tiers=tuple(filter.tiers),
        states=tuple(word_of(_STATES, state) for state in filter.states),
        reviews=tuple(word_of(_REVIEWS, review) for review in filter.reviews),
        failure_reasons=tuple(word_of(_FAILURES, reason) for reason in filter.failure_reasons),
    )


def call_message(row: Mapping[Any, Any]) -> conversation_pb2.Call:
    message = conversation_pb2.Call(
        name=f"batches/{row['batch']}/calls/{row['id']}",
        conversation=row["conversation"],
        attempt=row["attempt"],
        purpose=cast("Any", number_of(conversation_pb2.CallPurpose.DESCRIPTOR, row["purpose"])),
        state=cast("Any", number_of(conversation_pb2.CallState.DESCRIPTOR, row["state"])),
        outcome=cast("Any", number_of(conversation_pb2.CallOutcome.DESCRIPTOR, row["outcome"])),
        model=row["model"],
        usage=usage_message(row),
        reserved_cost=money(row["reserved_nanos"]),
        rate_version=row["rate_version"],
        provider_request_id=row["provider_request_id"],
        stop_reason=row["stop_reason"],
        http_status=row["http_status"],
        first_token_delay=duration(row["first_token_s"]),
        duration=duration(row["duration_s"]),
        prompt_sha256=row["prompt_sha256"],
        create_time=timestamp(row["created_us"]),
        settle_time=timestamp(row["settled_us"]),
        error=row["error"],
        settled_by=row["settled_by"],
        note=row["note"],
    )
    if row["cost_nanos"] is not None:
        message.cost.CopyFrom(money(row["cost_nanos"]))
    return message
