"""A database that takes nothing any more, for a while or for good: nothing committed is lost, nothing runs twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from evidence import Rows, damage, last_seen, paid_again, reset, rows, until
from faulty_storage import (
    Fault,
    breakable_disk,
    disk_full,
    file_size_limited,
    locked_by_another_program,
    small_disk,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from parley.v1 import batch_pb2
from parley.v1.orchestrator_pb2 import ListCallsRequest, PauseBatchRequest
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.wire.errors import WireError, read_error
from servers import NotServing, Pair, Sandbox, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

CONVERSATIONS, CONCURRENCY = 12, 4
RPC_MAX_S = 20.0
SETTLED = "SELECT * FROM calls WHERE state = 'SETTLED' ORDER BY id"
FINISHED = "SELECT * FROM conversations WHERE state = 'GENERATED' ORDER BY batch, number"


@dataclass(frozen=True)
class Stage:
    """Both services and the folder of the orchestrator's database, shared by the faults that a process survives."""

    pair: Pair
    sandbox: Sandbox
    # Whether the folder is a small disk of its own.
    is_disk: bool

    async def begin(self) -> str:
        """A batch with a part of it made, and as many calls in flight as may be."""
        await reset(self.sandbox)
        async with self.pair.client() as client:
            wanted = spec(CONVERSATIONS, concurrency=CONCURRENCY, hold_after=CONCURRENCY)
            name = (await client.create(wanted)).name
            await last_seen(client, name, until="settled")
            await self.sandbox.change(paused=True)
            await client.update(name, hold_after=None)
        await until(self.sandbox, lambda stats: stats["in_flight"] == CONCURRENCY)
        return name

    async def look_at_fault(self, name: str) -> None:
        """All that holds while nothing can be stored: answers come in and are kept, nothing else is begun."""
        await self.sandbox.change(paused=False)
        await until(self.sandbox, lambda stats: stats["calls_completed"] == 2 * CONCURRENCY)
        told = await self.refusal(lambda stub: stub.PauseBatch(PauseBatchRequest(name=name), timeout=RPC_MAX_S))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        assert told.retry_after_s is not None
        assert told.retry_after_s > 0
        # Reads go on, and tell what is stored.
        async with self.pair.client() as client:
            batch = await client.get(name)
        assert batch.state == batch_pb2.BATCH_STATE_RUNNING
        assert batch.counts.running == CONCURRENCY
        assert await self.health() == "SERVING"
        assert (await self.sandbox.stats())["calls_started"] == 2 * CONCURRENCY

    async def refusal(self, call: Callable[[BatchOrchestratorStub], Awaitable[object]]) -> WireError:
        """What a client is told that does not try again by itself."""
        async with grpc.aio.insecure_channel(self.pair.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(BatchOrchestratorStub(channel))
        return read_error(refused.value)

    async def health(self) -> str:
        async with grpc.aio.insecure_channel(self.pair.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            told = await stub.Check(health_pb2.HealthCheckRequest(), timeout=RPC_MAX_S)
            return health_pb2.HealthCheckResponse.ServingStatus.Name(told.status)


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("storage")
    async with (
        small_disk(folder) as disk,
        running_sandbox(folder) as sandbox,
        running_pair(folder, sandbox, PARLEY_ORCHESTRATOR_DATABASE=str((disk or folder) / "o.db")) as pair,
    ):
        yield Stage(pair, sandbox, disk is not None)


FAULTS: dict[str, Fault] = {
    "the disk is full": disk_full,
    "no file may grow": file_size_limited,
    # For longer than the writer waits for it.
    "another program has it locked": locked_by_another_program,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_answers_that_cannot_be_stored_are_kept_until_they_can(stage: Stage, fault: Fault) -> None:
    if fault is disk_full and not stage.is_disk:
        pytest.skip("mounting a tmpfs is not permitted here")
    name, database = await stage.begin(), stage.pair.database
    settled, finished = rows(database, SETTLED), rows(database, FINISHED)
    with fault(stage.pair):
        await stage.look_at_fault(name)
        assert rows(database, SETTLED) == settled
        assert rows(database, FINISHED) == finished
    async with stage.pair.client() as client:
        batch = await last_seen(client, name)
    stats = await stage.sandbox.stats()
    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert batch.counts.deliverable == CONVERSATIONS
    assert stats["calls_completed"] == stats["calls_started"] == CONVERSATIONS
    assert batch.spend.calls_settled == CONVERSATIONS
    assert batch.spend.calls_possibly_spent == 0
    assert damage(database) == {}
    assert [row for row in rows(database, FINISHED) if row in finished] == finished


async def test_a_disk_that_breaks_down_is_waited_for_and_has_what_was_committed(tmp_path: Path) -> None:
    async with (
        breakable_disk(tmp_path) as disk,
        running_sandbox(tmp_path) as sandbox,
        # The process must let go of the disk before that can be repaired.
        running_pair(
            tmp_path, sandbox, PARLEY_ORCHESTRATOR_DATABASE=str(disk.mount / "o.db"), PARLEY_DRAIN_S="1"
        ) as pair,
    ):
        stage = Stage(pair, sandbox, is_disk=True)
        name = await stage.begin()
        settled = rows(pair.database, SETTLED)
        await disk.break_down()
        await stage.look_at_fault(name)
        await pair.orchestrator.stop()
        await disk.repair()

        assert rows(pair.database, SETTLED) == settled
        await pair.restart()
        async with pair.client() as client:
            batch = await last_seen(client, name)
        # The answers ended with the process that had them: so they are paid again, and told.
        assert batch.counts.deliverable == CONVERSATIONS
        assert batch.spend.calls_possibly_spent == CONCURRENCY
        assert paid_again(await sandbox.stats()) == CONCURRENCY
        assert damage(pair.database) == {}
        await pair.orchestrator.stop()


@dataclass(frozen=True)
class Ruin:
    """A database of a server that was stopped in the middle of a batch, to be ruined and made whole again."""

    stage: Stage
    name: str
    whole: bytes
    calls: Rows

    @property
    def database(self) -> Path:
        return self.stage.pair.database

    def make_whole(self) -> None:
        for path in self.database.parent.glob(f"{self.database.name}-*"):
            path.unlink()
        self.database.write_bytes(self.whole)

    def cut_in_half(self) -> None:
        self.database.write_bytes(self.whole[: len(self.whole) // 2])

    def overwrite(self, *, at: int, data: bytes) -> None:
        with self.database.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def overwrite_root_page(self, table: str) -> None:
        pages = rows(self.database, "SELECT name, rootpage FROM sqlite_master")
        size = rows(self.database, "PRAGMA page_size")[0]["page_size"]
        page = {row["name"]: row["rootpage"] for row in pages}[table]
        self.overwrite(at=(page - 1) * size, data=b"\xa5" * size)

    async def refused_start(self) -> str:
        """What a process wrote that did not come to serve."""
        first = self.stage.pair.orchestrator
        again = replace(first, log=first.log.with_name("refused.log"), process=None, announced={})
        again.log.unlink(missing_ok=True)
        with pytest.raises(NotServing) as refused:
            await again.start()
        assert again.process is not None
        assert again.process.returncode == 2, str(refused.value)
        return str(refused.value)


@pytest.fixture(name="ruin", scope="module")
async def stopped_in_the_middle(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Ruin]:
    folder = tmp_path_factory.mktemp("ruin")
    async with running_sandbox(folder) as sandbox, running_pair(folder, sandbox) as pair:
        async with pair.client() as client:
            name = (await client.create(spec(CONVERSATIONS, hold_after=3))).name
            await last_seen(client, name, until="settled")
        assert await pair.orchestrator.stop() == 0
        calls = rows(pair.database, SETTLED)
        assert len(calls) == 3
        yield Ruin(Stage(pair, sandbox, is_disk=False), name, pair.database.read_bytes(), calls)


RUINS: dict[str, Callable[[Ruin], None]] = {
    "its header": lambda ruin: ruin.overwrite(at=0, data=b"This was a database once. " * 4),
    "its end": lambda ruin: ruin.cut_in_half(),
    "the table of batches": lambda ruin: ruin.overwrite_root_page("batches"),
    "the table of the schema's version": lambda ruin: ruin.overwrite_root_page("alembic_version"),
}


@pytest.mark.parametrize("spoil", RUINS.values(), ids=RUINS)
async def test_a_file_that_lost_something_is_refused_at_the_start_in_one_sentence(
    ruin: Ruin, spoil: Callable[[Ruin], None]
) -> None:
    ruin.make_whole()
    spoil(ruin)
    spoiled = ruin.database.read_bytes()
    said = await ruin.refused_start()
    sentence = said.splitlines()[-1]
    assert sentence.startswith(f"orchestrator: {ruin.database} is damaged, or is no database: ")
    assert "parley verify" in sentence
    assert "Traceback" not in said
    # Nothing makes it worse.
    assert ruin.database.read_bytes() == spoiled


async def test_damage_that_shows_while_it_runs_is_told_and_the_rest_goes_on(ruin: Ruin) -> None:
    ruin.make_whole()
    ruin.overwrite_root_page("calls")
    await ruin.stage.pair.restart()
    request = ListCallsRequest(parent=ruin.name)
    told = await ruin.stage.refusal(lambda stub: stub.ListCalls(request, timeout=RPC_MAX_S))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    assert "damaged" in told.message
    async with ruin.stage.pair.client() as client:
        assert len([one async for one in client.conversations(ruin.name) if one.attempts]) == 3
        await client.resume(ruin.name)
        # No call can be journalled, so none is made, and the batch says why.
        held = await last_seen(client, ruin.name, until="settled")
    assert "parley restore" in held.holds[0].message
    assert await ruin.stage.health() == "SERVING"
    assert await ruin.stage.pair.orchestrator.stop() == 0


async def test_a_file_that_is_whole_again_goes_on_where_it_was(ruin: Ruin) -> None:
    ruin.make_whole()
    await ruin.stage.pair.restart()
    assert rows(ruin.database, SETTLED) == ruin.calls
    async with ruin.stage.pair.client() as client:
        await client.resume(ruin.name)
        assert (await last_seen(client, ruin.name)).counts.deliverable == CONVERSATIONS
    assert (await ruin.stage.sandbox.stats())["calls_completed"] == CONVERSATIONS
    await ruin.stage.pair.orchestrator.stop()
