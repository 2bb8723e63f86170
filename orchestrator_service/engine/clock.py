"""The only file of the orchestrator that knows the time and sleeps."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for durations; tests step their own."""

    def now_us(self) -> int:
        """Microseconds UTC since 1970."""
        ...

    def monotonic_s(self) -> float: ...

    async def sleep_s(self, seconds: float) -> None: ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
