"""What tests look at from outside: how a batch ends, what the sandbox counted, what the database file holds."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import aiohttp
from parley.client import BatchClient
from parley.requests import Until
from parley.v1 import batch_pb2, conversation_pb2
from servers import Sandbox

WAIT_MAX_S = 60.0
# What is written by requests that change no batch: the last known rates, and the schema's version.
ASIDE = ("store", "alembic_version")

Stats = dict[str, Any]
Rows = list[dict[str, Any]]


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


def rows(database: Path, statement: str) -> Rows:
    """Read-only, also while an orchestrator writes or after it was killed."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def everything(database: Path) -> dict[str, Rows]:
    """All rows of all tables that belong to batches."""
    tables = rows(database, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    names = sorted(table["name"] for table in tables if table["name"] not in ASIDE)
    return {name: rows(database, f"SELECT * FROM {name}") for name in names}  # noqa: S608  names from the schema
