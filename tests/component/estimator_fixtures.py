"""An estimator in this process for one test, on a real file and port, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from parley.v1 import conversation_pb2, estimator_pb2, estimator_pb2_grpc, quote_pb2
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import WireError, read_error
from parley.wire.server import Server, ServerSettings

from estimator_service.__main__ import SERVICE_NAME
from estimator_service.api import EstimatorApi
from estimator_service.config import PRICES_FILE
from estimator_service.domain.rate_file import parse_rates
from estimator_service.service import Estimator
from estimator_service.storage.database import open_database
from estimator_service.workers import Workers

MODEL = "claude-sonnet-5"
TIERS = ("template", "scenario", "edge_case")


@dataclass
class SteppedClock:
    time: datetime = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def step(self, by: timedelta) -> None:
        self.time += by


@dataclass(frozen=True)
class Served:
    address: str
    stub: estimator_pb2_grpc.BatchEstimatorStub
    clock: SteppedClock

    async def refused(self, method: str, request: Any) -> WireError:
        """The error of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await getattr(self.stub, method)(request)
        return read_error(failure.value)


@asynccontextmanager
async def estimator(
    database: Path,
    *,
    clock: SteppedClock | None = None,
    rates: str | None = None,
    tokens_file: Path | None = None,
    token: str | None = None,
) -> AsyncGenerator[Served]:
    clock = clock or SteppedClock()
    table = parse_rates(rates or PRICES_FILE.read_text("utf-8"))
    server = Server(ServerSettings(listen="127.0.0.1:0", tokens_file=tokens_file), service_names=[SERVICE_NAME])
    async with open_database(database) as opened, Workers() as workers:
        api = EstimatorApi(Estimator(opened, table, workers=workers, now=clock.now))
        estimator_pb2_grpc.add_BatchEstimatorServicer_to_server(api, server.aio)
        await server.start()
        await server.serving()
        try:
            async with as_caller(server.address, clock=clock, token=token) as served:
                yield served
        finally:
            await server.stop()


@asynccontextmanager
async def as_caller(
    address: str, *, clock: SteppedClock | None = None, token: str | None = None
) -> AsyncGenerator[Served]:
    async with open_channel(ChannelSettings(target=address, token=token)) as channel:
        yield Served(address, estimator_pb2_grpc.BatchEstimatorStub(channel), clock or SteppedClock())


def workload(count: int = 30, *, tiers: Sequence[str] = TIERS, model: str = MODEL, **more: Any) -> quote_pb2.Workload:
    groups = [quote_pb2.WorkloadGroup(id=tier, tier=tier, model=model, count=count) for tier in tiers]
    fields: dict[str, Any] = {"groups": groups, "concurrency": 3}
    return quote_pb2.Workload(**(fields | more))


def ask(count: int = 30, *, request_id: str = "", owner: str = "", **more: Any) -> estimator_pb2.CreateQuoteRequest:
    return estimator_pb2.CreateQuoteRequest(
        workload=workload(count, **more), seed=7, request_id=request_id, owner=owner
    )


def named(name: str) -> estimator_pb2.GetQuoteRequest:
    return estimator_pb2.GetQuoteRequest(name=name)


def observed(
    number: int,
    *,
    tier: str = "template",
    output_tokens: int = 1_000,
    seconds: int = 30,
    outcome: conversation_pb2.CallOutcome.ValueType = conversation_pb2.CALL_OUTCOME_ANSWERED,
    **more: Any,
) -> quote_pb2.Observation:
    return quote_pb2.Observation(
        call=f"batches/abcd/calls/{number}",
        tier=tier,
        model=MODEL,
        outcome=outcome,
        purpose=conversation_pb2.CALL_PURPOSE_GENERATE,
        usage=conversation_pb2.Usage(input_tokens=2_000, output_tokens=output_tokens),
        duration=Duration(seconds=seconds),
        **more,
    )


def record(*observations: quote_pb2.Observation) -> estimator_pb2.RecordObservationsRequest:
    return estimator_pb2.RecordObservationsRequest(observations=observations)
