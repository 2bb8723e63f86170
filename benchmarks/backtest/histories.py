"""Histories of real runs: worlds that differ in level, each with many batches that drift, from the ledger."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Any
from urllib.request import Request, urlopen

from parley import money
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2

from benchmarks import work
from benchmarks.backtest.series import Batch, Call, Drift, Series
from benchmarks.services import Services, running
from benchmarks.work import Delivered, progress

CONVERSATIONS = 90
CONCURRENCY = 10
BATCHES = 32
# Shared by all calls of a batch, of the tokens and of the speed each, as log-SD.
DRIFT_LOG_SD = 0.03
# The longest answer of all worlds has some 12,000: none is cut.
MAX_TOKENS = 16_000
# A batch of 90 at 10 then takes some 10 s, of which our own work is little; all worlds at once leave two processors
# half idle.
CALL_WALL_S = 0.9
WARM_UP = 10
FORMAT = 1


class HistoryError(Exception):
    """The file can't be used; the text is one line that names the file and its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    name: str
    seed: int
    # Means of a template conversation, and medians at real speed. The priors have 3,000 (4,000 and 5,000 for the other
    # tiers, where the sandbox has 1.25 and 0.9 times the template's), 36 a second and 1 s.
    tokens_mean: int
    tokens_per_s: float
    first_token_s: float
    # An arc lengthens or shortens all its conversations alike, and the plan gives every arc its share: few of them
    # make batches more alike than conversations drawn by chance would be.
    arcs: int

    @property
    def speed_up(self) -> int:
        mean_s = self.first_token_s + self.tokens_mean / self.tokens_per_s
        return max(1, round(mean_s / CALL_WALL_S))


# Output of 0.5 to 1.6 times the template's prior, 0.3 to 1.1 times those of the other tiers; 24 to 64 tokens a second.
WORLDS = (
    World(name="world 1", seed=11, tokens_mean=1_500, tokens_per_s=40.0, first_token_s=0.6, arcs=400),
    World(name="world 2", seed=12, tokens_mean=1_800, tokens_per_s=24.0, first_token_s=1.6, arcs=400),
    World(name="world 3", seed=13, tokens_mean=2_200, tokens_per_s=60.0, first_token_s=0.4, arcs=12),
    World(name="world 4", seed=14, tokens_mean=2_600, tokens_per_s=30.0, first_token_s=2.0, arcs=400),
    World(name="world 5", seed=15, tokens_mean=3_400, tokens_per_s=48.0, first_token_s=1.4, arcs=400),
    World(name="world 6", seed=16, tokens_mean=3_900, tokens_per_s=64.0, first_token_s=0.5, arcs=400),
    World(name="world 7", seed=17, tokens_mean=4_400, tokens_per_s=26.0, first_token_s=2.5, arcs=400),
    World(name="world 8", seed=18, tokens_mean=4_800, tokens_per_s=44.0, first_token_s=3.0, arcs=400),
)


async def record(folder: Path, path: Path, *, batches: int) -> None:
    """Runs all worlds at once, each on processes of its own, and writes a line for every batch."""
    await asyncio.to_thread(folder.mkdir)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_record(folder / str(number), world, batches=batches))
            for number, world in enumerate(WORLDS)
        ]
    text = "".join(line + "\n" for task in tasks for line in task.result())
    await asyncio.to_thread(path.write_text, text, encoding="utf-8")


async def _record(folder: Path, world: World, *, batches: int) -> list[str]:
    rng, lines = Random(world.seed), list[str]()
    of_batches = zip(drifts(rng, batches), drifts(rng, batches), strict=True)
    async with _running(folder, world) as (services, client):
        for number, (tokens, speed) in enumerate(of_batches):
            await _change(
                services,
                tokens_mean=round(world.tokens_mean * math.exp(tokens)),
                tokens_per_s=world.tokens_per_s * math.exp(speed),
            )
            done = await work.deliver(client, _spec(world, seed=number + 1))
            line = await _line(client, world, done, tokens=tokens, speed=speed)
            lines.append(json.dumps(line))
            await work.observed(services)
            if number % 10 == 9:
                progress(f"backtest: {world.name}: {number + 1} batches of {batches}, the last took {done.run_s:.2f} s")
    return lines


def drifts(rng: Random, batches: int) -> list[float]:
    """One from each of so many equally likely strata, in any order: they vary by what they shall, whatever the seed."""
    normal = NormalDist(0.0, DRIFT_LOG_SD)
    drawn = [normal.inv_cdf((number + 0.5) / batches) for number in range(batches)]
    rng.shuffle(drawn)
    return drawn


