"""One budget of requests and tokens a minute for all batches of a process: who waits, whose turn it is, how long."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from orchestrator_service.domain.fair_queue import WEIGHTS, FairQueue, Place
from orchestrator_service.domain.rate_limit import Amounts, Grant, PerMinute, RateLimit, Refusal, Told
from orchestrator_service.domain.throttle import RefusalKind
from orchestrator_service.engine.clock import Clock
from orchestrator_service.generation.calls import Limits

__all__ = ["Limiter", "PerMinute", "Refusal", "RefusalKind", "Ticket", "Wanted"]

MINUTE_S = 60.0
# One looks again at least so often, for limits are raised as time goes by, and at most so often, as timers can.
STEP_S = 1.0
TICK_S = 0.001
# Models in use at once; beyond it those that nothing is under way for are forgotten.
ACCOUNTS_MAX = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One call that is about to be made; tokens as far as they can be told before."""

    model: str
    owner: str
    batch: str
    # 1 is low, 2 normal, 3 high.
    priority: int
    input_tokens: float
    output_tokens: float

    @property
    def amounts(self) -> Amounts:
        return 1.0, self.input_tokens, self.output_tokens


class Ticket:
    """Leave to make one call. Settled by its reply, or given back; whichever is first counts."""

    __slots__ = ("_account", "_grant", "_is_open", "_limiter")

    def __init__(self, limiter: Limiter, account: _Account, grant: Grant) -> None:
        self._limiter = limiter
        self._account = account
        self._grant = grant
        self._is_open = True
        account.under_way += 1

    def give_back(self) -> None:
        """The call is not made."""
        if self._close():
            self._account.limit.give_back(self._grant)
            self._limiter.nudge(self._account)

    def settle(
        self,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        limits: Limits | None,
        refusal: Refusal | None = None,
    ) -> None:
        """The call came back. Tokens: what the provider counts (input without what the cache gave); None: unknown."""
        if self._close():
            self._account.limit.settle(
                self._grant,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                told=limits and _told(limits),
                refusal=refusal,
                now_s=self._limiter.now_s(),
            )
            self._limiter.nudge(self._account)

    def _close(self) -> bool:
        was_open, self._is_open = self._is_open, False
        self._account.under_way -= was_open
        return was_open


@dataclass(slots=True)
class _Account:
    """A model, for a process has one key."""

    limit: RateLimit
    queue: FairQueue[asyncio.Future[Ticket]] = field(default_factory=FairQueue)  # pyright: ignore[reportUnknownVariableType]
    # Tickets that are neither settled nor given back.
    under_way: int = 0


