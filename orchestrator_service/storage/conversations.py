"""Conversations as they are read: by number, by filter, and those that wait for their turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, func, or_, select

from orchestrator_service.domain.conversation import DELIVERABLE, ConversationState
from orchestrator_service.storage.tables import conversations, texts

_PENDING = (
    select(conversations.c.number, conversations.c.place, conversations.c.tries)
    .where(
        conversations.c.batch == bindparam("b_id"),
        conversations.c.state == ConversationState.PENDING,
        conversations.c.place > bindparam("b_place"),
    )
    .order_by(conversations.c.place)
    .limit(bindparam("b_limit"))
)


@dataclass(frozen=True)
class Waiting:
    number: int
    place: int
    # Tries of this run so far.
    tries: int


@dataclass(frozen=True, kw_only=True)
class Which:
    """Conversations by tier, state, review and failure; an empty tuple is any."""

    tiers: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    reviews: tuple[str, ...] = ()
    failure_reasons: tuple[str, ...] = ()

    def clause(self) -> ColumnElement[bool]:
        chosen = (
            (conversations.c.tier, self.tiers),
            (conversations.c.state, self.states),
            (conversations.c.review, self.reviews),
            (conversations.c.failure_reason, self.failure_reasons),
        )
        return and_(True, *[column.in_(values) for column, values in chosen if values])


def pending(connection: Connection, batch: str, *, place: int, limit: int) -> Sequence[Waiting]:
    """Those that wait, in the order of claims, behind `place`."""
    rows = connection.execute(_PENDING, {"b_id": batch, "b_place": place, "b_limit": limit})
    return [Waiting(number, at, tries) for number, at, tries in rows]


def get(connection: Connection, batch: str, number: int) -> RowMapping | None:
    where = (conversations.c.batch == batch, conversations.c.number == number)
    return connection.execute(select(conversations).where(*where)).mappings().one_or_none()


def page(connection: Connection, batch: str, which: Which, *, after: int, size: int) -> Sequence[RowMapping]:
    """By number, behind `after`."""
    where = (conversations.c.batch == batch, conversations.c.number > after, which.clause())
    statement = select(conversations).where(*where).order_by(conversations.c.number).limit(size)
    return connection.execute(statement).mappings().all()


def turns(connection: Connection, batch: str, numbers: Sequence[int]) -> dict[int, list[tuple[str, str]]]:
    where = (texts.c.batch == batch, texts.c.number.in_(numbers))
    rows = connection.execute(select(texts.c.number, texts.c.turns).where(*where))
    return {number: [(role, content) for role, content in json.loads(stored)] for number, stored in rows}


def deliverable(connection: Connection, batch: str, which: Which, *, after: int, size: int) -> Sequence[RowMapping]:
    """Those that are exported, with their turns, by number."""
    joined = and_(texts.c.batch == conversations.c.batch, texts.c.number == conversations.c.number)
    statement = (
        select(conversations, texts.c.turns)
        .join(texts, joined)
        .where(
            conversations.c.batch == batch,
            conversations.c.number > after,
            conversations.c.review.in_(DELIVERABLE),
            which.clause(),
        )
        .order_by(conversations.c.number)
        .limit(size)
    )
    return connection.execute(statement).mappings().all()


def left_out(connection: Connection, batch: str, which: Which) -> dict[str, int]:
    """How many match and are not exported, by their review, or by their state where they have none."""
    kept_back = or_(conversations.c.review.is_(None), conversations.c.review.not_in(DELIVERABLE))
    cause = func.coalesce(conversations.c.review, conversations.c.state)
    statement = select(cause, func.count()).where(conversations.c.batch == batch, kept_back, which.clause())
    return dict(connection.execute(statement.group_by(cause)).tuples().all())
