"""The calls of an orchestrator on their way to the provider and back: counted, and held up as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from servers import Sandbox
from tcp_proxy import Proxy, running_proxy

# Not what counts the tokens of a prompt, which costs nothing.
REQUEST = b"POST /v1/messages HTTP/1.1"
REACHED_MAX_S = 30.0


@dataclass
class Traffic:
    """Counts the calls of one life, from `begin` on."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    _holds: Callable[[dict[str, int]], bool] = lambda counts: False
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, holds: Callable[[dict[str, int]], bool] = lambda counts: False) -> None:
        """`reached` comes back as soon as the counts are so."""
        self.counts, self._holds, self._reached = {"sent": 0, "answered": 0}, holds, asyncio.Event()

    async def reached(self) -> None:
        async with asyncio.timeout(REACHED_MAX_S):
            await self._reached.wait()

    def request(self, piece: bytes) -> None:
        # One request at a time on a connection, so each begins a piece.
        if piece.startswith(REQUEST):
            self._count("sent")

    def answer(self, piece: bytes) -> None:
        if piece.startswith(b"HTTP/1.1 200") and b'"type": "message"' in piece:
            self._count("answered")

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        if self._holds(self.counts):
            self._reached.set()


@asynccontextmanager
async def counted_provider(sandbox: Sandbox, traffic: Traffic) -> AsyncGenerator[Proxy]:
    """A way to the sandbox on which every call is counted; its URL is http:// and the proxy's address."""
    where = urlsplit(sandbox.url)
    proxied = running_proxy(
        lambda: asyncio.open_connection(where.hostname, where.port),
        heard_request=traffic.request,
        heard_answer=traffic.answer,
    )
    async with proxied as proxy:
        yield proxy
