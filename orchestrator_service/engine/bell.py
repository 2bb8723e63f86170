"""A bell: whoever waits for the next ring gets it, however many they are; nothing is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Bell:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set by the next ring. Taken before one looks, so that nothing is missed."""
        return self._event

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


async def rung_or_over(rung: asyncio.Event, wait: Coroutine[Any, Any, None]) -> None:
    """Until the ring, or until the wait is over."""
    waits = [asyncio.create_task(_wait(rung)), asyncio.create_task(wait)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


async def _wait(rung: asyncio.Event) -> None:
    await rung.wait()
