"""A Parley server in this process for one test, with an estimator and a watch that answer as the test says."""

import shutil
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from parley.v1 import (
    estimator_pb2,
    estimator_pb2_grpc,
    orchestrator_pb2,
    orchestrator_pb2_grpc,
    quote_pb2,
)
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import FieldViolation, WireError, read_error
from parley.wire.server import Server, ServerSettings

ESTIMATOR = "parley.v1.BatchEstimator"
ORCHESTRATOR = "parley.v1.BatchOrchestrator"
LOOPBACK = "127.0.0.1:0"
WAIT_MAX_S = 5.0
ASK = estimator_pb2.GetQuoteRequest(name="quotes/abcd")
WATCH = orchestrator_pb2.WatchBatchRequest(name="batches/abcd")

Answer = Callable[[estimator_pb2.GetQuoteRequest], Awaitable[quote_pb2.Quote]]
Watch = Callable[[orchestrator_pb2.WatchBatchRequest], AsyncIterator[orchestrator_pb2.WatchBatchResponse]]


class DomainError(Exception):
    """Shaped like the services' own errors, which the wire must recognise without importing them."""

    def __init__(
        self,
        reason: str,
        message: str = "It can't be done.",
        *,
        violations: tuple[FieldViolation, ...] = (),
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
        attachment: Message | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = violations
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        self.attachment = attachment


class _Estimator(estimator_pb2_grpc.BatchEstimatorServicer):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def GetQuote(self, request: estimator_pb2.GetQuoteRequest, context: Any) -> quote_pb2.Quote:
        return await self._answer(request)


class _Orchestrator(orchestrator_pb2_grpc.BatchOrchestratorServicer):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def WatchBatch(
        self, request: orchestrator_pb2.WatchBatchRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
        async for message in self._watch(request):
            yield message


@dataclass(frozen=True)
class Served:
    server: Server
    channel: grpc.aio.Channel

    @property
    def estimator(self) -> estimator_pb2_grpc.BatchEstimatorStub:
        return estimator_pb2_grpc.BatchEstimatorStub(self.channel)

    @property
    def orchestrator(self) -> orchestrator_pb2_grpc.BatchOrchestratorStub:
        return orchestrator_pb2_grpc.BatchOrchestratorStub(self.channel)

    async def send(self, path: str, payload: bytes) -> bytes:
        """A call by its path, with bytes that need not be a message."""
        return await self.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)(payload)

    async def health(self, service: str = "") -> health_pb2.HealthCheckResponse.ServingStatus:
        reply = await self.send(
            "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service=service).SerializeToString()
        )
        return health_pb2.HealthCheckResponse.FromString(reply).status

    async def list_services(self) -> set[str]:
        call = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        reply = await anext(aiter(call))
        return {service.name for service in reply.list_services_response.service}


async def echo(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
    return quote_pb2.Quote(name=request.name)


async def watch_nothing(
    request: orchestrator_pb2.WatchBatchRequest,
) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
    yield orchestrator_pb2.WatchBatchResponse(last=True)


def new_server(settings: ServerSettings, *, answer: Answer = echo, watch: Watch = watch_nothing) -> Server:
    server = Server(settings, service_names=[ESTIMATOR, ORCHESTRATOR])
    estimator = _Estimator(answer)  # pyright: ignore[reportAbstractUsage] - the rest stays UNIMPLEMENTED
    estimator_pb2_grpc.add_BatchEstimatorServicer_to_server(estimator, server.aio)
    orchestrator = _Orchestrator(watch)  # pyright: ignore[reportAbstractUsage] - as above
    orchestrator_pb2_grpc.add_BatchOrchestratorServicer_to_server(orchestrator, server.aio)
    return server


@asynccontextmanager
async def serving(
    answer: Answer = echo,
    *,
    watch: Watch = watch_nothing,
    settings: ServerSettings | None = None,
    token: str | None = None,
    tls_ca_file: Path | None = None,
) -> AsyncGenerator[Served]:
    server = new_server(settings or ServerSettings(listen=LOOPBACK), answer=answer, watch=watch)
    await server.start()
    try:
        await server.serving()
        target = ChannelSettings(target=server.address, token=token, tls_ca_file=tls_ca_file)
        async with open_channel(target) as channel:
            yield Served(server, channel)
    finally:
        await server.stop()


async def failure_of(call: Awaitable[object]) -> WireError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return read_error(caught.value)


@dataclass(frozen=True)
class Certificate:
    certificate_file: Path
    key_file: Path


def make_certificate(folder: Path) -> Certificate:
    """A self-signed one for 127.0.0.1, two days long."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-keyout", str(made.key_file), "-out", str(made.certificate_file)]
    subprocess.run(command, check=True, capture_output=True)
    return made


def write_tokens(folder: Path, *lines: str) -> Path:
    path = folder / "tokens"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path
