"""What the estimator has told of a batch: its last forecast, and the quote of its rest at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, exists, func, select, update

from orchestrator_service.domain.batch import FINAL, BatchState, HoldReason
from orchestrator_service.domain.ledger import CallState
from orchestrator_service.storage import events
from orchestrator_service.storage.tables import batches, calls, estimates, holds
from orchestrator_service.storage.writer import Fact, Transaction

_IN_FLIGHT = (BatchState.RUNNING, BatchState.PAUSING)
# What a batch of before there were forecasts never had.
_HAS_WORKLOAD = func.length(estimates.c.workload) > 0


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """A batch that may want a forecast; it is another one when something of it ended or was changed."""

    id: str
    run: int
    state: BatchState
    made: int
    calls_settled: int
    settings_version: int


def under_way(connection: Connection) -> Sequence[UnderWay]:
    columns = [batches.c[each.name] for each in fields(UnderWay)]
    statement = (
        select(*columns)
        .join(estimates, estimates.c.batch == batches.c.id)
        .where(batches.c.state.in_([*_IN_FLIGHT, BatchState.PAUSED]), batches.c.deleted_us.is_(None), _HAS_WORKLOAD)
    )
    return [UnderWay(**row) for row in connection.execute(statement).mappings()]


def keep_forecast(batch: str, *, run: int, forecast: bytes) -> Fact[None]:
    """Of the run that it was asked for; one that comes too late is nobody's any more."""

    def fact(tx: Transaction) -> None:
        going_on = select(batches.c.id).where(
            batches.c.id == batch, batches.c.run == run, batches.c.state.not_in(FINAL), batches.c.deleted_us.is_(None)
        )
        values = {"forecast": forecast, "forecast_run": run, "forecast_stale": False}
        statement = update(estimates).where(estimates.c.batch.in_(going_on)).values(values)
        if tx.connection.execute(statement).rowcount:
            tx.touch(batch)

    return fact


def mark_stale(batch: str, *, with_all: bool = False) -> Fact[None]:
    """The last forecast stays, and says so, as does our own where there never was one; with those of every batch in
    flight where nobody is there to ask."""

    def fact(tx: Transaction) -> None:
        whose = estimates.c.batch == batch
        if with_all:
            in_flight = select(batches.c.id).where(batches.c.state.in_(_IN_FLIGHT), batches.c.deleted_us.is_(None))
            whose |= estimates.c.batch.in_(in_flight)
        fresh = update(estimates).where(whose, estimates.c.forecast_stale.is_(False))
        statement = fresh.values(forecast_stale=True).returning(estimates.c.batch)
        for touched in tx.connection.execute(statement).scalars().all():
            tx.touch(touched)

    return fact


def checkpoint(row: Mapping[Any, Any]) -> str:
    """Which one a batch is at: each has a refined quote of its own."""
    return f"{row['run']}-{row['started']}"


def at_checkpoint(connection: Connection, *, limit: int) -> Sequence[str]:
    """Batches that hold there without a quote of their rest, once the estimator has all that they took so far."""
    unsent = exists().where(
        calls.c.batch == batches.c.id, calls.c.observed.is_(False), calls.c.state == CallState.SETTLED
    )
    statement = (
        select(batches.c.id, batches.c.run, batches.c.started, estimates.c.refined_at)
        .join(estimates, estimates.c.batch == batches.c.id)
        .join(holds, holds.c.batch == batches.c.id)
        .where(
            batches.c.state == BatchState.PAUSED,
            holds.c.reason == HoldReason.CHECKPOINT,
            batches.c.deleted_us.is_(None),
            batches.c.started > 0,
            _HAS_WORKLOAD,
            ~unsent,
        )
        .order_by(batches.c.position)
    )
    rows = connection.execute(statement).mappings()
    return [row["id"] for row in rows if row["refined_at"] != checkpoint(row)][:limit]


def keep_refined(batch: str, *, at: str, quote: str, detail: Mapping[str, Any], now_us: int) -> Fact[None]:
    """The quote of the rest with its event, once a checkpoint. `detail` is about the rest; what is spent is added."""

    def fact(tx: Transaction) -> None:
        row = _unrefined(tx, batch, at=at)
        if row is None:
            return
        spent = row["confirmed_nanos"] + row["possibly_spent_nanos"]
        told = {name: spent + value if name.endswith("_nanos") else value for name, value in detail.items()}
        values = {"refined_quote": quote, "refined_at": at}
        tx.connection.execute(update(estimates).where(estimates.c.batch == batch).values(values))
        events.append(tx, batch, "quote_refined", {"quote": quote, **told}, now_us=now_us)

    return fact


def give_up_refined(batch: str, *, at: str) -> Fact[None]:
    """The estimator will never quote this rest."""

    def fact(tx: Transaction) -> None:
        tx.connection.execute(update(estimates).where(estimates.c.batch == batch).values(refined_at=at))

    return fact


def _unrefined(tx: Transaction, batch: str, *, at: str) -> RowMapping | None:
    statement = (
        select(batches)
        .join(estimates, estimates.c.batch == batches.c.id)
        .where(
            batches.c.id == batch,
            batches.c.deleted_us.is_(None),
            batches.c.state.not_in(FINAL),
            estimates.c.refined_at != at,
        )
    )
    return tx.connection.execute(statement).mappings().one_or_none()
