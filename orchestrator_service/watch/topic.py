"""A topic: what the watchers of one batch share. A commit is read once, a message built once, for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from parley.v1.batch_pb2 import Batch
from parley.v1.orchestrator_pb2 import WatchBatchResponse

from orchestrator_service.convert.batch import event_message
from orchestrator_service.convert.tokens import Seen, resume_token
from orchestrator_service.domain.batch import FINAL, BatchState
from orchestrator_service.engine.clock import Clock
from orchestrator_service.storage import batches, events
from orchestrator_service.storage.batches import Snapshot
from orchestrator_service.storage.database import Database
from orchestrator_service.watch.turns import NEVER_S, Turns

# At most 4 messages a second a watcher, evenly: so an event waits 0.25 s at most, where four at once would let the
# fifth wait for nearly a second.
INTERVAL_S = 0.25
# What changed without an event (a call began, a retry) waits for one to travel with, so that it never holds one up.
PROGRESS_S = 1.0
# A quiet stream says so: proxies cut silent ones, and a client sees that it is alive.
BOOKMARK_S = 5.0
# A bookmark shows a batch that is no older than this: the wait for the limit moves without a commit.
BOOKMARK_AGE_MAX_S = 1.0
# Between two reads of a batch that changes all the time.
READ_INTERVAL_S = 0.02
# Watchers are at few places of the log at the same time; the messages for these are kept.
MESSAGES_KEPT = 16


@dataclass(frozen=True)
class Edition:
    """The batch at one moment."""

    batch: Batch
    state: BatchState
    last_event: int
    # How many commits had touched it.
    commits: int
    read_s: float


class _Kind(NamedTuple):
    """What tells the messages of one edition apart."""

    after: int
    reset: bool
    is_over: bool


class Topic:
    def __init__(self, database: Database, batch: str, *, clock: Clock, show: Callable[[Snapshot], Batch]) -> None:
        self.clock = clock
        self.turns = Turns(clock, self._look)
        self._database = database
        self._batch = batch
        self._show = show
        self._commits = 0
        self._edition: Edition | None = None
        self._messages: dict[_Kind, WatchBatchResponse] = {}
        self._lock = asyncio.Lock()

    @property
    def newest(self) -> Edition:
        """As it was read last."""
        assert self._edition is not None, "a watcher begins with a read"
        return self._edition

    def touch(self) -> None:
        """A commit changed the batch."""
        is_first = self._edition is not None and self._edition.commits == self._commits
        self._commits += 1
        if is_first:
            self.turns.stir()

    async def begin(self, seen: Seen | None, *, until_settled: bool) -> Watcher:
        """A watcher who goes on behind what it has seen. Raises BATCH_NOT_FOUND."""
        newest = await self.read()
        if seen is None:
            return Watcher(self, after=0, until_settled=until_settled)
        if seen.generation != self._database.generation or seen.number > newest.last_event:
            return Watcher(self, after=newest.last_event, until_settled=until_settled, reset=True)
        return Watcher(self, after=seen.number, until_settled=until_settled)

    async def read(self, *, age_max_s: float = NEVER_S) -> Edition:
        """The newest; those who ask at the same time share one read."""
        async with self._lock:
            known, now_s = self._edition, self.clock.monotonic_s()
            if known is None or known.commits != self._commits or now_s - known.read_s > age_max_s:
                commits = self._commits
                snapshot = await self._database.read(partial(batches.get, batch=self._batch))
                if snapshot is None:
                    raise batches.not_found(self._batch)
                last_event = snapshot.row["last_event"]
                known = self._edition = Edition(self._show(snapshot), snapshot.state, last_event, commits, now_s)
                self._messages = {}
                self.turns.changed()
            return known

    async def message(self, edition: Edition, *, after: int, reset: bool, until_settled: bool) -> WatchBatchResponse:
        """The edition with at most a page of the events behind `after`."""
        is_over = edition.state in FINAL or (until_settled and edition.state is BatchState.PAUSED)
        kind = _Kind(after, reset, is_over)
        known = self._messages.get(kind) if edition is self._edition else None
        return known or await self._built(edition, kind)

    async def _built(self, edition: Edition, kind: _Kind) -> WatchBatchResponse:
        async with self._lock:
            if edition is not self._edition:
                return await self._build(edition, kind)
            if kind not in self._messages:
                if len(self._messages) >= MESSAGES_KEPT:
                    self._messages.pop(next(iter(self._messages)))
                self._messages[kind] = await self._build(edition, kind)
            return self._messages[kind]

    async def _build(self, edition: Edition, kind: _Kind) -> WatchBatchResponse:
        after = kind.after
        message = WatchBatchResponse(batch=edition.batch, reset=kind.reset)
        if after < edition.last_event:
            query = partial(events.after, batch=self._batch, number=after, upto=edition.last_event)
            message.events.extend(map(event_message, await self._database.read(query)))
            # None are found where the batch was deleted a moment ago.
            after = message.events[-1].number if message.events else after
        message.resume_token = resume_token(self._batch, Seen(self._database.generation, after))
        message.last = kind.is_over and after >= edition.last_event
        return message

    async def _look(self) -> float:
        """Reads what was committed as soon as somebody may hear of it."""
        if self._edition is None or self._edition.commits == self._commits:
            return NEVER_S
        read_s = max(self.turns.longest_quiet_s() + INTERVAL_S, self._edition.read_s + READ_INTERVAL_S)
        if read_s > self.clock.monotonic_s():
            return read_s
        await self.read()
        return NEVER_S


class Watcher:
    """One stream: how far it has come, and when it may go on."""

    def __init__(self, topic: Topic, *, after: int, until_settled: bool, reset: bool = False) -> None:
        self.heard_s = topic.clock.monotonic_s()
        self._topic = topic
        self._after = after
        self._until_settled = until_settled
        self._reset = reset
        self._commits = 0
        self._is_behind = False

    async def message(self) -> WatchBatchResponse:
        """The newest, with the events behind those of the message before."""
        newest = self._topic.newest
        message = await self._topic.message(
            newest, after=self._after, reset=self._reset, until_settled=self._until_settled
        )
        if message.events:
            self._after = message.events[-1].number
        self._is_behind = bool(message.events) and self._after < newest.last_event
        self._commits, self._reset = newest.commits, False
        self.heard_s = self._topic.clock.monotonic_s()
        return message

    async def turn(self) -> None:
        """Until the next message may go out."""
        await self._topic.turns.next(self)
        if self._topic.newest.commits == self._commits and not self._is_behind:
            await self._topic.read(age_max_s=BOOKMARK_AGE_MAX_S)

    def due_s(self) -> float:
        newest = self._topic.newest
        if self._is_behind:
            # The pages of a backlog follow one another at once.
            return self.heard_s
        if newest.last_event > self._after:
            return self.heard_s + INTERVAL_S
        return self.heard_s + (BOOKMARK_S if newest.commits == self._commits else PROGRESS_S)
