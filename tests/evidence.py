"""What tests look at from outside: how a batch ends, what the sandbox counted, what the database file holds."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from parley.client import BatchClient
from parley.requests import Until
from parley.v1 import batch_pb2, conversation_pb2
from servers import Sandbox

WAIT_MAX_S = 60.0
# What is written by requests that change no batch: the known rates, and the schema's version.
ASIDE = ("store", "rates", "alembic_version")

Stats = dict[str, Any]
Rows = list[dict[str, Any]]

_SUMS = """
    coalesce(sum(cost_nanos), 0) AS confirmed_nanos,
    coalesce(sum(iif(calls.state = 'RESERVED', calls.reserved_nanos, 0)), 0) AS reserved_nanos,
    coalesce(sum(iif(calls.state = 'POSSIBLY_SPENT', calls.reserved_nanos, 0)), 0) AS possibly_spent_nanos"""
# Each total of the database beside the sum of rows that it must be.
TOTALS = {
    "batches": (
        """SELECT id, confirmed_nanos, reserved_nanos, possibly_spent_nanos, calls_settled, calls_possibly_spent,
            input_tokens, output_tokens FROM batches ORDER BY id""",
        f"""SELECT batches.id, {_SUMS},
            coalesce(sum(calls.state = 'SETTLED'), 0) AS calls_settled,
            coalesce(sum(calls.state = 'POSSIBLY_SPENT'), 0) AS calls_possibly_spent,
            coalesce(sum(calls.input_tokens), 0) AS input_tokens, coalesce(sum(calls.output_tokens), 0) AS output_tokens
            FROM batches LEFT JOIN calls ON calls.batch = batches.id GROUP BY batches.id ORDER BY batches.id""",  # noqa: S608  our own text
    ),
    "tiers": (
        # The rows of a batch in preparation come in chunks, those of a deleted one are gone.
        """SELECT batch, tier, pending, running, generated, failed, deliverable FROM batch_tiers
            WHERE batch NOT IN (SELECT id FROM batches WHERE state = 'PREPARING' OR deleted_us IS NOT NULL)
            ORDER BY batch, tier""",
        """SELECT batch, tier, sum(state = 'PENDING') AS pending, sum(state = 'RUNNING') AS running,
            sum(state = 'GENERATED') AS generated, sum(state = 'FAILED') AS failed,
            sum(coalesce(review, '') IN ('PASSED', 'ACCEPTED', 'EDITED')) AS deliverable
            FROM conversations
            WHERE batch NOT IN (SELECT id FROM batches WHERE state = 'PREPARING' OR deleted_us IS NOT NULL)
            GROUP BY batch, tier ORDER BY batch, tier""",
    ),
    "days": (
        "SELECT day, owner, confirmed_nanos, reserved_nanos, possibly_spent_nanos FROM daily_spend ORDER BY day, owner",
        f"""SELECT calls.created_us / 86400000000 AS day, coalesce(owner, '') AS owner, {_SUMS}
            FROM calls LEFT JOIN batches ON batches.id = calls.batch GROUP BY 1, 2 ORDER BY 1, 2""",  # noqa: S608  our own text
    ),
}


@dataclass(frozen=True)
class Ledger:
    """The calls in a database file and their nano-dollars."""

    confirmed_nanos: int
    reserved_nanos: int
    possibly_spent_nanos: int
    settled: int
    reserved: int
    possibly_spent: int
    # Settled with the provider's own usage.
    paid: int

    def accounts_for(self, paid_nanos: int) -> bool:
        """What the provider counts is confirmed, but for a part of what is possibly spent or still in flight."""
        hidden_nanos = self.possibly_spent_nanos + self.reserved_nanos
        return self.confirmed_nanos <= paid_nanos <= self.confirmed_nanos + hidden_nanos


async def last_seen(client: BatchClient, name: str, *, until: Until = "ended") -> batch_pb2.Batch:
    """The batch as the last message of a watch shows it."""
    seen = batch_pb2.Batch()
    async with asyncio.timeout(WAIT_MAX_S), aclosing(client.watch(name, until=until)) as messages:
        async for message in messages:
            seen = message.batch
    return seen


async def event_log(client: BatchClient, name: str) -> list[batch_pb2.BatchEvent]:
    """All events of a batch that has ended."""
    async with asyncio.timeout(WAIT_MAX_S), aclosing(client.watch(name)) as messages:
        return [event async for message in messages for event in message.events]


async def calls_of(client: BatchClient, name: str) -> list[conversation_pb2.Call]:
    return [call async for call in client.calls(name)]


async def until(sandbox: Sandbox, holds: Callable[[Stats], bool], *, max_s: float = WAIT_MAX_S) -> Stats:
    """The sandbox's counts as soon as they are so."""
    async with asyncio.timeout(max_s), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{sandbox.url}/stats") as response:
                stats: Stats = await response.json()
            if holds(stats):
                return stats


