"""kill -9 of the orchestrator at a hundred random moments, at a provider with faults: nothing made is lost or remade.

PARLEY_CRASH_KILLS=1000 makes it a thousand, at about a second each; PARLEY_CRASH_SEED draws other moments.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from evidence import Ledger, Rows, Stats, damage, event_log, last_seen, ledger, paid_again, provider_nanos, rows, until
from lives import MortalServer
from parley.client import BatchClient
from parley.exceptions import Unavailable
from parley.v1 import batch_pb2, conversation_pb2
from servers import Pair, Sandbox, running_pair, running_sandbox, spec
from traffic import Traffic, counted_provider

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("PARLEY_CRASH_KILLS", "100"))
SEED = int(os.environ.get("PARLEY_CRASH_SEED", "20"))
CONVERSATIONS, CONCURRENCY = 100, 10
# The next batch is asked for before the last one runs dry, so two may run at a time.
NEXT_AT = 50
# A call takes about 0.15 s, so that ten are in flight at every moment.
SANDBOX = ("--speed-up", "50", "--tokens-mean", "300")
# A stall costs its deadline of ten seconds: tests/acceptance/test_faults.py has it.
FAULTS = {
    "overloaded": 0.05,
    "server_error": 0.03,
    "reset": 0.02,
    "truncated": 0.007,
    "malformed": 0.007,
    "bad_body": 0.006,
}
# Paid, and the usage never came.
LOST_ON_THE_WAY = ("reset", "bad_body")
FAILURES = {
    conversation_pb2.FAILURE_REASON_MALFORMED,
    conversation_pb2.FAILURE_REASON_MAX_TOKENS,
    # A quick error is told before a kill more often than an answer that takes its time: five of them may come together.
    conversation_pb2.FAILURE_REASON_PROVIDER_ERROR,
}


@dataclass(frozen=True)
class Moment:
    """In the life of a process: when its n-th call is sent or answered, or seconds after it serves, or began."""

    what: str
    number: float


@dataclass(frozen=True)
class Kill:
    """What was there when the process was gone."""

    moment: Moment
    ledger: Ledger
    # Call and batch.
    in_flight: Rows
    damage: dict[str, Any]
    # Finished conversations that are not what they were at the kill before.
    remade: Rows
    # The provider's counts once the calls in flight had ended there, and what they would cost.
    stats: Stats
    paid_nanos: int


@dataclass(frozen=True)
class Run:
    """The whole run, as everything outside saw it."""

    kills: list[Kill]
    asked: int
    batches: list[batch_pb2.Batch]
    failures: list[conversation_pb2.Conversation]
    events: dict[str, list[batch_pb2.BatchEvent]]
    stats: Stats
    database: Path


@dataclass
class Orders:
    """Batches, ordered one after the other for as long as kills are left; one that was not answered is repeated."""

    client: BatchClient
    asked: int = 0
    _asking: asyncio.Task[None] | None = None

    def go_on(self, *, waiting: int) -> None:
        if waiting < NEXT_AT and (self._asking is None or self._asking.done()):
            self.asked += 1
            self._asking = asyncio.create_task(self._ask(self.asked))

    async def answered(self) -> None:
        if self._asking is not None:
            await self._asking

    async def _ask(self, number: int) -> None:
        wanted = spec(CONVERSATIONS, concurrency=CONCURRENCY, seed=number)
        # Prompts that no other batch has.
        wanted.tiers[0].prompt.text += f"\nSet {number}."
        while True:
            try:
                await self.client.create(wanted, request_id=f"order-{number}")
                return
            except Unavailable:
                continue


def moments() -> list[Moment]:
    rng = random.Random(SEED)

    def drawn() -> Moment:
        kinds = [
            Moment("sent", rng.randint(1, 20)),
            Moment("answered", rng.randint(1, 12)),
            Moment("served", rng.uniform(0.0, 0.6)),
            Moment("began", rng.uniform(0.0, 0.3)),
        ]
        return rng.choices(kinds, weights=(25, 25, 35, 15))[0]

    return [drawn() for _ in range(KILLS)]


def finished_rows(database: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Everything of a finished conversation that a second making would change."""
    found = rows(
        database,
        "SELECT c.batch, c.number, c.attempts, c.tries, c.cost_nanos, c.output_tokens, c.ended_us, c.review, t.turns"
        " FROM conversations c JOIN conversation_texts t ON t.batch = c.batch AND t.number = c.number"
        " WHERE c.state = 'GENERATED'",
    )
    return {(row["batch"], row["number"]): row for row in found}


