"""How a server process starts, announces itself and goes down."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from parley.v1 import orchestrator_pb2_grpc
from parley.wire.channel import ChannelSettings, open_channel
from wire_fixtures import WATCH

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("wire_process.py")
WAIT_MAX_S = 20.0


@dataclass(frozen=True)
class Child:
    process: Process
    announced: dict[str, Any]
    stub: orchestrator_pb2_grpc.BatchOrchestratorStub

    async def next_line(self) -> dict[str, Any]:
        return await next_line(self.process)

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WAIT_MAX_S)


async def next_line(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(await asyncio.wait_for(process.stdout.readline(), WAIT_MAX_S))


@asynccontextmanager
async def child(mode: str) -> AsyncGenerator[Child]:
    process = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), mode, stdout=PIPE, stderr=PIPE)
    try:
        announced = await next_line(process)
        async with open_channel(ChannelSettings(target=announced["address"])) as channel:
            yield Child(process, announced, orchestrator_pb2_grpc.BatchOrchestratorStub(channel))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_process_announces_where_it_serves():
    async with child("drains") as server:
        assert server.announced == {
            "event": "serving",
            "service": "drain-test",
            "address": server.announced["address"],
            "pid": server.process.pid,
        }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_turns_health_off_then_drains_then_lets_streams_end(number: signal.Signals):
    async with child("drains") as server:
        call = server.stub.WatchBatch(WATCH)
        messages = aiter(call)
        await anext(messages)
        server.process.send_signal(number)
        assert await server.next_line() == {"event": "draining", "health": "NOT_SERVING"}
        assert [message.last async for message in messages] == [True]
        assert await call.code() is grpc.StatusCode.OK
        assert await server.next_line() == {"event": "stopped"}
        assert await server.exit_code() == 0


async def test_a_signal_right_after_the_announcement_drains_too():
    async with child("drains") as server:
        server.process.terminate()
        assert (await server.next_line())["event"] == "draining"
        assert await server.exit_code() == 0


async def test_a_second_signal_stops_at_once():
    async with child("hangs") as server:
        call = server.stub.WatchBatch(WATCH)
        await call.read()
        server.process.terminate()
        assert (await server.next_line())["event"] == "draining"
        server.process.terminate()
        assert await server.next_line() == {"event": "stopped"}
        assert await server.exit_code() == 0


async def test_every_line_of_the_log_is_json_where_nobody_watches_it():
    async with child("drains") as server:
        await server.stub.WatchBatch(WATCH).read()
        server.process.terminate()
        await server.exit_code()
        assert server.process.stderr is not None
        lines = [json.loads(line) for line in (await server.process.stderr.read()).splitlines()]
    assert {line["process"] for line in lines} == {"drain-test"}
    assert "draining" in [line["event"] for line in lines]
