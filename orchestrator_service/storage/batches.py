"""Batches as they are read: a light snapshot with tiers, holds and labels; and how a new one is stored."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, delete, func, insert, select, update

from orchestrator_service.domain.batch import ACTIVE, BatchState
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.outcome import OutcomeState
from orchestrator_service.storage import events, requests
from orchestrator_service.storage.rates import PricedAt, keep_rate
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.tables import batches, conversations, estimates, holds, labels, specs, tiers
from orchestrator_service.storage.writer import Fact, Transaction

VISIBLE: tuple[ColumnElement[bool], ...] = (batches.c.deleted_us.is_(None), batches.c.state != BatchState.PREPARING)

# A batch as it is shown: with what the estimator told of it last.
_SHOWN = select(
    batches,
    estimates.c.forecast,
    estimates.c.forecast_run,
    estimates.c.forecast_stale,
    func.coalesce(estimates.c.refined_quote, "").label("refined_quote"),
).outerjoin(estimates, estimates.c.batch == batches.c.id)
_ONE = _SHOWN.where(batches.c.id == bindparam("b_id"), *VISIBLE)
_TIERS = select(tiers).where(tiers.c.batch == bindparam("b_id")).order_by(tiers.c.position)
_HOLDS = select(holds).where(holds.c.batch == bindparam("b_id")).order_by(holds.c.created_us, holds.c.reason)
_LABELS = select(labels).where(labels.c.batch == bindparam("b_id")).order_by(labels.c.key)


@dataclass(frozen=True)
class Snapshot:
    """A batch at one moment: its row and what hangs on it."""

    row: RowMapping
    tiers: Sequence[RowMapping]
    holds: Sequence[RowMapping]
    labels: Mapping[str, str]

    @property
    def state(self) -> BatchState:
        return BatchState(self.row["state"])


@dataclass(frozen=True, kw_only=True)
class NewBatch:
    """What is written when a batch is created; `values` are columns of the batch row."""

    id: str
    values: Mapping[str, Any]
    labels: Mapping[str, str]
    spec: bytes
    # Tier id to its number of conversations, in the spec's order.
    totals: Mapping[str, int]
    # Tier id to the fingerprint of its prompt.
    fingerprints: Mapping[str, str] = field(default_factory=dict[str, str])
    # The contract's Workload, serialized, and the spec's seed: a forecast is asked for with them.
    workload: bytes = b""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Filter:
    states: tuple[str, ...] = ()
    owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    def clauses(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = list(VISIBLE)
        if self.states:
            found.append(batches.c.state.in_(self.states))
        if self.owner:
            found.append(batches.c.owner == self.owner)
        for key, value in self.labels:
            matching = select(labels.c.batch).where(labels.c.key == key, labels.c.value == value)
            found.append(batches.c.id.in_(matching))
        return found


def etag_of(row: RowMapping) -> str:
    """Covers settings, state and run, never progress."""
    text = f"{row['id']}:{row['settings_version']}:{row['state']}:{row['run']}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def not_found(batch: str) -> ParleyError:
    name = f"batches/{batch}"
    return ParleyError("BATCH_NOT_FOUND", f"There is no batch {name}.", metadata={"batch": name})


def get(connection: Connection, batch: str) -> Snapshot | None:
    row = connection.execute(_ONE, {"b_id": batch}).mappings().one_or_none()
    if row is None:
        return None
    where = {"b_id": batch}
    return Snapshot(
        row,
        connection.execute(_TIERS, where).mappings().all(),
        connection.execute(_HOLDS, where).mappings().all(),
        {label["key"]: label["value"] for label in connection.execute(_LABELS, where).mappings()},
    )


def page(connection: Connection, chosen: Filter, *, before: int | None, size: int) -> Sequence[Snapshot]:
    """Newest first; `before` is the position of the last one of the page before."""
    clauses = chosen.clauses()
    if before is not None:
        clauses.append(batches.c.position < before)
    statement = _SHOWN.where(*clauses).order_by(batches.c.position.desc()).limit(size)
    rows = connection.execute(statement).mappings().all()
    return _with_parts(connection, rows)


def spec_bytes(connection: Connection, batch: str) -> bytes | None:
    return connection.execute(select(specs.c.spec).where(specs.c.batch == batch)).scalar_one_or_none()


def active(connection: Connection) -> Sequence[str]:
    """Batches with work for the engine."""
    statement = select(batches.c.id).where(batches.c.state.in_(ACTIVE), batches.c.deleted_us.is_(None))
    return connection.execute(statement.order_by(batches.c.position)).scalars().all()


def prepare(new: NewBatch) -> Fact[None]:
    """Stores the batch under PREPARING: nobody knows it, nothing may be claimed."""

    def fact(tx: Transaction) -> None:
        tx.connection.execute(insert(batches), {"id": new.id, "state": BatchState.PREPARING, "run": 1, **new.values})
        tx.connection.execute(insert(specs), {"batch": new.id, "spec": new.spec})
        tx.connection.execute(insert(estimates), _estimate(new))
        if new.values.get("rate") is not None:
            keep_rate(tx, new.values["model"], PricedAt(version=new.values["rate_version"], rate=new.values["rate"]))
        rows = [
            {
                "batch": new.id,
                "tier": tier,
                "position": position,
                "prompt_fingerprint": new.fingerprints.get(tier, ""),
                "total": total,
                "pending": total,
            }
            for position, (tier, total) in enumerate(new.totals.items())
        ]
        tx.connection.execute(insert(tiers), rows)
        if new.labels:
            tx.connection.execute(
                insert(labels), [{"batch": new.id, "key": k, "value": v} for k, v in new.labels.items()]
            )

    return fact


def _estimate(new: NewBatch) -> dict[str, Any]:
    return {
        "batch": new.id,
        "workload": new.workload,
        "seed": new.seed,
        "quoted_version": new.values.get("rate_version", ""),
        # Without a quote there is nothing to score.
        "outcome": OutcomeState.WAITING if new.values.get("quote_name") else OutcomeState.NONE,
    }


def add_rows(rows: Sequence[Mapping[str, Any]]) -> Fact[None]:
    """Stores some of its conversations."""

    def fact(tx: Transaction) -> None:
        tx.connection.execute(insert(conversations), rows)

    return fact


def queue(batch: str, request: Request, *, now_us: int) -> Fact[str]:
    """Makes it claimable, with its first event. The name of the batch that the same request made before, where so."""

    def fact(tx: Transaction) -> str:
        known = requests.find(tx.connection, request)
        if known is not None:
            _discard(tx, batch)
            return known.batch
        requests.remember(tx, request, batch=batch, now_us=now_us)
        statement = update(batches).where(batches.c.id == batch, batches.c.state == BatchState.PREPARING)
        tx.connection.execute(statement.values(state=BatchState.QUEUED))
        detail = {"from": BatchState.PREPARING, "to": BatchState.QUEUED}
        events.append(tx, batch, "state_changed", detail, now_us=now_us)
        return batch

    return fact


def discard(batch: str) -> Fact[None]:
    """Takes back what was stored under PREPARING."""

    def fact(tx: Transaction) -> None:
        _discard(tx, batch)

    return fact


def _discard(tx: Transaction, batch: str) -> None:
    unknown = delete(batches).where(batches.c.id == batch, batches.c.state == BatchState.PREPARING)
    tx.connection.execute(unknown)


def _with_parts(connection: Connection, rows: Sequence[RowMapping]) -> Sequence[Snapshot]:
    """One query for each kind of part, however many batches."""
    ids = [row["id"] for row in rows]
    parts: dict[str, dict[str, list[RowMapping]]] = {}
    for table, order in ((tiers, tiers.c.position), (holds, holds.c.created_us), (labels, labels.c.key)):
        grouped: dict[str, list[RowMapping]] = defaultdict(list)
        for part in connection.execute(select(table).where(table.c.batch.in_(ids)).order_by(order)).mappings():
            grouped[part["batch"]].append(part)
        parts[table.name] = grouped
    return [
        Snapshot(
            row,
            parts["batch_tiers"].get(row["id"], []),
            parts["holds"].get(row["id"], []),
            {label["key"]: label["value"] for label in parts["batch_labels"].get(row["id"], [])},
        )
        for row in rows
    ]
