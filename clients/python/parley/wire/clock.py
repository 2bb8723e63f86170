"""The clock: the only file of the client package that knows the time."""

import asyncio
import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    return time.monotonic()


def utc_now() -> datetime:
    return datetime.now(UTC)


async def sleep_s(seconds: float) -> None:
    await asyncio.sleep(seconds)
