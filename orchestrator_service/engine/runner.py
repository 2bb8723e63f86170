"""One batch: claims what is pending, generates, settles; as many at a time as its concurrency, never in waves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog

from orchestrator_service.domain.batch import ACTIVE, BatchState, HoldReason
from orchestrator_service.domain.ledger import CallPurpose, Rate
from orchestrator_service.domain.retry import FailureKind, Policy
from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.conversations import Attempts, Judged, Terms, bare, judge, unjudged
from orchestrator_service.engine.limiter import Limiter
from orchestrator_service.generation.claude import CallFailure, Reply, Request
from orchestrator_service.generation.planning import Planned
from orchestrator_service.storage import batches, conversations
from orchestrator_service.storage.batches import Snapshot
from orchestrator_service.storage.claims import Claim, Claimed, NotClaimable, WaitForSettlement, claim
from orchestrator_service.storage.conversations import Waiting
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.settlements import settle_call
from orchestrator_service.storage.transitions import NewHold
from orchestrator_service.storage.verbs import hold_batch
from orchestrator_service.storage.writer import StorageFailed

PAGE = 256
FROM_THE_START = -1
STORAGE_RETRY_S = 1.0

log = structlog.get_logger()
T = TypeVar("T")


class Provider(Protocol):
    """The call seam: one request out, one reply back; it raises nothing but CancelledError."""

    async def send(self, request: Request) -> Reply: ...


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every runner works with."""

    database: Database
    provider: Provider
    # Where the provider is; a batch that was started elsewhere is held.
    base_url: str
    limiter: Limiter
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
        self._settled = asyncio.Event()
        self._changed = True
        self._stopping = False
        self._halted = False
        # Conversations that are not settled yet, and those of them that take up concurrency.
        self._at_work: set[int] = set()
        self._slots: set[int] = set()
        # What waits for the limiter or between attempts: ended at once by a hold.
        self._waits: set[asyncio.Future[None]] = set()
        self._waiting_for_limit = 0
        self._page: deque[Waiting] = deque()
        self._place = FROM_THE_START

    @property
    def waits_for_limit(self) -> bool:
        return self._waiting_for_limit > 0

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
                if not await self._pause(delay_s) or not await self._granted(priority=terms.priority):
                    # Left PENDING by a hold, which may be gone again: it must be found again.
                    self.wake()
                    return
                delay_s = await self._attempt(attempts, terms)
        finally:
            self._at_work.discard(number)
            self._free(number)

    def _free(self, number: int) -> None:
        self._slots.discard(number)
        self._woken.set()

    async def _attempt(self, attempts: Attempts, terms: Terms) -> float | None:
        """One call. How long to wait before the next attempt; None where there is none here."""
        # Taken before the claim: a settlement that is committed right behind it must not be missed.
        settled = self._settled
        claimed = await self._claim(attempts, terms)
        if not isinstance(claimed, Claimed):
            # Those who wait for the budget ask again at every settlement; other batches need the places.
            self._tools.limiter.give_back()
        if isinstance(claimed, NotClaimable):
            self.wake()
            return None
        if isinstance(claimed, WaitForSettlement):
            await self._unless_halted(_set(settled))
            return 0.0
        reply = await self._send(attempts.request(terms))
        judged = self._judged(reply, attempts, terms, claimed)
        if judged.retry_after_s is None:
            # The next one's claim is queued right behind this settlement, which guards it: one commit for both.
            self._free(attempts.item.number)
        state = await self._settle(judged)
        self._settled.set()
        self._settled = asyncio.Event()
        if state is not BatchState.RUNNING:
            self.wake()
        return judged.retry_after_s

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
            purpose=CallPurpose.GENERATE,
            max_tokens=attempts.max_tokens,
            reserve_nanos=attempts.reserve_nanos(terms),
            now_us=self._tools.clock.now_us(),
        )
        return await self._patiently(partial(self._tools.database.write, claim(wanted)))

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

    async def _granted(self, *, priority: int) -> bool:
        """A place in the limit of requests; False where a hold came first."""
        if self._halted:
            return False
        if self._tools.limiter.try_acquire():
            return True
        self._waiting_for_limit += 1
        try:
            return await self._unless_halted(self._tools.limiter.acquire(priority=priority))
        finally:
            self._waiting_for_limit -= 1

    async def _unless_halted(self, awaitable: Awaitable[None]) -> bool:
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
        return Terms(
            batch=self.batch,
            epoch=row["epoch"],
            spec=planned.spec,
            model=row["model"],
            rate=self._tools.rate(row["rate"]),
            policy=Policy(max_attempts=planned.spec.max_attempts, speed_up=row["speed_up"]),
            priority=row["priority"],
            stop_on_error=row["stop_on_error"],
        )


def _moved_message(before: str, now: str) -> str:
    return f"The batch was started at {before}; this server makes conversations at {now}. Resume goes on at {now}."


async def _set(event: asyncio.Event) -> None:
    await event.wait()
