"""The claim: a pending conversation becomes RUNNING and its call is journalled with its worst case, in one fact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from orchestrator_service.domain.batch import BatchState, Event, HoldReason, checkpoint_message
from orchestrator_service.domain.budget import DailyBudgets, Fits, WaitForSettlement
from orchestrator_service.domain.conversation import ConversationState
from orchestrator_service.domain.ledger import CallPurpose, CallState
from orchestrator_service.storage import budgets
from orchestrator_service.storage.prepared import Prepared, Row
from orchestrator_service.storage.tables import batches, calls, conversations, tiers
from orchestrator_service.storage.transitions import NewHold, happen, hold
from orchestrator_service.storage.writer import Fact, Transaction


@dataclass(frozen=True, kw_only=True)
class Claim:
    batch: str
    number: int
    epoch: int
    prompt_sha256: str
    prompt_characters: int = 0
    purpose: CallPurpose
    max_tokens: int
    # The most that the call can cost; 0 where no price is known.
    reserve_nanos: int
    daily: DailyBudgets = budgets.NO_LIMITS
    now_us: int


@dataclass(frozen=True)
class Claimed:
    call: int
    # Attempts at this conversation in this run, this one included.
    tries: int


@dataclass(frozen=True)
class NotClaimable:
    """Somebody was first, a hold exists, or the batch is not ours any more: start nothing."""


_BATCH = Prepared(
    select(
        batches.c.state,
        batches.c.epoch,
        batches.c.owner,
        batches.c.model,
        batches.c.rate_version,
        batches.c.hold_after,
        batches.c.started,
        batches.c.budget_nanos,
        batches.c.confirmed_nanos,
        batches.c.reserved_nanos,
        batches.c.possibly_spent_nanos,
    ).where(batches.c.id == bindparam("b_id"))
)

_CONVERSATION = Prepared(
    update(conversations)
    .where(
        conversations.c.batch == bindparam("b_id"),
        conversations.c.number == bindparam("b_number"),
        conversations.c.state == ConversationState.PENDING,
    )
    .values(
        state=ConversationState.RUNNING,
        attempts=conversations.c.attempts + 1,
        tries=conversations.c.tries + 1,
        prompt_sha256=bindparam("b_sha256"),
    )
    .returning(conversations.c.attempts, conversations.c.tries, conversations.c.tier)
)
_ATTEMPTS = select(conversations.c.attempts, conversations.c.state).where(
    conversations.c.batch == bindparam("b_id"), conversations.c.number == bindparam("b_number")
)
_TIER = Prepared(
    update(tiers)
    .where(tiers.c.batch == bindparam("b_id"), tiers.c.tier == bindparam("b_tier"))
    .values(pending=tiers.c.pending - 1, running=tiers.c.running + 1)
)
_RESERVE = Prepared(
    update(batches)
    .where(batches.c.id == bindparam("b_id"))
    .values(
        reserved_nanos=batches.c.reserved_nanos + bindparam("b_reserve"),
        started=batches.c.started + bindparam("b_first"),
    )
)
_CALL = Prepared(insert(calls).returning(calls.c.id))


def claim(wanted: Claim) -> Fact[Claimed | NotClaimable | WaitForSettlement]:
    def fact(tx: Transaction) -> Claimed | NotClaimable | WaitForSettlement:
        batch = _BATCH.one(tx.connection, {"b_id": wanted.batch})
        if batch["epoch"] != wanted.epoch or batch["state"] not in (BatchState.QUEUED, BatchState.RUNNING):
            return NotClaimable()
        held = _checkpoint(tx, batch, wanted) or _budget(tx, batch, wanted)
        return held or _take(tx, batch, wanted)

    return fact


def _checkpoint(tx: Transaction, batch: Row, wanted: Claim) -> NotClaimable | None:
    """hold_after counts conversations that were started, so a second attempt never waits for approval."""
    limit: int | None = batch["hold_after"]
    if limit is None or batch["started"] < limit:
        return None
    where = {"b_id": wanted.batch, "b_number": wanted.number}
    row = tx.connection.execute(_ATTEMPTS, where).mappings().one()
    if row["attempts"]:
        return None
    hold(tx, wanted.batch, NewHold(HoldReason.CHECKPOINT, checkpoint_message(limit)), now_us=wanted.now_us)
    return NotClaimable()


def _budget(tx: Transaction, batch: Row, wanted: Claim) -> NotClaimable | WaitForSettlement | None:
    """Holds only when nothing in flight could still free a part of its reserve."""
    verdict = budgets.next_call(tx, batch, next_nanos=wanted.reserve_nanos, daily=wanted.daily, now_us=wanted.now_us)
    match verdict:
        case Fits():
            return None
        case WaitForSettlement():
            return verdict
        case over:
            hold(tx, wanted.batch, budgets.hold_of(over, now_us=wanted.now_us), now_us=wanted.now_us)
            return NotClaimable()


def _take(tx: Transaction, batch: Row, wanted: Claim) -> Claimed | NotClaimable:
    values: dict[str, Any] = {"b_id": wanted.batch, "b_number": wanted.number, "b_sha256": wanted.prompt_sha256}
    row = _CONVERSATION.one_or_none(tx.connection, values)
    if row is None:
        return NotClaimable()
    _TIER.all(tx.connection, {"b_id": wanted.batch, "b_tier": row["tier"]})
    first = int(row["attempts"] == 1)
    _RESERVE.all(tx.connection, {"b_id": wanted.batch, "b_reserve": wanted.reserve_nanos, "b_first": first})
    budgets.add(tx, owner=batch["owner"], time_us=wanted.now_us, reserved_nanos=wanted.reserve_nanos)
    call = _CALL.one(tx.connection, _journal(batch, wanted, row))["id"]
    if batch["state"] == BatchState.QUEUED:
        started = update(batches).where(batches.c.id == wanted.batch, batches.c.started_us.is_(None))
        tx.connection.execute(started.values(started_us=wanted.now_us))
        happen(tx, wanted.batch, Event.CLAIM, now_us=wanted.now_us)
    tx.touch(wanted.batch)
    return Claimed(call, row["tries"])


def _journal(batch: Row, wanted: Claim, row: Row) -> dict[str, Any]:
    return {
        "batch": wanted.batch,
        "conversation": wanted.number,
        "tier": row["tier"],
        "attempt": row["attempts"],
        "purpose": wanted.purpose,
        "state": CallState.RESERVED,
        "model": batch["model"],
        "epoch": wanted.epoch,
        "prompt_sha256": wanted.prompt_sha256,
        "prompt_characters": wanted.prompt_characters,
        "max_tokens": wanted.max_tokens,
        "reserved_nanos": wanted.reserve_nanos,
        "rate_version": batch["rate_version"],
        "created_us": wanted.now_us,
    }
