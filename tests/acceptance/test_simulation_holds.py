"""The estimator's simulation of a batch against the batch itself, by the very calls that were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2
from servers import Sandbox, running_pair, running_sandbox, spec

from estimator_service.domain.bucket import Array, Demand, Limit
from estimator_service.domain.makespan import TURN_S
from estimator_service.domain.window import Work, walked_s

pytestmark = pytest.mark.anyio

COUNT = 30
SPEED_UP = 100.0
# A busy machine puts some 20 ms around each call of 0.3 s.
OFF_MAX = 0.12


async def test_a_batch_without_limits_takes_as_long_as_the_simulation_says(tmp_path: Path) -> None:
    async with running_sandbox(tmp_path, "--speed-up", str(SPEED_UP), "--tokens-mean", "1000") as sandbox:
        batch, calls = await delivered(tmp_path, sandbox, concurrency=3)
    simulated_s = simulation_of(calls, concurrency=3)
    assert elapsed_s(batch) == pytest.approx(simulated_s, rel=OFF_MAX)
    # It is no mere sum over the slots: one slot fewer is told apart.
    assert simulation_of(calls, concurrency=2) > 1.2 * elapsed_s(batch)


async def test_a_batch_at_a_limit_takes_as_long_as_the_simulation_says(tmp_path: Path) -> None:
    per_minute = 10_000
    options = ("--speed-up", str(SPEED_UP), "--tokens-mean", "1000", "--output-tokens-per-minute", str(per_minute))
    async with running_sandbox(tmp_path, *options) as sandbox:
        batch, calls = await delivered(tmp_path, sandbox, concurrency=15)
    limit = Limit(name="output tokens", per_minute=per_minute, speed_up=SPEED_UP, counted_late=True)
    assert not any(call.http_status == 429 for call in calls)
    assert elapsed_s(batch) == pytest.approx(simulation_of(calls, concurrency=15, limit=limit), rel=OFF_MAX)
    # It is the limit that makes it last.
    assert elapsed_s(batch) > 2 * simulation_of(calls, concurrency=15)


async def delivered(
    folder: Path, sandbox: Sandbox, *, concurrency: int
) -> tuple[batch_pb2.Batch, list[conversation_pb2.Call]]:
    """A batch on services that have made one before, and its calls in the order of their claims."""
    async with running_pair(folder, sandbox, PARLEY_MAX_CONCURRENCY="20") as pair, pair.client() as client:
        # What answers are like is learned, and the SDK imported, in a batch before.
        await ended(client, spec(5, concurrency=5))
        batch = await ended(client, spec(COUNT, concurrency=concurrency))
        return batch, [call async for call in client.calls(batch.name, page_size=1_000)]


async def ended(client: BatchClient, wanted: batch_pb2.BatchSpec) -> batch_pb2.Batch:
    batch = await client.create(wanted)
    async for message in client.watch(batch.name):
        batch = message.batch
    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    return batch


def elapsed_s(batch: batch_pb2.Batch) -> float:
    return (batch.end_time.ToMicroseconds() - batch.start_time.ToMicroseconds()) / 1e6


def simulation_of(calls: Sequence[conversation_pb2.Call], *, concurrency: int, limit: Limit | None = None) -> float:
    output = row([call.usage.output_tokens for call in calls])
    expected = np.full_like(output, output.mean())
    work = Work(
        seconds=row([call.duration.ToMicroseconds() / 1e6 + TURN_S for call in calls]),
        demands=(Demand(limit=limit, amounts=output, expected=expected),) if limit else (),
        sizes=(len(calls),),
        scales=(1.0,),
    )
    return float(walked_s(work, slots=concurrency)[0])


def row(values: Sequence[float]) -> Array:
    return np.array([values], dtype=np.float64)
