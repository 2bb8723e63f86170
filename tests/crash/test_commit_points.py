"""kill -9 at every commit point of a call, and at every change of a row: what it leaves is known exactly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
from evidence import Stats, damage, last_seen, ledger, paid_again, provider_nanos, reset, rows, until
from lives import MortalServer
from mortal import Doom
from parley.client import BatchClient
from parley.exceptions import Unavailable
from parley.v1 import batch_pb2
from servers import Pair, Sandbox, running_pair, running_sandbox, spec
from tcp_proxy import Proxy
from traffic import Traffic, counted_provider

pytestmark = pytest.mark.anyio

CONVERSATIONS = 7
# The calls of each life that are let through before the one that it dies at: three deaths in one batch.
LIVES = (0, 1, 0)
# Of a recovery 13, of a claim 5 to 8, of a settlement 9.
CHANGES = 44


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in the life of a call, and what a death there leaves of it."""

    # Where the process ends itself; without it, what is held up on the way to the provider, and it is killed from here.
    edge: str = ""
    kind: str = ""
    held: str = ""
    lives: tuple[int, ...] = LIVES
    # How many calls are left in the ledger without an outcome: none, one, or perhaps one.
    marked: tuple[int, ...] = (0,)
    # Whether the call is paid all the same; whether it is settled.
    lost: bool = False
    settled: bool = False

    def doom(self, calls_before: int) -> Doom | None:
        return Doom(edge=self.edge, kind=self.kind, number=calls_before + 1) if self.edge else None


POINTS = {
    "before the claim's commit": Point(edge="before", kind="claim"),
    "after the claim's commit, before anything is sent": Point(edge="after", kind="claim", marked=(1,)),
    "sent, and not yet with the provider": Point(held="request", marked=(1,)),
    "while the provider works": Point(held="work", lives=(0, 0, 0), marked=(1,), lost=True),
    "answered, and the answer is on its way": Point(held="answer", marked=(1,), lost=True),
    "after the answer, before the settlement's commit": Point(edge="before", kind="settlement", marked=(1,), lost=True),
    # The next claim may share the commit.
    "after the settlement's commit": Point(edge="after", kind="settlement", marked=(0, 1), settled=True),
}


@dataclass(frozen=True)
class Stage:
    """One orchestrator with many lives, and a way to its provider that holds up what it is told to."""

    pair: Pair
    server: MortalServer
    sandbox: Sandbox
    way: Proxy
    traffic: Traffic
    client: BatchClient

    async def begin_story(self, database: Path) -> None:
        await self.server.kill()
        await reset(self.sandbox)
        self.server.environment = {**self.server.environment, "PARLEY_ORCHESTRATOR_DATABASE": str(database)}
        self.pair.database = database

    async def order(self, concurrency: int = 1) -> str:
        """Asks for a batch until somebody answers; its name."""
        while True:
            try:
                wanted = spec(CONVERSATIONS, concurrency=concurrency)
                return (await self.client.create(wanted, request_id="order")).name
            except Unavailable:
                continue

    async def live_to(self, point: Point, *, calls_before: int) -> None:
        """One life, from its start to its death at the point."""
        self.traffic.begin(lambda counts: self._hold_up(point, counts["sent"] > calls_before))
        await self.sandbox.change(paused=point.held == "work")
        await self.server.begin(point.doom(calls_before))
        if point.edge:
            await self.server.died()
            return
        await self.traffic.reached()
        if point.held == "work":
            await until(self.sandbox, lambda stats: stats["in_flight"] == 1)
        if point.held == "answer":
            await until(self.sandbox, lambda stats: stats["calls_completed"] == stats["calls_started"] > calls_before)
        await self.server.kill()

    def _hold_up(self, point: Point, is_the_call: bool) -> bool:
        if is_the_call and point.held == "request":
            self.way.swallows = True
        if is_the_call and point.held == "answer":
            self.way.flowing.clear()
        return is_the_call and bool(point.held)

    async def let_go(self) -> Stats:
        """What was held up goes on, with nobody to wait for it; the provider's counts when it has ended."""
        self.way.swallows = False
        self.way.flowing.set()
        await self.sandbox.change(paused=False)
        return await until(self.sandbox, lambda stats: stats["in_flight"] == 0)

    async def end_story(self, ordered: asyncio.Task[str]) -> batch_pb2.Batch:
        """A life that nothing ends before the batch does."""
        self.traffic.begin()
        await self.server.start()
        batch = await last_seen(self.client, await ordered)
        await self.server.kill()
        return batch


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder, traffic = tmp_path_factory.mktemp("points"), Traffic()
    traffic.begin()
    async with (
        running_sandbox(folder) as sandbox,
        counted_provider(sandbox, traffic) as way,
        running_pair(folder, sandbox, MortalServer, ANTHROPIC_BASE_URL=f"http://{way.address}") as pair,
        pair.client() as client,
    ):
        assert isinstance(pair.orchestrator, MortalServer)
        await pair.orchestrator.kill()
        yield Stage(pair, pair.orchestrator, sandbox, way, traffic, client)


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
async def test_a_death_at_any_point_of_a_call_leaves_exactly_what_it_must(
    stage: Stage, point: Point, tmp_path: Path
) -> None:
    await stage.begin_story(tmp_path / "orchestrator.db")
    ordered, marked = asyncio.create_task(stage.order()), 0
    for deaths, calls_before in enumerate(point.lives, start=1):
        await stage.live_to(point, calls_before=calls_before)
        stats, left = await stage.let_go(), ledger(stage.pair.database)
        assert left.settled == sum(point.lives[:deaths]) + point.settled * deaths
        assert left.reserved in point.marked
        assert left.possibly_spent == marked
        marked += left.reserved
        assert stats["calls_completed"] == stats["calls_started"] == left.settled + point.lost * deaths
        assert left.accounts_for(provider_nanos(stats, stage.pair.database))
        assert damage(stage.pair.database) == {}

    batch = await stage.end_story(ordered)
    stats, deaths = await stage.sandbox.stats(), len(point.lives)
    assert batch.counts.deliverable == CONVERSATIONS
    assert stats["calls_completed"] == CONVERSATIONS + point.lost * deaths
    assert paid_again(stats) == point.lost * deaths
    assert batch.spend.calls_possibly_spent == marked


