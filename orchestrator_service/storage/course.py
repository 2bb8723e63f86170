"""The course of a batch so far, as the estimator is told of it: what waits, what runs, what ended, how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, func, select

from orchestrator_service.domain.batch import BatchState
from orchestrator_service.domain.ledger import CallState
from orchestrator_service.domain.outcome import Change
from orchestrator_service.storage import events, ledger
from orchestrator_service.storage.events import LoggedEvent
from orchestrator_service.storage.tables import batches, calls, estimates, tiers

# As many as a request takes.
IN_FLIGHT_MAX = 1_000
# A forecast counts the rest from what was recorded.
FINISHED_MAX = 500


@dataclass(frozen=True, kw_only=True)
class Course:
    # The batch with its estimate.
    row: RowMapping
    tiers: Sequence[RowMapping]
    in_flight: Sequence[RowMapping]
    # Settled calls that the estimator has not been told of.
    finished: Sequence[RowMapping]
    changes: Sequence[Change]


def read(connection: Connection, batch: str) -> Course | None:
    """None where it was deleted, or nothing is known of its workload."""
    statement = (
        select(batches, estimates.c.workload, estimates.c.seed)
        .join(estimates, estimates.c.batch == batches.c.id)
        .where(batches.c.id == batch, batches.c.deleted_us.is_(None))
    )
    row = connection.execute(statement).mappings().one_or_none()
    if row is None or not row["workload"]:
        return None
    of_tiers = select(tiers).where(tiers.c.batch == batch).order_by(tiers.c.position)
    return Course(
        row=row,
        tiers=connection.execute(of_tiers).mappings().all(),
        in_flight=_in_flight(connection, batch),
        finished=ledger.unobserved(connection, limit=FINISHED_MAX, batch=batch),
        changes=changes(connection, batch),
    )


def changes(connection: Connection, batch: str) -> list[Change]:
    """Its changes of state and restarts, from the log."""
    return [_change(connection, batch, event) for event in events.of_states(connection, batch)]


def _change(connection: Connection, batch: str, event: LoggedEvent) -> Change:
    restarted = event.kind == "recovered"
    to = None if restarted else BatchState(event.detail["to"])
    # Nothing else than a restart takes a running batch back to QUEUED.
    restarted |= to is BatchState.QUEUED and event.detail["from"] == BatchState.RUNNING
    alive_us = _last_settled_us(connection, batch, before_us=event.created_us) if restarted else None
    return Change(time_us=event.created_us, to=to, alive_us=alive_us)


def _last_settled_us(connection: Connection, batch: str, *, before_us: int) -> int:
    """0 where none was. What a person settled says nothing of when the server was there."""
    statement = select(func.coalesce(func.max(calls.c.settled_us), 0)).where(
        calls.c.batch == batch,
        calls.c.state == CallState.SETTLED,
        calls.c.settled_by == "",
        calls.c.settled_us < before_us,
    )
    return connection.execute(statement).scalar_one()


def _in_flight(connection: Connection, batch: str) -> Sequence[RowMapping]:
    statement = (
        select(calls.c.tier, calls.c.created_us)
        .where(calls.c.batch == batch, calls.c.state == CallState.RESERVED)
        .order_by(calls.c.id)
        .limit(IN_FLIGHT_MAX)
    )
    return connection.execute(statement).mappings().all()
