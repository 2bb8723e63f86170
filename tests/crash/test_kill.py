"""kill -9 of the orchestrator, twenty times in the middle of 200 conversations: nothing made is lost or made again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from evidence import Rows, Stats, calls_of, event_log, last_seen, paid_again, rows, until
from parley.v1 import batch_pb2, conversation_pb2
from servers import Pair, Sandbox, running_pair, running_sandbox, spec
from tcp_proxy import running_proxy

pytestmark = pytest.mark.anyio

SEED = 20
KILLS = 20
CONVERSATIONS = 200
CONCURRENCY = 10
# A call takes about 0.15 s, so that ten are in flight at every moment.
SPEED_UP = "400"
REQUEST = b"POST /v1/messages HTTP/1.1"
POINT_MAX_S = 30.0


@dataclass(frozen=True)
class Point:
    """Where in the life of a process it is killed: the moment that its n-th call is sent, or answered."""

    what: str
    number: int


NEVER = Point("sent", 10**9)


@dataclass(frozen=True)
class Kill:
    """What was there when the process was gone."""

    reserved: int
    finished: Rows
    settled: int
    # The provider's counts once the calls in flight had ended there.
    stats: Stats


@dataclass
class Traffic:
    """The calls of one orchestrator process, counted on their way to the provider and back."""

    point: Point = NEVER
    counts: dict[str, int] = field(default_factory=dict[str, int])
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, point: Point) -> None:
        self.point, self.counts, self._reached = point, {"sent": 0, "answered": 0}, asyncio.Event()

    async def reached(self) -> None:
        async with asyncio.timeout(POINT_MAX_S):
            await self._reached.wait()

    def request(self, piece: bytes) -> None:
        # One request at a time on a connection, so each begins a piece; only calls are counted, not token counts.
        if piece.startswith(REQUEST):
            self._count("sent")

    def answer(self, piece: bytes) -> None:
        if piece.startswith(b"HTTP/1.1 200") and b'"type": "message"' in piece:
            self._count("answered")

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self.counts[self.point.what] >= self.point.number:
            self._reached.set()


@dataclass(frozen=True)
class Run:
    """The whole run, as everything outside saw it."""

    kills: list[Kill]
    batch: batch_pb2.Batch
    events: list[batch_pb2.BatchEvent]
    calls: list[conversation_pb2.Call]
    stats: Stats
    database: Path


def kill_points() -> list[Point]:
    """Seeded, and in all so few calls that the batch is not at its end before the last kill."""
    rng = random.Random(SEED)
    return [
        rng.choice([Point("answered", rng.randint(1, 20)), Point("sent", rng.randint(1, 25))]) for _ in range(KILLS)
    ]


@asynccontextmanager
async def counted_provider(sandbox: Sandbox, traffic: Traffic) -> AsyncGenerator[str]:
    """The sandbox's URL, by a way on which every call is counted."""
    where = urlsplit(sandbox.url)
    proxied = running_proxy(
        lambda: asyncio.open_connection(where.hostname, where.port),
        heard_request=traffic.request,
        heard_answer=traffic.answer,
    )
    async with proxied as proxy:
        yield f"http://{proxy.address}"


async def kill_when_reached(pair: Pair, traffic: Traffic) -> Kill:
    await traffic.reached()
    await pair.orchestrator.kill()
    stats = await until(pair.sandbox, lambda stats: stats["in_flight"] == 0)
    states = {row["state"]: row["n"] for row in rows(pair.database, "SELECT state, count(*) n FROM calls GROUP BY 1")}
    return Kill(states.get("RESERVED", 0), finished_rows(pair.database), states.get("SETTLED", 0), stats)


def finished_rows(database: Path) -> Rows:
    """Everything of a finished conversation that a second making would change."""
    return rows(
        database,
        "SELECT c.number, c.attempts, c.tries, c.cost_nanos, c.output_tokens, c.ended_us, c.review, t.turns"
        " FROM conversations c JOIN conversation_texts t ON t.batch = c.batch AND t.number = c.number"
        " WHERE c.state = 'GENERATED' ORDER BY c.number",
    )


@pytest.fixture(name="run", scope="module")
async def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, traffic, points = tmp_path_factory.mktemp("kill"), Traffic(), kill_points()
    traffic.begin(points[0])
    async with (
        running_sandbox(folder, "--speed-up", SPEED_UP) as sandbox,
        counted_provider(sandbox, traffic) as url,
        running_pair(folder, sandbox, ANTHROPIC_BASE_URL=url) as pair,
        pair.client() as client,
    ):
        name = (await client.create(spec(CONVERSATIONS, concurrency=CONCURRENCY))).name
        kills: list[Kill] = []
        for following in [*points[1:], NEVER]:
            kills.append(await kill_when_reached(pair, traffic))
            traffic.begin(following)
            await pair.restart()
        batch = await last_seen(client, name)
        events, calls = await event_log(client, name), await calls_of(client, name)
        stats = await sandbox.stats(prompts=True)
        return Run(kills, batch, events, calls, stats, pair.database)


