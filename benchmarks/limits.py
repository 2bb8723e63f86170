"""Limits: how near a batch comes to the least time that the provider's limits allow, what was refused, who shares."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.services import running
from benchmarks.work import progress

CONCURRENCY = 300
# Real seconds' worth of its limits that the provider lets through at once.
BURST_S = 6.0
WARM_UP = 10
REFUSED_BOUND, REFUSED_AIM = Limit(0.01), Limit(0.0)
MAKESPAN_BOUND, MAKESPAN_AIM = Limit(1.05), Limit(1.01)
FAIRNESS = Limit(0.95, is_least=True)


@dataclass(frozen=True, kw_only=True)
class _Case:
    name: str
    count: int
    # Of real time; requests and output tokens of one minute.
    speed_up: float
    requests: int
    output_tokens: int

    def options(self) -> tuple[str, ...]:
        given = {
            "speed-up": self.speed_up,
            "requests-per-minute": self.requests,
            "output-tokens-per-minute": self.output_tokens,
            "input-tokens-per-minute": 1_000_000_000,
            "burst-s": BURST_S,
        }
        return tuple(text for name, value in given.items() for text in (f"--{name}", str(value)))


CASES = (
    _Case(name="600 requests a minute", count=300, speed_up=4.0, requests=600, output_tokens=1_000_000_000),
    _Case(name="300,000 output tokens a minute", count=300, speed_up=8.0, requests=1_000_000, output_tokens=300_000),
)


async def measure(folder: Path) -> list[Figure]:
    figures: list[Figure] = []
    for number, case in enumerate(CASES):
        figures += await _at_limit(folder.with_name(f"limit{number}"), case)
    return [*figures, *await _shared(folder.with_name("shared"))]


async def _at_limit(folder: Path, case: _Case) -> list[Figure]:
    progress(f"limits: {case.count} conversations at {case.name}")
    async with (
        running(folder, *case.options(), concurrency=CONCURRENCY) as services,
        BatchClient(services.address) as client,
    ):
        # The limits are known and the SDK is there before the clock starts; then the provider's bucket is full again.
        await work.deliver(client, work.spec(WARM_UP, concurrency=WARM_UP))
        await asyncio.sleep(BURST_S / case.speed_up)
        await services.forget_prompts()
        done = await work.deliver(client, work.spec(case.count, concurrency=CONCURRENCY))
        calls = await work.ledger(client, done.batch.name)
    refused = sum(call.http_status == 429 for call in calls)
    ideal_s = ideal_makespan_s(calls, case)
    return [
        Figure(
            name=f"answered 429 at {case.name}",
            measured=refused / len(calls),
            bound=REFUSED_BOUND,
            aim=REFUSED_AIM,
            note=f"{refused} of {len(calls)} calls",
        ),
        Figure(
            name="  makespan over the ideal",
            measured=done.run_s / ideal_s,
            bound=MAKESPAN_BOUND,
            aim=MAKESPAN_AIM,
            note=f"{done.run_s:.2f} s, ideal {ideal_s:.2f} s, {case.speed_up:g} x as fast as real",
        ),
    ]


def ideal_makespan_s(calls: Sequence[conversation_pb2.Call], case: _Case) -> float:
    """Every call starts in the very moment that a full bucket lets it, knowing what each will use."""
    made = [call for call in calls if call.outcome == conversation_pb2.CALL_OUTCOME_ANSWERED]
    requests, tokens, end_s = 0.0, 0.0, 0.0
    for call in made:
        requests += 1
        tokens += call.usage.output_tokens
        waits_s = [
            60 * used / limit - BURST_S for used, limit in ((requests, case.requests), (tokens, case.output_tokens))
        ]
        end_s = max(end_s, max(0.0, *waits_s) / case.speed_up + call.duration.ToMicroseconds() / 1e6)
    return end_s


async def _shared(folder: Path) -> list[Figure]:
    """Two owners, one with ten times the work in ten batches; until the smaller one has all of its own."""
    count, loads = 100, {"many": 10, "few": 1}
    progress(f"limits: two owners, {loads['many']} batches of {count} against one")
    case = _Case(name="", count=count, speed_up=8.0, requests=600, output_tokens=1_000_000_000)
    async with (
        running(folder, *case.options(), concurrency=CONCURRENCY) as services,
        BatchClient(services.address) as client,
    ):
        await work.deliver(client, work.spec(WARM_UP, concurrency=WARM_UP))
        made = [
            (owner, await client.create(_held(count), owner=owner))
            for owner, load in loads.items()
            for _ in range(load)
        ]
        for _, batch in made:
            await client.resume(batch.name)
        few = next(batch for owner, batch in made if owner == "few")
        ended = await work.watched(client, few.name)
        shares = await _calls_until(client, made, ended)
    index = sum(shares.values()) ** 2 / (len(shares) * sum(share**2 for share in shares.values()))
    return [
        Figure(
            name="two owners at 10 to 1 load (Jain index)",
            measured=index,
            bound=FAIRNESS,
            note=", ".join(f"{owner}: {share} calls" for owner, share in shares.items()) + " while both waited",
        )
    ]


def _held(count: int) -> batch_pb2.BatchSpec:
    """Waits for approval, so that all begin together."""
    wanted = work.spec(count, concurrency=count)
    wanted.hold_after = 0
    return wanted


async def _calls_until(
    client: BatchClient, made: Sequence[tuple[str, batch_pb2.Batch]], ended: batch_pb2.Batch
) -> dict[str, int]:
    """Calls that each owner got through the limit while the smaller one still had any that waited."""
    ledgers = [(owner, await work.ledger(client, batch.name)) for owner, batch in made]
    last = max(call.create_time.ToMicroseconds() for owner, calls in ledgers if owner == "few" for call in calls)
    first = ended.start_time.ToMicroseconds()
    shares: dict[str, int] = {}
    for owner, calls in ledgers:
        through = sum(first <= call.create_time.ToMicroseconds() <= last for call in calls)
        shares[owner] = shares.get(owner, 0) + through
    return shares
