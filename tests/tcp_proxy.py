"""A TCP proxy on loopback: counts what passes, and cuts or holds up connections as a test says."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 65_536
CLOSE_MAX_S = 10.0

Connect = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]
# Told of each piece before it is passed on.
Heard = Callable[[bytes], None]


def _nothing(piece: bytes) -> None:
    """What hears by default."""


def _flowing() -> asyncio.Event:
    flowing = asyncio.Event()
    flowing.set()
    return flowing


@dataclass
class Proxy:
    connect: Connect
    heard_request: Heard = _nothing
    heard_answer: Heard = _nothing
    connections: int = 0
    answered_bytes: int = 0
    # Cleared: answers stay where they are, as with a reader that reads no more.
    flowing: asyncio.Event = field(default_factory=_flowing)
    # Set: requests go nowhere, as on a line that is dead and does not say so.
    swallows: bool = False
    _address: str = ""
    _open: set[StreamWriter] = field(default_factory=set[StreamWriter])

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._address

    def cut(self) -> int:
        """Resets every connection; how many there were."""
        clients = list(self._open)
        for client in clients:
            client.transport.abort()
        return len(clients)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        try:
            server_reader, server_writer = await self.connect()
        except OSError:
            # Nobody listens just now: a restart.
            writer.transport.abort()
            return
        self._open.add(writer)
        ways = [
            asyncio.create_task(self._pass_on(reader, server_writer, self.heard_request)),
            asyncio.create_task(self._pass_on(server_reader, writer, self._answer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(writer)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()

    def listens_at(self, server: asyncio.Server) -> None:
        host, port = server.sockets[0].getsockname()[:2]
        self._address = f"{host}:{port}"

    def _answer(self, piece: bytes) -> None:
        self.answered_bytes += len(piece)
        self.heard_answer(piece)

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter, heard: Heard) -> None:
        # A broken connection ends both ways; the ends find out by themselves.
        with suppress(ConnectionError):
            while piece := await reader.read(CHUNK_BYTES):
                if heard == self._answer:
                    await self.flowing.wait()
                heard(piece)
                if heard == self.heard_request and self.swallows:
                    continue
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def running_proxy(
    connect: Connect, *, heard_request: Heard = _nothing, heard_answer: Heard = _nothing
) -> AsyncGenerator[Proxy]:
    proxy = Proxy(connect, heard_request, heard_answer)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.listens_at(server)
    try:
        yield proxy
    finally:
        server.close()
        proxy.flowing.set()
        proxy.cut()
        async with asyncio.timeout(CLOSE_MAX_S):
            await server.wait_closed()
