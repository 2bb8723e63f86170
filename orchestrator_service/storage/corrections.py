"""Corrections by people: what a possibly spent call really cost, as the provider's bill shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select, update

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import CallState
from orchestrator_service.storage import batches, budgets, events
from orchestrator_service.storage.batches import not_found
from orchestrator_service.storage.tables import batches as batch_table
from orchestrator_service.storage.tables import calls, conversations, tiers
from orchestrator_service.storage.writer import Fact, Transaction


@dataclass(frozen=True, kw_only=True)
class Correction:
    batch: str
    call: int
    # 0: it was not billed.
    cost_nanos: int
    # Whose word it is, and why.
    by: str
    note: str
    now_us: int


def settle_by_person(told: Correction) -> Fact[None]:
    """Raises CALL_NOT_FOUND, and STATE_FORBIDS for a call whose cost is known. The same cost twice is one."""

    def fact(tx: Transaction) -> None:
        if batches.get(tx.connection, told.batch) is None:
            raise not_found(told.batch)
        row = call_row(tx.connection, told.batch, told.call)
        if row["state"] == CallState.SETTLED and row["settled_by"] and row["cost_nanos"] == told.cost_nanos:
            return
        if row["state"] != CallState.POSSIBLY_SPENT:
            raise ParleyError(
                "STATE_FORBIDS",
                f"{_name(told.batch, told.call)} is {row['state']}: only one that is POSSIBLY_SPENT can be settled.",
                metadata={"state": row["state"], "call": _name(told.batch, told.call)},
            )
        _write(tx, told, row)

    return fact


def call_row(connection: Connection, batch: str, call: int) -> RowMapping:
    """Raises CALL_NOT_FOUND."""
    where = (calls.c.batch == batch, calls.c.id == call)
    row = connection.execute(select(calls).where(*where)).mappings().one_or_none()
    if row is None:
        name = _name(batch, call)
        raise ParleyError("CALL_NOT_FOUND", f"There is no call {name}.", metadata={"call": name})
    return row


def _write(tx: Transaction, told: Correction, row: RowMapping) -> None:
    values = {
        "state": CallState.SETTLED,
        "cost_nanos": told.cost_nanos,
        "settled_us": told.now_us,
        "settled_by": told.by,
        "note": told.note,
        # What nobody measured is no observation.
        "observed": True,
    }
    guarded = (calls.c.id == told.call, calls.c.state == CallState.POSSIBLY_SPENT)
    tx.connection.execute(update(calls).where(*guarded).values(values))
    _add_cost(tx, told, row)
    batch = _move_money(tx, told, row)
    detail = {
        "call": _name(told.batch, told.call),
        "cost_nanos": told.cost_nanos,
        "by": told.by,
        "note": told.note,
    }
    events.append(tx, told.batch, "call_settled", detail, now_us=told.now_us)
    freed = row["reserved_nanos"] - told.cost_nanos
    spent = batch["confirmed_nanos"] + batch["possibly_spent_nanos"]
    budgets.note_mark(tx, batch, before_nanos=spent + freed, now_us=told.now_us)
    budgets.freed(tx, batch, freed, journalled_us=row["created_us"], now_us=told.now_us)


def _add_cost(tx: Transaction, told: Correction, row: RowMapping) -> None:
    theirs = (conversations.c.batch == told.batch, conversations.c.number == row["conversation"])
    dearer = update(conversations).where(*theirs).values(cost_nanos=conversations.c.cost_nanos + told.cost_nanos)
    tx.connection.execute(dearer)
    tier = (tiers.c.batch == told.batch, tiers.c.tier == row["tier"])
    tx.connection.execute(update(tiers).where(*tier).values(cost_nanos=tiers.c.cost_nanos + told.cost_nanos))


def _move_money(tx: Transaction, told: Correction, row: RowMapping) -> RowMapping:
    """The batch as it is then."""
    moved = {
        "confirmed_nanos": batch_table.c.confirmed_nanos + told.cost_nanos,
        "possibly_spent_nanos": batch_table.c.possibly_spent_nanos - row["reserved_nanos"],
        "calls_settled": batch_table.c.calls_settled + 1,
        "calls_possibly_spent": batch_table.c.calls_possibly_spent - 1,
    }
    statement = update(batch_table).where(batch_table.c.id == told.batch).values(moved).returning(*batch_table.c)
    batch = tx.connection.execute(statement).mappings().one()
    budgets.add(
        tx,
        owner=batch["owner"],
        time_us=row["created_us"],
        confirmed_nanos=told.cost_nanos,
        possibly_spent_nanos=-row["reserved_nanos"],
    )
    return batch


def _name(batch: str, call: int) -> str:
    return f"batches/{batch}/calls/{call}"
