"""The engine on a real database, with a clock that the test steps and a provider whose replies the test gives."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint
from storage_fixtures import Store, new_batch, rows_of

from orchestrator_service.domain.ledger import Rate, Usage
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.domain.spec import Builtins, Exchanges, Listed, Spec, Tier
from orchestrator_service.engine.bell import Bell
from orchestrator_service.engine.experience import Experience
from orchestrator_service.engine.limiter import Limiter, Ticket, Wanted
from orchestrator_service.engine.runner import Tools
from orchestrator_service.engine.supervisor import Supervisor
from orchestrator_service.generation.claude import CallFailure, Reply, Request
from orchestrator_service.generation.planning import Planned
from orchestrator_service.storage import batches
from orchestrator_service.storage import requests as storage_requests
from orchestrator_service.storage.batches import NewBatch
from orchestrator_service.storage.database import open_database

# A test that waits longer has failed.
WAIT_MAX_S = 10.0
MAX_TOKENS, MAX_ATTEMPTS = 100, 3
# With 100 tokens at most a call reserves 1,000 nano-dollars; one of 20 tokens costs 200.
RATE = Rate(input_nanos_per_mtok=0, output_nanos_per_mtok=10_000_000)
RESERVE, COST = 1_000, 200
TEXT = '{"turns": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}'
MADE = Reply(
    text=TEXT, usage=Usage(input_tokens=10, output_tokens=20), stop_reason="end_turn", http_status=200, raw="{}"
)
MALFORMED = Reply(text='{"turns": [', usage=MADE.usage, stop_reason="end_turn", http_status=200, raw="{}")


def failed(kind: FailureKind, *, server_delay_s: float | None = None, usage: Usage | None = None) -> Reply:
    return Reply(failure=CallFailure(kind=kind, message="So it was.", server_delay_s=server_delay_s), usage=usage)


def in_turn(*replies: Reply) -> Callable[[Call], Reply]:
    """Each call gets the next one."""
    left = iter(replies)
    return lambda call: next(left)


class News:
    """Something happened: a commit, a call, somebody began to wait."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self, _touched: set[str] | None = None) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Taken before one looks, so that nothing is missed."""
        return self._event

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while True:
                event = self.next()
                if holds():
                    return
                await event.wait()


class SteppedClock:
    def __init__(self, news: News | None = None) -> None:
        self.now_s = 1_000.0
        self._news = news or News()
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        # What brings a runner down: the next look at the wall clock fails.
        self.is_broken = False

    def now_us(self) -> int:
        if self.is_broken:
            self.is_broken = False
            raise RuntimeError("a mistake of ours")
        return round(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    @property
    def sleepers(self) -> list[float]:
        """How many seconds each still sleeps."""
        return [due - self.now_s for due, future in self._sleepers if not future.done()]

    async def sleep_s(self, seconds: float) -> None:
        entry = (self.now_s + seconds, asyncio.get_running_loop().create_future())
        self._sleepers.append(entry)
        self._news.tell()
        try:
            await entry[1]
        finally:
            self._sleepers.remove(entry)
            self._news.tell()

    def step(self, seconds: float) -> None:
        self.now_s += seconds
        for due, future in self._sleepers:
            if due <= self.now_s and not future.done():
                future.set_result(None)

    async def pass_s(self, seconds: float) -> None:
        """Lets time go by from one awakening to the next; for what runs on the loop alone."""
        end_s = self.now_s + seconds
        while True:
            await at_rest()
            due_s = self.now_s + min(self.sleepers, default=seconds + 1)
            if due_s > end_s:
                break
            self.step(due_s - self.now_s)
        self.step(end_s - self.now_s)
        await at_rest()


async def at_rest() -> None:
    """Every task on the loop has come as far as it can without time or another thread."""
    for _ in range(30):
        await checkpoint()


@dataclass
class Call:
    number: int
    request: Request
    # Calls that were in flight when it came.
    others: int
    reply: asyncio.Future[Reply] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, reply: Reply = MADE) -> None:
        self.reply.set_result(reply)


class Desk:
    """The provider's end of the call seam: a call waits until it is answered, or gets the next reply at once."""

    def __init__(self, news: News) -> None:
        self.calls: list[Call] = []
        # What answers every call at once, where it is given.
        self.at_once: Callable[[Call], Reply] | None = None
        # What every prompt counts; None where the provider can't tell.
        self.counted: int | None = None
        self.counts_asked = 0
        self._news = news

    async def send(self, request: Request) -> Reply:
        found = re.search(r"Number (\d+)\.", request.user)
        assert found is not None
        call = Call(int(found[1]), request, len(self.in_flight))
        self.calls.append(call)
        if self.at_once is not None:
            call.answer(self.at_once(call))
        self._news.tell()
        return await call.reply

    async def count_tokens(self, request: Request) -> int | None:
        self.counts_asked += 1
        return self.counted

    @property
    def in_flight(self) -> list[int]:
        return [call.number for call in self.calls if not call.reply.done()]

    @property
    def numbers(self) -> list[int]:
        return [call.number for call in self.calls]

    def answer(self, *numbers: int, reply: Reply = MADE) -> None:
        """Those in flight with these numbers; all without."""
        for call in self.calls:
            if not call.reply.done() and (not numbers or call.number in numbers):
                call.answer(reply)


