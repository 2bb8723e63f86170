"""Memory: the peak of both services for a small and a large batch, and whether the server answers meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from parley.client import BatchClient

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.services import NotServing, Services, beside, running
from benchmarks.work import progress

CONCURRENCY = 10
TOKENS_MEAN = 300
SAMPLE_S = 0.1
HEALTH_S = 0.05
HEALTH_TIMEOUT_S = 30.0
PEAK_AIM = Limit(150)
FLAT = Limit(30)
HEALTH = Limit(1.0)


@dataclass
class _Peak:
    """High-water marks of one run on fresh services, and how it went."""

    count: int
    create_s: float = 0.0
    run_s: float = 0.0
    orchestrator_mib: float = 0.0
    estimator_mib: float = 0.0
    both_mib: float = 0.0
    health_s: list[float] = field(default_factory=list[float])


async def measure(folder: Path, *, small: int, large: int) -> list[Figure]:
    few = await _peak(folder.with_name("small"), small)
    many = await _peak(folder.with_name("large"), large)
    return [*_peak_figures(few), *_flat_figures(few, many), *_create_figures(many)]


async def _peak(folder: Path, count: int) -> _Peak:
    progress(f"memory: {count:,} conversations, fresh services")
    peak = _Peak(count)
    options = ("--zero-latency", "--tokens-mean", str(TOKENS_MEAN))
    async with running(folder, *options, concurrency=CONCURRENCY) as services:
        async with BatchClient(services.address) as client, _sampling(services, peak):
            async with _asking(services.address, peak):
                began_s = time.monotonic()
                created = await client.create(work.spec(count, concurrency=CONCURRENCY))
                peak.create_s = time.monotonic() - began_s
            progress(f"  created in {peak.create_s:.1f} s")
            batch = await work.watched(client, created.name, tell=True)
            peak.run_s = work.Delivered(batch=batch, create_s=peak.create_s).run_s
            await work.observed(services)
        peak.orchestrator_mib, peak.estimator_mib = services.orchestrator.peak_mib(), services.estimator.peak_mib()
    return peak


@asynccontextmanager
async def _sampling(services: Services, peak: _Peak) -> AsyncGenerator[None]:
    async def sample() -> None:
        while True:
            held_mib = services.orchestrator.held_mib() + services.estimator.held_mib()
            peak.both_mib = max(peak.both_mib, held_mib)
            await asyncio.sleep(SAMPLE_S)

    async with beside(sample()):
        yield


@asynccontextmanager
async def _asking(address: str, peak: _Peak) -> AsyncGenerator[None]:
    """Asks for the server's health all the time; a check that is refused or late ends the measurement."""

    async def ask() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            # The stub's classes come without types.
            check: Callable[..., Awaitable[health_pb2.HealthCheckResponse]] = cast(Any, HealthStub(channel)).Check
            while True:
                began_s = time.monotonic()
                reply = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
                if reply.status != health_pb2.HealthCheckResponse.SERVING:
                    raise NotServing(f"The orchestrator's health is {reply.status} while it creates a batch.")
                peak.health_s.append(time.monotonic() - began_s)
                await asyncio.sleep(HEALTH_S)

    async with beside(ask()):
        yield


def _peak_figures(few: _Peak) -> list[Figure]:
    return [
        Figure(
            name=f"peak memory for {few.count:,}, orchestrator",
            measured=few.orchestrator_mib,
            unit="MiB",
            aim=PEAK_AIM,
            note="VmHWM",
        ),
        Figure(
            name=f"peak memory for {few.count:,}, estimator",
            measured=few.estimator_mib,
            unit="MiB",
            aim=PEAK_AIM,
            note=f"VmHWM; at most {few.both_mib:.0f} MiB in both at the same time",
        ),
    ]


def _flat_figures(few: _Peak, many: _Peak) -> list[Figure]:
    both = (
        ("orchestrator", few.orchestrator_mib, many.orchestrator_mib),
        ("estimator", few.estimator_mib, many.estimator_mib),
    )
    return [
        Figure(
            name=f"more of it for {many.count:,}, {name}",
            measured=large_mib - small_mib,
            unit="MiB",
            bound=FLAT,
            note=f"{large_mib:.0f} MiB in all; {many.count / many.run_s:,.0f} conversations a second",
        )
        for name, small_mib, large_mib in both
    ]


def _create_figures(many: _Peak) -> list[Figure]:
    return [
        Figure(name=f"CreateBatch of {many.count:,}", measured=many.create_s, unit="s"),
        Figure(
            name="  slowest health check meanwhile",
            measured=max(many.health_s),
            unit="s",
            bound=HEALTH,
            note=f"{len(many.health_s)} checks, median {median(many.health_s) * 1e3:.0f} ms",
        ),
    ]
