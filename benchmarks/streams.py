"""A process of many watchers of one batch: it counts what each gets, or notes when each event comes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
from parley.v1.orchestrator_pb2 import WatchBatchRequest, WatchBatchResponse
from parley.wire.options import CHANNEL_OPTIONS

METHOD = "/parley.v1.BatchOrchestrator/WatchBatch"
CHANNELS = 4
# The streams of several processes are opened over the same time, so that they take turns.
SPREAD_S = 2.0
# A stream that nobody reads takes in so many bytes and no more: then the server's write waits.
WINDOW = (("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0))


@dataclass
class Stream:
    is_probe: bool
    messages: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)
    # When each message came, and its bytes: a probe decodes them after the last.
    kept: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])

    async def read(self, call: AsyncIterable[bytes]) -> None:
        async for message in call:
            self.messages += 1
            if self.is_probe:
                self.kept.append((time.time_ns() // 1_000, message))
            self.began.set()


async def watch(*, address: str, name: str, streams: int, stalled: int, are_probes: bool) -> None:
    """Says when every stream has its first message, and what each got when the last has ended."""
    watching = [Stream(are_probes) for _ in range(streams)]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        channels = [await stack.enter_async_context(_channel(address, number)) for number in range(CHANNELS)]
        unread = [_call(channels[number % CHANNELS], name) for number in range(stalled)]
        for number, stream in enumerate(watching):
            group.create_task(stream.read(_call(channels[number % CHANNELS], name)))
            await asyncio.sleep(SPREAD_S / streams)
        for stream in watching:
            await stream.began.wait()
        _tell({"watching": streams + len(unread)})
    _tell({"messages": [stream.messages for stream in watching], "delays": _delays(watching)})


def _delays(streams: list[Stream]) -> list[tuple[int, int]]:
    """Of each event at each probe: when it was made, and how many microseconds later it was there."""
    found: list[tuple[int, int]] = []
    for stream in streams:
        for arrived_us, message in stream.kept:
            made = [event.create_time.ToMicroseconds() for event in WatchBatchResponse.FromString(message).events]
            found += [(made_us, arrived_us - made_us) for made_us in made]
    return found


def _channel(address: str, number: int) -> grpc.aio.Channel:
    # Channels alike would share one connection.
    return grpc.aio.insecure_channel(address, options=(*CHANNEL_OPTIONS, *WINDOW, ("benchmark.channel", number)))


def _call(channel: grpc.aio.Channel, name: str) -> AsyncIterable[bytes]:
    """Without a deserializer: what nobody looks at, nobody decodes."""
    watch: Any = cast(Any, channel).unary_stream(METHOD, request_serializer=WatchBatchRequest.SerializeToString)
    return watch(WatchBatchRequest(name=name))


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(watch(**json.loads(Path(sys.argv[1]).read_text())))
