"""One budget of requests a minute for all batches: never more in any window, the highest priority first."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass
from typing import Literal

from orchestrator_service.engine.clock import Clock
from orchestrator_service.generation.calls import Limits

STEP_S = 1.0

RefusalKind = Literal["rate", "overload"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    model: str
    owner: str
    batch: str
    priority: int
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class Refusal:
    kind: RefusalKind
    delay_s: float | None


class Ticket:
    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def give_back(self) -> None:
        self._limiter.give_back()

    def settle(
        self,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        limits: Limits | None,
        refusal: Refusal | None = None,
    ) -> None:
        return


class Limiter:
    """Counts the requests of the last window. Waiting is cancellable; among equals who came first goes first."""

    def __init__(self, *, requests_per_minute: int | None, window_s: float = 60.0, clock: Clock) -> None:
        self._requests = requests_per_minute or 50
        self._window_s = window_s
        self._clock = clock
        self._granted: deque[float] = deque()
        # (minus priority, arrival, who waits)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0
        self._granting: asyncio.Task[None] | None = None

    def rescale(self, *, window_s: float) -> None:
        """A sandbox that runs faster has shorter minutes."""
        self._window_s = window_s

    def wait_s(self, batch: str) -> float | None:
        return None

    def try_acquire(self, wanted: Wanted) -> Ticket | None:
        """Takes a request at once, where nobody waits and the window has room."""
        if self._waiting or self._wait_s() > 0:
            return None
        self._granted.append(self._clock.monotonic_s())
        return Ticket(self)

    def give_back(self) -> None:
        """A request that was granted and is not made: its place is free again."""
        if self._granted:
            self._granted.pop()

    async def acquire(self, wanted: Wanted) -> Ticket:
        if self.try_acquire(wanted):
            return Ticket(self)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (-wanted.priority, self._arrivals, turn))
        if self._granting is None or self._granting.done():
            self._granting = asyncio.create_task(self._grant())
        await turn
        return Ticket(self)

    async def close(self) -> None:
        if self._granting is not None:
            self._granting.cancel()
            await asyncio.gather(self._granting, return_exceptions=True)

    async def _grant(self) -> None:
        while self._waiting:
            delay_s = self._wait_s()
            if delay_s > 0:
                # In steps, for the window may be rescaled meanwhile.
                await self._clock.sleep_s(min(delay_s, STEP_S))
                continue
            _priority, _arrival, turn = heapq.heappop(self._waiting)
            # A waiter that was cancelled takes nothing.
            if not turn.done():
                self._granted.append(self._clock.monotonic_s())
                turn.set_result(None)

    def _wait_s(self) -> float:
        """Time until the oldest request that counts leaves the window; 0 where there is room."""
        now_s = self._clock.monotonic_s()
        while self._granted and self._granted[0] <= now_s - self._window_s:
            self._granted.popleft()
        if len(self._granted) < self._requests:
            return 0.0
        # Smaller limits may follow larger ones: the request that must leave is counted from the end.
        return self._granted[len(self._granted) - self._requests] + self._window_s - now_s
