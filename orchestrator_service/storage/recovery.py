"""What a start of the orchestrator finds and puts in order: the last column of the state table, in one fact."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from orchestrator_service.domain.batch import ACTIVE, BatchState, Event
from orchestrator_service.domain.conversation import ConversationState
from orchestrator_service.domain.ledger import CallOutcome, CallState
from orchestrator_service.storage import budgets, events
from orchestrator_service.storage.tables import batches, calls, conversations, tiers
from orchestrator_service.storage.transitions import happen
from orchestrator_service.storage.writer import Fact, Transaction


def recover(*, now_us: int) -> Fact[int]:
    """How many batches were under way. Calls without an answer become possibly spent, their rows PENDING."""

    def fact(tx: Transaction) -> int:
        # Its creation was never answered: nobody knows it, nothing was claimed.
        tx.connection.execute(delete(batches).where(batches.c.state == BatchState.PREPARING))
        under_way = select(batches.c.id).where(
            batches.c.state.in_([*ACTIVE, BatchState.PAUSED]), batches.c.deleted_us.is_(None)
        )
        ids = tx.connection.execute(under_way.order_by(batches.c.position)).scalars().all()
        for batch in ids:
            _recover_batch(tx, batch, now_us=now_us)
        return len(ids)

    return fact


def recover_batch(batch: str, *, now_us: int) -> Fact[None]:
    """The same for one batch, whose runner failed and was taken down with what it had in flight."""

    def fact(tx: Transaction) -> None:
        _recover_batch(tx, batch, now_us=now_us)

    return fact


def _recover_batch(tx: Transaction, batch: str, *, now_us: int) -> None:
    lost = _write_off_calls(tx, batch, now_us=now_us)
    back = _put_back_rows(tx, batch)
    raised = update(batches).where(batches.c.id == batch).values(epoch=batches.c.epoch + 1)
    tx.connection.execute(raised)
    if lost or back:
        detail = {"calls_possibly_spent": lost, "conversations_requeued": back}
        events.append(tx, batch, "recovered", detail, now_us=now_us)
    happen(tx, batch, Event.RESTART, now_us=now_us)


def _write_off_calls(tx: Transaction, batch: str, *, now_us: int) -> int:
    open_calls = (calls.c.batch == batch, calls.c.state == CallState.RESERVED)
    found = tx.connection.execute(select(calls.c.created_us, calls.c.reserved_nanos).where(*open_calls)).all()
    if not found:
        return 0
    values = {
        "state": CallState.POSSIBLY_SPENT,
        "outcome": CallOutcome.INTERRUPTED,
        "settled_us": now_us,
        "error": "The orchestrator ended before the answer came.",
    }
    tx.connection.execute(update(calls).where(*open_calls).values(values))
    reserved = sum(nanos for _, nanos in found)
    moved = {
        "reserved_nanos": batches.c.reserved_nanos - reserved,
        "possibly_spent_nanos": batches.c.possibly_spent_nanos + reserved,
        "calls_possibly_spent": batches.c.calls_possibly_spent + len(found),
    }
    statement = update(batches).where(batches.c.id == batch).values(moved).returning(*batches.c)
    row = tx.connection.execute(statement).mappings().one()
    for created_us, nanos in found:
        budgets.add(tx, owner=row["owner"], time_us=created_us, reserved_nanos=-nanos, possibly_spent_nanos=nanos)
    before_nanos = row["confirmed_nanos"] + row["possibly_spent_nanos"] - reserved
    budgets.note_mark(tx, row, before_nanos=before_nanos, now_us=now_us)
    return len(found)


def _put_back_rows(tx: Transaction, batch: str) -> int:
    running = (conversations.c.batch == batch, conversations.c.state == ConversationState.RUNNING)
    # The crash was not the conversation's fault: it keeps its try.
    values = {"state": ConversationState.PENDING, "tries": conversations.c.tries - 1}
    count = tx.connection.execute(update(conversations).where(*running).values(values)).rowcount
    if count:
        moved = {"pending": tiers.c.pending + tiers.c.running, "running": 0}
        tx.connection.execute(update(tiers).where(tiers.c.batch == batch).values(moved))
    return count
