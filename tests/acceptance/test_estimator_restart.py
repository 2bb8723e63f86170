"""The estimator is killed in the middle of a batch: the batch goes on, and everything that it took arrives once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from evidence import rows
from parley.v1 import batch_pb2
from servers import Pair, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

COUNT = 60
# Some 0.6 s a call: 60 of them, three at a time, are a dozen seconds.
PACE = ("--speed-up", "10", "--tokens-mean", "200")
WAIT_MAX_S = 60.0


async def test_an_estimator_that_is_killed_in_the_middle_of_a_batch_has_every_call_once(tmp_path: Path) -> None:
    async with (
        running_sandbox(tmp_path, *PACE) as sandbox,
        running_pair(tmp_path, sandbox) as pair,
        pair.client() as client,
        asyncio.timeout(WAIT_MAX_S),
    ):
        batch = await client.create(spec(COUNT))
        async with aclosing(client.watch(batch.name)) as watched:
            seen = aiter(watched)
            before = await until(seen, lambda batch: batch.counts.generated >= 12 and not batch.forecast.stale)
            assert before.forecast.HasField("cost")
            await pair.estimator.kill()
            away = await until(seen, lambda batch: batch.forecast.stale)
            # The last one stays, and conversations are made meanwhile.
            assert away.forecast.HasField("cost")
            assert away.state == batch_pb2.BATCH_STATE_RUNNING
            await pair.estimator.start()
            back = await until(seen, lambda batch: not batch.forecast.stale)
            assert back.state == batch_pb2.BATCH_STATE_RUNNING, "it ended before the estimator was asked again"
            assert back.counts.generated > before.counts.generated
            ended = await until(seen, lambda batch: batch.HasField("end_time"))
        assert ended.state == batch_pb2.BATCH_STATE_SUCCEEDED
        await told_everything(pair)

    settled = rows(pair.database, "SELECT batch, id FROM calls WHERE state = 'SETTLED'")
    calls = Counter(call for (call,) in stored(tmp_path, "SELECT call FROM observations"))
    assert len(settled) >= COUNT
    assert calls == Counter(f"batches/{row['batch']}/calls/{row['id']}" for row in settled)


async def until(seen: AsyncIterator[Any], holds: Callable[[batch_pb2.Batch], bool]) -> batch_pb2.Batch:
    async for message in seen:
        if holds(message.batch):
            return message.batch
    raise AssertionError("the watch ended before")


async def told_everything(pair: Pair) -> None:
    """Until the orchestrator has nothing left to send: the end of the batch is not that of its last page."""
    while rows(pair.database, "SELECT id FROM calls WHERE NOT observed") or rows(
        pair.database, "SELECT batch FROM batch_estimates WHERE outcome = 'WAITING'"
    ):
        # Each look is a reading of the file; the loop goes on meanwhile.
        await asyncio.to_thread(pair.database.stat)


def stored(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What the estimator has in its database."""
    with closing(sqlite3.connect(folder / "estimator.db")) as connection:
        return connection.execute(sql).fetchall()
