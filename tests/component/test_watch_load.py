"""Many watchers on one server: their pace, what they share, and what those leave behind who stall or go."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

import pytest
from engine_fixtures import WAIT_MAX_S, News, SteppedClock, at_rest
from parley.v1.orchestrator_pb2 import WatchBatchesResponse, WatchBatchResponse
from storage_fixtures import Store

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage.batches import Filter
from orchestrator_service.storage.database import READERS, open_database
from orchestrator_service.watch import Watchers
from orchestrator_service.watch.sweep import DIRTY_MAX
from orchestrator_service.watch.topic import BOOKMARK_S, INTERVAL_S, PROGRESS_S, Edition

pytestmark = pytest.mark.anyio

WATCHERS_MAX = 400
# A power of two, so that steps add up exactly.
STEP_S = 1 / 32


@dataclass
class Heard:
    """What one watcher got, and when by the stepped clock."""

    messages: list[WatchBatchResponse] = field(default_factory=list[WatchBatchResponse])
    at_s: list[float] = field(default_factory=list[float])
    error: ParleyError | None = None

    @property
    def numbers(self) -> list[int]:
        return [event.number for message in self.messages for event in message.events]


@dataclass
class Stage:
    store: Store
    watchers: Watchers
    clock: SteppedClock
    news: News
    # One entry for each time that a batch was read to be shown.
    shown: list[str]
    group: asyncio.TaskGroup

    def watch(self, batch: str) -> AsyncGenerator[WatchBatchResponse]:
        return self.watchers.watch(self.store.database, batch, token="", until_settled=False)

    def read(self, batch: str) -> tuple[Heard, asyncio.Task[None]]:
        """A watcher that reads all it can."""
        heard = Heard()
        return heard, self.group.create_task(self._read(batch, heard))

    async def _read(self, batch: str, heard: Heard) -> None:
        try:
            async with aclosing(self.watch(batch)) as messages:
                async for message in messages:
                    heard.messages.append(message)
                    heard.at_s.append(self.clock.now_s)
                    self.news.tell()
        except ParleyError as error:
            heard.error = error
            self.news.tell()

    async def event(self, batch: str) -> None:
        await self.store.change(batch, display_name="Another name")

    async def settle(self) -> None:
        """Everybody has come as far as the clock lets them, a message's two reads included."""
        readers, loop = self.store.database.readers, asyncio.get_running_loop()
        for _ in range(3):
            # They meet when each thread has ended what it read before.
            met = Barrier(READERS, timeout=WAIT_MAX_S)
            await asyncio.gather(*(loop.run_in_executor(readers, met.wait) for _ in range(READERS)))
            await at_rest()

    async def pass_s(self, seconds: float, *, step_s: float = STEP_S) -> None:
        await self.settle()
        for _ in range(round(seconds / step_s)):
            self.clock.step(step_s)
            await self.settle()


@asynccontextmanager
async def staged(folder: Path, *, watchers_max: int = WATCHERS_MAX) -> AsyncGenerator[Stage]:
    news = News()
    clock = SteppedClock(news)
    shown: list[str] = []
    watchers = Watchers(clock=clock, watchers_max=watchers_max, limit_wait_s=shown.append)

    def committed(touched: set[str]) -> None:
        watchers.committed(touched)
        news.tell()

    path = folder / "watch.db"
    async with open_database(path, committed=committed) as database, asyncio.TaskGroup() as group:
        yield Stage(Store(database, path), watchers, clock, news, shown, group)
        watchers.close()


async def test_an_event_on_a_quiet_stream_is_delivered_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        heard, _ = stage.read(batch)
        await stage.news.until(lambda: len(heard.messages) == 1)
        await stage.pass_s(2.0, step_s=0.5)
        await stage.event(batch)
        # No time passes.
        await stage.news.until(lambda: len(heard.messages) == 2)
        assert len(heard.messages[1].events) == 1
        assert heard.at_s[1] == stage.clock.now_s