@asynccontextmanager
async def _running(folder: Path, world: World) -> AsyncGenerator[tuple[Services, BatchClient]]:
    options = {
        "seed": world.seed,
        "speed-up": world.speed_up,
        "tokens-mean": world.tokens_mean,
        "tokens-per-s": world.tokens_per_s,
        "first-token-s": world.first_token_s,
    }
    told = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    async with running(folder, *told, concurrency=CONCURRENCY) as services, BatchClient(services.address) as client:
        # The first batch waits for the SDK to be imported; that is start-up.
        await work.deliver(client, work.spec(WARM_UP, concurrency=CONCURRENCY))
        yield services, client


async def _change(services: Services, **settings: float) -> None:
    body = json.dumps(settings).encode()
    request = Request(f"{services.sandbox_url}/settings", data=body, method="POST")
    await asyncio.to_thread(lambda: urlopen(request).close())


def _spec(world: World, *, seed: int) -> batch_pb2.BatchSpec:
    made = work.spec(CONVERSATIONS, concurrency=CONCURRENCY)
    made.seed = seed
    for tier in made.tiers:
        tier.max_output_tokens = MAX_TOKENS
    arcs = next(axis for axis in made.axes if axis.id == "emotional_arc")
    del arcs.values[:]
    # Their texts differ from world to world, and so do their lengths.
    arcs.values.extend(
        batch_pb2.AxisValue(id=f"v{number}", text=f"from worry {number} of {world.name} to relief {number}")
        for number in range(world.arcs)
    )
    return made


async def _line(
    client: BatchClient, world: World, done: Delivered, *, tokens: float, speed: float
) -> dict[str, object]:
    tiers = {one.number: one.tier async for one in client.conversations(done.batch.name, page_size=500)}
    calls = await work.ledger(client, done.batch.name)
    if len(calls) != CONVERSATIONS:
        raise work.NotDelivered(f"{done.batch.name} made {len(calls)} calls for {CONVERSATIONS} conversations.")
    return {
        "format": FORMAT,
        "world": world.name,
        "model": work.MODEL,
        "concurrency": CONCURRENCY,
        "speed_up": world.speed_up,
        "batch": done.batch.name,
        "began": done.batch.start_time.ToDatetime(UTC).isoformat(),
        "time_s": done.run_s,
        "drift": {"tokens": tokens, "speed": speed},
        "calls": [_call(call, tiers[call.conversation], done) for call in calls],
    }


def _call(call: conversation_pb2.Call, tier: str, done: Delivered) -> dict[str, object]:
    usage, began_us = call.usage, done.batch.start_time.ToMicroseconds()
    start_s = (call.create_time.ToMicroseconds() - began_us) / 1e6
    streamed = call.HasField("first_token_delay")
    return {
        "tier": tier,
        "input_tokens": usage.input_tokens
        + usage.cache_write_5m_tokens
        + usage.cache_write_1h_tokens
        + usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
        "start_s": start_s,
        "end_s": start_s + call.duration.ToMicroseconds() / 1e6,
        "first_token_s": call.first_token_delay.ToMicroseconds() / 1e6 if streamed else None,
        "cost_nanos": money.to_nanos(call.cost),
        "max_output_tokens": MAX_TOKENS,
    }


def read(path: Path) -> list[Series]:
    """One series a world."""
    worlds: dict[str, list[dict[str, Any]]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HistoryError(f"{path}: can't be read: {error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            read_line = json.loads(line)
            worlds.setdefault(read_line["world"], []).append({**read_line, "batch": _batch(read_line)})
        except (ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"{path.name}, line {number}: is no batch of a history: {error!r}") from None
    if not worlds:
        raise HistoryError(f"{path.name}: has no line")
    return [_series(name, lines) for name, lines in worlds.items()]


def _batch(line: dict[str, Any]) -> Batch:
    calls = sorted((Call(**call) for call in line["calls"]), key=lambda call: call.start_s)
    return Batch(
        name=f"{line['world']}/{line['batch']}",
        began=datetime.fromisoformat(line["began"]),
        calls=tuple(calls),
        time_s=float(line["time_s"]),
        drift=Drift(tokens=line["drift"]["tokens"], speed=line["drift"]["speed"]),
    )


def _series(name: str, lines: Sequence[dict[str, Any]]) -> Series:
    first = lines[0]
    return Series(
        name=name,
        kind="sandbox",
        model=first["model"],
        concurrency=first["concurrency"],
        speed_up=first["speed_up"],
        lanes=(tuple(line["batch"] for line in lines),),
        measures=("cost", "time"),
        counts_prompts=True,
    )
