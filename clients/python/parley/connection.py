"""A client's way to its server: open while the client is entered, its calls bounded, its errors typed."""

from __future__ import annotations

from typing import TypeVar

import grpc
from grpc import aio

from parley.exceptions import from_wire
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import read_error

Request = TypeVar("Request")
Response = TypeVar("Response")


class Connection:
    def __init__(self, settings: ChannelSettings, *, owner: str, timeout_s: float) -> None:
        """`owner` names the client's class where it is used before it was entered."""
        self._settings = settings
        self._owner = owner
        self._timeout_s = timeout_s
        self._channel: aio.Channel | None = None

    @property
    def target(self) -> str:
        return self._settings.target

    @property
    def channel(self) -> aio.Channel:
        if self._channel is None:
            raise RuntimeError(f"{self._owner} is used as `async with {self._owner}() as client:`")
        return self._channel

    def open(self) -> None:
        self._channel = open_channel(self._settings)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def unary(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_least_s: float = 0.0,
    ) -> Response:
        """The reply. Raises a ParleyError by its reason. `timeout_least_s`: what this call may take at any rate."""
        try:
            return await method(request, timeout=max(self._timeout_s, timeout_least_s))
        except grpc.RpcError as error:
            raise from_wire(read_error(error)) from error
