"""One batch: claims what is pending, generates, settles; as many at a time as its concurrency, never in waves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import structlog

from orchestrator_service.domain.batch import ACTIVE, BatchState, HoldReason
from orchestrator_service.domain.budget import BudgetScope, DailyBudgets, WaitForSettlement
from orchestrator_service.domain.ledger import Rate
from orchestrator_service.domain.retry import FailureKind, Policy
from orchestrator_service.engine.bell import Bell
from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.conversations import Attempts, Judged, Terms, bare, judge, unjudged
from orchestrator_service.engine.experience import Experience
from orchestrator_service.engine.limiter import Limiter, Refusal, RefusalKind, Ticket, Wanted
from orchestrator_service.generation.claude import CallFailure, Reply, Request
from orchestrator_service.generation.planning import Planned
from orchestrator_service.storage import batches, conversations
from orchestrator_service.storage.batches import Snapshot
from orchestrator_service.storage.budgets import NO_LIMITS
from orchestrator_service.storage.claims import Claim, Claimed, NotClaimable, claim
from orchestrator_service.storage.conversations import Waiting
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.settlements import settle_call
from orchestrator_service.storage.transitions import NewHold
from orchestrator_service.storage.verbs import hold_batch
from orchestrator_service.storage.writer import StorageDamaged, StorageFailed

PAGE = 256
FROM_THE_START = -1
STORAGE_RETRY_S = 1.0
# What tells the limiter to be slower, in its words.
REFUSALS: Mapping[FailureKind, RefusalKind] = {
    FailureKind.RATE_LIMITED: "rate",
    FailureKind.OVERLOADED: "overload",
}

log = structlog.get_logger()
T = TypeVar("T")


class Provider(Protocol):
    """The call seam: one request out, one reply back; it raises nothing but CancelledError."""

    async def send(self, request: Request) -> Reply: ...

    async def count_tokens(self, request: Request) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every runner works with."""

    database: Database
    provider: Provider
    # Where the provider is; a batch that was started elsewhere is held.
    base_url: str
    limiter: Limiter
    experience: Experience
    # Of a day, for an owner and for this server.
    daily: DailyBudgets
    # Rung at every settlement of any batch: what waits for a day's budget looks again.
    settled: Bell
    # Rung when a batch has nothing under way any more: it ended, or is held.
    rested: Bell = field(default_factory=Bell)
    clock: Clock
    # A number in [0, 1).
    rng: Callable[[], float]
    # Spec bytes, as stored, to a plan; seconds of CPU at most, so it is run in a thread.
    plan: Callable[[bytes], Planned]
    rate: Callable[[str | None], Rate | None]


