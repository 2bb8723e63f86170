"""Simulation: real runs against what the estimator's simulation says of them, where it is given the true parameters."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from parley.client import BatchClient
from parley.v1 import conversation_pb2

from benchmarks import simulation_size, work
from benchmarks.figures import Figure, Limit
from benchmarks.services import Services, running
from benchmarks.work import MODEL, progress
from estimator_service.domain.draws import GroupDraws
from estimator_service.domain.estimate import estimate_groups
from estimator_service.domain.history import NOTHING_SEEN, OVERHEAD_CALL_S
from estimator_service.domain.makespan import makespan_s
from estimator_service.domain.rates import Rate
from estimator_service.domain.workload import Group, Limits, Workload

COUNT = 70
SEEDS = (1, 2, 3)
TOKENS_MEAN = 1_000
DRAWS = 1_000
WARM_UP = 10
# Real seconds' worth of its limits that the sandbox lets through at once, after which its buckets are full again.
BURST_S = 60.0
BACKOFF_S = 1.0
OFF_BOUND = Limit(0.05)
FAULTS = {"overloaded": 0.025, "server_error": 0.025}

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Setting:
    name: str
    concurrency: int
    # Calls of some 35 s become 0.23 s at 3 and 0.6 s at 10, so that a run takes 5 to 6 s where nothing binds.
    speed_up: float
    limits: Limits = Limits()
    faulty: bool = False

    def options(self) -> tuple[str, ...]:
        limits = self.limits
        given = {
            "speed-up": self.speed_up,
            "tokens-mean": TOKENS_MEAN,
            "requests-per-minute": int(limits.requests_per_minute) or 1_000_000,
            "input-tokens-per-minute": int(limits.input_tokens_per_minute) or 1_000_000_000,
            "output-tokens-per-minute": int(limits.output_tokens_per_minute) or 1_000_000_000,
            "burst-s": BURST_S,
        }
        faults = [f"--fault={name}={share}" for name, share in FAULTS.items()] if self.faulty else []
        return (*(text for name, value in given.items() for text in (f"--{name}", str(value))), *faults)


def _settings(concurrency: int, *, speed_up: float, share: float) -> tuple[_Setting, ...]:
    """Limits that allow `share` of what the slots would do: some 35 s, 1,200 tokens in and 1,200 out a call."""
    calls = concurrency / 35 * 60 * share
    cases = (
        ("nothing binding", Limits(), False),
        ("binding requests", Limits(requests_per_minute=math.floor(calls)), False),
        ("binding input", Limits(input_tokens_per_minute=round(calls * 1_200)), False),
        ("binding output", Limits(output_tokens_per_minute=round(calls * 1_200)), False),
        ("5 % faults", Limits(), True),
    )
    return tuple(
        _Setting(
            name=f"{name} at {concurrency}", concurrency=concurrency, speed_up=speed_up, limits=limits, faulty=faulty
        )
        for name, limits, faulty in cases
    )


# Pairs that are measured at the same time: neither of them keeps the processors busy.
SETTINGS = tuple(
    zip(
        _settings(3, speed_up=150.0, share=0.7),
        _settings(10, speed_up=60.0, share=0.7),
        strict=True,
    )
)


@dataclass(frozen=True, kw_only=True)
class _Call:
    tier: str
    answered: bool
    seconds: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, kw_only=True)
class _Run:
    elapsed_s: float
    calls: tuple[_Call, ...]


async def measure(folder: Path) -> list[Figure]:
    figures = await simulation_size.measure()
    for number, pair in enumerate(SETTINGS):
        folders = [folder.with_name(f"simulation{number}at{setting.concurrency}") for setting in pair]
        figures += await asyncio.gather(*map(_against_simulation, folders, pair))
    return figures


async def _against_simulation(folder: Path, setting: _Setting) -> Figure:
    progress(f"simulation: {len(SEEDS)} runs of {COUNT} conversations, {setting.name}")
    async with (
        running(folder, *setting.options(), concurrency=max(setting.concurrency, WARM_UP)) as services,
        BatchClient(services.address) as client,
    ):
        await work.deliver(client, work.spec(WARM_UP, concurrency=WARM_UP))
        runs = [await _run(services, client, setting, seed) for seed in SEEDS]
    simulated = simulated_s(setting, runs)
    ratios = [run.elapsed_s / float(simulated.mean()) for run in runs]
    low, high = np.quantile(simulated, (0.025, 0.975))
    held = sum(low <= run.elapsed_s <= high for run in runs)
    mean = sum(ratios) / len(ratios)
    return Figure(
        name=f"real over simulated, {setting.name}: off by",
        measured=abs(mean - 1),
        bound=OFF_BOUND,
        note=f"ratio {mean:.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)});"
        f" {held} of {len(runs)} in P2.5 to P97.5; {simulated.mean():.2f} s",
    )


async def _run(services: Services, client: BatchClient, setting: _Setting, seed: int) -> _Run:
    await work.observed(services)
    await services.forget_prompts()
    await asyncio.sleep(BURST_S / setting.speed_up)
    wanted = work.spec(COUNT, concurrency=setting.concurrency)
    wanted.seed = seed
    done = await work.deliver(client, wanted)
    calls = await work.ledger(client, done.batch.name)
    tiers = {one.number: one.tier async for one in client.conversations(done.batch.name, page_size=500)}
    return _Run(
        elapsed_s=done.run_s,
        calls=tuple(_call(call, tiers[call.conversation], setting.speed_up) for call in calls),
    )


def _call(call: conversation_pb2.Call, tier: str, speed_up: float) -> _Call:
    return _Call(
        tier=tier,
        answered=call.outcome == conversation_pb2.CALL_OUTCOME_ANSWERED,
        # The simulation adds our overhead again.
        seconds=(call.duration.ToMicroseconds() / 1e6 - OVERHEAD_CALL_S) * speed_up,
        input_tokens=call.usage.input_tokens,
        output_tokens=call.usage.output_tokens,
    )


def simulated_s(setting: _Setting, runs: Sequence[_Run]) -> Array:
    """Of new conversations that are like those of all runs together, and fail as often."""
    calls = [call for run in runs for call in run.calls]
    counts = {tier: sum(call.answered and call.tier == tier for call in runs[0].calls) for tier in work.TIER_SHARES}
    workload = Workload(
        groups=tuple(Group(id=tier, tier=tier, model=MODEL, count=count) for tier, count in counts.items()),
        concurrency=setting.concurrency,
        limits=setting.limits,
        speed_up=setting.speed_up,
    )
    estimates = estimate_groups(workload, {MODEL: Rate(model=MODEL)}, NOTHING_SEEN)
    rng = np.random.default_rng(1)
    failed_s = np.array([call.seconds for call in calls if not call.answered])
    drawn = [
        _drawn([call for call in calls if call.answered and call.tier == tier], counts[tier], failed_s, rng)
        for tier in counts
    ]
    return makespan_s(workload, estimates, drawn, speed_up=setting.speed_up)


def _drawn(answered: Sequence[_Call], count: int, failed_s: Array, rng: np.random.Generator) -> GroupDraws:
    shape = (DRAWS, count)
    pool = np.array([(call.seconds, call.input_tokens, call.output_tokens) for call in answered])
    chosen = pool[rng.integers(len(pool), size=shape)]
    failures, lost_s = _failures(shape, failed_s, failures_each=len(failed_s) / (len(SEEDS) * COUNT), rng=rng)
    calls = 1.0 + failures
    return GroupDraws(
        scale=1.0,
        calls=calls,
        fresh_input_tokens=chosen[:, :, 1] * calls,
        output_tokens=chosen[:, :, 2],
        seconds=chosen[:, :, 0] + lost_s,
    )


def _failures(
    shape: tuple[int, int], failed_s: Array, *, failures_each: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """How many calls of each conversation fail, and what they and the waits behind them take."""
    failures: Array = rng.geometric(1 / (1 + failures_each), shape).astype(np.float64) - 1.0
    lost_s = np.zeros(shape)
    for nth in range(int(failures.max())):
        took_s = rng.choice(failed_s, shape) + rng.random(shape) * BACKOFF_S * 2**nth
        lost_s += np.where(failures > nth, took_s, 0.0)
    return failures, lost_s