async def test_a_stream_of_events_brings_four_messages_a_second_evenly(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        readers: list[Heard] = []
        # One after another, so that what is due to the one is too early for the others.
        for _ in range(3):
            readers.append(stage.read(batch)[0])
            await stage.pass_s(2 * STEP_S)
        for _ in range(60):
            await stage.event(batch)
            await stage.pass_s(2 * STEP_S)
        for heard in readers:
            gaps_s = [later - earlier for earlier, later in zip(heard.at_s, heard.at_s[1:], strict=False)]
            assert len(gaps_s) >= 15
            assert set(gaps_s) == {INTERVAL_S}
            assert heard.numbers == list(range(1, len(heard.numbers) + 1))


async def test_what_changed_without_an_event_never_holds_one_up(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        await stage.store.claimed(batch, 1)
        heard, _ = stage.read(batch)
        await stage.news.until(lambda: len(heard.messages) == 1)
        await stage.pass_s(INTERVAL_S)
        await stage.store.claimed(batch, 2)
        await stage.settle()
        assert len(heard.messages) == 1
        await stage.event(batch)
        await stage.pass_s(STEP_S)
        assert len(heard.messages) == 2
        assert heard.messages[1].batch.counts.running == 2
        # With no event to travel with it goes alone, a second after the message before.
        await stage.store.claimed(batch, 3)
        await stage.pass_s(PROGRESS_S)
        assert [message.batch.counts.running for message in heard.messages] == [1, 2, 3]
        assert heard.at_s[2] - heard.at_s[1] >= PROGRESS_S


async def test_a_quiet_stream_gets_a_bookmark(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        heard, _ = stage.read(batch)
        await stage.news.until(lambda: len(heard.messages) == 1)
        await stage.pass_s(BOOKMARK_S - 0.5, step_s=0.5)
        assert len(heard.messages) == 1
        await stage.pass_s(0.5, step_s=0.5)
        await stage.news.until(lambda: len(heard.messages) == 2)
        assert not heard.messages[1].events
        assert heard.messages[1].resume_token == heard.messages[0].resume_token
        # It shows the batch as it is now: what waits for the limit changes without a commit.
        assert len(stage.shown) == 2


async def test_watchers_share_what_is_read_and_built(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        readers = [stage.read(batch)[0] for _ in range(200)]
        await stage.news.until(lambda: all(len(heard.messages) == 1 for heard in readers))
        for round_ in range(2, 5):
            await stage.pass_s(INTERVAL_S, step_s=INTERVAL_S)
            await stage.event(batch)
            await stage.news.until(lambda count=round_: all(len(heard.messages) >= count for heard in readers))
        assert len(stage.shown) == 4
        for first, *others in zip(*(heard.messages for heard in readers), strict=True):
            assert all(other is first for other in others)


async def test_a_stalled_watcher_holds_up_nobody_and_holds_one_message(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, AsyncExitStack() as stack:
        batch = await stage.store.create()
        stalled = [await stack.enter_async_context(aclosing(stage.watch(batch))) for _ in range(50)]
        heard, _ = stage.read(batch)
        # Each stalls at a message of its own.
        for messages in stalled:
            await anext(messages)
            await stage.event(batch)
            await stage.pass_s(INTERVAL_S, step_s=INTERVAL_S)
        written = len(stalled) + 1
        await stage.news.until(lambda: len(heard.numbers) == written)
        gc.collect()
        assert sum(isinstance(one, Edition) for one in gc.get_objects()) == 1
        # Nothing was queued for them: the next message has all that they missed.
        message = await anext(stalled[0])
        assert [event.number for event in message.events] == list(range(2, written + 1))


async def test_a_backlog_comes_in_pages_without_a_pause(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        for _ in range(250):
            await stage.event(batch)
        heard, _ = stage.read(batch)
        await stage.news.until(lambda: len(heard.numbers) == 251)
        assert [len(message.events) for message in heard.messages] == [100, 100, 51]
        assert set(heard.at_s) == {stage.clock.now_s}


async def test_three_hundred_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        names = [await stage.store.create() for _ in range(3)]
        before = asyncio.all_tasks()
        readers = [stage.read(names[number % 3]) for number in range(300)]
        await stage.news.until(lambda: all(heard.messages for heard, _ in readers))
        assert (stage.watchers.watching, stage.watchers.topics) == (300, 3)
        # Some in the middle of a turn, some of a wait.
        await stage.event(names[0])
        for _, task in readers:
            task.cancel()
        await asyncio.wait([task for _, task in readers], timeout=WAIT_MAX_S)
        assert (stage.watchers.watching, stage.watchers.topics) == (0, 0)
        await at_rest()
        assert asyncio.all_tasks() == before
        assert stage.clock.sleepers == []


async def test_a_place_is_free_as_soon_as_its_watcher_leaves(tmp_path: Path) -> None:
    async with staged(tmp_path, watchers_max=2) as stage:
        batch = await stage.store.create()
        (one, task), (two, _) = stage.read(batch), stage.read(batch)
        await stage.news.until(lambda: bool(one.messages and two.messages))
        for _ in range(3):
            refused, _ = stage.read(batch)
            await stage.news.until(lambda heard=refused: heard.error is not None)
            assert refused.error is not None
            assert refused.error.reason == "TOO_MANY_WATCHERS"
            assert refused.error.retry_after_s is not None
        task.cancel()
        await asyncio.wait([task], timeout=WAIT_MAX_S)
        third, _ = stage.read(batch)
        await stage.news.until(lambda: bool(third.messages))


async def test_all_watchers_of_a_deleted_batch_are_told(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        await stage.store.pause(batch)
        readers = [stage.read(batch)[0] for _ in range(40)]
        await stage.news.until(lambda: all(heard.messages for heard in readers))
        await stage.pass_s(INTERVAL_S, step_s=INTERVAL_S)
        await stage.store.remove(batch)
        await stage.news.until(lambda: all(heard.error for heard in readers))
        assert {heard.error.reason for heard in readers if heard.error} == {"BATCH_NOT_FOUND"}


async def test_closing_ends_every_stream_and_takes_no_new_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        batch = await stage.store.create()
        readers = [stage.read(batch)[0] for _ in range(40)]
        await stage.news.until(lambda: all(heard.messages for heard in readers))
        stage.watchers.close()
        late, _ = stage.read(batch)
        await stage.news.until(lambda: all(heard.error for heard in (*readers, late)))
        assert {heard.error.reason for heard in (*readers, late) if heard.error} == {"SHUTTING_DOWN"}


async def swept(stream: AsyncGenerator[WatchBatchesResponse]) -> list[str]:
    """The names up to and without the message that says that these are all."""
    names: list[str] = []
    async with asyncio.timeout(WAIT_MAX_S):
        async for message in stream:
            if message.caught_up:
                return names
            names.append(message.batch.name.removeprefix("batches/") + (" deleted" if message.deleted else ""))
    raise AssertionError("the stream ended")


async def test_a_quiet_stream_of_many_batches_gets_a_bookmark(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.store.create()
        async with aclosing(stage.watchers.watch_all(stage.store.database, Filter())) as stream:
            assert await swept(stream) == ["b1"]
            following = stage.group.create_task(swept(stream))
            await stage.pass_s(BOOKMARK_S - 0.5, step_s=0.5)
            assert not following.done()
            await stage.pass_s(0.5, step_s=0.5)
            assert await following == []


async def test_a_stream_that_missed_too_many_changes_begins_anew(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for _ in range(3):
            await stage.store.create()
        async with aclosing(stage.watchers.watch_all(stage.store.database, Filter())) as stream:
            assert await swept(stream) == ["b3", "b2", "b1"]
            await stage.store.pause("b2")
            await stage.store.remove("b2")
            # More than it keeps in mind; of b2 it would have forgotten.
            stage.watchers.committed({f"other{number}" for number in range(DIRTY_MAX)})
            following = stage.group.create_task(swept(stream))
            await stage.pass_s(INTERVAL_S, step_s=INTERVAL_S)
            assert await following == ["b3", "b1", "b2 deleted"]


async def test_streams_of_many_batches_read_each_change_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, AsyncExitStack() as stack:
        chosen = [Filter(), Filter(owner="ann"), Filter(labels=(("for", "test"),)), Filter(states=("QUEUED",))]
        other = [Filter(owner="bob"), Filter(labels=(("for", "show"),)), Filter(states=("PAUSED",))]
        all_ = [stage.watchers.watch_all(stage.store.database, one) for one in chosen + other]
        streams = [await stack.enter_async_context(aclosing(stream)) for stream in all_]
        assert [await swept(stream) for stream in streams] == [[]] * len(all_)
        batch = await stage.store.create()
        following = [asyncio.create_task(anext(stream)) for stream in streams]
        await stage.pass_s(INTERVAL_S, step_s=INTERVAL_S)
        await stage.news.until(lambda: all(task.done() for task in following[: len(chosen)]))
        assert [task.result().batch.name for task in following[: len(chosen)]] == [f"batches/{batch}"] * len(chosen)
        assert not any(task.done() for task in following[len(chosen) :])
        assert stage.shown == [batch]
        # The streams close when nobody waits for them any more.
        for task in following:
            task.cancel()
        await asyncio.wait(following, timeout=WAIT_MAX_S)