@dataclass
class Killer:
    """Lets the orchestrator live until a moment has come, and looks at what it left."""

    server: MortalServer
    sandbox: Sandbox
    traffic: Traffic
    orders: Orders
    database: Path
    kills: list[Kill] = field(default_factory=list[Kill])
    _finished: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict[tuple[str, int], dict[str, Any]])

    async def live_until(self, moment: Moment) -> None:
        self.traffic.begin(lambda counts: counts.get(moment.what, 0) >= moment.number)
        await self.server.begin()
        if moment.what != "began":
            await self.server.serving()
            self.orders.go_on(waiting=self._waiting())
        if moment.what in ("sent", "answered"):
            await self.traffic.reached()
        else:
            await passed(moment.number)
        await self.server.kill()
        self.kills.append(await self._look(moment))

    async def _look(self, moment: Moment) -> Kill:
        stats = await until(self.sandbox, lambda stats: stats["in_flight"] == 0)
        before, self._finished = self._finished, finished_rows(self.database)
        return Kill(
            moment,
            ledger(self.database),
            rows(self.database, "SELECT id, batch FROM calls WHERE state = 'RESERVED'"),
            damage(self.database),
            [row for key, row in before.items() if self._finished.get(key) != row],
            stats,
            provider_nanos(stats, self.database) if stats["tokens_in"] else 0,
        )

    def _waiting(self) -> int:
        counted = "SELECT count(*) AS waiting FROM conversations WHERE state IN ('PENDING', 'RUNNING')"
        return rows(self.database, counted)[0]["waiting"]


