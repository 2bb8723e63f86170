"""Outcomes to record, and the tables as they stand, for tests of what the estimator remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import estimator_pb2, quote_pb2

DOLLAR = money.NANOS_PER_DOLLAR


def tables(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(database)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT * FROM "{name}" ORDER BY 1').fetchall() for name in names}  # noqa: S608  our own text


def dollars(amount: float) -> Money:
    return money.from_nanos(round(amount * DOLLAR))


def timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def actuals(
    cost: float = 1.5,
    seconds: float = 600.0,
    *,
    conversations: int = 90,
    by_group: Mapping[str, float] | None = None,
    at_quoted: float | None = None,
) -> quote_pb2.Actuals:
    return quote_pb2.Actuals(
        cost=dollars(cost),
        duration=duration(seconds),
        conversations=conversations,
        cost_by_group={group: dollars(amount) for group, amount in (by_group or {}).items()},
        cost_at_quoted_prices=None if at_quoted is None else dollars(at_quoted),
    )


def ended(
    quote: str, *, batch: str = "batches/abcd", end_time: datetime | None = None, **figures: Any
) -> estimator_pb2.RecordOutcomeRequest:
    return estimator_pb2.RecordOutcomeRequest(
        quote=quote,
        batch=batch,
        actuals=actuals(**figures),
        end_time=None if end_time is None else timestamp(end_time),
    )


TOKENS = {name: name * 4 for name in ("anna", "bert", "serv")}


def tokens_file(folder: Path) -> Path:
    """For anna, bert and serv, who may act for others."""
    path = folder / "tokens"
    lines = [f"{token} {name}{' act-for-others' if name == 'serv' else ''}\n" for name, token in TOKENS.items()]
    path.write_text("".join(lines), "utf-8")
    path.chmod(0o600)
    return path
