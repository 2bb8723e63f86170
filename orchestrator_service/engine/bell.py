"""A bell: whoever waits for the next ring gets it, however many they are; nothing is remembered."""

from __future__ import annotations

import asyncio


class Bell:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set by the next ring. Taken before one looks, so that nothing is missed."""
        return self._event

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()
