"""Channels to a Parley server: TLS, token, retries and limits, for asyncio and for blocking programs."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from parley.wire import addresses
from parley.wire.credentials import channel_credentials
from parley.wire.errors import BootError
from parley.wire.options import CHANNEL_OPTIONS


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    # host:port, [::1]:port or unix:/path.
    target: str
    # TLS is spoken where this is given, or where `tls` asks for it with the system's authorities.
    tls_ca_file: Path | None = None
    tls: bool = False
    # For servers that want a certificate of their clients.
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    # Plain text to another machine, where something else (a mesh, a tunnel) protects the way.
    allow_insecure: bool = False
    # What error messages call the target.
    target_setting: str = "The server's address"


def open_channel(settings: ChannelSettings) -> grpc.aio.Channel:
    """A channel for asyncio; raises BootError where the settings would send something in the clear."""
    options, credentials = _prepare(settings)
    interceptors = _aio_interceptors(settings.token)
    if credentials is None:
        return grpc.aio.insecure_channel(settings.target, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(settings.target, credentials, options=options, interceptors=interceptors)


def open_blocking_channel(settings: ChannelSettings) -> grpc.Channel:
    """A channel for programs without asyncio; raises BootError like open_channel."""
    options, credentials = _prepare(settings)
    if credentials is None:
        channel = grpc.insecure_channel(settings.target, options=options)
    else:
        channel = grpc.secure_channel(settings.target, credentials, options=options)
    return grpc.intercept_channel(channel, _BlockingToken(settings.token)) if settings.token else channel


def deadline_s(context_remaining_s: float | None, *, cap_s: float, margin_s: float) -> float:
    """The time-out of a call made while serving another: what is left of that one, less a margin, at most the cap."""
    if context_remaining_s is None:
        return cap_s
    return max(0.0, min(context_remaining_s - margin_s, cap_s))


def _prepare(settings: ChannelSettings) -> tuple[list[tuple[str, int | str]], grpc.ChannelCredentials | None]:
    address = addresses.parse(settings.target, setting=settings.target_setting)
    loopback = addresses.is_loopback(address)
    options = list(CHANNEL_OPTIONS)
    if loopback:
        # gRPC obeys http_proxy even for this machine.
        options.append(("grpc.enable_http_proxy", 0))
    if settings.tls or settings.tls_ca_file is not None:
        return options, channel_credentials(
            settings.tls_ca_file, certificate_file=settings.tls_certificate_file, key_file=settings.tls_key_file
        )
    if not loopback:
        _refuse_plain_text(settings)
    return options, None


def _refuse_plain_text(settings: ChannelSettings) -> None:
    if settings.token:
        # Not even where plain text is allowed: whoever reads along could spend from then on.
        raise BootError(f"{settings.target} is on another machine, where a token needs TLS: set PARLEY_TLS_CA.")
    if not settings.allow_insecure:
        raise BootError(
            f"{settings.target} is on another machine: set PARLEY_TLS_CA,"
            " or PARLEY_ALLOW_INSECURE=1 where something else protects the way."
        )


def _authorization(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


def _aio_interceptors(token: str | None) -> list[grpc.aio.ClientInterceptor]:
    if not token:
        return []
    # One object of each kind: the library files an interceptor under the first kind that it is.
    return [_UnaryUnaryToken(token), _UnaryStreamToken(token), _StreamUnaryToken(token), _StreamStreamToken(token)]


class _AioToken:
    """Adds the token to a call's metadata."""

    def __init__(self, token: str) -> None:
        self._entry = _authorization(token)

    def _signed(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), self._entry)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryUnaryToken(_AioToken, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._signed(client_call_details), request)


class _UnaryStreamToken(_AioToken, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._signed(client_call_details), request)


class _StreamUnaryToken(_AioToken, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: Callable[..., Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(self._signed(client_call_details), request_iterator)


class _StreamStreamToken(_AioToken, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Callable[..., Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:
        return await continuation(self._signed(client_call_details), request_iterator)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: list[tuple[str, str | bytes]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _BlockingToken(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to a call's metadata."""

    def __init__(self, token: str) -> None:
        self._entry = _authorization(token)

    def _call(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata: list[tuple[str, str | bytes]] = [*(details.metadata or ()), self._entry]
        signed = _Details(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression
        )
        return continuation(signed, request)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._call(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._call(continuation, client_call_details, request_iterator)
