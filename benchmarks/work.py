"""The work that both sides do: a spec for Parley, the very same requests for the plain script."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2

from benchmarks.services import Services
from orchestrator_service.generation.calls import SCHEMA

MODEL = "claude-sonnet-5-5"
MAX_TOKENS = 8_000
TIER_SHARES = {"template": 0.45, "scenario": 0.39, "edge_case": 0.16}
# 12 x 8 x 1,000 combinations: no prompt comes twice in 96,000, so no two calls are alike.
AXES = {"persona": 12, "emotional_arc": 8, "topic": 1_000}
OBSERVED_MAX_S = 600.0
POLL_S = 0.2


class NotDelivered(Exception):
    """The batch ended without all of its conversations, so no figure of it means anything."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A batch that delivered all of its conversations, by the orchestrator's own clock."""

    batch: batch_pb2.Batch
    create_s: float

    @property
    def run_s(self) -> float:
        """From the first claim to the end of the batch, which is committed with the last settlement."""
        began, ended = self.batch.start_time, self.batch.end_time
        return (ended.ToMicroseconds() - began.ToMicroseconds()) / 1e6


@dataclass(frozen=True)
class PlainRun:
    elapsed_s: float
    cpu_s: float


def spec(count: int, *, concurrency: int) -> batch_pb2.BatchSpec:
    """The built-in prompts of all three tiers, some 5 kB each once filled."""
    axes = [
        batch_pb2.Axis(
            id=axis, values=[batch_pb2.AxisValue(id=f"v{index}", text=_text(axis, index)) for index in range(size)]
        )
        for axis, size in AXES.items()
    ]
    counts = {tier: round(count * share) for tier, share in TIER_SHARES.items()}
    counts["template"] += count - sum(counts.values())
    tiers = [batch_pb2.Tier(id=tier, count=part, max_output_tokens=MAX_TOKENS) for tier, part in counts.items()]
    made = batch_pb2.BatchSpec(name="Benchmark", model=MODEL, tiers=tiers, axes=axes, concurrency=concurrency)
    made.shared_parameters.update({"domain": "looking after a bicycle", "assistant": "Sprocket, a patient mechanic"})
    return made


def _text(axis: str, index: int) -> str:
    return f"{axis.replace('_', ' ')} number {index}, in the words that somebody took care to find for it"


async def deliver(client: BatchClient, wanted: batch_pb2.BatchSpec) -> Delivered:
    """Creates the batch and watches it to its end, as a user does."""
    began_s = time.monotonic()
    created = await client.create(wanted)
    create_s = time.monotonic() - began_s
    batch = await watched(client, created.name)
    return Delivered(batch=batch, create_s=create_s)


async def watched(client: BatchClient, name: str, *, tell: bool = False) -> batch_pb2.Batch:
    batch = batch_pb2.Batch()
    told_s = time.monotonic()
    async for message in client.watch(name):
        batch = message.batch
        if tell and time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            progress(f"  {batch.counts.generated:,} of {batch.counts.total:,}")
    if batch.state != batch_pb2.BATCH_STATE_SUCCEEDED:
        raise NotDelivered(f"{name} ended as {batch_pb2.BatchState.Name(batch.state)}: {batch.counts}")
    return batch


async def ledger(client: BatchClient, name: str) -> list[conversation_pb2.Call]:
    """In the order of claims."""
    return [call async for call in client.calls(name, page_size=1_000)]


async def requests(client: BatchClient, name: str) -> list[dict[str, Any]]:
    """What was sent for the batch, in the order of claims, as arguments of the SDK."""
    prompts = {one.number: one async for one in client.conversations(name, full=True, page_size=500)}
    return [
        {
            "model": MODEL,
            "max_tokens": MAX_TOKENS,
            "system": prompts[call.conversation].prompt_system,
            "messages": [{"role": "user", "content": prompts[call.conversation].prompt}],
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        }
        for call in await ledger(client, name)
    ]


async def plain(services: Services, sent: Sequence[dict[str, Any]], *, concurrency: int) -> PlainRun:
    """The plain script as a process of its own, on the same sandbox."""
    await services.forget_prompts()
    work, out = services.folder / "work.json", services.folder / "plain.jsonl"
    work.write_text(json.dumps({"base_url": services.sandbox_url, "concurrency": concurrency, "requests": sent}))
    out.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.plain", str(work), str(out), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    if process.returncode or _lines(out) != len(sent):
        raise NotDelivered(f"The plain script ended with {process.returncode}.")
    return PlainRun(**json.loads(told))


async def observed(services: Services) -> None:
    """Until the estimator has every call: what goes on behind a batch belongs to it, and not to what comes next."""
    async with asyncio.timeout(OBSERVED_MAX_S):
        # Another process is waited for: there is no event to wait on.
        while await asyncio.to_thread(_unobserved, services.database):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


def _unobserved(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(
            "SELECT EXISTS (SELECT 1 FROM calls WHERE observed = 0 AND state = 'SETTLED')"
        ).fetchone()[0]


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
