"""Watchers that are cut, stalled or too many: each sees every event once and in order, and the batch goes on."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from evidence import WAIT_MAX_S, event_log, last_seen, reset
from parley.client import BatchClient
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import WireError, read_error
from servers import Pair, Sandbox, running_pair, running_sandbox, spec
from tcp_proxy import Proxy, running_proxy

pytestmark = pytest.mark.anyio

SEED = 50
WATCHERS = 50
CUTS = 3
WATCHERS_MAX = 60
FLOOD = 200
COME_AND_GO = 300
INTERVAL_S = 0.25
# Slow enough for a batch of 150 to take some seconds: each watcher is cut three times meanwhile.
SPEED_UP = 150.0

Message = orchestrator_pb2.WatchBatchResponse


@dataclass(frozen=True)
class Stage:
    client: BatchClient
    stub: BatchOrchestratorStub
    sandbox: Sandbox
    pair: Pair


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("watch")
    async with (
        running_sandbox(folder, "--speed-up", str(SPEED_UP)) as sandbox,
        running_pair(folder, sandbox, PARLEY_MAX_WATCHERS=str(WATCHERS_MAX)) as pair,
        pair.client() as client,
        open_channel(ChannelSettings(target=pair.address)) as channel,
    ):
        yield Stage(client, BatchOrchestratorStub(channel), sandbox, pair)


async def refusal_of(call: AsyncIterable[object]) -> WireError:
    async with asyncio.timeout(WAIT_MAX_S):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in call:
                pass
    return read_error(refused.value)


async def held_batch(stage: Stage, **fields: Any) -> str:
    """A batch that waits for somebody: nothing of it moves by itself."""
    name = (await stage.client.create(spec(4, hold_after=0, **fields))).name
    assert (await stage.client.pause(name)).state == batch_pb2.BATCH_STATE_PAUSED
    return name


async def test_one_watcher_too_many_is_told_when_to_come_back(stage: Stage) -> None:
    # The first story of this file: nobody who is just leaving is counted too.
    held = await held_batch(stage)
    request = orchestrator_pb2.WatchBatchRequest(name=held)
    async with asyncio.timeout(WAIT_MAX_S), AsyncExitStack() as stack:
        for _ in range(WATCHERS_MAX):
            messages = await stack.enter_async_context(watching(stage, held))
            await anext(messages)
        for method in (stage.stub.WatchBatch(request), stage.stub.WatchBatches(orchestrator_pb2.WatchBatchesRequest())):
            refused = await refusal_of(method)
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.reason == "TOO_MANY_WATCHERS"
            assert refused.metadata["max_watchers"] == str(WATCHERS_MAX)
            assert refused.retry_after_s is not None
            assert refused.retry_after_s > 0
    await until_there_is_room(stage, request)


async def until_there_is_room(stage: Stage, request: orchestrator_pb2.WatchBatchRequest) -> None:
    """The places of those who left are free again as soon as the server has noticed."""
    async with asyncio.timeout(WAIT_MAX_S):
        while True:
            async with watching(stage, request.name) as messages:
                try:
                    await anext(messages)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                else:
                    return


async def test_a_flood_past_the_limit_is_refused_and_holds_up_nobody(stage: Stage) -> None:
    held = await held_batch(stage)
    request = orchestrator_pb2.WatchBatchRequest(name=held)
    await until_there_is_room(stage, request)
    async with asyncio.timeout(WAIT_MAX_S), AsyncExitStack() as stack:
        streams = await all_places(stage, stack, held)
        refusals = await asyncio.gather(*(refusal_of(stage.stub.WatchBatch(request)) for _ in range(FLOOD)))
        assert {refused.reason for refused in refusals} == {"TOO_MANY_WATCHERS"}
        assert all(refused.retry_after_s for refused in refusals)
        # Those who have a place hear of what happens as ever.
        await stage.client.cancel(held)
        for messages in streams:
            assert (await anext(messages)).last
    await until_there_is_room(stage, request)


async def all_places(stage: Stage, stack: AsyncExitStack, name: str) -> list[AsyncIterator[Message]]:
    """As many streams as the server takes, each with its first message; a place may still be that of one who left."""
    streams: list[AsyncIterator[Message]] = []
    while len(streams) < WATCHERS_MAX:
        messages = await stack.enter_async_context(watching(stage, name))
        try:
            await anext(messages)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            streams.append(messages)
    return streams


async def test_three_hundred_watchers_come_and_go_and_every_place_is_free_again(stage: Stage) -> None:
    held = await held_batch(stage)
    rng = random.Random(SEED)

    async def come_and_go() -> None:
        async with watching(stage, held) as messages:
            # Some leave before their first message, some after it.
            if rng.random() < 0.5:
                with suppress(grpc.aio.AioRpcError):
                    await anext(messages)

    async with asyncio.timeout(WAIT_MAX_S), AsyncExitStack() as stack:
        await asyncio.gather(*(come_and_go() for _ in range(COME_AND_GO)))
        assert len(await all_places(stage, stack, held)) == WATCHERS_MAX
    await until_there_is_room(stage, orchestrator_pb2.WatchBatchRequest(name=held))


@dataclass
class Seen:
    """What one watcher has seen over all its connections."""

    events: list[batch_pb2.BatchEvent] = field(default_factory=list[batch_pb2.BatchEvent])
    token: str = ""
    cuts: int = 0
    last: Message | None = None
    code: grpc.StatusCode | None = None

    def take(self, message: Message) -> None:
        assert self.last is None, "nothing comes after the last message"
        assert not message.reset
        # The whole batch is never older than the events that come with it.
        assert not message.events or message.events[-1].number <= message.batch.last_event
        self.events.extend(message.events)
        self.token = message.resume_token
        if message.last:
            self.last = message

    @property
    def numbers(self) -> list[int]:
        return [event.number for event in self.events]


@asynccontextmanager
async def watching(
    stage: Stage, name: str, *, token: str = "", until: int = 0
) -> AsyncGenerator[AsyncIterator[Message]]:
    request = orchestrator_pb2.WatchBatchRequest(name=name, resume_token=token)
    request.until = orchestrator_pb2.WatchUntil.ValueType(until)
    call = stage.stub.WatchBatch(request, timeout=WAIT_MAX_S)
    try:
        yield aiter(call)
    finally:
        call.cancel()


async def watch_and_be_cut(stage: Stage, name: str, rng: random.Random) -> Seen:
    """Leaves in the middle of the stream, three times, and comes back with the token of the last message read."""
    seen = Seen()
    while seen.cuts < CUTS:
        async with watching(stage, name, token=seen.token) as messages:
            for _ in range(rng.randint(1, 5)):
                seen.take(await anext(messages))
        seen.cuts += 1
    call = stage.stub.WatchBatch(orchestrator_pb2.WatchBatchRequest(name=name, resume_token=seen.token))
    async for message in call:
        seen.take(message)
    seen.code = await call.code()
    return seen


async def test_fifty_watchers_cut_three_times_each_see_every_event_once(stage: Stage) -> None:
    await reset(stage.sandbox)
    name = (await stage.client.create(spec(150, concurrency=10))).name
    rng = random.Random(SEED)
    async with asyncio.timeout(WAIT_MAX_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch_and_be_cut(stage, name, random.Random(rng.random()))) for _ in range(WATCHERS)]
    watchers = [task.result() for task in tasks]
    log = await event_log(stage.client, name)
    assert [event.number for event in log] == list(range(1, len(log) + 1))
    assert len(log) > 150
    for at, seen in enumerate(watchers):
        assert seen.cuts == CUTS
        assert seen.numbers == list(range(1, len(log) + 1)), f"watcher {at}"
        assert seen.events == log
        assert seen.code is grpc.StatusCode.OK
        assert seen.last is not None
        assert seen.last.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
        assert seen.last.batch.counts.deliverable == 150


@asynccontextmanager
async def proxied(pair: Pair) -> AsyncGenerator[Proxy]:
    path = pair.address.removeprefix("unix:")
    async with running_proxy(lambda: asyncio.open_unix_connection(path)) as proxy:
        yield proxy


async def watch_by_client(address: str, name: str, seen: Seen, heard: asyncio.Queue[int]) -> None:
    async with BatchClient(address) as client, aclosing(client.watch(name)) as messages:
        async for message in messages:
            seen.take(message)
            heard.put_nowait(len(message.events))


async def test_the_client_comes_back_by_itself_when_the_network_is_cut(stage: Stage) -> None:
    await reset(stage.sandbox)
    name = (await stage.client.create(spec(150, concurrency=10))).name
    rng = random.Random(SEED)
    seen, heard = [Seen() for _ in range(5)], asyncio.Queue[int]()
    async with asyncio.timeout(WAIT_MAX_S), proxied(stage.pair) as proxy, asyncio.TaskGroup() as group:
        for one in seen:
            group.create_task(watch_by_client(proxy.address, name, one, heard))
        for _ in range(CUTS):
            for _ in range(rng.randint(5, 12)):
                await heard.get()
            assert proxy.cut() > 0
    assert proxy.connections > CUTS
    log = await event_log(stage.client, name)
    for one in seen:
        assert one.events == log
        assert one.last is not None
        assert one.last.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED


async def test_stalled_readers_slow_neither_the_batch_nor_other_watchers(stage: Stage) -> None:
    await reset(stage.sandbox, zero_latency=True)
    # Large messages: what a reader does not take soon fills its window, and the server's write waits.
    labels = {f"label{index}": "x" * 200 for index in range(16)}
    wanted = spec(1500, concurrency=10, labels=labels)
    async with asyncio.timeout(WAIT_MAX_S), proxied(stage.pair) as proxy, asyncio.TaskGroup() as group:
        name = (await stage.client.create(wanted)).name
        seen, heard = [Seen() for _ in range(5)], asyncio.Queue[int]()
        for one in seen:
            group.create_task(watch_by_client(proxy.address, name, one, heard))
        await heard.get()
        proxy.flowing.clear()
        stalled_bytes = proxy.answered_bytes
        batch = await last_seen(stage.client, name)
        assert batch.counts.deliverable == 1500
        assert all(one.last is None for one in seen)
        assert proxy.answered_bytes == stalled_bytes
        proxy.flowing.set()
    log = await event_log(stage.client, name)
    assert len(log) > 1500
    for one in seen:
        assert one.events == log
        assert one.last is not None
    await stage.sandbox.change(zero_latency=False)


async def test_a_watcher_gets_at_most_four_messages_a_second(stage: Stage) -> None:
    await reset(stage.sandbox)
    name = (await stage.client.create(spec(50, concurrency=10))).name
    loop = asyncio.get_running_loop()
    began_s, messages = loop.time(), 0
    async with asyncio.timeout(WAIT_MAX_S), watching(stage, name) as stream:
        async for _ in stream:
            messages += 1
    assert messages > 3
    assert (messages - 1) * INTERVAL_S <= loop.time() - began_s


async def test_a_watch_until_settled_ends_at_paused(stage: Stage) -> None:
    held = await held_batch(stage)
    request = orchestrator_pb2.WatchBatchRequest(name=held, until=orchestrator_pb2.WATCH_UNTIL_SETTLED)
    call = stage.stub.WatchBatch(request)
    async with asyncio.timeout(WAIT_MAX_S):
        messages = [message async for message in call]
        assert await call.code() is grpc.StatusCode.OK
    assert [message.last for message in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1].batch.state == batch_pb2.BATCH_STATE_PAUSED


async def test_a_resume_token_of_another_batch_is_stale(stage: Stage) -> None:
    one, other = await held_batch(stage), await held_batch(stage)
    async with watching(stage, one) as messages:
        token = (await anext(messages)).resume_token
    for wrong in (token, "nonsense", "!"):
        refused = await refusal_of(
            stage.stub.WatchBatch(orchestrator_pb2.WatchBatchRequest(name=other, resume_token=wrong))
        )
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason == "TOKEN_STALE"
        assert [violation.field for violation in refused.violations] == ["resume_token"]


async def test_a_token_from_before_a_restore_shows_the_present(stage: Stage) -> None:
    held = await held_batch(stage)
    async with watching(stage, held) as messages:
        present = await anext(messages)
    token = present.resume_token
    kind, batch, _generation, number = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().split(":")
    older = base64.urlsafe_b64encode(f"{kind}:{batch}:0123456789abcdef:{number}".encode()).decode().rstrip("=")
    async with watching(stage, held, token=older) as messages:
        message = await anext(messages)
        assert message.reset
        assert not message.events
        assert message.batch.last_event == present.batch.last_event
        # From there on as ever.
        await stage.client.cancel(held)
        following = await anext(messages)
    assert not following.reset
    assert following.events[0].number == present.batch.last_event + 1


async def test_one_stream_shows_all_batches_that_match_and_their_end(stage: Stage) -> None:
    mine = {"story": "sweep"}
    before = [await held_batch(stage, labels=mine) for _ in range(3)]
    await held_batch(stage, labels={"story": "another"})
    chosen = orchestrator_pb2.BatchFilter(labels=mine)
    call = stage.stub.WatchBatches(orchestrator_pb2.WatchBatchesRequest(filter=chosen))
    messages = aiter(call)
    async with asyncio.timeout(WAIT_MAX_S):
        sweep = [await anext(messages) for _ in range(4)]
        # Newest first, and then what the client has is complete.
        assert [message.batch.name for message in sweep[:3]] == before[::-1]
        assert [message.caught_up for message in sweep] == [False, False, False, True]

        await stage.client.cancel(before[0])
        assert (await first(messages, before[0])).batch.state == batch_pb2.BATCH_STATE_CANCELLED
        born = await held_batch(stage, labels=mine)
        await first(messages, born)
        await held_batch(stage, labels={"story": "another"})
        await stage.client.delete(before[0])
        gone = await first(messages, before[0])
        assert gone.deleted
    call.cancel()


async def first(
    messages: AsyncIterator[orchestrator_pb2.WatchBatchesResponse], name: str
) -> orchestrator_pb2.WatchBatchesResponse:
    """The next message of this batch; others of the same stream may come between, but none that does not match."""
    async for message in messages:
        assert message.deleted or message.batch.labels["story"] == "sweep"
        if message.batch.name == name:
            return message
    raise AssertionError("the stream ended")
