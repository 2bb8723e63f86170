"""What became of quoted batches: one outcome for each, never changed, read together with its quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, select, tuple_

from estimator_service.domain.compare import Actual, first_difference
from estimator_service.domain.errors import DuplicateDiffers
from estimator_service.storage.tables import outcomes, quotes
from estimator_service.storage.times import EPOCH, MICROSECOND, microseconds

_of = outcomes.c


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOutcome:
    # Ids without their collection.
    batch: str
    quote: str
    provider: str
    actual: Actual


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutcome:
    batch: str
    quote: str
    actual: Actual
    # When the batch ended, or its outcome was recorded where that was not told.
    end_time: datetime
    # The Quote, serialized.
    body: bytes

    @property
    def position(self) -> tuple[int, str]:
        return microseconds(self.end_time), self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which outcomes to read; what is empty or None wants all."""

    owner: str = ""
    quote: str = ""
    provider: str | None = None
    start_time: datetime | None = None
    # Exclusive.
    end_time: datetime | None = None


def insert_outcome(connection: Connection, new: NewOutcome, *, now: datetime) -> bool:
    """False where it is known already. Raises DuplicateDiffers where the batch ended otherwise."""
    before = connection.execute(select(outcomes).where(_of.batch == new.batch)).one_or_none()
    if before is not None:
        field = "quote" if before.quote != new.quote else first_difference(_actual(before), new.actual)
        if field:
            raise DuplicateDiffers("batch", f"batches/{new.batch}", field=field, place=field)
        return False
    connection.execute(insert(outcomes).values(_row(new, recorded_us=microseconds(now))))
    return True


def get_newest(
    connection: Connection, wanted: Wanted, *, before: tuple[int, str] | None = None, size: int
) -> Sequence[StoredOutcome]:
    """The newest first; those older than the position `before`."""
    rows = _READ.where(*_conditions(wanted)).order_by(_of.seen_us.desc(), _of.batch.desc()).limit(size)
    if before is not None:
        rows = rows.where(tuple_(_of.seen_us, _of.batch) < tuple_(*before))
    return [_stored(row) for row in connection.execute(rows)]


_READ = select(outcomes, quotes.c.body).join(quotes, quotes.c.id == _of.quote)


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.owner:
        conditions.append(quotes.c.owner == wanted.owner)
    if wanted.quote:
        conditions.append(_of.quote == wanted.quote)
    if wanted.provider is not None:
        conditions.append(_of.provider == wanted.provider)
    if wanted.start_time:
        conditions.append(_of.seen_us >= microseconds(wanted.start_time))
    if wanted.end_time:
        conditions.append(_of.seen_us < microseconds(wanted.end_time))
    return conditions


def _row(new: NewOutcome, *, recorded_us: int) -> dict[str, object]:
    actual = new.actual
    ended_us = None if actual.end_time is None else microseconds(actual.end_time)
    return {
        "batch": new.batch,
        "quote": new.quote,
        "provider": new.provider,
        "cost_nanos": actual.cost_nanos,
        "cost_at_quoted_nanos": actual.cost_at_quoted_nanos,
        "duration_us": actual.duration // MICROSECOND,
        "conversations": actual.conversations,
        "cost_by_group": dict(actual.cost_by_group),
        "ended_us": ended_us,
        "recorded_us": recorded_us,
        "seen_us": recorded_us if ended_us is None else ended_us,
    }


def _stored(row: Row[Any]) -> StoredOutcome:
    return StoredOutcome(
        batch=row.batch,
        quote=row.quote,
        actual=_actual(row),
        end_time=EPOCH + row.seen_us * MICROSECOND,
        body=row.body,
    )


def _actual(row: Row[Any]) -> Actual:
    return Actual(
        cost_nanos=row.cost_nanos,
        cost_at_quoted_nanos=row.cost_at_quoted_nanos,
        duration=row.duration_us * MICROSECOND,
        conversations=row.conversations,
        cost_by_group=row.cost_by_group,
        end_time=None if row.ended_us is None else EPOCH + row.ended_us * MICROSECOND,
    )