class Runner:
    """Runs until the batch has no work left, is held with nothing in flight, or is told to stop."""

    def __init__(self, batch: str, tools: Tools) -> None:
        self.batch = batch
        self._tools = tools
        self._woken = asyncio.Event()
        self._settled = Bell()
        self._changed = True
        self._stopping = False
        self._halted = False
        # Conversations that are not settled yet, and those of them that take up concurrency.
        self._at_work: set[int] = set()
        self._slots: set[int] = set()
        # Calls from claim to answer, and how many there may be now.
        self._calls = 0
        self._calls_max = 0
        # What waits for the limiter or between attempts: ended at once by a hold.
        self._waits: set[asyncio.Future[object]] = set()
        self._page: deque[Waiting] = deque()
        self._place = FROM_THE_START

    @property
    def has_news(self) -> bool:
        """Whether it was woken since it last looked."""
        return self._changed

    def wake(self) -> None:
        """Settings, holds or rows of the batch changed: look again."""
        self._changed = True
        self._woken.set()

    def stop(self) -> None:
        """Starts nothing more; what is in flight ends and is settled."""
        self._stopping = True
        self._halt()
        self._woken.set()

    async def run(self) -> None:
        snapshot = await self._snapshot()
        if snapshot is None or snapshot.state not in ACTIVE:
            return
        if snapshot.row["base_url"] != self._tools.base_url:
            # Another provider is another price and another promise: a person must say yes.
            moved = NewHold(HoldReason.CREDENTIALS, _moved_message(snapshot.row["base_url"], self._tools.base_url))
            fact = hold_batch(self.batch, moved, now_us=self._tools.clock.now_us())
            await self._patiently(partial(self._tools.database.write, fact))
            return
        planned = await self._planned()
        terms = self._terms(snapshot, planned)
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                if self._changed:
                    snapshot = await self._snapshot() or snapshot
                    terms = self._terms(snapshot, planned)
                    # Budget or concurrency may be others: whoever waits for one of them asks again.
                    self._settled.ring()
                self._calls_max = snapshot.row["concurrency"]
                if not await self._fill(group, snapshot, terms, planned) and not self._at_work:
                    break
                await self._woken.wait()

    async def _fill(self, group: asyncio.TaskGroup, snapshot: Snapshot, terms: Terms, planned: Planned) -> bool:
        """Starts conversations up to the concurrency. False where nothing can be started now."""
        if self._stopping or snapshot.state not in (BatchState.QUEUED, BatchState.RUNNING):
            self._halt()
            return self._changed
        self._halted = False
        while len(self._slots) < snapshot.row["concurrency"]:
            waiting = await self._next()
            # Told to stop meanwhile: what is started now would end at once, be found again, and so on without end.
            if waiting is None or self._stopping:
                return self._changed
            self._at_work.add(waiting.number)
            self._slots.add(waiting.number)
            group.create_task(self._converse(waiting.number, terms, planned), name=f"{self.batch}/{waiting.number}")
        return True

    async def _next(self) -> Waiting | None:
        """The next that waits for its turn, in the order of claims; None when all are made or under way."""
        while True:
            while self._page:
                waiting = self._page.popleft()
                if waiting.number not in self._at_work:
                    return waiting
            query = partial(conversations.pending, batch=self.batch, place=self._place, limit=PAGE)
            found = await self._patiently(partial(self._tools.database.read, query))
            if found:
                self._page.extend(found)
                self._place = found[-1].place
            elif self._at_work or self._place == FROM_THE_START:
                return None
            else:
                # Nothing is under way, so whatever still waits was left behind: look once more.
                self._place = FROM_THE_START

    async def _converse(self, number: int, terms: Terms, planned: Planned) -> None:
        try:
            item = planned.item(number)
            attempts = Attempts(item=item, filled=planned.prompts.render(item))
            delay_s: float | None = 0.0
            while delay_s is not None:
                ticket = await self._turn(attempts, terms, delay_s=delay_s)
                if ticket is None:
                    # Left PENDING by a hold, which may be gone again: it must be found again.
                    self.wake()
                    return
                try:
                    delay_s = await self._attempt(attempts, terms, ticket)
                finally:
                    # Settled before, unless this was broken off: nothing must count as in flight for ever.
                    ticket.give_back()
        finally:
            self._at_work.discard(number)
            self._free(number)

    def _free(self, number: int) -> None:
        self._slots.discard(number)
        self._woken.set()

    async def _turn(self, attempts: Attempts, terms: Terms, *, delay_s: float) -> Ticket | None:
        """Waits between attempts and for the rate limit; None where a hold came first."""
        if not await self._pause(delay_s):
            return None
        if terms.counted and attempts.counted_tokens is None:
            # Asked while nothing of the call is reserved yet; it costs nothing.
            attempts.counted_tokens = await self._tools.provider.count_tokens(attempts.request(terms))
        return await self._granted(self._wanted(attempts, terms))

    async def _attempt(self, attempts: Attempts, terms: Terms, ticket: Ticket) -> float | None:
        """One call. How long to wait before the next attempt; None where there is none here."""
        # Taken before the claim: a settlement that is committed right behind it must not be missed.
        settled = {BudgetScope.BATCH: self._settled.next()}
        of_any = self._tools.settled.next()
        if self._calls >= self._calls_max:
            # Lowered while this one kept its place and waited.
            ticket.give_back()
            await self._unless_halted(_set(settled[BudgetScope.BATCH]))
            return 0.0
        self._calls += 1
        claimed = await self._claim(attempts, terms)
        if not isinstance(claimed, Claimed):
            self._calls -= 1
            # Those who wait for the budget ask again at every settlement; other batches need the places.
            ticket.give_back()
        if isinstance(claimed, NotClaimable):
            self.wake()
            return None
        if isinstance(claimed, WaitForSettlement):
            # A day's budget is shared with other batches.
            await self._unless_halted(_set(settled.get(claimed.scope, of_any)))
            return 0.0
        reply = await self._send(attempts.request(terms, speed=self._tools.experience.speed(terms.model)))
        self._learn(reply, attempts, terms, ticket)
        judged = self._judged(reply, attempts, terms, claimed)
        self._calls -= 1
        if judged.retry_after_s is None:
            # The next one's claim is queued right behind this settlement, which guards it: one commit for both.
            self._free(attempts.item.number)
        state = await self._settle(judged)
        self._settled.ring()
        self._tools.settled.ring()
        if state is not BatchState.RUNNING:
            self.wake()
        return judged.retry_after_s

    def _wanted(self, attempts: Attempts, terms: Terms) -> Wanted:
        experience, counted = self._tools.experience, attempts.counted_tokens
        return Wanted(
            model=terms.model,
            owner=terms.owner,
            batch=self.batch,
            priority=terms.priority,
            input_tokens=counted or experience.input_tokens(terms.model, attempts.characters),
            output_tokens=min(attempts.max_tokens, experience.output_tokens(terms.model, attempts.item.tier.id)),
        )

    def _learn(self, reply: Reply, attempts: Attempts, terms: Terms, ticket: Ticket) -> None:
        """The limiter takes the truth for its estimate; the next deadlines and estimates follow from it."""
        usage, failure = reply.usage, reply.failure
        refusal = None
        if failure is not None and failure.kind in REFUSALS:
            refusal = Refusal(REFUSALS[failure.kind], failure.server_delay_s)
        # What was refused or never sent used nothing; of what was lost on its way nobody knows.
        unused = 0 if failure is not None and not failure.possibly_paid else None
        ticket.settle(
            input_tokens=unused if usage is None else usage.prompt_tokens - usage.cache_read_tokens,
            output_tokens=unused if usage is None else usage.output_tokens,
            limits=reply.limits,
            refusal=refusal,
        )
        experience = self._tools.experience
        if failure is not None and failure.kind is FailureKind.TIMEOUT:
            experience.timed_out(terms.model)
        if usage is not None and failure is None:
            real_s = reply.duration_s * terms.policy.speed_up
            tier = attempts.item.tier.id
            experience.answered(terms.model, tier, characters=attempts.characters, usage=usage, real_s=real_s)

    async def _send(self, request: Request) -> Reply:
        try:
            return await self._tools.provider.send(request)
        except Exception as error:
            # The seam promises to raise nothing: where it does, the others in flight must not go down with it.
            log.error("provider seam failed", batch=self.batch, exc_info=error)
            failure = CallFailure(kind=FailureKind.SERVER_ERROR, message=type(error).__name__, possibly_paid=True)
            return Reply(failure=failure)

    async def _settle(self, judged: Judged) -> BatchState:
        write = self._tools.database.write
        try:
            return await self._patiently(partial(write, settle_call(judged.settlement)))
        except Exception as error:
            # The database is well and refuses this fact: what was paid is written down without what may be at fault.
            log.error("answer not stored", batch=self.batch, call=judged.settlement.call, exc_info=error)
            return await self._patiently(partial(write, settle_call(bare(judged.settlement))))

    def _judged(self, reply: Reply, attempts: Attempts, terms: Terms, claimed: Claimed) -> Judged:
        now_us = self._tools.clock.now_us()
        try:
            return judge(
                reply, attempts, terms, call=claimed.call, tries=claimed.tries, now_us=now_us, rng=self._tools.rng
            )
        except Exception as error:
            log.error("answer not judged", batch=self.batch, call=claimed.call, exc_info=error)
            return unjudged(reply, attempts, terms, call=claimed.call, now_us=now_us)

    async def _claim(self, attempts: Attempts, terms: Terms) -> Claimed | NotClaimable | WaitForSettlement:
        wanted = Claim(
            batch=self.batch,
            number=attempts.item.number,
            epoch=terms.epoch,
            prompt_sha256=attempts.filled.sha256,
            prompt_characters=attempts.characters,
            purpose=attempts.purpose,
            max_tokens=attempts.max_tokens,
            reserve_nanos=attempts.reserve_nanos(terms),
            daily=self._tools.daily,
            now_us=self._tools.clock.now_us(),
        )
        return await self._claimed(wanted)

    async def _claimed(self, wanted: Claim) -> Claimed | NotClaimable | WaitForSettlement:
        """Nothing is paid yet: a claim does not wait for a damaged database, nor beyond the end of the process."""
        while True:
            try:
                return await self._tools.database.write(claim(wanted))
            except StorageDamaged as error:
                await self._hold_damaged(error)
                return NotClaimable()
            except StorageFailed as error:
                log.error("database refuses, trying again", batch=self.batch, error=str(error))
                if not await self._unless_halted(self._tools.clock.sleep_s(STORAGE_RETRY_S)):
                    return NotClaimable()

    async def _hold_damaged(self, error: StorageDamaged) -> None:
        """A person must repair the file; the batch says so where the damage leaves room for it."""
        hold = NewHold(HoldReason.TOO_MANY_FAILURES, str(error))
        try:
            await self._tools.database.write(hold_batch(self.batch, hold, now_us=self._tools.clock.now_us()))
        except StorageFailed as again:
            log.error("hold not stored", batch=self.batch, error=str(again))
            await self._unless_halted(self._tools.clock.sleep_s(STORAGE_RETRY_S))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """While the database refuses, what is in flight goes on, and a paid answer is kept here and tried again."""
        while True:
            try:
                return await attempt()
            except StorageFailed as error:
                log.error("database refuses, trying again", batch=self.batch, error=str(error))
                await self._tools.clock.sleep_s(STORAGE_RETRY_S)

    async def _pause(self, delay_s: float) -> bool:
        """Waits between two attempts; False where a hold came first."""
        return not self._halted if delay_s == 0 else await self._unless_halted(self._tools.clock.sleep_s(delay_s))

    async def _granted(self, wanted: Wanted) -> Ticket | None:
        """A place in the limits that all batches share; None where a hold came first."""
        if self._halted:
            return None
        ticket = self._tools.limiter.try_acquire(wanted)
        if ticket is not None:
            return ticket
        waiting = asyncio.ensure_future(self._tools.limiter.acquire(wanted))
        if await self._unless_halted(waiting):
            return waiting.result()
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            # Granted in the moment of the hold.
            waiting.result().give_back()
        return None

    async def _unless_halted(self, awaitable: Awaitable[object]) -> bool:
        """Waits; False where the wait was ended by a hold."""
        wait = asyncio.ensure_future(awaitable)
        if self._halted:
            wait.cancel()
        self._waits.add(wait)
        try:
            await asyncio.wait([wait])
        finally:
            self._waits.discard(wait)
            wait.cancel()
        if wait.cancelled() or self._halted:
            return False
        # What went wrong in the wait goes wrong here.
        wait.result()
        return True

    def _halt(self) -> None:
        self._halted = True
        for wait in self._waits:
            wait.cancel()

    async def _snapshot(self) -> Snapshot | None:
        self._changed = False
        # What was put back, or left between two attempts, is found again from the start.
        self._page.clear()
        self._place = FROM_THE_START
        return await self._patiently(partial(self._tools.database.read, partial(batches.get, batch=self.batch)))

    async def _planned(self) -> Planned:
        stored = await self._tools.database.read(lambda connection: batches.spec_bytes(connection, self.batch))
        assert stored is not None, f"{self.batch} is active and has no spec"
        return await asyncio.to_thread(self._tools.plan, stored)

    def _terms(self, snapshot: Snapshot, planned: Planned) -> Terms:
        row = snapshot.row
        rate = self._tools.rate(row["rate"])
        return Terms(
            batch=self.batch,
            owner=row["owner"],
            epoch=row["epoch"],
            spec=planned.spec,
            model=row["model"],
            rate=rate,
            policy=Policy(max_attempts=planned.spec.max_attempts, speed_up=row["speed_up"]),
            priority=row["priority"],
            stop_on_error=row["stop_on_error"],
            counted=rate is not None and (row["budget_nanos"] is not None or self._tools.daily != NO_LIMITS),
        )


def _moved_message(before: str, now: str) -> str:
    return f"The batch was started at {before}; this server makes conversations at {now}. Resume goes on at {now}."


async def _set(event: asyncio.Event) -> None:
    await event.wait()
