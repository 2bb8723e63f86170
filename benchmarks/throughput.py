"""Throughput and CPU: what a conversation costs Parley itself, where the model answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from parley.client import BatchClient

from benchmarks import work
from benchmarks.figures import Figure, Limit
from benchmarks.services import Services, running
from benchmarks.work import PlainRun, progress

CONCURRENCY = 10
TOKENS_MEAN = 300
WARM_UP = 50


@dataclass(frozen=True)
class _Pair:
    """Both sides, one after the other; `cpu_s` is the orchestrator's, with all that it does for the batch."""

    run_s: float
    create_s: float
    cpu_s: float
    plain: PlainRun


async def measure(folder: Path, *, count: int, rounds: int) -> list[Figure]:
    options = ("--zero-latency", "--tokens-mean", str(TOKENS_MEAN))
    async with (
        running(folder, *options, concurrency=CONCURRENCY) as services,
        BatchClient(services.address) as client,
    ):
        await work.deliver(client, work.spec(WARM_UP, concurrency=CONCURRENCY))
        pairs = [await _pair(services, client, count=count, round_=round_) for round_ in range(1, rounds + 1)]
    return _figures(pairs, count=count)


async def _pair(services: Services, client: BatchClient, *, count: int, round_: int) -> _Pair:
    await work.observed(services)
    await services.forget_prompts()
    began_cpu_s = services.orchestrator.cpu_s()
    done = await work.deliver(client, work.spec(count, concurrency=CONCURRENCY))
    await work.observed(services)
    cpu_s = services.orchestrator.cpu_s() - began_cpu_s
    plain = await work.plain(services, await work.requests(client, done.batch.name), concurrency=CONCURRENCY)
    progress(
        f"throughput {round_}: {count / done.run_s:.0f}/s at {cpu_s / count * 1e3:.2f} ms CPU,"
        f" plain {count / plain.elapsed_s:.0f}/s at {plain.cpu_s / count * 1e3:.2f} ms"
    )
    return _Pair(done.run_s, done.create_s, cpu_s, plain)


def _figures(pairs: list[_Pair], *, count: int) -> list[Figure]:
    ours = [count / pair.run_s for pair in pairs]
    theirs = [count / pair.plain.elapsed_s for pair in pairs]
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    whole_s = median(pair.run_s + pair.create_s for pair in pairs)
    return [
        Figure(
            name="conversations a second over the plain script's",
            measured=median(ratios),
            bound=Limit(0.8, is_least=True),
            aim=Limit(1.5, is_least=True),
            note=f"median of {len(pairs)} pairs, {min(ratios):.2f} to {max(ratios):.2f}",
        ),
        Figure(
            name="  conversations a second",
            measured=median(ours),
            note=f"{count:,} at {CONCURRENCY}, every result committed; {count / whole_s:,.0f} with CreateBatch",
        ),
        Figure(name="  plain script", measured=median(theirs), note="answers appended to a file"),
        Figure(
            name="CPU a conversation",
            measured=median(pair.cpu_s for pair in pairs) / count * 1e3,
            unit="ms",
            aim=Limit(2.0),
            note="the whole orchestrator: plan, quote, store, call, check, commit, watch, observe",
        ),
        Figure(name="  plain script", measured=median(pair.plain.cpu_s for pair in pairs) / count * 1e3, unit="ms"),
    ]