def test_every_kill_was_in_the_middle(run: Run) -> None:
    made = [len(kill.finished) for kill in run.kills]
    assert len(made) == KILLS
    assert made == sorted(made)
    assert made[-1] < CONVERSATIONS
    assert sum(kill.reserved > 0 for kill in run.kills) == KILLS


def test_all_two_hundred_are_delivered_and_each_was_paid(run: Run) -> None:
    assert run.batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert run.batch.counts.deliverable == CONVERSATIONS
    assert len(run.stats["prompts"]) == CONVERSATIONS
    assert min(prompt["paid"] for prompt in run.stats["prompts"]) >= 1


def test_no_more_is_paid_twice_than_was_in_flight_at_the_kills(run: Run) -> None:
    in_flight = [kill.reserved for kill in run.kills]
    assert max(in_flight) <= CONCURRENCY
    # What was lost at a kill is paid again only after it.
    assert paid_again(run.kills[0].stats) == 0
    for at, kill in enumerate(run.kills):
        assert paid_again(kill.stats) <= sum(in_flight[:at]), f"kill {at + 1}"
    assert 0 < paid_again(run.stats) <= sum(in_flight)
    assert run.stats["calls_completed"] == CONVERSATIONS + paid_again(run.stats)


def test_what_was_paid_and_lost_at_a_kill_is_at_most_what_was_in_flight(run: Run) -> None:
    lost = 0
    for at, kill in enumerate(run.kills):
        before, lost = lost, kill.stats["calls_completed"] - kill.settled
        assert 0 <= lost - before <= kill.reserved, f"kill {at + 1}"


def test_ledger_and_provider_agree_within_what_is_possibly_spent(run: Run) -> None:
    spend = run.batch.spend
    assert spend.usage.input_tokens <= run.stats["tokens_in"]
    assert spend.usage.output_tokens < run.stats["tokens_out"]
    rate = json.loads(rows(run.database, "SELECT rate FROM batches")[0]["rate"])
    paid_nanos = provider_nanos(run.stats, rate)
    confirmed = spend.confirmed.units * 10**9 + spend.confirmed.nanos
    possible = spend.possibly_spent.units * 10**9 + spend.possibly_spent.nanos
    assert confirmed <= paid_nanos <= confirmed + possible
    assert spend.calls_possibly_spent == sum(kill.reserved for kill in run.kills)
    assert not spend.reserved.units
    assert not spend.reserved.nanos


def provider_nanos(stats: Stats, rate: dict[str, Any]) -> int:
    """What the sandbox would have billed; its prompts use no cache."""
    product = stats["tokens_in"] * rate["input_nanos_per_mtok"] + stats["tokens_out"] * rate["output_nanos_per_mtok"]
    return product // 10**6


def test_finished_conversations_are_never_made_again(run: Run) -> None:
    final = {row["number"]: row for row in finished_rows(run.database)}
    for kill in run.kills:
        for row in kill.finished:
            assert final[row["number"]] == row
    answered = [call.conversation for call in run.calls if call.outcome == conversation_pb2.CALL_OUTCOME_ANSWERED]
    assert sorted(answered) == list(range(1, CONVERSATIONS + 1))


def test_interrupted_calls_use_up_no_try(run: Run) -> None:
    assert {row["tries"] for row in finished_rows(run.database)} == {1}


def test_the_log_has_every_event_once_and_in_order(run: Run) -> None:
    assert [event.number for event in run.events] == list(range(1, run.batch.last_event + 1))
    ended = [event.conversation_ended.number for event in run.events if event.HasField("conversation_ended")]
    assert sorted(ended) == list(range(1, CONVERSATIONS + 1))
    recovered = [event.recovered for event in run.events if event.HasField("recovered")]
    assert [one.calls_possibly_spent for one in recovered] == [kill.reserved for kill in run.kills]
    assert [one.conversations_requeued for one in recovered] == [kill.reserved for kill in run.kills]


def test_the_database_is_whole(run: Run) -> None:
    assert rows(run.database, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert rows(run.database, "PRAGMA foreign_key_check") == []
    assert rows(run.database, "SELECT count(*) n FROM calls WHERE state = 'RESERVED'") == [{"n": 0}]
