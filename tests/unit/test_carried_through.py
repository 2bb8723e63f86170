"""What a caller began goes on when the caller leaves, and its end is then nobody's error."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from orchestrator_service.creation import carried_through

pytestmark = pytest.mark.anyio


async def test_what_is_carried_through_gives_its_result_or_its_error() -> None:
    async def refuse() -> None:
        raise ValueError("refused")

    async def answer() -> int:
        return 7

    assert await carried_through(answer()) == 7
    with pytest.raises(ValueError, match="refused"):
        await carried_through(refuse())


async def test_it_goes_on_without_its_caller_and_its_refusal_is_no_second_event() -> None:
    events: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, event: events.append(event))
    begun, go_on = asyncio.Event(), asyncio.Event()
    doing: list[asyncio.Task[Any] | None] = []

    async def refuse_later() -> None:
        doing.append(asyncio.current_task())
        begun.set()
        await go_on.wait()
        raise ValueError("refused")

    try:
        caller = asyncio.create_task(carried_through(refuse_later()))
        await begun.wait()
        caller.cancel()
        await asyncio.wait((caller,))
        go_on.set()
        await asyncio.wait([task for task in doing if task])
        assert caller.cancelled()
        # An error that nobody asked for is told when its task is freed; a cancelled caller holds on to its frames.
        del caller
        doing.clear()
        await asyncio.to_thread(gc.collect)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert events == []
