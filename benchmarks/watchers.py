"""Watchers: a thousand streams on one batch; how soon each hears of an event, and what they cost the server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parley.client import BatchClient
from parley.v1 import batch_pb2

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.services import Services, running
from benchmarks.work import progress

WATCHERS, STALLED = 1_000, 100
# These note when each event comes, in a process of their own: the others' reading is not what is measured.
PROBES = 100
CROWDS = 2
# The 81 s of a real call become 2 s: sixteen at a time end seven conversations a second.
SPEED_UP, CONCURRENCY, COUNT = 40, 16, 96
WARM_UP = 16
# A little more than the quarter of a second between two messages: no event has to wait for the one before it.
STEADY_S, STEADY_EVENTS = 0.26, 24
PACE_S = 0.25
START_MAX_S, END_MAX_S = 60.0, 60.0
# A line with what all streams of a process got.
LINE_MAX_BYTES = 64 * 1024 * 1024
DELAY, DELAY_AIM = Limit(250), Limit(100)
SLOWED = Limit(1.05)


@dataclass
class _Load:
    """What the watchers of one batch got, and what they took, from the first of its events to the last."""

    watchers: int
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    growth_mib: float = 0.0
    began_us: int = 0
    messages: list[int] = field(default_factory=list[int])
    # When each event was made, and how long it took to each probe.
    delays: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def delay_ms(self, share: float) -> float:
        return _quantile([delay_us / 1e3 for made_us, delay_us in self.delays if made_us >= self.began_us], share)

    def paced_ms(self, share: float) -> float:
        """The delay that the pace alone brings about: for the same events, messages that take no time."""
        made_s = sorted({made_us / 1e6 for made_us, _ in self.delays if made_us >= self.began_us})
        delays_ms: list[float] = []
        sent_s = 0.0
        for event_s in made_s:
            sent_s = sent_s if event_s <= sent_s else max(event_s, sent_s + PACE_S)
            delays_ms.append((sent_s - event_s) * 1e3)
        return _quantile(delays_ms, share)

    @property
    def each_a_second(self) -> float:
        # The first message, which comes before anything is measured, does not count.
        return sum(self.messages) / len(self.messages) / self.elapsed_s - 1 / self.elapsed_s

    @property
    def cpu_share(self) -> float:
        return self.cpu_s / self.elapsed_s


@dataclass(frozen=True)
class _Run:
    """One batch from its first claim to its end, alone or watched."""

    run_s: float
    held_mib: float
    load: _Load


async def measure(folder: Path) -> list[Figure]:
    async with (
        running(
            folder,
            "--speed-up",
            str(SPEED_UP),
            concurrency=CONCURRENCY,
            settings={"PARLEY_MAX_WATCHERS": str(2 * WATCHERS)},
        ) as services,
        BatchClient(services.address) as client,
    ):
        # The first batch waits for the SDK to be imported; that is start-up.
        await work.deliver(client, work.spec(WARM_UP, concurrency=CONCURRENCY))
        alone = await _generated(services, client, watchers=0, stalled=0)
        watched = await _generated(services, client, watchers=WATCHERS, stalled=STALLED)
        steady = await _steady(services, client)
        peak_mib = services.orchestrator.peak_mib()
    return [*_delay_figures(steady, watched.load), *_cost_figures(alone, watched, peak_mib)]


async def _generated(services: Services, client: BatchClient, *, watchers: int, stalled: int) -> _Run:
    """The same batch each time, held until all are watching."""
    progress(
        f"watchers: {COUNT} conversations at {CONCURRENCY}, {watchers:,} watchers, {stalled} of which read nothing"
    )
    await work.observed(services)
    await services.forget_prompts()
    name = await _held(client)
    load = _Load(watchers)
    async with _watching(services, load, name, stalled=stalled):
        await client.update(name, hold_after=None)
        batch = await work.watched(client, name)
    held_mib = services.orchestrator.held_mib()
    return _Run(work.Delivered(batch=batch, create_s=0).run_s, held_mib, load)


async def _steady(services: Services, client: BatchClient) -> _Load:
    """Durable events one after another, evenly: each could be heard of at once."""
    progress(f"watchers: {STEADY_EVENTS} events, one every {STEADY_S:g} s, {WATCHERS:,} watchers")
    name = await _held(client)
    load = _Load(WATCHERS)
    async with _watching(services, load, name, stalled=0):
        began_s = time.monotonic()
        for number in range(1, STEADY_EVENTS + 1):
            await client.update(name, display_name=f"Event {number}")
            await asyncio.sleep(max(0.0, began_s + number * STEADY_S - time.monotonic()))
        await client.cancel(name)
    return load


async def _held(client: BatchClient) -> str:
    wanted: batch_pb2.BatchSpec = work.spec(COUNT, concurrency=CONCURRENCY)
    wanted.hold_after = 0
    return (await client.create(wanted)).name


@asynccontextmanager
async def _watching(services: Services, load: _Load, name: str, *, stalled: int) -> AsyncGenerator[None]:
    """From when every stream has its first message until the batch has ended."""
    async with AsyncExitStack() as stack:
        processes: list[asyncio.subprocess.Process] = []
        if load.watchers:
            each = (load.watchers - PROBES - stalled) // CROWDS
            for number in range(CROWDS):
                share = {"streams": each, "stalled": stalled // CROWDS, "are_probes": False}
                processes.append(await stack.enter_async_context(_streams(services, name, f"crowd{number}", share)))
            share = {"streams": PROBES, "stalled": 0, "are_probes": True}
            processes.append(await stack.enter_async_context(_streams(services, name, "probes", share)))
        for process in processes:
            await _line(process, START_MAX_S)
        began_s, began_cpu_s = time.monotonic(), services.orchestrator.cpu_s()
        held_mib = services.orchestrator.held_mib()
        load.began_us = time.time_ns() // 1_000
        yield
        load.elapsed_s = time.monotonic() - began_s
        load.cpu_s = services.orchestrator.cpu_s() - began_cpu_s
        load.growth_mib = services.orchestrator.held_mib() - held_mib
        for process in processes:
            got = await _line(process, END_MAX_S)
            load.messages += got["messages"]
            load.delays += [(made_us, delay_us) for made_us, delay_us in got["delays"]]


@asynccontextmanager
async def _streams(
    services: Services, name: str, title: str, share: dict[str, Any]
) -> AsyncGenerator[asyncio.subprocess.Process]:
    file = services.folder / f"{title}.json"
    file.write_text(json.dumps(share | {"address": services.address, "name": name}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.streams",
        str(file),
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_MAX_BYTES,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _line(process: asyncio.subprocess.Process, max_s: float) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(max_s):
        line = await process.stdout.readline()
    if not line:
        raise work.NotDelivered("A process of watchers ended before its streams did.")
    return json.loads(line)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _delay_figures(steady: _Load, generated: _Load) -> list[Figure]:
    return [
        Figure(
            name=f"commit to delivery at {steady.watchers:,} watchers, p99",
            measured=steady.delay_ms(0.99),
            unit="ms",
            bound=DELAY,
            aim=DELAY_AIM,
            note=f"p50 {steady.delay_ms(0.5):.0f} ms; an event every {STEADY_S * 1e3:.0f} ms,"
            f" {steady.each_a_second:.2f} messages a second each; counted from just before the commit",
        ),
        Figure(
            name="  of a batch's own events, p99",
            measured=generated.delay_ms(0.99),
            unit="ms",
            note=f"p50 {generated.delay_ms(0.5):.0f} ms; at random, {COUNT / generated.elapsed_s:.1f} a second,"
            f" {generated.each_a_second:.2f} messages; at most 4 a second alone bring p99 to"
            f" {generated.paced_ms(0.99):.0f} ms",
        ),
    ]


def _cost_figures(alone: _Run, watched: _Run, peak_mib: float) -> list[Figure]:
    load = watched.load
    return [
        Figure(
            name=f"  makespan with {load.watchers:,} watchers over without",
            measured=watched.run_s / alone.run_s,
            bound=SLOWED,
            note=f"{watched.run_s:.3f} s, {alone.run_s:.3f} s; {COUNT} conversations at {CONCURRENCY}",
        ),
        Figure(
            name="  CPU of the orchestrator",
            measured=load.cpu_share,
            unit="cores",
            note=f"{alone.load.cpu_share:.2f} without watchers;"
            f" {(load.cpu_s - alone.load.cpu_s) / sum(load.messages) * 1e6:.0f} us a message",
        ),
        Figure(
            name="  memory of the orchestrator",
            measured=watched.held_mib,
            unit="MiB",
            note=f"{alone.held_mib:.0f} MiB without watchers, {peak_mib:.0f} MiB at the peak",
        ),
        Figure(
            name=f"  more of it while {STALLED} of them read nothing",
            measured=load.growth_mib,
            unit="MiB",
            note=f"over {load.elapsed_s:.0f} s, in which each of the others got {max(load.messages)} messages at most",
        ),
    ]
