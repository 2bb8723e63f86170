"""Times and durations as the tables hold them: whole microseconds, UTC since 1970."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND
