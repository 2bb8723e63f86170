"""Sweeps: streams over many batches. A batch is read once for all of them; each keeps what it has yet to tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import NamedTuple

from parley.v1.batch_pb2 import Batch
from parley.v1.orchestrator_pb2 import WatchBatchesResponse

from orchestrator_service.engine.clock import Clock
from orchestrator_service.storage import batches
from orchestrator_service.storage.batches import Filter, Snapshot
from orchestrator_service.storage.database import Database
from orchestrator_service.watch.topic import BOOKMARK_S, INTERVAL_S
from orchestrator_service.watch.turns import NEVER_S, Turns

# Small, for a reader that stalls keeps a page.
PAGE = 20
# A stream that has more batches than this to tell of begins anew.
DIRTY_MAX = 1_000
KEPT_MAX = 1_000


class _Told(NamedTuple):
    snapshot: Snapshot
    message: WatchBatchesResponse


class _Latest:
    """The latest of each batch, as long as no commit touches it."""

    def __init__(self, show: Callable[[Snapshot], Batch]) -> None:
        self._show = show
        self._kept: dict[str, _Told] = {}
        # The batch that is being read; empty where a commit touched it meanwhile.
        self._reading = ""
        self._lock = asyncio.Lock()

    def forget(self, touched: set[str]) -> None:
        for batch in touched:
            self._kept.pop(batch, None)
        if self._reading in touched:
            self._reading = ""

    async def get(self, database: Database, batch: str) -> _Told | None:
        """None where it was deleted."""
        async with self._lock:
            if batch in self._kept:
                return self._kept[batch]
            self._reading = batch
            snapshot = await database.read(partial(batches.get, batch=batch))
            if snapshot is None:
                return None
            told = _Told(snapshot, WatchBatchesResponse(batch=self._show(snapshot)))
            if self._reading:
                if len(self._kept) >= KEPT_MAX:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[batch] = told
            return told


class Sweep:
    """One stream: which batches it knows, and which of them changed since it last looked."""

    def __init__(self, chosen: Filter, now_s: float) -> None:
        self.chosen = chosen
        self.heard_s = now_s
        self.looked_s = now_s
        self.known: set[str] = set()
        self.dirty: dict[str, None] = {}
        # At first, and where too much changed to remember what.
        self.is_lost = True

    @property
    def has_news(self) -> bool:
        return self.is_lost or bool(self.dirty)

    def note(self, touched: set[str]) -> None:
        if len(self.dirty) + len(touched) > DIRTY_MAX:
            self.dirty, self.is_lost = {}, True
        else:
            self.dirty.update(dict.fromkeys(touched))

    def take(self) -> dict[str, None]:
        dirty, self.dirty = self.dirty, {}
        return dirty

    def due_s(self) -> float:
        return self.looked_s + INTERVAL_S if self.has_news else self.heard_s + BOOKMARK_S


class Sweeps:
    def __init__(self, *, clock: Clock, show: Callable[[Snapshot], Batch]) -> None:
        self.turns = Turns(clock, self._look)
        self._clock = clock
        self._show = show
        self._latest = _Latest(show)
        self._sweeps: set[Sweep] = set()

    def committed(self, touched: set[str]) -> None:
        self._latest.forget(touched)
        for sweep in self._sweeps:
            if not sweep.has_news:
                self.turns.changed()
            sweep.note(touched)

    async def messages(self, database: Database, chosen: Filter) -> AsyncGenerator[WatchBatchesResponse]:
        """First every batch that matches, then the latest of each that changes, a bookmark where it is quiet."""
        with self._sweep(chosen) as sweep:
            async with self.turns.joined():
                while True:
                    sweep.looked_s = self._clock.monotonic_s()
                    async with aclosing(self._round(database, sweep)) as messages:
                        async for message in messages:
                            sweep.heard_s = self._clock.monotonic_s()
                            yield message
                    await self.turns.next(sweep)

    async def _round(self, database: Database, sweep: Sweep) -> AsyncGenerator[WatchBatchesResponse]:
        if sweep.is_lost:
            async with aclosing(self._everything(database, sweep)) as messages:
                async for message in messages:
                    yield message
        elif dirty := sweep.take():
            for batch in dirty:
                if message := await self._change(database, sweep, batch):
                    yield message
        else:
            yield WatchBatchesResponse(caught_up=True)

    async def _everything(self, database: Database, sweep: Sweep) -> AsyncGenerator[WatchBatchesResponse]:
        sweep.take()
        sweep.is_lost = False
        found: set[str] = set()
        before: int | None = None
        while True:
            page = await database.read(partial(batches.page, chosen=sweep.chosen, before=before, size=PAGE))
            for snapshot in page:
                found.add(snapshot.row["id"])
                yield WatchBatchesResponse(batch=self._show(snapshot))
            if len(page) < PAGE:
                break
            before = page[-1].row["position"]
        gone, sweep.known = sweep.known - found, sweep.known | found
        for batch in gone:
            if message := await self._change(database, sweep, batch):
                yield message
        yield WatchBatchesResponse(caught_up=True)

    async def _change(self, database: Database, sweep: Sweep, batch: str) -> WatchBatchesResponse | None:
        """What the stream has to tell of a batch that changed; None where it is none of its own."""
        told = await self._latest.get(database, batch)
        if told is None:
            if batch not in sweep.known:
                return None
            sweep.known.discard(batch)
            return WatchBatchesResponse(batch=Batch(name=f"batches/{batch}"), deleted=True)
        matching = _matches(sweep.chosen, told.snapshot)
        if not matching and batch not in sweep.known:
            return None
        # One that no longer matches is told once more, so that a client can take it out of its list.
        (sweep.known.add if matching else sweep.known.discard)(batch)
        return told.message

    async def _look(self) -> float:
        # Each stream reads what it needs in its own turn.
        return NEVER_S

    @contextmanager
    def _sweep(self, chosen: Filter) -> Generator[Sweep]:
        sweep = Sweep(chosen, self._clock.monotonic_s())
        self._sweeps.add(sweep)
        try:
            yield sweep
        finally:
            self._sweeps.discard(sweep)


def _matches(chosen: Filter, snapshot: Snapshot) -> bool:
    """The filter's own rule, without asking the database for each stream."""
    return (
        (not chosen.states or snapshot.row["state"] in chosen.states)
        and chosen.owner in ("", snapshot.row["owner"])
        and all(snapshot.labels.get(key) == value for key, value in chosen.labels)
    )