async def test_a_death_at_every_change_of_a_row_in_turn_leaves_a_whole_database(stage: Stage, tmp_path: Path) -> None:
    """A life up to each statement that changes something: of the recovery first, then of claims and settlements."""
    await stage.begin_story(tmp_path / "orchestrator.db")
    await stage.server.start()
    await stage.sandbox.change(paused=True)
    ordered = asyncio.create_task(stage.order(concurrency=2))
    await until(stage.sandbox, lambda stats: stats["in_flight"] == 2)
    await stage.server.kill()
    await stage.let_go()
    in_flight: set[int] = set()
    for number in range(1, CHANGES + 1):
        await stage.server.begin(Doom(number=number))
        await stage.server.died()
        stats, left = await stage.let_go(), ledger(stage.pair.database)
        assert damage(stage.pair.database) == {}, f"change {number}"
        assert left.accounts_for(provider_nanos(stats, stage.pair.database)), f"change {number}"
        in_flight |= {row["id"] for row in rows(stage.pair.database, "SELECT id FROM calls WHERE state = 'RESERVED'")}
        assert stats["calls_completed"] - left.paid <= left.reserved + left.possibly_spent == len(in_flight)

    assert 0 < ledger(stage.pair.database).paid < CONVERSATIONS
    batch = await stage.end_story(ordered)
    stats = await stage.sandbox.stats()
    assert batch.counts.deliverable == CONVERSATIONS
    assert paid_again(stats) == stats["calls_completed"] - CONVERSATIONS <= len(in_flight)
    assert batch.spend.calls_possibly_spent == len(in_flight)


async def test_an_order_whose_answer_died_is_not_carried_out_twice(stage: Stage, tmp_path: Path) -> None:
    await stage.begin_story(tmp_path / "orchestrator.db")
    ordered = asyncio.create_task(stage.order())
    for doom, kept in (
        (Doom(edge="before", kind="creation", number=1), []),
        (Doom(edge="after", kind="creation", number=1), [{"n": 1}]),
        (Doom(edge="before", kind="claim", number=1), [{"n": 1}]),
    ):
        await stage.server.begin(doom)
        await stage.server.died()
        assert rows(stage.pair.database, "SELECT 1 AS n FROM batches WHERE state = 'QUEUED'") == kept
    batch = await stage.end_story(ordered)
    assert [f"batches/{row['id']}" for row in rows(stage.pair.database, "SELECT id FROM batches")] == [batch.name]
    assert (await stage.sandbox.stats())["calls_completed"] == CONVERSATIONS
