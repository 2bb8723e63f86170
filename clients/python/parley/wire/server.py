"""A Parley server: its address, credentials, health and reflection, and how it starts and drains."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from parley.wire import addresses, rules
from parley.wire.addresses import Tcp, Unix
from parley.wire.auth import Tokens
from parley.wire.calls import Calls
from parley.wire.credentials import server_credentials
from parley.wire.errors import BootError
from parley.wire.options import SERVER_OPTIONS

__all__ = ["BootError", "Server", "ServerSettings"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger("parley.wire")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    # HOST:PORT (port 0: any free one), [::1]:PORT or unix:/PATH.
    listen: str
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    # Where given, only clients with a certificate of this CA may connect.
    tls_client_ca_file: Path | None = None
    # Without it everyone who can connect is the caller "local".
    tokens_file: Path | None = None
    # Plain text or no tokens beyond this machine, where something else protects the way.
    allow_insecure: bool = False
    # How long `on_drain` may take, and then how long open calls may.
    drain_s: float = 10.0
    # What error messages call `listen`.
    listen_setting: str = "PARLEY_LISTEN"


class Server:
    """Made inside a running event loop; services are added to `aio` before `start`."""

    def __init__(self, settings: ServerSettings, *, service_names: Sequence[str]) -> None:
        self._settings = settings
        self._service_names = tuple(service_names)
        self._wanted = addresses.parse(settings.listen, setting=settings.listen_setting)
        self._credentials = _credentials(settings)
        tokens = Tokens.load(settings.tokens_file) if settings.tokens_file else Tokens.none()
        if not addresses.is_loopback(self._wanted) and not settings.allow_insecure:
            _refuse_open_door(settings)
        self._bound: Tcp | Unix | None = None
        self._health = _new_health()
        self._first_signal = asyncio.Event()
        self._second_signal = asyncio.Event()
        self.aio: grpc.aio.Server = grpc.aio.server(interceptors=(Calls(tokens),), options=SERVER_OPTIONS)

    @property
    def address(self) -> str:
        """Where it really listens; known after `start`."""
        assert self._bound is not None, "start() comes first"
        return str(self._bound)

    async def start(self) -> None:
        """Binds and answers, with health NOT_SERVING. Raises BootError where the address can't be had."""
        rules.warm(self._service_names)
        await self._set_health(_NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.aio)  # pyright: ignore[reportUnknownMemberType]
        names = (*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.aio)
        self._bound = self._bind()
        await self.aio.start()

    async def serving(self) -> None:
        """Tells health checks that calls are welcome."""
        await self._set_health(_SERVING)

    def announce(self, service: str) -> None:
        """Writes one JSON line to stdout, for whoever started the process. From then on signals drain."""
        self._listen_for_signals()
        line = {"event": "serving", "service": service, "address": self.address, "pid": os.getpid()}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    async def run_until_signal(self, on_drain: Callable[[], Awaitable[None]]) -> None:
        """Waits for SIGTERM or SIGINT, then drains: health, on_drain, open calls. A second signal stops at once."""
        self._listen_for_signals()
        try:
            await self._first_signal.wait()
            _log.info("draining", address=self.address)
            await self._health.enter_graceful_shutdown()
            await self._drain_unless_hurried(on_drain)
        finally:
            for number in _SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
            await self.aio.stop(None)

    async def stop(self, grace_s: float | None = None) -> None:
        """Ends open calls after the grace, or at once."""
        await self._health.enter_graceful_shutdown()
        await self.aio.stop(grace_s)

    async def _drain_unless_hurried(self, on_drain: Callable[[], Awaitable[None]]) -> None:
        drain = asyncio.create_task(self._drain(on_drain))
        hurry = asyncio.create_task(self._second_signal.wait())
        try:
            await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried = not drain.done()
            drain.cancel()
            hurry.cancel()
            outcome, _ = await asyncio.gather(drain, hurry, return_exceptions=True)
        if hurried:
            _log.warning("stopped before everything was drained", address=self.address)
        elif isinstance(outcome, BaseException):
            raise outcome

    async def _drain(self, on_drain: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await on_drain()
        except TimeoutError:
            _log.warning("draining took too long", drain_s=self._settings.drain_s)
        await self.aio.stop(self._settings.drain_s)

    def _listen_for_signals(self) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._note_signal)

    def _note_signal(self) -> None:
        (self._second_signal if self._first_signal.is_set() else self._first_signal).set()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *self._service_names):
            await self._health.set(name, status)

    def _bind(self) -> Tcp | Unix:
        setting = self._settings.listen_setting
        if isinstance(self._wanted, Unix):
            addresses.clear_stale_socket(self._wanted.path, setting=setting)
            self._add_port(self._wanted)
            return self._wanted
        # gRPC would bind only the free one of localhost's two addresses and share the rest with a stranger.
        wanted = Tcp(host="127.0.0.1", port=self._wanted.port) if self._wanted.host == "localhost" else self._wanted
        _probe(wanted, setting=setting)
        return Tcp(host=wanted.host, port=self._add_port(wanted))

    def _add_port(self, address: Tcp | Unix) -> int:
        try:
            if self._credentials is None:
                return self.aio.add_insecure_port(str(address))
            return self.aio.add_secure_port(str(address), self._credentials)
        except RuntimeError as error:
            cause = " or the TLS certificate and key don't belong together" if self._credentials else ""
            raise BootError(
                f"Can't listen on {address}: it can't be opened{cause}; check {self._settings.listen_setting}."
            ) from error


class _Health(Protocol):
    """The part of the library's untyped health service that is used here."""

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None: ...
    async def enter_graceful_shutdown(self) -> None: ...


def _new_health() -> _Health:
    return cast("_Health", cast("Any", health).aio.HealthServicer())


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None and key is None:
        if settings.tls_client_ca_file is not None:
            raise BootError("PARLEY_TLS_CLIENT_CA needs PARLEY_TLS_CERTIFICATE and PARLEY_TLS_KEY.")
        return None
    if certificate is None or key is None:
        raise BootError("PARLEY_TLS_CERTIFICATE and PARLEY_TLS_KEY go together; only one of them is set.")
    return server_credentials(certificate_file=certificate, key_file=key, client_ca_file=settings.tls_client_ca_file)


def _refuse_open_door(settings: ServerSettings) -> None:
    if settings.tls_certificate_file is None:
        raise BootError(
            f"{settings.listen_setting}={settings.listen} is open to other machines without TLS: set"
            " PARLEY_TLS_CERTIFICATE and PARLEY_TLS_KEY, or PARLEY_ALLOW_INSECURE=1 if something else protects the way."
        )
    if settings.tokens_file is None and settings.tls_client_ca_file is None:
        raise BootError(
            f"{settings.listen_setting}={settings.listen} lets every machine spend: set PARLEY_TOKENS_FILE"
            " or PARLEY_TLS_CLIENT_CA, or PARLEY_ALLOW_INSECURE=1 where something else keeps strangers out."
        )


_BIND_CAUSES = {
    errno.EADDRINUSE: "another process listens there",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
    errno.EACCES: "this user may not open the port",
}


def _probe(address: Tcp, *, setting: str) -> None:
    """Binds once without gRPC, which would not say why it can't."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            cause = _BIND_CAUSES.get(error.errno or 0, error.strerror or str(error))
            raise BootError(f"Can't listen on {address}: {cause}; change {setting}.") from error
