"""Watching: what a watcher has seen, where it goes on, and how long it waits. Pure; both clients use it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import grpc

from parley.requests import UNTIL, Until, batch_name
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.wire.errors import WireError

DELAY_FIRST_S = 0.2
DELAY_MAX_S = 8.0
# A server that asks for more than this is asked again anyway: its state may have changed.
RETRY_AFTER_MAX_S = 60.0
# Long enough for a restart with a migration, short enough that a dead server is told of.
PATIENCE_S = 300.0

ALWAYS_TRIED_AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
# What a broken connection looks like in gRPC. Our server always gives a reason with these; a bare one is the network's.
TRIED_AGAIN_WITHOUT_REASON = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class Reconnect:
    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    pass


class Patience:
    """Counts the failures since the last message and decides what follows the next one."""

    def __init__(self, chance: random.Random, patience_s: float) -> None:
        self._chance = chance
        self._patience_s = patience_s
        self._failures = 0
        self._failing_since_s: float | None = None

    def heard(self) -> None:
        self._failures = 0
        self._failing_since_s = None

    def after(self, error: WireError | None, *, now_s: float) -> Reconnect | GiveUp:
        """`error` is None where the stream ended without its last message."""
        since_s = self._failing_since_s = now_s if self._failing_since_s is None else self._failing_since_s
        if error is not None and not tried_again(error):
            return GiveUp()
        if now_s - since_s > self._patience_s:
            return GiveUp()
        ceiling_s = min(DELAY_MAX_S, DELAY_FIRST_S * 2 ** min(self._failures, 16))
        self._failures += 1
        if error is not None and error.retry_after_s is not None:
            # The server's own delay wins: it knows its queue, we guess.
            return Reconnect(min(error.retry_after_s, RETRY_AFTER_MAX_S) + self._chance.uniform(0, DELAY_FIRST_S))
        return Reconnect(self._chance.uniform(ceiling_s / 2, ceiling_s))


def tried_again(error: WireError) -> bool:
    return error.code in ALWAYS_TRIED_AGAIN or (error.code in TRIED_AGAIN_WITHOUT_REASON and not error.reason)


class EventsMissing(Exception):
    """The stream left out events; it is taken up again behind the last one that was seen."""


class BatchWatch:
    """One watch over all its connections: every event once, in order."""

    def __init__(self, name: str, *, resume_token: str, until: Until) -> None:
        self._name = batch_name(name)
        self._until = UNTIL[until]
        self._token = resume_token
        # Without a token the log comes from its first event; behind a token its number is not known beforehand.
        self._last_number = None if resume_token else 0

    def request(self) -> orchestrator_pb2.WatchBatchRequest:
        return orchestrator_pb2.WatchBatchRequest(name=self._name, resume_token=self._token, until=self._until)

    def accept(self, response: orchestrator_pb2.WatchBatchResponse) -> orchestrator_pb2.WatchBatchResponse:
        """The message without the events that came before. Raises EventsMissing."""
        last = None if response.reset else self._last_number
        fresh = [event for event in response.events if last is None or event.number > last]
        for event in fresh:
            if last is not None and event.number != last + 1:
                raise EventsMissing(f"event {last + 1} is missing before {event.number}")
            last = event.number
        # After a restore without events, what follows is measured from the present.
        self._last_number = response.batch.last_event if response.reset and last is None else last
        self._token = response.resume_token or self._token
        return response if len(fresh) == len(response.events) else _with_events(response, fresh)


def _with_events(
    response: orchestrator_pb2.WatchBatchResponse, events: list[batch_pb2.BatchEvent]
) -> orchestrator_pb2.WatchBatchResponse:
    trimmed = orchestrator_pb2.WatchBatchResponse()
    trimmed.CopyFrom(response)
    trimmed.ClearField("events")
    trimmed.events.extend(events)
    return trimmed


class BatchesWatch:
    """One watch of many batches over all its connections: what was deleted between two of them is told as deleted."""

    def __init__(self) -> None:
        self._present: set[str] = set()
        self._unseen: set[str] = set()

    def begin(self) -> None:
        """A new connection: its first sweep shows everything that is still there."""
        self._unseen |= self._present
        self._present = set()

    def accept(self, response: orchestrator_pb2.WatchBatchesResponse) -> list[orchestrator_pb2.WatchBatchesResponse]:
        name = response.batch.name
        self._unseen.discard(name)
        if response.deleted:
            self._present.discard(name)
        elif name:
            self._present.add(name)
        if not response.caught_up:
            return [response]
        gone, self._unseen = sorted(self._unseen), set()
        return [*map(_deleted, gone), response]


def _deleted(name: str) -> orchestrator_pb2.WatchBatchesResponse:
    return orchestrator_pb2.WatchBatchesResponse(batch=batch_pb2.Batch(name=name), deleted=True)
