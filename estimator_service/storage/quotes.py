"""Quotes as they were promised: stored once, never changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects.sqlite import insert

from estimator_service.storage.tables import quotes
from estimator_service.storage.times import microseconds

# A page ends here, however many were asked for; the wire carries 32 MiB.
PAGE_BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NewQuote:
    id: str
    owner: str
    caller: str
    # Empty where the request had none.
    request_id: str
    request_sha256: str
    create_time: datetime
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuote:
    position: int
    owner: str
    request_sha256: str
    body: bytes


def insert_quote(connection: Connection, new: NewQuote) -> bool:
    """False where the caller's request_id has a quote already."""
    statement = insert(quotes).values(
        id=new.id,
        owner=new.owner,
        caller=new.caller,
        request_id=new.request_id or None,
        request_sha256=new.request_sha256,
        created_us=microseconds(new.create_time),
        body=new.body,
    )
    return connection.execute(statement.on_conflict_do_nothing(index_elements=["caller", "request_id"])).rowcount == 1


def get_quote(connection: Connection, id: str) -> StoredQuote | None:
    row = connection.execute(_READ.where(quotes.c.id == id)).one_or_none()
    return _stored(row) if row else None


def known_ids(connection: Connection, ids: Collection[str], *, owner: str) -> set[str]:
    """Those of `ids` that are quotes; of all owners where `owner` is empty."""
    found = select(quotes.c.id).where(quotes.c.id.in_(ids))
    if owner:
        found = found.where(quotes.c.owner == owner)
    return set(connection.execute(found).scalars())


def get_by_request(connection: Connection, *, caller: str, request_id: str) -> StoredQuote | None:
    of_request = (quotes.c.caller == caller) & (quotes.c.request_id == request_id)
    row = connection.execute(_READ.where(of_request)).one_or_none()
    return _stored(row) if row else None


@dataclass(frozen=True, slots=True)
class Page:
    quotes: list[StoredQuote]
    # There are older ones.
    more: bool


def get_page(connection: Connection, *, owner: str, before: int | None, size: int) -> Page:
    """The newest first, older than position `before`; of all owners where `owner` is empty."""
    older = select(quotes.c.position, func.length(quotes.c.body).label("bytes")).order_by(quotes.c.position.desc())
    if owner:
        older = older.where(quotes.c.owner == owner)
    if before is not None:
        older = older.where(quotes.c.position < before)
    sizes = connection.execute(older.limit(size + 1)).all()
    kept = _fitting([row.bytes for row in sizes[:size]])
    positions = [row.position for row in sizes[:kept]]
    rows = connection.execute(_READ.where(quotes.c.position.in_(positions)).order_by(quotes.c.position.desc()))
    return Page([_stored(row) for row in rows], more=len(sizes) > kept)


def _fitting(sizes: list[int]) -> int:
    """How many of the first fit a page; at least one, or no client would ever get past it."""
    total = 0
    for at, size in enumerate(sizes):
        total += size
        if total > PAGE_BYTES_MAX:
            return max(at, 1)
    return len(sizes)


_READ = select(quotes.c.position, quotes.c.owner, quotes.c.request_sha256, quotes.c.body)


def _stored(row: Row[Any, Any, Any, Any]) -> StoredQuote:
    return StoredQuote(position=row[0], owner=row[1], request_sha256=row[2], body=row[3])
