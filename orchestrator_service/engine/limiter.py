"""One budget of requests a minute for all batches: never more in any window, the highest priority first."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque

from orchestrator_service.engine.clock import Clock

STEP_S = 1.0


class Limiter:
    """Counts the requests of the last window. Waiting is cancellable; among equals who came first goes first."""

    def __init__(self, *, requests: int, window_s: float, clock: Clock) -> None:
        self._requests = requests
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

    def try_acquire(self) -> bool:
        """Takes a request at once, where nobody waits and the window has room."""
        if self._waiting or self._wait_s() > 0:
            return False
        self._granted.append(self._clock.monotonic_s())
        return True

    def give_back(self) -> None:
        """A request that was granted and is not made: its place is free again."""
        if self._granted:
            self._granted.pop()

    async def acquire(self, *, priority: int) -> None:
        if self.try_acquire():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (-priority, self._arrivals, turn))
        if self._granting is None or self._granting.done():
            self._granting = asyncio.create_task(self._grant())
        await turn

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
