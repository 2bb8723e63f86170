"""What a simulation costs: time for a small batch, time and memory of the worker process for large ones."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import psutil

from benchmarks.figures import Figure, Limit
from benchmarks.services import Service
from benchmarks.work import MODEL, progress
from estimator_service.config import PRICES_FILE
from estimator_service.domain.draws import draw, draw_batch
from estimator_service.domain.estimate import estimate_groups
from estimator_service.domain.history import NOTHING_SEEN
from estimator_service.domain.makespan import makespan_s
from estimator_service.domain.quote import Figures, quote
from estimator_service.domain.rate_file import parse_rates
from estimator_service.domain.rates import Rate
from estimator_service.domain.workload import Group, Limits, Workload
from estimator_service.workers import Workers

TIERS = ("template", "scenario", "edge_case")
# All three bind, or nearly so, at 10.
LIMITS = Limits(requests_per_minute=5, input_tokens_per_minute=10_000, output_tokens_per_minute=16_000)
ROUNDS = 5
SMALL_BOUND = Limit(50)
LARGE_BOUND, MEMORY_BOUND = Limit(2.0), Limit(150)


async def measure() -> list[Figure]:
    progress("simulation: small and large workloads")
    large = await _large([3_333] * 3, name="10,000 conversations", bound=True)
    # The most that a request may ask for.
    largest = await _large([1_000_000] * 1_000, name="1,000 groups of 1,000,000", bound=False)
    return [*(_small(concurrency) for concurrency in (3, 10, 90)), *large, *largest]


def _workload(counts: Sequence[int], *, concurrency: int) -> Workload:
    groups = tuple(
        Group(id=f"{number}", tier=TIERS[number % len(TIERS)], model=MODEL, count=count)
        for number, count in enumerate(counts)
    )
    return Workload(groups=groups, concurrency=concurrency, limits=LIMITS)


def _small(concurrency: int) -> Figure:
    workload = _workload([30] * 3, concurrency=concurrency)
    estimates = estimate_groups(workload, {MODEL: Rate(model=MODEL)}, NOTHING_SEEN)
    drawn = draw(estimates, draw_batch(estimates, seed=1))
    took_s: list[float] = []
    for _ in range(ROUNDS):
        # Of the processor: what else this machine does is no matter of the simulation's.
        began_s = time.process_time()
        makespan_s(workload, estimates, drawn, speed_up=1.0)
        took_s.append(time.process_time() - began_s)
    return Figure(
        name=f"{len(drawn[0].calls):,} simulations of 90 conversations at {concurrency}",
        measured=min(took_s) * 1e3,
        unit="ms CPU",
        bound=SMALL_BOUND,
        note=f"three limits in force; the fastest of {ROUNDS}",
    )


async def _large(counts: Sequence[int], *, name: str, bound: bool) -> list[Figure]:
    """A whole quote, as the worker process makes it."""
    async with Workers() as workers:
        await workers.run(_quote([1]))
        process = psutil.Process(await workers.run(os.getpid))
        worker = Service(process, {})
        idle_mib = worker.held_mib()
        began_s = time.perf_counter()
        await workers.run(_quote(counts))
        took_s = time.perf_counter() - began_s
        more_mib = worker.peak_mib() - idle_mib
    return [
        Figure(name=f"quote of {name}", measured=took_s, unit="s", bound=LARGE_BOUND if bound else None),
        Figure(
            name="  more memory than idle, at its peak",
            measured=more_mib,
            unit="MiB",
            bound=MEMORY_BOUND,
            note=f"VmHWM of the worker process; idle {idle_mib:.0f} MiB",
        ),
    ]


def _quote(counts: Sequence[int]) -> partial[Figures]:
    table = parse_rates(PRICES_FILE.read_text("utf-8"))
    workload = _workload(counts, concurrency=10)
    now = datetime(2026, 11, 24, tzinfo=UTC)
    return partial(quote, workload, table=table, history=NOTHING_SEEN, seed=1, now=now)