class ToldLimiter(Limiter):
    """Says when somebody waits."""

    def __init__(self, *, requests: int, window_s: float, clock: SteppedClock, news: News) -> None:
        super().__init__(requests_per_minute=requests, window_s=window_s, clock=clock)
        self._news = news
        self.waiting = 0

    async def acquire(self, wanted: Wanted) -> Ticket:
        self.waiting += 1
        asyncio.get_running_loop().call_soon(self._news.tell)
        try:
            return await super().acquire(wanted)
        finally:
            self.waiting -= 1
            self._news.tell()


@dataclass
class World(Store):
    news: News = field(default_factory=News)
    clock: SteppedClock = field(default_factory=SteppedClock)
    desk: Desk = field(init=False)
    limiter: ToldLimiter = field(init=False)
    supervisor: Supervisor = field(init=False)

    def employ(self, *, requests: int, window_s: float) -> None:
        self.desk = Desk(self.news)
        self.limiter = ToldLimiter(requests=requests, window_s=window_s, clock=self.clock, news=self.news)
        self.supervisor = self.another_supervisor()

    def another_supervisor(self) -> Supervisor:
        """As the next process has it."""
        return Supervisor(
            Tools(
                database=self.database,
                provider=self.desk,
                base_url="http://127.0.0.1",
                limiter=self.limiter,
                experience=Experience(),
                daily=self.daily,
                settled=Bell(),
                clock=self.clock,
                rng=lambda: 1.0,
                plan=planned,
                rate=lambda stored: RATE,
            )
        )

    async def begin(self, count: int, *, first: int = 1, concurrency: int = 3, **values: Any) -> str:
        """A batch whose prompts are numbered from `first`, and its runner."""
        self.made += 1
        new = new_batch(f"b{self.made}", {"template": count}, {"concurrency": concurrency, **values})
        new = NewBatch(
            id=new.id, values=new.values, labels=new.labels, spec=f"{first} {count}".encode(), totals=new.totals
        )
        await self.write(batches.prepare(new))
        await self.write(batches.add_rows(rows_of(new)))
        key = storage_requests.Request(owner="ann", method="CreateBatch", request_id="", body_sha256="")
        await self.write(batches.queue(new.id, key, now_us=self.tick()))
        self.supervisor.ensure_running(new.id)
        return new.id

    async def calls_in_flight(self, count: int) -> None:
        await self.news.until(lambda: len(self.desk.in_flight) == count)

    async def until_state(self, batch: str, state: str) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while (news := self.news.next()) and await self.state(batch) != state:
                await news.wait()

    async def until_rows(self, batch: str, **counts: int) -> None:
        """Until so many rows have these states."""
        async with asyncio.timeout(WAIT_MAX_S):
            while news := self.news.next():
                states = list((await self.rows(batch)).values())
                if all(states.count(state) == count for state, count in counts.items()):
                    return
                await news.wait()

    async def verb(self, name: str, batch: str, **settings: Any) -> None:
        """As the service does it: the fact, then the engine is woken."""
        await getattr(self, name)(batch, **settings)
        self.supervisor.ensure_running(batch)

    async def moves(self, batch: str) -> list[str]:
        return [event.detail["to"] for event in await self.events(batch) if event.kind == "state_changed"]

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[None]:
        """Another program has the database locked: every fact is refused."""
        await self.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA busy_timeout = 5"))
        other = sqlite3.connect(self.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()


@asynccontextmanager
async def engine(path: Path, *, requests: int = 1_000_000, window_s: float = 8.0) -> AsyncGenerator[World]:
    news = News()
    async with open_database(path, committed=news.tell) as database:
        world = World(database, path, news=news, clock=SteppedClock(news))
        world.employ(requests=requests, window_s=window_s)
        try:
            yield world
        finally:
            await world.supervisor.stop(drain_s=0)
            await world.limiter.close()


def planned(stored: bytes) -> Planned:
    first, count = map(int, stored.split())
    tier = Tier(
        id="template",
        count=0,
        prompt="Number {{ n }}.",
        exchanges=Exchanges(min=1, max=2),
        max_output_tokens=MAX_TOKENS,
    )
    listed = tuple(Listed(tier="template", parameters={"n": str(first + index)}) for index in range(count))
    spec = Spec(name="Test", model="m", seed=1, tiers=(tier,), listed=listed, max_attempts=MAX_ATTEMPTS)
    return Planned(spec, Builtins(templates={}, shared_prompt="", axes=()))
