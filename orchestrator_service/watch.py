"""Watchers: committed facts fan out to streams. A pure observer: no stream ever slows or stops a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import contextmanager
from functools import partial

from parley.v1 import batch_pb2, orchestrator_pb2

from orchestrator_service.convert.batch import batch_message, event_message
from orchestrator_service.convert.tokens import Seen, resume_token, seen_of
from orchestrator_service.domain.batch import FINAL, BatchState
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.engine.clock import Clock
from orchestrator_service.storage import batches, events
from orchestrator_service.storage.batches import Filter, Snapshot
from orchestrator_service.storage.database import Database

# At most 4 messages a second a watcher.
INTERVAL_S = 0.25
# A quiet stream says so: proxies cut silent ones, and a client sees that it is alive.
BOOKMARK_S = 5.0
RETRY_S = 5.0
SWEEP_PAGE = 100


class _Topic:
    """What the watchers of one batch share: the newest message and pages of events, read once for all of them."""

    def __init__(self) -> None:
        self.version = 0
        self.watchers = 0
        self.changed = asyncio.Event()
        self.lock = asyncio.Lock()
        self.read_version = -1
        self.snapshot: Snapshot | None = None
        self.pages: dict[int, list[batch_pb2.BatchEvent]] = {}

    def touch(self) -> None:
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()


class _Sweep:
    """One watcher of many batches: which ones changed since it last looked."""

    def __init__(self) -> None:
        self.dirty: dict[str, None] = {}
        self.changed = asyncio.Event()


class Watchers:
    def __init__(
        self,
        *,
        clock: Clock,
        watchers_max: int,
        limit_wait_s: Callable[[str], float | None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._clock = clock
        self._watchers_max = watchers_max
        self._limit_wait_s = limit_wait_s
        self._interval_s = interval_s
        self._topics: dict[str, _Topic] = {}
        self._sweeps: set[_Sweep] = set()
        self._watching = 0
        self._closing = asyncio.Event()

    def committed(self, touched: set[str]) -> None:
        """The writer tells which batches a commit touched."""
        for batch in touched:
            if topic := self._topics.get(batch):
                topic.touch()
        for sweep in self._sweeps:
            sweep.dirty.update(dict.fromkeys(touched))
            sweep.changed.set()

    def close(self) -> None:
        """Ends every stream with SHUTTING_DOWN: clients come back to the next process."""
        self._closing.set()
        for topic in self._topics.values():
            topic.touch()
        for sweep in self._sweeps:
            sweep.changed.set()

    async def watch(
        self, database: Database, batch: str, *, token: str, until_settled: bool
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchResponse]:
        """The batch's present at once, then every change; ends after the message marked `last`."""
        seen = seen_of(token, batch)
        with self._place(), self._topic(batch) as topic:
            after, reset = 0, False
            while True:
                version = topic.version
                row = await self._snapshot(database, topic, batch)
                if seen is not None:
                    reset = seen.generation != database.generation or seen.number > row.row["last_event"]
                    after, seen = row.row["last_event"] if reset else seen.number, None
                page = await self._page(database, topic, batch, after, upto=row.row["last_event"])
                after = page[-1].number if page else after
                behind = after < row.row["last_event"]
                last = not behind and _is_over(row.state, until_settled=until_settled)
                yield orchestrator_pb2.WatchBatchResponse(
                    batch=self._message(row),
                    events=page,
                    resume_token=resume_token(batch, Seen(database.generation, after)),
                    reset=reset,
                    last=last,
                )
                reset = False
                if last:
                    return
                if not behind:
                    await self._next(topic, version)

    async def watch_all(
        self, database: Database, chosen: Filter
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchesResponse]:
        """First every batch that matches, then the latest of each that changes."""
        with self._place(), self._sweep() as sweep:
            self._refuse_closing()
            known: set[str] = set()
            async for message in self._first_sweep(database, chosen, known):
                yield message
            while True:
                await sweep.changed.wait()
                self._refuse_closing()
                sweep.changed.clear()
                dirty, sweep.dirty = sweep.dirty, {}
                for batch in dirty:
                    if message := await self._changed(database, chosen, batch, known):
                        yield message
                await self._clock.sleep_s(self._interval_s)

    async def _first_sweep(
        self, database: Database, chosen: Filter, known: set[str]
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchesResponse]:
        before: int | None = None
        while True:
            page = await database.read(partial(batches.page, chosen=chosen, before=before, size=SWEEP_PAGE))
            for snapshot in page:
                known.add(snapshot.row["id"])
                yield orchestrator_pb2.WatchBatchesResponse(batch=self._message(snapshot))
            if len(page) < SWEEP_PAGE:
                yield orchestrator_pb2.WatchBatchesResponse(caught_up=True)
                return
            before = page[-1].row["position"]

    async def _changed(
        self, database: Database, chosen: Filter, batch: str, known: set[str]
    ) -> orchestrator_pb2.WatchBatchesResponse | None:
        snapshot = await database.read(partial(batches.get, batch=batch))
        if snapshot is None:
            if batch not in known:
                return None
            known.discard(batch)
            gone = batch_pb2.Batch(name=f"batches/{batch}")
            return orchestrator_pb2.WatchBatchesResponse(batch=gone, deleted=True)
        matching = await database.read(partial(batches.matches, chosen=chosen, batch=batch))
        if not matching and batch not in known:
            return None
        # One that no longer matches is told once more, so that a client can take it out of its list.
        (known.add if matching else known.discard)(batch)
        return orchestrator_pb2.WatchBatchesResponse(batch=self._message(snapshot))

    async def _snapshot(self, database: Database, topic: _Topic, batch: str) -> Snapshot:
        """The newest one; watchers that come at the same time share one read."""
        self._refuse_closing()
        async with topic.lock:
            if topic.read_version != topic.version or topic.snapshot is None:
                version = topic.version
                topic.snapshot = await database.read(partial(batches.get, batch=batch))
                topic.read_version = version
                topic.pages.clear()
            if topic.snapshot is None:
                raise batches.not_found(batch)
            return topic.snapshot

    async def _page(
        self, database: Database, topic: _Topic, batch: str, after: int, *, upto: int
    ) -> list[batch_pb2.BatchEvent]:
        if after >= upto:
            return []
        async with topic.lock:
            known = topic.pages.get(after)
            # None are found where the batch was deleted a moment ago.
            if not known or known[-1].number > upto:
                logged = await database.read(partial(events.after, batch=batch, number=after, upto=upto))
                known = topic.pages[after] = [event_message(event) for event in logged]
            return known

    async def _next(self, topic: _Topic, version: int) -> None:
        """Until something changed, or it is time for a bookmark; never sooner than the interval."""
        await self._clock.sleep_s(self._interval_s)
        if topic.version == version and not self._closing.is_set():
            changed = topic.changed
            try:
                async with asyncio.timeout(BOOKMARK_S):
                    await changed.wait()
            except TimeoutError:
                return

    def _message(self, snapshot: Snapshot) -> batch_pb2.Batch:
        wait_s = self._limit_wait_s(snapshot.row["id"])
        return batch_message(snapshot, limit_wait_s=wait_s, now_us=self._clock.now_us())

    def _refuse_closing(self) -> None:
        if self._closing.is_set():
            raise ParleyError("SHUTTING_DOWN", "The server is shutting down.", retry_after_s=1.0)

    @contextmanager
    def _place(self):
        if self._watching >= self._watchers_max:
            raise ParleyError(
                "TOO_MANY_WATCHERS",
                f"The server has {self._watching} watchers, as many as PARLEY_MAX_WATCHERS allows.",
                metadata={"max_watchers": str(self._watchers_max)},
                retry_after_s=RETRY_S,
            )
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1

    @contextmanager
    def _topic(self, batch: str):
        topic = self._topics.setdefault(batch, _Topic())
        topic.watchers += 1
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if topic.watchers == 0:
                self._topics.pop(batch, None)

    @contextmanager
    def _sweep(self):
        sweep = _Sweep()
        self._sweeps.add(sweep)
        try:
            yield sweep
        finally:
            self._sweeps.discard(sweep)


def _is_over(state: BatchState, *, until_settled: bool) -> bool:
    return state in FINAL or (until_settled and state is BatchState.PAUSED)
