"""What every test may use."""

from collections.abc import AsyncGenerator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncGenerator[None]:
    """One event loop for all tests: gRPC has one queue a process, whose late events must not meet a closed loop."""
    yield