async def reset(sandbox: Sandbox, **settings: object) -> None:
    """Counts from 0 and is as it was at its start, but for `settings`: the next story on the same sandbox."""
    plain: dict[str, object] = {"faults": {}, "fault_max_attempt": None, "api_key": None, "paused": False}
    await sandbox.change(**{**plain, **settings})
    async with aiohttp.ClientSession() as session, session.post(f"{sandbox.url}/stats/reset") as response:
        assert response.status == 200


def paid_again(stats: Stats) -> int:
    """Payments beyond the first of each prompt."""
    return sum(prompt["paid"] - 1 for prompt in stats["prompts_paid_more_than_once"])


def rows(database: Path, statement: str, *values: object) -> Rows:
    """Read-only, also while an orchestrator writes or after it was killed."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def ledger(database: Path, *, batch: str = "") -> Ledger:
    """Of one batch, by its name, or of all."""
    statement = f"""SELECT {_SUMS}, sum(state = 'SETTLED') AS settled, sum(state = 'RESERVED') AS reserved,
        sum(state = 'POSSIBLY_SPENT') AS possibly_spent, sum(output_tokens > 0) AS paid
        FROM calls WHERE ? IN ('', 'batches/' || batch)"""  # noqa: S608  our own text
    return Ledger(**{name: value or 0 for name, value in rows(database, statement, batch)[0].items()})


def provider_nanos(stats: Stats, database: Path) -> int:
    """What the sandbox would have billed, at the batch's own rate; its prompts use no cache."""
    rate = json.loads(rows(database, "SELECT rate FROM batches LIMIT 1")[0]["rate"])
    product = stats["tokens_in"] * rate["input_nanos_per_mtok"] + stats["tokens_out"] * rate["output_nanos_per_mtok"]
    return product // 10**6


def damage(database: Path) -> dict[str, Any]:
    """What a database must never have, whatever happened to its writer: nothing, where all is well."""
    found: dict[str, Any] = {
        "integrity": [row for row in rows(database, "PRAGMA integrity_check") if row != {"integrity_check": "ok"}],
        "foreign keys": rows(database, "PRAGMA foreign_key_check"),
        "in flight twice": rows(
            database,
            "SELECT batch, conversation FROM calls WHERE state = 'RESERVED' AND conversation GROUP BY 1, 2"
            " HAVING count(*) > 1",
        ),
        "in flight from an earlier process": rows(
            database,
            "SELECT calls.id FROM calls JOIN batches ON batches.id = calls.batch"
            " WHERE calls.state = 'RESERVED' AND calls.epoch < batches.epoch",
        ),
    }
    for name, (stored, summed) in TOTALS.items():
        told, counted = rows(database, stored), rows(database, summed)
        found[f"totals of {name}"] = [] if told == counted else [told, counted]
    return {name: told for name, told in found.items() if told}


def everything(database: Path) -> dict[str, Rows]:
    """All rows of all tables that belong to batches."""
    tables = rows(database, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    names = sorted(table["name"] for table in tables if table["name"] not in ASIDE)
    return {name: rows(database, f"SELECT * FROM {name}") for name in names}  # noqa: S608  names from the schema
