"""The watchers of this server: how many there may be, what they share, and what the writer tells them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager

from parley.v1.batch_pb2 import Batch
from parley.v1.orchestrator_pb2 import WatchBatchesResponse, WatchBatchResponse

from orchestrator_service.convert.batch import batch_message
from orchestrator_service.convert.tokens import seen_of
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.engine.clock import Clock
from orchestrator_service.storage.batches import Filter, Snapshot
from orchestrator_service.storage.database import Database
from orchestrator_service.watch.sweep import Sweeps
from orchestrator_service.watch.topic import Topic

RETRY_S = 5.0


class Watchers:
    def __init__(self, *, clock: Clock, watchers_max: int, limit_wait_s: Callable[[str], float | None]) -> None:
        self._clock = clock
        self._watchers_max = watchers_max
        self._limit_wait_s = limit_wait_s
        self._topics: dict[str, Topic] = {}
        self._sweeps = Sweeps(clock=clock, show=self._show)
        self._watching = 0
        self._is_closing = False

    @property
    def watching(self) -> int:
        return self._watching

    @property
    def topics(self) -> int:
        return len(self._topics)

    def committed(self, touched: set[str]) -> None:
        """The writer tells which batches a commit touched."""
        for batch in touched:
            if topic := self._topics.get(batch):
                topic.touch()
        self._sweeps.committed(touched)

    def close(self) -> None:
        """Ends every stream with SHUTTING_DOWN: clients come back to the next process."""
        self._is_closing = True
        for turns in (self._sweeps.turns, *(topic.turns for topic in self._topics.values())):
            turns.close(_shutting_down())

    async def watch(
        self, database: Database, batch: str, *, token: str, until_settled: bool
    ) -> AsyncGenerator[WatchBatchResponse]:
        """The batch's present at once, then every change; ends after the message marked `last`."""
        seen = seen_of(token, batch)
        with self._place():
            async with self._topic(database, batch) as topic:
                watcher = await topic.begin(seen, until_settled=until_settled)
                while True:
                    message = await watcher.message()
                    yield message
                    if message.last:
                        return
                    await watcher.turn()

    async def watch_all(self, database: Database, chosen: Filter) -> AsyncGenerator[WatchBatchesResponse]:
        """First every batch that matches, then the latest of each that changes."""
        with self._place():
            async with aclosing(self._sweeps.messages(database, chosen)) as messages:
                async for message in messages:
                    yield message

    def _show(self, snapshot: Snapshot) -> Batch:
        wait_s = self._limit_wait_s(snapshot.row["id"])
        return batch_message(snapshot, limit_wait_s=wait_s, now_us=self._clock.now_us())

    @contextmanager
    def _place(self) -> Generator[None]:
        if self._is_closing:
            raise _shutting_down()
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

    @asynccontextmanager
    async def _topic(self, database: Database, batch: str) -> AsyncGenerator[Topic]:
        topic = self._topics.get(batch)
        if topic is None:
            topic = self._topics[batch] = Topic(database, batch, clock=self._clock, show=self._show)
        try:
            async with topic.turns.joined():
                yield topic
        finally:
            # Another may have come while the last one left, and another topic in place of this one.
            if topic.turns.members == 0 and self._topics.get(batch) is topic:
                del self._topics[batch]


def _shutting_down() -> ParleyError:
    return ParleyError("SHUTTING_DOWN", "The server is shutting down.", retry_after_s=1.0)
