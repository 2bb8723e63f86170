"""An orchestrator that ends, by a signal or a kill, and comes back to the same database."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from evidence import everything, last_seen, rows, until
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.wire.channel import ChannelSettings, open_channel
from servers import END_MAX_S, NotServing, Pair, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

LARGE = 30_000
PREPARING_MAX_S = 20.0


async def until_rows_are_stored(pair: Pair) -> None:
    """Polls the file: a batch that is being prepared shows nowhere else."""
    async with asyncio.timeout(PREPARING_MAX_S):
        while not rows(pair.database, "SELECT 1 FROM conversations LIMIT 1"):
            await asyncio.to_thread(rows, pair.database, "SELECT 1")


async def test_a_kill_while_a_large_batch_is_prepared_leaves_nothing(tmp_path: Path) -> None:
    async with running_sandbox(tmp_path) as sandbox, running_pair(tmp_path, sandbox) as pair, pair.client() as client:
        large = spec(LARGE, concurrency=10, hold_after=0)
        creating = asyncio.create_task(client.create(large, request_id="once"))
        await until_rows_are_stored(pair)
        await pair.orchestrator.kill()
        assert rows(pair.database, "SELECT state FROM batches") == [{"state": "PREPARING"}]
        assert rows(pair.database, "SELECT count(*) < 30000 AS some FROM conversations") == [{"some": 1}]
        # Its channel would send it once more, to the next process.
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        await pair.restart()
        assert {name: found for name, found in everything(pair.database).items() if found} == {}
        assert [batch async for batch in client.list_batches()] == []
        assert (await sandbox.stats())["calls_started"] == 0
        # The same request is not taken for one that was answered.
        batch = await client.create(spec(3), request_id="once")
        assert (await last_seen(client, batch.name)).counts.deliverable == 3


async def test_a_kill_while_paused_stays_paused(tmp_path: Path) -> None:
    async with running_sandbox(tmp_path) as sandbox, running_pair(tmp_path, sandbox) as pair, pair.client() as client:
        created = await client.create(spec(12, hold_after=3))
        await last_seen(client, created.name, until="settled")
        paused = await client.pause(created.name)
        assert paused.state == batch_pb2.BATCH_STATE_PAUSED
        before = everything(pair.database)
        await pair.orchestrator.kill()
        await pair.restart()
        batch = await client.get(created.name)
        assert batch.state == batch_pb2.BATCH_STATE_PAUSED
        assert [hold.reason for hold in batch.holds] == [batch_pb2.HOLD_REASON_CHECKPOINT, batch_pb2.HOLD_REASON_USER]
        assert everything(pair.database)["events"] == before["events"]
        assert (await sandbox.stats())["calls_started"] == 3
        await client.resume(created.name)
        assert (await last_seen(client, created.name)).counts.deliverable == 12
        assert (await sandbox.stats())["calls_completed"] == 12


async def test_sigterm_lets_calls_in_flight_end_and_keeps_them(tmp_path: Path) -> None:
    async with running_sandbox(tmp_path) as sandbox, running_pair(tmp_path, sandbox) as pair, pair.client() as client:
        await sandbox.change(paused=True)
        created = await client.create(spec(30, concurrency=5))
        await until(sandbox, lambda stats: stats["in_flight"] == 5)
        process = pair.orchestrator.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        await until_streams_are_refused(pair, created.name)
        assert process.returncode is None
        await sandbox.change(paused=False)
        async with asyncio.timeout(END_MAX_S):
            assert await process.wait() == 0
        states = rows(pair.database, "SELECT state, count(*) n FROM conversations GROUP BY 1 ORDER BY 1")
        assert states == [{"state": "GENERATED", "n": 5}, {"state": "PENDING", "n": 25}]
        assert rows(pair.database, "SELECT DISTINCT state FROM calls") == [{"state": "SETTLED"}]
        assert (await sandbox.stats())["calls_started"] == 5
        await pair.restart()
        batch = await last_seen(client, created.name)
        assert batch.counts.deliverable == 30
        assert batch.spend.calls_possibly_spent == 0
        assert (await sandbox.stats())["calls_completed"] == 30


async def until_streams_are_refused(pair: Pair, name: str) -> None:
    """The end of a watch is how a client learns that the server is going down."""
    async with open_channel(ChannelSettings(target=pair.address)) as channel:
        watch = BatchOrchestratorStub(channel).WatchBatch(orchestrator_pb2.WatchBatchRequest(name=name))
        async with asyncio.timeout(PREPARING_MAX_S):
            code = await watch.code()
    assert code.name == "UNAVAILABLE"


async def test_a_second_orchestrator_on_the_same_database_is_refused(tmp_path: Path) -> None:
    async with running_sandbox(tmp_path) as sandbox, running_pair(tmp_path, sandbox) as pair, pair.client() as client:
        first = pair.orchestrator
        listen = f"unix:{tmp_path}/second.sock"
        environment = {**first.environment, "PARLEY_ORCHESTRATOR_LISTEN": listen}
        second = replace(first, environment=environment, log=tmp_path / "second.log", process=None, announced={})
        with pytest.raises(NotServing) as refused:
            await second.start()
        assert second.process is not None
        assert second.process.returncode == 2
        assert str(refused.value).strip() == (
            f"orchestrator: {pair.database} is in use by another orchestrator (process {first.announced['pid']}). "
            "Stop that one, or give this one its own file with PARLEY_ORCHESTRATOR_DATABASE."
        )
        # The first one goes on undisturbed.
        assert (await last_seen(client, (await client.create(spec(3))).name)).counts.deliverable == 3
