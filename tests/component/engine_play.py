"""The engine played against the model: each committed fact is told to both, and at rest they must agree."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from anyio.lowlevel import checkpoint
from batch_model import FINAL, Batch, House
from engine_fixtures import RATE, Call, News, World
from engine_watch import Event, Row, Seen, ToldDatabase, WallClock, Watch
from model_terms import DELIVERABLE, NANOS_A_TOKEN, TOKENS, Answer, Disagreement, Now, Refused, Terms, agree
from play_views import model_view, plain_events, stored_days, stored_view
from played_world import PlayedWorld, Process, new_of, reply_of
from sqlalchemy import Connection
from storage_fixtures import rows_of

from orchestrator_service.domain.batch import BatchState
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import CallOutcome, CallPurpose, Usage
from orchestrator_service.engine.holds import HoldSweep
from orchestrator_service.engine.supervisor import FAILURES_MAX
from orchestrator_service.storage import batches, conversations, verbs
from orchestrator_service.storage.books import Doubt
from orchestrator_service.storage.claims import Claim, Claimed, NotClaimable, WaitForSettlement, claim
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.corrections import Correction, settle_by_person
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import Made, Settlement, settle_call
from orchestrator_service.storage.verbs import Settings
from orchestrator_service.storage.verify import findings
from orchestrator_service.storage.writer import Fact, StorageFailed, Transaction

# Longer than any pause between two tries of a runner that failed.
RUNNER_BACK_S = 61.0
DAY_S, MINUTE_S = 86_400.0, 60.0
DRAIN_S = 30.0
# At the end: so often everything is answered, first with daily budgets and then without.
ROUNDS_MAX, ROUNDS_WITH_BUDGETS = 60, 20
# Longer than any delay between two attempts.
PATIENCE_S = 200.0
UNREMEMBERED = Request(owner="", method="", request_id="", body_sha256="")
# Prompts are numbered over all batches: this many for each.
NUMBERS = 100
Action = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Intent:
    """What a person wants of a batch, said to the model."""

    apply: Callable[[], object] = field(repr=False)


@dataclass
class Play:
    world: PlayedWorld
    clock: WallClock
    # The database as another program reads it.
    file: sqlite3.Connection
    house: House = field(default_factory=House)
    # By call: given, and not settled yet.
    answers: dict[int, tuple[Answer, Now]] = field(default_factory=dict[int, tuple[Answer, Now]])
    # By batch: how often its runner came down in this process.
    crashes: Counter[str] = field(default_factory=Counter[str])
    crashing: str = ""
    locked: bool = False
    dead: bool = False
    # Whether any process so far had a limit on what its batches may do.
    limited: bool = False

    @property
    def now(self) -> Now:
        return Now(self.clock.now_us(), self.clock.now_s)

    # What happens.

    async def create(self, terms: Terms) -> None:
        name = f"b{self.world.tick()}"
        new = new_of(name, terms, first=NUMBERS * len(self.house.batches) + 1)
        await self.world.write(batches.prepare(new))
        await self.world.write(batches.add_rows(rows_of(new)))

        def apply() -> str:
            self.house.batches[name] = Batch(name, terms, self.house)
            return name

        await self._ask(name, batches.queue(name, UNREMEMBERED, now_us=self.now.us), apply)

    def answer(self, call: Call, answer: Answer) -> None:
        batch, number = self.where(call.number)
        journalled = batch.in_flight[number]
        journalled.answered = True
        self.answers[journalled.id] = (answer, self.now)
        call.answer(reply_of(answer))

    def answer_all(self, answers: Sequence[Answer]) -> None:
        """All in flight, in turn."""
        for call, answer in zip(self.in_flight(), cycle(answers), strict=False):
            self.answer(call, answer)

    def in_flight(self) -> list[Call]:
        """At the provider, and not answered yet."""
        return sorted([call for call in self.world.desk.calls if not call.reply.done()], key=lambda call: call.number)

    def lost(self, verb: str) -> list[tuple[Batch, int]]:
        """Calls whose outcome a person may tell, or a worker that was thought dead."""
        calls = [(batch, call) for batch in self.house.batches.values() for call in batch.calls.values()]
        if verb == "answer_late":
            return [(batch, call.id) for batch, call in calls if call.written_off]
        return [(batch, call.id) for batch, call in calls if call.state == "POSSIBLY_SPENT" or call.by_person]

    def where(self, number: int) -> tuple[Batch, int]:
        """The batch of a prompt, and its conversation there."""
        return list(self.house.batches.values())[number // NUMBERS], number % NUMBERS

    async def pause(self, batch: Batch) -> None:
        await self._ask(batch.name, verbs.pause(batch.name, etag="", now_us=self.now.us), batch.pause)

    async def resume(self, batch: Batch) -> None:
        fact = verbs.resume(batch.name, etag="", daily=self.world.daily, now_us=self.now.us)
        await self._ask(batch.name, fact, partial(batch.resume, self.now))

    async def cancel(self, batch: Batch) -> None:
        await self._ask(batch.name, verbs.cancel(batch.name, etag="", now_us=self.now.us), batch.cancel)

    async def retry(self, batch: Batch, which: Mapping[str, tuple[str, ...]]) -> None:
        fact = verbs.retry(batch.name, Which(**which), etag="", request=UNREMEMBERED, now_us=self.now.us)
        await self._ask(batch.name, fact, partial(batch.retry, **which))

    async def update(self, batch: Batch, fields: Mapping[str, Any]) -> None:
        columns = {"budget_nanos" if name == "budget" else name: value for name, value in fields.items()}
        fact = verbs.change(batch.name, Settings(fields=list(fields), **columns), etag="", now_us=self.now.us)
        await self._ask(batch.name, fact, partial(batch.update, fields, self.now))

    async def correct(self, batch: Batch, call: int, cost: int) -> None:
        told = Correction(batch=batch.name, call=call, cost_nanos=cost, by="bea", note="", now_us=self.now.us)
        await self._ask(
            batch.name, settle_by_person(told), partial(batch.settle_by_person, call, cost, "bea", self.now)
        )

    async def answer_late(self, batch: Batch, call: int, tokens: int) -> None:
        cost = tokens * NANOS_A_TOKEN
        settlement = Settlement(
            batch=batch.name,
            number=batch.calls[call].conversation,
            call=call,
            outcome=CallOutcome.ANSWERED,
            result=Made(turns=[("user", "Hi."), ("assistant", "Hello.")], checks=[], passed=True),
            usage=Usage(input_tokens=10, output_tokens=tokens),
            cost_nanos=cost,
            possibly_spent=False,
            raw="{}",
            now_us=self.now.us,
        )
        await self._ask(batch.name, settle_call(settlement), partial(batch.answer_late, call, cost, self.now))

    async def claim_late(self, batch: Batch) -> None:
        """A worker that was thought dead would go on: it is of an older epoch, and gets nothing."""
        if not batch.epoch:
            return
        wanted = Claim(
            batch=batch.name,
            number=min([row.number for row in batch.pending], default=1),
            epoch=batch.epoch - 1,
            prompt_sha256="",
            purpose=CallPurpose.GENERATE,
            max_tokens=TOKENS,
            reserve_nanos=TOKENS * NANOS_A_TOKEN,
            now_us=self.now.us,
        )
        await self._ask(batch.name, claim(wanted), NotClaimable)

    async def sweep(self) -> None:
        database = ToldDatabase.of(self.world.database, self.world.watch, "sweep")
        await HoldSweep(database, self.world.supervisor, daily=self.world.daily, clock=self.clock).sweep()
        await self.rest()
        due = [batch.name for batch in self.house.batches.values() if batch.is_due(self.now)]
        agree(not due, f"holds of {due} clear by themselves now, and were not")

    async def crash(self, call: Call) -> None:
        """A mistake of ours, in the middle of what follows an answer."""
        batch, _ = self.where(call.number)
        self.crashing = batch.name
        self.crashes[batch.name] += 1
        self.answer(call, Answer("MADE", 20))
        self.clock.is_broken = True
        await self.world.watch.quiet()
        agree(not self.clock.is_broken, "nobody looked at the clock")
        self.answers.clear()
        await self.pass_s(RUNNER_BACK_S)
        self.crashing = ""
        await self.rest()

    async def stop(self, answers: Sequence[Answer], process: Process) -> None:
        """As it is told to end: what is in flight is answered and kept, and the next process takes up the rest."""
        self.dead = True
        stopping = asyncio.ensure_future(self.world.supervisor.stop(drain_s=DRAIN_S))
        await self.world.watch.quiet()
        self.answer_all(answers)
        await stopping
        self.tell_model()
        agree(not self.answers and not self.in_flight(), "ended before what was in flight")
        await self.world.limiter.close()
        await self.begin_next(process)

    async def kill(self, process: Process, actions: Sequence[Action] = (), *, checkpoints: int = 0) -> None:
        """As a crash ends the process, in the middle of actions; then the next one, which may have other settings."""
        begun = [asyncio.ensure_future(action()) for action in actions]
        for _ in range(checkpoints):
            await checkpoint()
        self.dead = True
        await end_process(self.world)
        # What was on its way into the file arrives: that is a crash a moment later.
        await asyncio.gather(*begun)
        await self.world.write(lambda tx: None)
        await self.world.watch.quiet()
        self.tell_model()
        self.answers.clear()
        await self.begin_next(process)

    def begin(self, process: Process) -> None:
        self.house.owner_day, self.house.server_day = process.owner_day, process.server_day
        self.world.watch.day_limits = process.owner_day, process.server_day
        self.world.start(process)
        self.limited |= process != Process()

    async def begin_next(self, process: Process) -> None:
        self.dead = False
        self.crashes.clear()
        self.begin(process)
        await self.world.supervisor.start()
        await self.rest()

    async def lock(self, actions: Sequence[Action], *, seconds: float) -> None:
        """Another program has the database for a while."""
        self.locked = True
        async with self.world.locked():
            await self.burst(actions)
            await self.pass_s(seconds)
        await self.pass_s(2.0)
        self.locked = False
        await self.rest()

    async def burst(self, actions: Sequence[Action]) -> None:
        """All in the same breath."""
        await asyncio.gather(*[action() for action in actions])
        await self.rest()

    async def pass_s(self, seconds: float) -> None:
        """From one awakening to the next."""
        end_s = self.clock.now_s + seconds
        while True:
            await self.world.watch.quiet()
            self.tell_model()
            due_s = self.clock.now_s + min(self.clock.sleepers, default=seconds + 1)
            if due_s > end_s:
                break
            self.clock.step(max(0.0, due_s - self.clock.now_s))
        self.clock.step(end_s - self.clock.now_s)
        await self.rest()

    async def finish(self) -> None:
        """Whatever stands in the way is taken away, and every batch ends."""
        for round in range(ROUNDS_MAX):
            left = [batch for batch in self.house.batches.values() if batch.state not in FINAL]
            if not left:
                break
            if round == ROUNDS_WITH_BUDGETS:
                await self.kill(Process())
            for batch in left:
                if batch.holds:
                    await self.burst([partial(self.let_go, batch)])
            self.clock.jumped_s += DAY_S
            await self.sweep()
            self.answer_all([Answer("MADE", 20)])
            await self.pass_s(PATIENCE_S)
        states = {batch.name: batch.state for batch in self.house.batches.values()}
        agree(all(state in FINAL for state in states.values()), f"never ends: {states}")
        for batch in self.house.batches.values():
            await self._compare_deliveries(batch)
        wrong = await self.world.database.read(differences)
        agree(not wrong, f"parley verify finds {wrong}")

    async def let_go(self, batch: Batch) -> None:
        """Whatever stops it: its budget becomes what it needs, or it is resumed or made again."""
        hold = batch.holds.get("BUDGET")
        if hold is not None and hold.scope == "BATCH":
            await self.update(batch, {"budget": hold.needs})
        elif batch.state in FINAL:
            await self.retry(batch, {})
        else:
            await self.resume(batch)

    # What the model is told of it, and whether it agrees.

    async def rest(self) -> None:
        await self.world.watch.quiet()
        self.tell_model()
        if self.locked or self.crashing:
            return
        agree(not self.answers, f"answered, and not settled: {self.answers}")
        self._compare()

    def tell_model(self) -> None:
        for seen in self.world.watch.take():
            before = {name: len(batch.events) for name, batch in self.house.batches.items()}
            try:
                self._tell(seen)
            except (AssertionError, Refused) as wrong:
                raise Disagreement(f"{wrong!r} at {seen}") from wrong
            expected = [
                (name, *event)
                for name, batch in self.house.batches.items()
                for event in batch.events[before.get(name, 0) :]
            ]
            happened = plain_events(seen.events)
            agree(happened == expected, f"logged: {happened}, expected: {expected}, at {seen}")

    def _tell(self, seen: Seen) -> None:
        match seen:
            case Seen(intent=Intent(apply), result=result):
                _same(apply, result)
            case Seen(teller="sweep"):
                self.house.sweep(self.now)
            case Seen(teller="engine", result=Claimed(call), calls=[row]):
                agree(row["id"] == call, f"another call than {call}")
                self._claimed(row)
            case Seen(teller="engine", result=WaitForSettlement(scope), calls=[], events=[]):
                batch, number = seen.task.split("/")
                self.house.batches[batch].wait(int(number), scope, self.now)
            case Seen(teller="engine", result=NotClaimable(), calls=[], events=[]):
                pass
            case Seen(teller="engine", result=NotClaimable(), calls=[], events=[Event(batch, "hold_added", hold), *_]):
                model = self.house.batches[batch]
                at = Now(hold["created_us"], self.clock.now_s)
                model.hold_at_claim(hold["reason"], hold["scope"], hold["needs_nanos"] or 0, at)
            case Seen(teller="engine", result=BatchState(), calls=[row]):
                self._settled(row)
            case Seen(teller="engine", result=int()):
                self.house.recover()
            case Seen(teller="engine", result=None, events=[Event(batch, "hold_added", _), *_]):
                agree(self.crashes[batch] >= FAILURES_MAX, f"{batch} is held and did not fail so often")
                self.house.batches[batch].broke_down()
            case Seen(teller="engine", result=None):
                agree(bool(self.crashing), "recovered without a crash")
                self.house.batches[self.crashing].recover()
            case _:
                agree(not seen.calls and not seen.events, "nobody asked for it")

    def _claimed(self, row: Row) -> None:
        agree(row["state"] == "RESERVED", f"claimed as {row['state']}")
        agree(self.locked or row["created_us"] == self.now.us, "journalled at another time")
        at = Now(row["created_us"], self.clock.now_s)
        batch = self.house.batches[row["batch"]]
        batch.claim(row["id"], row["conversation"], purpose=row["purpose"], tokens=row["max_tokens"], now=at)

    def _settled(self, row: Row) -> None:
        agree(row["id"] in self.answers, "settled without an answer")
        answer, at = self.answers.pop(row["id"])
        self.house.batches[row["batch"]].settle(row["conversation"], answer, at)

    def _compare(self) -> None:
        for name, batch in self.house.batches.items():
            found = stored_view(self.file, name)
            expected = model_view(batch)
            wrong = {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}
            agree(not wrong, f"{name}, stored and expected: {wrong}")
            owed = batch.owed(self.now)
            agree(owed is None or self.world.limiter.waiting > 0, str(owed))
            agree(self.limited or not batch.out_of_turn(), f"{name}: {batch.out_of_turn()} were passed over")
        days = stored_days(self.file)
        agree(days == self.house.by_day(), f"days, stored and expected: {days}, {self.house.by_day()}")
        self._compare_desk()

    async def _compare_deliveries(self, batch: Batch) -> None:
        """Every conversation is delivered, or named with its reason."""
        query = partial(conversations.deliverable, batch=batch.name, which=Which(), after=0, size=NUMBERS)
        delivered = [row["number"] for row in await self.world.database.read(query)]
        left = [row for row in batch.rows.values() if row.review not in DELIVERABLE]
        agree(sorted([*delivered, *[row.number for row in left]]) == list(batch.rows), f"delivered: {delivered}")
        agree(all(row.review or row.failure or row.state == "CANCELLED" for row in left), f"not explained: {left}")

    def _compare_desk(self) -> None:
        """Each call was journalled before it was made, and nothing runs twice."""
        asked = [(call.number, call.request.max_tokens, call.request.stricter) for call in self.in_flight()]
        journalled = [
            (at * NUMBERS + call.conversation, call.reserve // NANOS_A_TOKEN, call.purpose == "REPAIR")
            for at, batch in enumerate(self.house.batches.values())
            for call in batch.in_flight.values()
        ]
        agree(asked == sorted(journalled), f"at the provider: {asked}, journalled: {journalled}")

    async def _ask(self, batch: str, fact: Fact[Any], apply: Callable[[], object]) -> None:
        """As the service does it: the fact, then the engine is woken."""
        database = self.world.database
        assert isinstance(database, ToldDatabase)
        try:
            await database.write(fact, Intent(apply))
        except StorageFailed:
            assert self.locked
            return
        except ParleyError:
            return
        if not self.dead:
            self.world.supervisor.ensure_running(batch)


async def end_process(world: World) -> None:
    runners = [task for task in asyncio.all_tasks() if task.get_name().startswith("runner ")]
    for runner in runners:
        runner.cancel()
    await asyncio.gather(*runners, return_exceptions=True)
    await world.limiter.close()


@asynccontextmanager
async def playing(database: Database, path: Path, process: Process) -> AsyncGenerator[Play]:
    """A play on an empty database, which is left empty."""
    news, watch = News(), Watch()
    clock = WallClock(news)
    told = ToldDatabase.of(database, watch, "person")
    file = sqlite3.connect(path, isolation_level=None)
    play = Play(PlayedWorld(told, path, news=news, clock=clock, watch=watch), clock, file)
    play.begin(process)
    try:
        yield play
    finally:
        await end_process(play.world)
        await watch.quiet()
        file.close()
        await database.write(_empty)


def _empty(tx: Transaction) -> None:
    for table in ("answers", "calls", "daily_spend", "batches"):
        tx.connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608  our own text


def differences(connection: Connection) -> list[str]:
    """What `parley verify` finds, but for prices, which are not kept here."""
    found = findings(connection, rate_of=lambda stored: RATE)
    return [str(one) for one in found if not isinstance(one, Doubt)]


def _same(apply: Callable[[], object], result: object) -> None:
    try:
        expected = apply()
    except Refused as refused:
        agree(isinstance(result, ParleyError) and result.reason == str(refused), f"{refused} and not {result!r}")
        return
    agree(result == expected, f"{expected} and not {result!r}")
