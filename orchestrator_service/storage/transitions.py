"""A batch's changes of state and holds: each names the state that it leaves, and logs its event."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, insert, select, update

from orchestrator_service.domain.batch import FINAL, BatchState, Cell, Event, HoldReason, Refused, decide, verdict
from orchestrator_service.domain.budget import BudgetScope
from orchestrator_service.domain.conversation import ConversationState
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import events
from orchestrator_service.storage.tables import batches, conversations, holds, tiers
from orchestrator_service.storage.writer import Transaction

_TOTALS = select(
    func.sum(tiers.c.total).label("total"),
    func.sum(tiers.c.pending).label("pending"),
    func.sum(tiers.c.running).label("running"),
    func.sum(tiers.c.deliverable).label("deliverable"),
).where(tiers.c.batch == bindparam("b_id"))
_STATE = select(batches.c.state).where(batches.c.id == bindparam("b_id"))


@dataclass(frozen=True)
class NewHold:
    reason: HoldReason
    message: str
    clears_us: int | None = None
    # Where the reason is BUDGET: whose, and what it must be at least.
    scope: BudgetScope = BudgetScope.BATCH
    needs_nanos: int | None = None


class StateMoved(Exception):
    """A guarded write met another state than it was told: our own mistake, since one writer does all."""


def state_of(tx: Transaction, batch: str) -> BatchState:
    return BatchState(tx.connection.execute(_STATE, {"b_id": batch}).scalar_one())


def happen(tx: Transaction, batch: str, event: Event, *, now_us: int) -> BatchState:
    """Applies one row of the state table and what follows from it. Raises STATE_FORBIDS."""
    state = state_of(tx, batch)
    refuse_where_forbidden(state, event)
    outcome = decide(state, event, holds_left=bool(hold_reasons(tx, batch)))
    if outcome is Cell.VERDICT:
        return _end(tx, batch, state, now_us=now_us)
    assert isinstance(outcome, BatchState)
    if outcome is state:
        return state
    _move(tx, batch, state, outcome, now_us=now_us)
    if outcome is BatchState.CANCELLED:
        _cancel_rows(tx, batch)
        drop_holds(tx, batch, set(HoldReason), now_us=now_us)
        return outcome
    return settle(tx, batch, now_us=now_us)


def refuse_where_forbidden(state: BatchState, event: Event) -> None:
    """Raises STATE_FORBIDS where the table has an x."""
    outcome = decide(state, event)
    if isinstance(outcome, Refused):
        metadata = {"state": state.value, "next": outcome.next_step}
        raise ParleyError("STATE_FORBIDS", f"{outcome.message} {outcome.next_step}", metadata=metadata)


def settle(tx: Transaction, batch: str, *, now_us: int) -> BatchState:
    """Where nothing is in flight: PAUSING becomes PAUSED, CANCELLING CANCELLED, and what has no work left ends."""
    totals = tx.connection.execute(_TOTALS, {"b_id": batch}).mappings().one()
    if totals["running"]:
        return state_of(tx, batch)
    return happen(tx, batch, Event.IDLE if totals["pending"] else Event.DRAINED, now_us=now_us)


def hold(tx: Transaction, batch: str, new: NewHold, *, now_us: int) -> BatchState:
    """Adds a hold where the state has a place for one; the same reason twice is one hold."""
    state = state_of(tx, batch)
    if state in FINAL or new.reason in hold_reasons(tx, batch):
        return state
    detail = {
        "reason": new.reason,
        "message": new.message,
        "created_us": now_us,
        "clears_us": new.clears_us,
        "scope": new.scope,
        "needs_nanos": new.needs_nanos,
    }
    if state is not BatchState.CANCELLING:
        tx.connection.execute(insert(holds), {"batch": batch, **detail})
    events.append(tx, batch, "hold_added", detail, now_us=now_us)
    return happen(tx, batch, Event.HOLD, now_us=now_us)


def hold_reasons(tx: Transaction, batch: str) -> set[HoldReason]:
    rows = tx.connection.execute(select(holds.c.reason).where(holds.c.batch == batch)).scalars()
    return {HoldReason(reason) for reason in rows}


def drop_holds(tx: Transaction, batch: str, reasons: set[HoldReason], *, now_us: int) -> None:
    for reason in sorted(hold_reasons(tx, batch) & reasons):
        tx.connection.execute(delete(holds).where(holds.c.batch == batch, holds.c.reason == reason))
        events.append(tx, batch, "hold_cleared", {"reason": reason}, now_us=now_us)


def _end(tx: Transaction, batch: str, state: BatchState, *, now_us: int) -> BatchState:
    totals = tx.connection.execute(_TOTALS, {"b_id": batch}).mappings().one()
    drop_holds(tx, batch, set(HoldReason), now_us=now_us)
    ended = verdict(total=totals["total"], deliverable=totals["deliverable"])
    _move(tx, batch, state, ended, now_us=now_us)
    return ended


def _move(tx: Transaction, batch: str, old: BatchState, new: BatchState, *, now_us: int) -> None:
    ended_us = now_us if new in FINAL else None
    statement = (
        update(batches).where(batches.c.id == batch, batches.c.state == old).values(state=new, ended_us=ended_us)
    )
    if tx.connection.execute(statement).rowcount != 1:
        raise StateMoved(f"{batch} is not {old} any more")
    events.append(tx, batch, "state_changed", {"from": old, "to": new}, now_us=now_us)


def _cancel_rows(tx: Transaction, batch: str) -> None:
    pending = (conversations.c.batch == batch, conversations.c.state == ConversationState.PENDING)
    tx.connection.execute(update(conversations).where(*pending).values(state=ConversationState.CANCELLED))
    tx.connection.execute(
        update(tiers).where(tiers.c.batch == batch).values(cancelled=tiers.c.cancelled + tiers.c.pending, pending=0)
    )
