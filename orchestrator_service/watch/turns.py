"""Turns: streams wait here between two messages, and one task wakes each when its time has come.

A timer for each stream would cost more than its message; a thousand woken at once would hold up everybody else.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from typing import Protocol

from orchestrator_service.engine.clock import Clock

# Woken at a time; then what else is ready has its turn: calls, commits, answers.
TOGETHER = 32
# Streams whose times are nearer to each other than this are woken together.
STEP_S = 0.005
NEVER_S = float("inf")


class Listener(Protocol):
    """A stream between two messages."""

    # When it got its last message.
    heard_s: float

    def due_s(self) -> float:
        """When it is to be woken, as things stand."""
        ...


class Turns:
    def __init__(self, clock: Clock, look: Callable[[], Awaitable[float]]) -> None:
        """`look` finds out what is new before anybody is woken for it; its answer is when it wants to look again."""
        self._clock = clock
        self._look = look
        self._waiting: dict[Listener, asyncio.Future[None]] = {}
        # (time, arrival, who); an entry counts while its listener waits for the same turn.
        self._times: list[tuple[float, int, Listener, asyncio.Future[None]]] = []
        self._arrivals = 0
        self._is_stale = False
        self._stirred = asyncio.Event()
        self._resting_until_s = NEVER_S
        self.members = 0
        self._waking: asyncio.Task[None] | None = None
        self._closed: Exception | None = None

    @asynccontextmanager
    async def joined(self) -> AsyncGenerator[None]:
        """The first who comes starts the task that wakes; the last who leaves ends it."""
        self.members += 1
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake())
        try:
            yield
        finally:
            self.members -= 1
            if self.members == 0:
                waking, self._waking = self._waking, None
                waking.cancel()
                await asyncio.gather(waking, return_exceptions=True)

    async def next(self, listener: Listener) -> None:
        """Until the listener's time has come. Raises what a look raised meanwhile."""
        if self._closed is not None:
            raise self._closed
        turn = self._waiting[listener] = asyncio.get_running_loop().create_future()
        if self._note(listener, turn) < self._resting_until_s:
            self._stirred.set()
        try:
            await turn
        finally:
            self._waiting.pop(listener, None)

    def stir(self) -> None:
        """There is something to look at."""
        self._stirred.set()

    def changed(self) -> None:
        """Those who wait may have other times now."""
        self._is_stale = True
        self._stirred.set()

    def close(self, error: Exception) -> None:
        """Whoever waits, or is about to, gets the error."""
        self._closed = error
        self._fail(error)

    def longest_quiet_s(self) -> float:
        """When the one who has waited longest got its last message; NEVER_S where nobody waits."""
        return min((listener.heard_s for listener in self._waiting), default=NEVER_S)

    async def _wake(self) -> None:
        while True:
            self._stirred.clear()
            look_s = NEVER_S
            try:
                look_s = await self._look()
            except Exception as error:  # noqa: BLE001  whoever waits is told, and the next look may go well
                self._fail(error)
            if self._is_stale:
                self._note_all()
            if self._wake_due():
                await _others()
            else:
                await self._rest(min(look_s, self._first_s()))

    def _note_all(self) -> None:
        self._is_stale = False
        self._times = []
        for listener, turn in self._waiting.items():
            self._note(listener, turn)

    def _note(self, listener: Listener, turn: asyncio.Future[None]) -> float:
        due_s = listener.due_s()
        self._arrivals += 1
        heappush(self._times, (due_s, self._arrivals, listener, turn))
        return due_s

    def _first_s(self) -> float:
        while self._times and self._times[0][3].done():
            heappop(self._times)
        return self._times[0][0] if self._times else NEVER_S

    def _wake_due(self) -> bool:
        """Wakes some of those whose time has come; True where there were any."""
        now_s, woken = self._clock.monotonic_s(), 0
        while woken < TOGETHER and self._first_s() <= now_s:
            _due_s, _arrival, listener, turn = heappop(self._times)
            self._waiting.pop(listener, None)
            turn.set_result(None)
            woken += 1
        return woken > 0

    async def _rest(self, until_s: float) -> None:
        """Until then, or until something stirs."""
        alarm = None
        if until_s < NEVER_S:
            alarm = asyncio.create_task(self._stir_after(max(STEP_S, until_s - self._clock.monotonic_s())))
        self._resting_until_s = until_s
        try:
            await self._stirred.wait()
        finally:
            self._resting_until_s = NEVER_S
            if alarm is not None:
                alarm.cancel()
                await asyncio.gather(alarm, return_exceptions=True)

    async def _stir_after(self, seconds: float) -> None:
        await self._clock.sleep_s(seconds)
        self._stirred.set()

    def _fail(self, error: Exception) -> None:
        for turn in self._waiting.values():
            if not turn.done():
                turn.set_exception(error)
                # Who leaves just now does not ask for it: that is not a second event.
                turn.exception()


@types.coroutine
def _others() -> Generator[None]:
    """One round of the loop: what is ready goes first."""
    yield
