"""What every component test rests on."""

from collections.abc import AsyncGenerator

import pytest


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncGenerator[None]:
    """One event loop for all tests: gRPC has one queue a process, whose late events must not meet a closed loop."""
    yield
