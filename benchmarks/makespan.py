"""Makespan: how near a batch comes to the least time that its calls allow."""

from __future__ import annotations

from pathlib import Path

from parley.client import BatchClient

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.scheduling import list_schedule_s
from benchmarks.services import Services, running
from benchmarks.work import progress

# The 81 s of a real call, the mean of the three tiers, become 1.35 s.
SPEED_UP = 60
WARM_UP = 10
BOUND, AIM = Limit(1.02), Limit(1.005)


async def measure(folder: Path, *, count: int, concurrencies: tuple[int, ...]) -> list[Figure]:
    figures: list[Figure] = []
    async with (
        running(folder, "--speed-up", str(SPEED_UP), concurrency=max(concurrencies)) as services,
        BatchClient(services.address) as client,
    ):
        # The first batch waits for the SDK to be imported; that is start-up.
        await work.deliver(client, work.spec(WARM_UP, concurrency=max(concurrencies)))
        for concurrency in concurrencies:
            figures += await _at(services, client, count=count, concurrency=concurrency)
    return figures


async def _at(services: Services, client: BatchClient, *, count: int, concurrency: int) -> list[Figure]:
    progress(f"makespan: {count} conversations at {concurrency}, a little over a second each")
    await work.observed(services)
    await services.forget_prompts()
    done = await work.deliver(client, work.spec(count, concurrency=concurrency))
    calls = await work.ledger(client, done.batch.name)
    durations_s = [call.duration.ToMicroseconds() / 1e6 for call in calls]
    bound_s = list_schedule_s(durations_s, concurrency=concurrency)
    await work.observed(services)
    plain = await work.plain(services, await work.requests(client, done.batch.name), concurrency=concurrency)
    mean_s = sum(durations_s) / len(durations_s)
    return [
        Figure(
            name=f"makespan at {concurrency} over its bound",
            measured=done.run_s / bound_s,
            bound=BOUND,
            aim=AIM,
            note=f"{done.run_s:.3f} s, bound {bound_s:.3f} s; {count} calls of {mean_s:.2f} s",
        ),
        Figure(
            name=f"  plain script at {concurrency}",
            measured=plain.elapsed_s / bound_s,
            note=f"{plain.elapsed_s:.3f} s over the same bound",
        ),
    ]
