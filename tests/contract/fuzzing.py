"""A seeded run of odd calls against one server, by the words that it says itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import grpc
from corpus import Author, Corpus
from garbage import garbage
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from mutations import Mutator
from reflected import Metadata
from shots import CHANNEL_OPTIONS, Outcome, Shot, fault_of, fire, start

AT_ONCE = 12
STALLED_MAX = 8
STALLED_SHARE = 0.1
FINDINGS_MAX = 10
HEARD_MAX_BYTES = 20_000
ODD_METADATA: tuple[tuple[str, str | bytes], ...] = (
    ("authorization", ""),
    ("authorization", "Bearer nobody"),
    ("authorization", "x" * 5_000),
    ("authorization-bin", b"\0\xff"),
    ("x-request-id", ""),
    ("x-request-id", "a" * 65),
    ("x-request-id", '{"event": "forged"}'),
    ("x-request-id-bin", b"\n\0"),
    ("traceparent", "00-zz"),
    ("grpc-accept-encoding", "nothing"),
    ("x-fill", "y" * 30_000),
)
# The transport itself refuses so much.
TOO_MUCH_METADATA = ("x-fill", "y" * 70_000)
SHORT_TIMES_S = (0.0, 0.0005, 0.002, 0.01, 0.05)
LONG_TIMES_S = (1e6, 1e8, None)
LEAVE_MAX_S = 0.05
# What is sent, and how it is sent, each with its weight.
CONTENTS = {"plain": 40, "spoilt": 47, "garbage": 13}
DELIVERIES = {"as usual": 76, "odd metadata": 5, "much metadata": 1, "hurried": 4, "endless": 2, "left": 10, "cut": 2}


@dataclass
class Fuzz:
    """All RPCs of one server. `metadata` are sets of which each call carries one, such as different callers' tokens."""

    channel: grpc.aio.Channel
    address: str
    methods: Sequence[MethodDescriptor]
    rng: Random
    corpus: Corpus
    metadata: Sequence[Metadata] = ((),)
    findings: list[str] = field(default_factory=list[str])
    # How often each RPC ended how.
    told: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self._author = Author(self.rng, self.corpus)
        self._mutator = Mutator(self.rng, self.corpus, self._author)
        self._stalled: deque[Any] = deque()

    async def run(self, requests: int) -> None:
        """So many calls, some at once. Ends early where enough is found wrong."""
        left = iter(range(requests))
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._fire_all(left))
        while self._stalled:
            self._stalled.pop().cancel()

    async def _fire_all(self, left: Iterator[int]) -> None:
        for _ in left:
            method = self.rng.choice(self.methods)
            shot = self._delivered(self._written(method))
            if shot.streams and self.rng.random() < STALLED_SHARE:
                self._stall(shot)
            elif shot.manner.endswith("cut"):
                await self._fire_and_cut(shot)
            else:
                self._judge(method, shot, await fire(self.channel, shot))
            if len(self.findings) >= FINDINGS_MAX:
                return

    def _judge(self, method: MethodDescriptor, shot: Shot, outcome: Outcome) -> None:
        told = outcome.reason or (outcome.code.name if outcome.code else "nothing")
        self.told[f"{method.name} {told}"] += 1
        if fault := fault_of(shot, outcome):
            self.findings.append(f"{fault}\n  to {shot}")
        if outcome.code is grpc.StatusCode.OK:
            # What was accepted is a good thing to spoil next.
            self._hear(method.input_type, shot.body)
        for reply in outcome.replies:
            self._hear(method.output_type, reply)

    def _hear(self, kind: Any, packed: bytes) -> None:
        if len(packed) <= HEARD_MAX_BYTES:
            with contextlib.suppress(DecodeError):
                self.corpus.hear(message_factory.GetMessageClass(kind).FromString(packed))

    def _stall(self, shot: Shot) -> None:
        """A reader who never reads: its stream stays open until others push it out, or the run ends."""
        if len(self._stalled) >= STALLED_MAX:
            self._stalled.popleft().cancel()
        self._stalled.append(start(self.channel, shot))

    async def _fire_and_cut(self, shot: Shot) -> None:
        """The connection itself ends in the middle of the call."""
        async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            call = start(channel, shot)
            ended = asyncio.ensure_future(call.code())
            await asyncio.wait((ended,), timeout=self.rng.uniform(0, LEAVE_MAX_S))
        await asyncio.wait((ended,))

    def _written(self, method: MethodDescriptor) -> Shot:
        request = self._author.message(method.input_type)
        manner = self._drawn(CONTENTS)
        for _ in range(self.rng.choice((1, 1, 2, 3)) if manner == "spoilt" else 0):
            self._mutator.spoil(request)
        body = request.SerializeToString()
        if manner == "garbage":
            body = garbage(self.rng, method.input_type, body)
        return Shot(
            path=f"/{method.containing_service.full_name}/{method.name}",
            streams=bool(method.server_streaming),
            body=body,
            manner=manner,
            metadata=self.rng.choice(self.metadata),
        )

    def _delivered(self, shot: Shot) -> Shot:
        """The same call in its way to the server: as usual, or an odd one."""
        delivery = self._drawn(DELIVERIES)
        shot = replace(shot, manner=f"{shot.manner}, {delivery}")
        match delivery:
            case "odd metadata":
                instead_or_beside = self.rng.choice(((), shot.metadata))
                return replace(shot, metadata=(*instead_or_beside, self.rng.choice(ODD_METADATA)))
            case "much metadata":
                bare = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED})
                return replace(shot, metadata=(*shot.metadata, TOO_MUCH_METADATA), bare=bare)
            case "hurried":
                bare = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED})
                return replace(shot, timeout_s=self.rng.choice(SHORT_TIMES_S), bare=bare)
            case "endless":
                return replace(shot, timeout_s=self.rng.choice(LONG_TIMES_S))
            case "left":
                leave_after_s = self.rng.uniform(0, LEAVE_MAX_S)
                return replace(shot, leave_after_s=leave_after_s, bare=frozenset({grpc.StatusCode.CANCELLED}))
            case _:
                return shot

    def _drawn(self, weights: dict[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]
