"""A crowd: ten thousand conversations in flight at once, over many batches, each as long as a real one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from parley.client import BatchClient
from parley.v1 import batch_pb2

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.services import Services, beside, running
from benchmarks.work import progress

BATCHES, EACH = 10, 1_000
SAMPLE_S = 0.5
# The first are done before the last have begun.
REACHED = 0.95
# The sandbox answers as slowly as the real thing: 62 s a template conversation.
OPTIONS = (
    *("--speed-up", "1", "--requests-per-minute", "10000000", "--input-tokens-per-minute", "10000000000"),
    *("--output-tokens-per-minute", "10000000000"),
)


@dataclass
class _Peak:
    in_flight: int = 0


async def measure(folder: Path, *, batches: int = BATCHES, each: int = EACH) -> list[Figure]:
    progress(f"crowd: {batches} batches of {each:,}, all in flight at once, at real speed (some three minutes)")
    peak = _Peak()
    async with running(folder, *OPTIONS, concurrency=each) as services, BatchClient(services.address) as client:
        idle_mib, began_cpu_s = services.orchestrator.held_mib(), services.orchestrator.cpu_s()
        async with beside(_sampled(services, peak)):
            made = [await client.create(_held(each)) for _ in range(batches)]
            await asyncio.gather(*[client.resume(batch.name) for batch in made])
            ended = await asyncio.gather(*[work.watched(client, batch.name) for batch in made])
        began_us = min(batch.start_time.ToMicroseconds() for batch in ended)
        run_s = (max(batch.end_time.ToMicroseconds() for batch in ended) - began_us) / 1e6
        cpu_s = services.orchestrator.cpu_s() - began_cpu_s
        peak_mib = services.orchestrator.peak_mib()
    total = batches * each
    return [
        Figure(
            name="in flight at once",
            measured=peak.in_flight,
            bound=Limit(total * REACHED, is_least=True),
            note=f"{batches} batches of {each:,} at real speed; all delivered after {run_s:.0f} s",
        ),
        Figure(
            name="  CPU of the orchestrator",
            measured=cpu_s / run_s,
            unit="cores",
            note=f"{cpu_s:.1f} s, {1000 * cpu_s / total:.2f} ms a conversation, creation included",
        ),
        Figure(
            name="  peak memory of the orchestrator",
            measured=peak_mib,
            unit="MiB",
            note=f"{(peak_mib - idle_mib) * 1024 / total:.1f} KiB a conversation in flight",
        ),
    ]


def _held(each: int) -> batch_pb2.BatchSpec:
    """Waits for approval, so that all begin together."""
    wanted = work.spec(each, concurrency=each)
    wanted.hold_after = 0
    return wanted


async def _sampled(services: Services, peak: _Peak) -> None:
    def in_flight() -> int:
        with urlopen(f"{services.sandbox_url}/stats") as reply:
            return json.load(reply)["in_flight"]

    while True:
        peak.in_flight = max(peak.in_flight, await asyncio.to_thread(in_flight))
        await asyncio.sleep(SAMPLE_S)