class Limiter:
    """`requests_per_minute` is the operator's own limit; without it the provider's announcements are learned.

    Waiting is cancellable. State is a few numbers a bucket and a row a waiter, so a database could hold it.
    """

    def __init__(self, *, clock: Clock, requests_per_minute: int | None, window_s: float = MINUTE_S) -> None:
        self._clock = clock
        self._requests_per_minute = requests_per_minute
        self._speed_up = MINUTE_S / window_s
        self._accounts: dict[str, _Account] = {}
        self._granting: asyncio.Task[None] | None = None
        self._sleep: asyncio.Task[None] | None = None
        # When the granting task looks again, at the latest.
        self._due_s = math.inf
        self._is_closed = False

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def rescale(self, *, window_s: float) -> None:
        """A sandbox that runs faster has shorter minutes; what it announces of its limits is already by our clock."""
        self._speed_up = MINUTE_S / window_s
        for account in self._accounts.values():
            account.limit.rescale(speed_up=self._speed_up, now_s=self.now_s())
            self.nudge(account)

    def learn(self, model: str, limits: Limits) -> None:
        """What the provider told just now beside a call that cost nothing."""
        account = self._account(model)
        account.limit.learn(_told(limits), self.now_s())
        self.nudge(account)

    def limits(self, model: str) -> PerMinute:
        """In force now, in real minutes; without what refusals took off for a while."""
        return self._account(model).limit.per_minute()

    def try_acquire(self, wanted: Wanted) -> Ticket | None:
        """At once, where nobody waits and there is enough."""
        account = self._accounts.get(wanted.model) or self._account(wanted.model)
        if account.queue:
            return None
        grant = account.limit.take(wanted.amounts, self._clock.monotonic_s())
        return grant and Ticket(self, account, grant)

    async def acquire(self, wanted: Wanted) -> Ticket:
        ticket = self.try_acquire(wanted)
        if ticket is not None:
            return ticket
        account = self._account(wanted.model)
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        place = account.queue.push(
            owner=wanted.owner,
            batch=wanted.batch,
            weight=WEIGHTS[wanted.priority],
            amounts=wanted.amounts,
            cost=account.limit.share_of(wanted.amounts),
            who=turn,
        )
        self.nudge(account)
        try:
            return await turn
        except asyncio.CancelledError:
            self._left(account, place)
            raise

    def wait_s(self, batch: str) -> float | None:
        """About how long until the batch's first that waits is let through; None where none waits."""
        now_s, waits = self.now_s(), list[float]()
        for account in self._accounts.values():
            place = account.queue.ahead(batch, cost=account.limit.share_of)
            if place is not None:
                ahead, own = place
                waits.append(account.limit.wait_s(own, now_s, ahead=ahead))
        return min(waits, default=None)

    def nudge(self, account: _Account) -> None:
        """Something changed: the next may have its turn earlier than the granting task expects."""
        place = account.queue.head()
        if place is None or self._is_closed:
            return
        now_s = self.now_s()
        if now_s + account.limit.wait_s(place.amounts, now_s) < self._due_s - TICK_S:
            self._wake()

    async def close(self) -> None:
        """Lets nobody in any more."""
        self._is_closed = True
        tasks = [task for task in (self._granting, self._sleep) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _account(self, model: str) -> _Account:
        known = self._accounts.get(model)
        if known is not None:
            return known
        if len(self._accounts) >= ACCOUNTS_MAX:
            self._accounts = {name: one for name, one in self._accounts.items() if one.queue or one.under_way}
        limit = RateLimit(
            requests_per_minute=self._requests_per_minute, speed_up=self._speed_up, now_s=self._clock.monotonic_s()
        )
        account = self._accounts[model] = _Account(limit)
        return account

    def _left(self, account: _Account, place: Place[asyncio.Future[Ticket]]) -> None:
        turn = place.who
        if turn.done() and not turn.cancelled():
            # Let through in the moment of its leaving.
            turn.result().give_back()
            return
        account.queue.leave(place)
        self.nudge(account)

    def _wake(self) -> None:
        if self._granting is None or self._granting.done():
            self._granting = asyncio.create_task(self._grant())
        elif self._sleep is not None:
            self._sleep.cancel()

    async def _grant(self) -> None:
        while (wait_s := self._let_in()) is not None:
            wait_s = min(max(wait_s, TICK_S), STEP_S)
            self._due_s = self.now_s() + wait_s
            self._sleep = asyncio.create_task(self._clock.sleep_s(wait_s))
            # Woken by cancelling it.
            await asyncio.wait([self._sleep])
        self._due_s = math.inf

    def _let_in(self) -> float | None:
        """How long until the next has its turn; None where nobody waits."""
        waits = [self._let_in_account(account) for account in self._accounts.values()]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _let_in_account(self, account: _Account) -> float | None:
        queue, limit = account.queue, account.limit
        while (place := queue.head()) is not None:
            if place.who.done():
                # Cancelled, and did not get to say so yet.
                queue.leave(place)
                continue
            now_s = self.now_s()
            grant = limit.take(place.amounts, now_s)
            if grant is None:
                return limit.wait_s(place.amounts, now_s)
            queue.let_through(place, cost=limit.share_of(place.amounts))
            place.who.set_result(Ticket(self, account, grant))
        return None


def _told(limits: Limits) -> Told:
    return (
        (limits.requests, limits.requests_remaining),
        (limits.input_tokens, limits.input_tokens_remaining),
        (limits.output_tokens, limits.output_tokens_remaining),
    )
