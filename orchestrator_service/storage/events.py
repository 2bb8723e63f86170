"""The log of a batch: numbered by a counter on the batch row that is raised in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, insert, literal, select, update

from orchestrator_service.storage.prepared import Prepared
from orchestrator_service.storage.tables import batches, events
from orchestrator_service.storage.writer import Transaction

PAGE = 100

_RAISE = (
    update(batches)
    .where(batches.c.id == bindparam("b_id"))
    .values(last_event=batches.c.last_event + 1)
    .returning(batches.c.last_event)
)
_INSERT = Prepared(insert(events))
# Said in the statement's own text, as the index says them, so that it is used.
_KINDS = [literal(kind, literal_execute=True) for kind in ("state_changed", "recovered")]
_OF_STATES = (
    select(events).where(events.c.batch == bindparam("b_id"), events.c.kind.in_(_KINDS)).order_by(events.c.number)
)
_AFTER = (
    select(events)
    .where(
        events.c.batch == bindparam("b_id"), events.c.number > bindparam("after"), events.c.number <= bindparam("upto")
    )
    .order_by(events.c.number)
    .limit(PAGE)
)


@dataclass(frozen=True)
class LoggedEvent:
    number: int
    created_us: int
    kind: str
    detail: Mapping[str, Any]


def append(tx: Transaction, batch: str, kind: str, detail: Mapping[str, Any], *, now_us: int) -> None:
    """Adds one event; `kind` is the name of its field in the contract's BatchEvent."""
    number = tx.connection.execute(_RAISE, {"b_id": batch}).scalar_one()
    insert_numbered(tx, batch, number, kind, detail, now_us=now_us)


def insert_numbered(
    tx: Transaction, batch: str, number: int, kind: str, detail: Mapping[str, Any], *, now_us: int
) -> None:
    """For a fact that has raised the counter itself, together with other columns of the batch row."""
    row = {"batch": batch, "number": number, "created_us": now_us, "kind": kind, "detail": json.dumps(detail)}
    _INSERT.all(tx.connection, row)
    tx.touch(batch)


def after(connection: Connection, batch: str, number: int, *, upto: int) -> Sequence[LoggedEvent]:
    """At most 100 events behind `number`, in order."""
    rows = connection.execute(_AFTER, {"b_id": batch, "after": number, "upto": upto}).mappings()
    return [_logged(row) for row in rows]


def of_states(connection: Connection, batch: str) -> Sequence[LoggedEvent]:
    """Its changes of state and restarts, in order: few, however long the log."""
    return [_logged(row) for row in connection.execute(_OF_STATES, {"b_id": batch}).mappings()]


def _logged(row: RowMapping) -> LoggedEvent:
    return LoggedEvent(row["number"], row["created_us"], row["kind"], json.loads(row["detail"]))