async def passed(seconds: float) -> None:
    """Here time itself is what the test is about."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


@pytest.fixture(name="run", scope="module")
async def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return await killed_run(tmp_path_factory.mktemp("kill"))


async def killed_run(folder: Path) -> Run:
    traffic = Traffic()
    traffic.begin()
    async with (
        running_sandbox(folder, *SANDBOX) as sandbox,
        counted_provider(sandbox, traffic) as way,
        running_pair(folder, sandbox, MortalServer, ANTHROPIC_BASE_URL=f"http://{way.address}") as pair,
        pair.client() as client,
    ):
        await sandbox.change(faults=FAULTS)
        assert isinstance(pair.orchestrator, MortalServer)
        killer = Killer(pair.orchestrator, sandbox, traffic, Orders(client), pair.database)
        await pair.orchestrator.kill()
        for moment in moments():
            await killer.live_until(moment)
        return await ended(pair, client, killer)


async def ended(pair: Pair, client: BatchClient, killer: Killer) -> Run:
    """Lives on until all is made; what too many faults in a row made fail is asked for once more."""
    await pair.restart()
    await killer.orders.answered()
    names = [batch.name async for batch in client.list_batches()]
    failures: list[conversation_pb2.Conversation] = []
    for name in names:
        await last_seen(client, name)
        failed = conversation_pb2.ConversationFilter(states=[conversation_pb2.CONVERSATION_STATE_FAILED])
        failures += [conversation async for conversation in client.conversations(name, failed)]
    await pair.sandbox.change(faults={})
    for name in names:
        await client.retry(name)
    return Run(
        killer.kills,
        killer.orders.asked,
        [await last_seen(client, name) for name in names],
        failures,
        {name: await event_log(client, name) for name in names},
        await pair.sandbox.stats(prompts=True),
        pair.database,
    )


def test_the_kills_were_at_all_kinds_of_moments(run: Run) -> None:
    assert len(run.kills) == KILLS
    assert {kill.moment.what for kill in run.kills} == {"sent", "answered", "served", "began"}
    assert sum(len(kill.in_flight) > 0 for kill in run.kills) > KILLS / 3
    # Some came before the process had put in order what the last one left.
    unrecovered = [
        kill for before, kill in zip(run.kills, run.kills[1:], strict=False) if before.in_flight == kill.in_flight
    ]
    assert any(kill.in_flight for kill in unrecovered)
    assert {"overloaded", "server_error", "reset"} <= run.stats["faults"].keys()


def test_every_kill_leaves_a_whole_database_whose_totals_are_sums_of_rows(run: Run) -> None:
    assert {at: kill.damage for at, kill in enumerate(run.kills) if kill.damage} == {}
    assert damage(run.database) == {}


def test_as_many_are_delivered_as_were_asked_for(run: Run) -> None:
    assert len(run.batches) == run.asked
    assert {batch.state for batch in run.batches} == {batch_pb2.BATCH_STATE_SUCCEEDED}
    assert [batch.counts.deliverable for batch in run.batches] == [CONVERSATIONS] * run.asked
    # What failed under way said why.
    assert [one.failure for one in run.failures if one.failure.reason not in FAILURES or not one.failure.message] == []
    assert len(run.failures) < run.asked * CONVERSATIONS / 20


def test_what_the_provider_was_paid_is_within_confirmed_and_possibly_spent_at_every_kill(run: Run) -> None:
    for at, kill in enumerate(run.kills):
        assert kill.ledger.accounts_for(kill.paid_nanos), f"kill {at + 1}"
    told = ledger(run.database)
    assert told.reserved == 0
    assert told.accounts_for(provider_nanos(run.stats, run.database))


def test_what_was_paid_and_lost_is_at_most_what_was_in_flight_at_the_kills(run: Run) -> None:
    known: set[int] = set()
    for at, kill in enumerate(run.kills):
        known |= {call["id"] for call in kill.in_flight}
        faulty = sum(kill.stats["paid_faults"].get(fault, 0) for fault in LOST_ON_THE_WAY)
        assert 0 <= kill.stats["calls_completed"] - kill.ledger.paid <= len(known) + faulty, f"kill {at + 1}"


def test_no_more_is_paid_twice_than_was_in_flight_at_the_kills(run: Run) -> None:
    known: set[int] = set()
    for at, kill in enumerate(run.kills):
        # What was lost at a kill is paid again only after it; a useless answer is paid and asked for again as well.
        useless = sum(kill.stats["paid_faults"].values())
        assert paid_again(kill.stats) <= len(known) + useless, f"kill {at + 1}"
        known |= {call["id"] for call in kill.in_flight}
    assert 0 < paid_again(run.stats) <= len(known) + sum(run.stats["paid_faults"].values())


def test_no_batch_has_more_in_flight_than_its_concurrency(run: Run) -> None:
    for kill in run.kills:
        assert max(Counter(call["batch"] for call in kill.in_flight).values(), default=0) <= CONCURRENCY


def test_what_was_in_flight_at_a_kill_is_marked_and_nothing_else(run: Run) -> None:
    interrupted = rows(run.database, "SELECT id, state FROM calls WHERE outcome = 'INTERRUPTED'")
    assert {row["state"] for row in interrupted} == {"POSSIBLY_SPENT"}
    assert {row["id"] for row in interrupted} == {call["id"] for kill in run.kills for call in kill.in_flight}


def test_finished_conversations_are_never_made_again(run: Run) -> None:
    assert [kill.remade for kill in run.kills if kill.remade] == []
    answered = rows(
        run.database,
        "SELECT count(*) AS times FROM calls WHERE outcome = 'ANSWERED' GROUP BY batch, conversation",
    )
    assert [row["times"] for row in answered] == [1] * run.asked * CONVERSATIONS


def test_interrupted_calls_use_up_no_try(run: Run) -> None:
    tries = rows(
        run.database,
        "SELECT DISTINCT tries FROM conversations c WHERE NOT EXISTS (SELECT 1 FROM calls WHERE batch = c.batch"
        " AND conversation = c.number AND outcome NOT IN ('INTERRUPTED', 'ANSWERED', 'LIMITED'))",
    )
    assert tries == [{"tries": 1}]


def test_the_logs_have_every_event_once_and_in_order(run: Run) -> None:
    recovered: list[batch_pb2.Recovered] = []
    for batch in run.batches:
        events = run.events[batch.name]
        assert [event.number for event in events] == list(range(1, batch.last_event + 1))
        ended = Counter(event.conversation_ended.number for event in events if event.HasField("conversation_ended"))
        failed = Counter(one.number for one in run.failures if one.name.startswith(f"{batch.name}/"))
        assert ended == Counter(range(1, CONVERSATIONS + 1)) + failed
        recovered += [event.recovered for event in events if event.HasField("recovered")]
    in_flight = {call["id"] for kill in run.kills for call in kill.in_flight}
    assert sum(one.calls_possibly_spent for one in recovered) == len(in_flight)
