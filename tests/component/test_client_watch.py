"""The client's watch against a server that goes away, repeats itself and comes back."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from client_fixtures import NAME, Break, Told, batch, serving, unavailable, watched
from parley.client import BatchClient
from parley.exceptions import LimitReached, NotFound, Unavailable
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.wire.errors import Refusal

pytestmark = pytest.mark.anyio

DONE = batch(batch_pb2.BATCH_STATE_SUCCEEDED, done=90)


@dataclass
class FakeTime:
    """Time that passes only by waiting."""

    now_s: float = 0.0
    waits_s: list[float] = field(default_factory=list[float])

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep_s(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds


def client(target: str, time: FakeTime, *, patience_s: float = 300.0) -> BatchClient:
    return BatchClient(
        target,
        patience_s=patience_s,
        chance=random.Random(1),
        monotonic_s=time.monotonic_s,
        sleep_s=time.sleep_s,
    )


async def numbers_seen(parley: BatchClient, *, resume_token: str = "") -> list[int]:
    return [event.number async for message in parley.watch(NAME, resume_token=resume_token) for event in message.events]


async def test_watch_ends_after_the_last_message() -> None:
    told = Told(watches=deque([[watched(batch(), 1, 2), watched(DONE, 3, last=True)]]))
    async with serving(told) as target, client(target, FakeTime()) as parley:
        messages = [message async for message in parley.watch("plants1")]
    assert [message.last for message in messages] == [False, True]
    assert told.requests[0].name == NAME


async def test_watch_goes_on_behind_the_last_event_after_a_break() -> None:
    scripts = [
        [watched(batch(), 1, 2), Break(unavailable())],
        [watched(batch(), 3), Break()],
        [watched(DONE, 4, last=True)],
    ]
    told, time = Told(watches=deque(scripts)), FakeTime()
    async with serving(told) as target, client(target, time) as parley:
        assert await numbers_seen(parley) == [1, 2, 3, 4]
    assert [request.resume_token for request in told.requests] == ["", "token-2", "token-3"]
    assert len(time.waits_s) == 2


async def test_watch_yields_no_event_twice() -> None:
    told = Told(watches=deque([[watched(batch(), 1, 2), Break()], [watched(DONE, 1, 2, 3, last=True)]]))
    async with serving(told) as target, client(target, FakeTime()) as parley:
        assert await numbers_seen(parley) == [1, 2, 3]


async def test_watch_asks_again_for_events_that_were_left_out() -> None:
    told = Told(watches=deque([[watched(batch(), 1), watched(batch(), 3)], [watched(DONE, 2, 3, last=True)]]))
    async with serving(told) as target, client(target, FakeTime()) as parley:
        assert await numbers_seen(parley) == [1, 2, 3]
    assert told.requests[1].resume_token == "token-1"


async def test_watch_takes_the_events_of_a_restored_log_after_a_reset() -> None:
    scripts = [[watched(batch(), 1, 2, 3), Break()], [watched(DONE, 2, reset=True, last=True)]]
    async with serving(Told(watches=deque(scripts))) as target, client(target, FakeTime()) as parley:
        assert await numbers_seen(parley) == [1, 2, 3, 2]


async def test_watch_starts_behind_a_given_token() -> None:
    told = Told(watches=deque([[watched(DONE, 7, last=True)]]))
    async with serving(told) as target, client(target, FakeTime()) as parley:
        assert await numbers_seen(parley, resume_token="token-6") == [7]
    assert told.requests[0].resume_token == "token-6"


async def test_watch_waits_as_long_as_a_full_server_asks() -> None:
    full = Refusal("TOO_MANY_WATCHERS", "The server has as many watchers as it may have.")
    full.retry_after_s = 5.0
    told, time = Told(watches=deque([[Break(full)], [watched(DONE, 1, last=True)]])), FakeTime()
    async with serving(told) as target, client(target, time) as parley:
        assert await numbers_seen(parley) == [1]
    assert [5.0 <= wait_s < 6.0 for wait_s in time.waits_s] == [True]


async def test_watch_waits_longer_and_longer_and_then_gives_up() -> None:
    told, time = Told(watches=deque([[Break(unavailable())]])), FakeTime()
    async with serving(told) as target, client(target, time, patience_s=60) as parley:
        with pytest.raises(Unavailable) as caught:
            await numbers_seen(parley)
    assert caught.value.reason == "SHUTTING_DOWN"
    assert sum(time.waits_s) > 60
    assert time.waits_s[0] <= 0.2
    assert max(time.waits_s) <= 8.0


async def test_a_full_server_is_left_when_the_patience_ends() -> None:
    full = Refusal("TOO_MANY_WATCHERS", "The server has as many watchers as it may have.")
    told = Told(watches=deque([[Break(full)]]))
    async with serving(told) as target, client(target, FakeTime(), patience_s=10) as parley:
        with pytest.raises(LimitReached):
            await numbers_seen(parley)


async def test_a_message_restores_the_patience() -> None:
    scripts = [[watched(batch(), number), Break()] for number in range(1, 40)]
    scripts.append([watched(DONE, 40, last=True)])
    time = FakeTime()
    async with serving(Told(watches=deque(scripts))) as target, client(target, time, patience_s=0.1) as parley:
        assert await numbers_seen(parley) == list(range(1, 41))
    assert max(time.waits_s) <= 0.2


async def test_watch_does_not_try_again_where_trying_is_no_use() -> None:
    gone = Break(Refusal("BATCH_NOT_FOUND", "There is no such batch."))
    told, time = Told(watches=deque([[gone]])), FakeTime()
    async with serving(told) as target, client(target, time) as parley:
        with pytest.raises(NotFound):
            await numbers_seen(parley)
    assert time.waits_s == []


async def test_watch_comes_back_to_a_server_that_was_started_again() -> None:
    time = FakeTime()
    first, second = Told(watches=deque([[watched(batch(), 1)]])), Told(watches=deque([[watched(DONE, 2, last=True)]]))
    seen: list[int] = []
    async with serving(first) as target:
        parley = await client(target, time).__aenter__()
        messages = parley.watch(NAME)
        seen += [event.number for event in (await anext(messages)).events]
    async with serving(second, listen=target), parley:
        async for message in messages:
            seen += [event.number for event in message.events]
    assert seen == [1, 2]


async def test_leaving_a_watch_cancels_the_call_at_the_server() -> None:
    told = Told(watches=deque([[watched(batch(), 1)]]))
    async with serving(told) as target, client(target, FakeTime()) as parley:
        async with aclosing(parley.watch(NAME)) as messages:
            async for _ in messages:
                break
        async with asyncio.timeout(5):
            await told.left.wait()


async def test_watch_batches_tells_what_was_deleted_while_it_was_away() -> None:
    def sweep(*names: str) -> list[orchestrator_pb2.WatchBatchesResponse]:
        return [
            orchestrator_pb2.WatchBatchesResponse(batch=batch(name=name), caught_up=name == names[-1]) for name in names
        ]

    told = Told(sweeps=deque([sweep("batches/aaaa", "batches/bbbb"), sweep("batches/bbbb")]))
    seen: list[tuple[str, bool]] = []
    async with (
        serving(told) as target,
        client(target, FakeTime()) as parley,
        aclosing(parley.watch_batches()) as messages,
    ):
        async for message in messages:
            seen.append((message.batch.name, message.deleted))
            if len(seen) == 4:
                break
    assert seen == [
        ("batches/aaaa", False),
        ("batches/bbbb", False),
        ("batches/aaaa", True),
        ("batches/bbbb", False),
    ]
