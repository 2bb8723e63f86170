"""The ledger as it is read: calls by batch, sums of spend, and calls that the estimator has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    case,
    func,
    insert,
    literal,
    select,
    update,
)

from orchestrator_service.domain.ledger import CallOutcome, CallPurpose, CallState, Usage
from orchestrator_service.storage import budgets
from orchestrator_service.storage.rates import PricedAt, keep_rate
from orchestrator_service.storage.tables import USAGE_COLUMNS, batches, calls, labels, tiers
from orchestrator_service.storage.writer import Fact, Transaction

DAY_US = 86_400_000_000
# What an observation tells beside its call.
_OF_BATCH = (batches.c.base_url, batches.c.speed_up, batches.c.effort, batches.c.quote_name)


@dataclass(frozen=True, kw_only=True)
class SpendQuery:
    """`keys` are day, owner, label, model or batch."""

    keys: tuple[str, ...] = ()
    label_key: str = ""
    start_us: int | None = None
    end_us: int | None = None
    owner: str = ""
    batch: str = ""

    def total(self) -> SpendQuery:
        """The same without keys: one row for all."""
        return replace(self, keys=())


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """A call that belongs to no batch: it proves key and model."""

    model: str
    outcome: CallOutcome
    usage: Usage
    cost_nanos: int
    # None where no price is known.
    priced: PricedAt | None
    duration_s: float
    error: str
    now_us: int


def page(connection: Connection, batch: str, *, after: int, size: int) -> Sequence[RowMapping]:
    """Oldest first, behind the call with the id `after`."""
    where = (calls.c.batch == batch, calls.c.id > after)
    return connection.execute(select(calls).where(*where).order_by(calls.c.id).limit(size)).mappings().all()


def spend(connection: Connection, query: SpendQuery) -> Sequence[RowMapping]:
    """Sums by the keys, ascending; columns k0, k1, ... and the sums."""
    keys = [_key(name).label(f"k{index}") for index, name in enumerate(query.keys)]
    source = calls.outerjoin(batches, calls.c.batch == batches.c.id)
    if "label" in query.keys:
        source = source.outerjoin(labels, and_(labels.c.batch == batches.c.id, labels.c.key == query.label_key))
    statement = select(*keys, *_sums()).select_from(source).where(*_spend_clauses(query))
    if keys:
        statement = statement.group_by(*keys).order_by(*keys)
    # There are hundreds of orders of keys and filters: kept compiled, each would cost 200 kB to save 3 ms.
    return connection.execute(statement, execution_options={"compiled_cache": None}).mappings().all()


def unobserved(connection: Connection, *, limit: int, batch: str = "") -> Sequence[RowMapping]:
    """Settled calls that the estimator has not got, with what it must know of their batch; of one batch where named."""
    clauses = [calls.c.observed.is_(False), calls.c.state == CallState.SETTLED]
    if batch:
        clauses.append(calls.c.batch == batch)
    of_tier = and_(tiers.c.batch == calls.c.batch, tiers.c.tier == calls.c.tier)
    statement = (
        select(calls, *_OF_BATCH, tiers.c.prompt_fingerprint)
        .join(batches, calls.c.batch == batches.c.id)
        .outerjoin(tiers, of_tier)
        .where(*clauses)
        .order_by(calls.c.id)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def mark_observed(ids: Sequence[int]) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        tx.connection.execute(update(calls).where(calls.c.id.in_(ids)).values(observed=True))

    return fact


def journal_preflight(call: Preflight) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        row: dict[str, Any] = {
            "conversation": 0,
            "tier": "",
            "attempt": 1,
            "purpose": CallPurpose.PREFLIGHT,
            "state": CallState.SETTLED,
            "outcome": call.outcome,
            "model": call.model,
            "epoch": 0,
            "prompt_sha256": "",
            "max_tokens": 0,
            "cost_nanos": call.cost_nanos,
            "rate_version": call.priced.version if call.priced else "",
            "duration_s": call.duration_s,
            "created_us": call.now_us,
            "settled_us": call.now_us,
            "error": call.error,
            "observed": True,
        }
        usage = {name: getattr(call.usage, name) for name in USAGE_COLUMNS}
        tx.connection.execute(insert(calls), row | usage)
        if call.priced is not None:
            keep_rate(tx, call.model, call.priced)
        # It belongs to no batch, so to no owner; the server's day has it.
        budgets.add(tx, owner="", time_us=call.now_us, confirmed_nanos=call.cost_nanos)

    return fact


def _key(name: str) -> ColumnElement[Any]:
    columns: dict[str, ColumnElement[Any]] = {
        "day": calls.c.created_us // DAY_US,
        "owner": func.coalesce(batches.c.owner, ""),
        "label": func.coalesce(labels.c.value, ""),
        "model": calls.c.model,
        "batch": func.coalesce(calls.c.batch, ""),
    }
    return columns[name]


def _sums() -> list[ColumnElement[Any]]:
    def total(column: ColumnElement[Any], state: CallState) -> ColumnElement[Any]:
        return func.coalesce(func.sum(case((calls.c.state == state, column), else_=0)), 0)

    return [
        total(calls.c.cost_nanos, CallState.SETTLED).label("confirmed_nanos"),
        total(calls.c.reserved_nanos, CallState.RESERVED).label("reserved_nanos"),
        total(calls.c.reserved_nanos, CallState.POSSIBLY_SPENT).label("possibly_spent_nanos"),
        total(literal(1), CallState.SETTLED).label("calls_settled"),
        total(literal(1), CallState.POSSIBLY_SPENT).label("calls_possibly_spent"),
        *[func.coalesce(func.sum(calls.c[name]), 0).label(name) for name in USAGE_COLUMNS],
    ]


def _spend_clauses(query: SpendQuery) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if query.start_us is not None:
        found.append(calls.c.created_us >= query.start_us)
    if query.end_us is not None:
        found.append(calls.c.created_us < query.end_us)
    if query.owner:
        found.append(batches.c.owner == query.owner)
    if query.batch:
        found.append(calls.c.batch == query.batch)
    return found
