"""How the first run of a quoted batch ended, to be scored against its quote: told once, and kept whether it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, literal, or_, select, update

from orchestrator_service.domain.batch import ENDED, FINAL
from orchestrator_service.domain.ledger import CallOutcome, CallState
from orchestrator_service.domain.outcome import OutcomeState, first_end, running_s
from orchestrator_service.storage.course import changes
from orchestrator_service.storage.tables import USAGE_COLUMNS, batches, calls, estimates, rates
from orchestrator_service.storage.writer import Fact, Transaction

_COUNTS = select(
    func.count(calls.c.conversation.distinct()).filter(calls.c.outcome == CallOutcome.ANSWERED),
    func.count().filter(calls.c.observed.is_(False)),
)
_QUOTED = (
    select(batches.c.quote_name, estimates.c.quoted_version, rates.c.rate)
    .join(estimates, estimates.c.batch == batches.c.id)
    .outerjoin(rates, and_(rates.c.version == estimates.c.quoted_version, rates.c.model == batches.c.model))
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    batch: str
    quote: str
    ended_us: int
    duration_s: float
    # Conversations.
    made: int
    cost_by_tier: Mapping[str, int]
    # The quote's rate as the tables keep it, and what was priced by another one; None where all was priced by it.
    quoted_rate: str | None
    priced_otherwise: Sequence[RowMapping]


@dataclass(frozen=True)
class NotYet:
    """Some of its calls are not at the estimator, or it goes on."""


@dataclass(frozen=True)
class Nothing:
    """It was cancelled, or nothing was made."""


def waiting(connection: Connection, *, after: str, limit: int) -> Sequence[str]:
    """Batches whose first run ended and whose outcome waits, by id, behind `after`."""
    statement = (
        select(estimates.c.batch)
        .join(batches, batches.c.id == estimates.c.batch)
        .where(
            # Said as the index says it, so that it is used.
            estimates.c.outcome == literal(OutcomeState.WAITING.value, literal_execute=True),
            estimates.c.batch > after,
            or_(batches.c.state.in_(FINAL), batches.c.run > 1),
            batches.c.deleted_us.is_(None),
        )
        .order_by(estimates.c.batch)
        .limit(limit)
    )
    return connection.execute(statement).scalars().all()


def read(connection: Connection, batch: str) -> Outcome | NotYet | Nothing:
    log = changes(connection, batch)
    end = first_end(log)
    if end is None:
        return NotYet()
    if log[end].to not in ENDED:
        return Nothing()
    ended_us = log[end].time_us
    # Those of a later run were journalled behind its end.
    theirs = and_(calls.c.batch == batch, calls.c.state == CallState.SETTLED, calls.c.created_us <= ended_us)
    made, unsent = connection.execute(_COUNTS.where(theirs)).one()
    if unsent:
        return NotYet()
    if not made:
        return Nothing()
    quoted = connection.execute(_QUOTED.where(batches.c.id == batch)).mappings().one()
    by_tier = select(calls.c.tier, func.sum(calls.c.cost_nanos).label("cost")).where(theirs).group_by(calls.c.tier)
    return Outcome(
        batch=batch,
        quote=quoted["quote_name"],
        ended_us=ended_us,
        duration_s=running_s(log[: end + 1], until_us=ended_us),
        made=made,
        cost_by_tier={row["tier"]: row["cost"] for row in connection.execute(by_tier).mappings()},
        quoted_rate=quoted["rate"],
        priced_otherwise=_priced_otherwise(connection, theirs, quoted) if quoted["rate"] else (),
    )


def _priced_otherwise(connection: Connection, theirs: ColumnElement[bool], quoted: RowMapping) -> Sequence[RowMapping]:
    """What a person settled costs what they said, at any price."""
    other = (theirs, calls.c.rate_version != quoted["quoted_version"], calls.c.settled_by == "")
    usage = select(calls.c.cost_nanos, *[calls.c[name] for name in USAGE_COLUMNS]).where(*other)
    return connection.execute(usage).mappings().all()


def mark(batch: str, state: OutcomeState) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        untold = (estimates.c.batch == batch, estimates.c.outcome == OutcomeState.WAITING)
        tx.connection.execute(update(estimates).where(*untold).values(outcome=state))

    return fact
