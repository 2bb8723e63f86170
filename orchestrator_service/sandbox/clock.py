"""The only file of the sandbox that knows the time or waits for it."""

import asyncio
import time
from datetime import UTC, datetime


class Clock:
    def now_s(self) -> float:
        return time.monotonic()

    def utc_now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
