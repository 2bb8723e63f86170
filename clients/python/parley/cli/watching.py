"""Watching: follows a batch until it is settled. Leaving never stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress

from parley.cli import calls, holds, words
from parley.cli.failures import HELD, NOT_ALL_MADE, OK
from parley.cli.progress import new_progress
from parley.cli.session import Session
from parley.client import BatchClient
from parley.v1 import batch_pb2, orchestrator_pb2

# Holds that a person can judge only by what failed.
BY_FAILURES = {batch_pb2.HOLD_REASON_TOO_MANY_FAILURES, batch_pb2.HOLD_REASON_STOP_ON_ERROR}
# What a pilot says of the rest comes from the estimator, once the batch is paused.
REFINED_WITHIN_S = 5.0


async def watch(session: Session, name: str) -> int:
    async with session.client() as client:
        return await watch_batch(session, client, name)


async def watch_batch(session: Session, client: BatchClient, name: str, *, hints: bool = True) -> int:
    """Follows until the batch ended or is paused, and says what to do then unless the caller goes on by itself."""
    # A wrong name or a server that is down is told at once; only a watch that had begun is taken up again.
    batch = await client.get(name)
    messages = client.watch(batch.name, until="settled")
    refined, token = _refined(batch), ""
    try:
        with new_progress(session.output) as progress:
            async with aclosing(messages):
                async for message in messages:
                    batch, token = message.batch, message.resume_token or token
                    progress.take(message)
            if _is_pilot(batch) and batch.refined_quote == refined and not session.output.as_json:
                batch = await _until_refined(client, batch, token, progress.take)
    except asyncio.CancelledError:
        _tell_left(session, batch)
        raise
    if hints and not session.output.as_json:
        for line in next_steps(batch):
            session.output.note(f"next: {line}")
    return exit_code(batch)


def _is_pilot(batch: batch_pb2.Batch) -> bool:
    held = any(hold.reason == batch_pb2.HOLD_REASON_CHECKPOINT for hold in batch.holds)
    return held and batch.state == batch_pb2.BATCH_STATE_PAUSED and bool(batch.quote and batch.counts.generated)


def _refined(batch: batch_pb2.Batch) -> str | None:
    """The refined quote of an earlier checkpoint; None where it holds already, and there is nothing to wait for."""
    return batch.refined_quote if batch.state != batch_pb2.BATCH_STATE_PAUSED else None


async def _until_refined(
    client: BatchClient,
    batch: batch_pb2.Batch,
    resume_token: str,
    take: Callable[[orchestrator_pb2.WatchBatchResponse], None],
) -> batch_pb2.Batch:
    """The batch with its quote made anew, a moment after it held; as it was where the estimator does not answer."""
    known = batch.refined_quote
    messages = client.watch(batch.name, resume_token=resume_token, until="ended")
    with suppress(TimeoutError):
        async with asyncio.timeout(REFINED_WITHIN_S), aclosing(messages):
            async for message in messages:
                # Whoever resumed it has seen enough.
                if message.batch.state != batch_pb2.BATCH_STATE_PAUSED:
                    break
                batch = message.batch
                take(message)
                if batch.refined_quote != known:
                    break
    return batch


def exit_code(batch: batch_pb2.Batch) -> int:
    if batch.state == batch_pb2.BATCH_STATE_SUCCEEDED:
        return OK
    return HELD if batch.state == batch_pb2.BATCH_STATE_PAUSED else NOT_ALL_MADE


def next_steps(batch: batch_pb2.Batch) -> list[str]:
    """Commands that go on from a settled batch, the likeliest first."""
    name = words.bare_id(batch.name)
    steps: list[str] = []
    if batch.state == batch_pb2.BATCH_STATE_PAUSED:
        if any(hold.reason in BY_FAILURES for hold in batch.holds):
            steps.append(f"parley show {name}  (what failed, and why)")
        steps += [_raise_budget(batch, hold) for hold in batch.holds if hold.reason == batch_pb2.HOLD_REASON_BUDGET]
        # Resume would be refused while a budget is too low.
        if any(hold.reason != batch_pb2.HOLD_REASON_BUDGET for hold in batch.holds):
            steps.append(f"parley resume {name} && parley watch {name}")
    elif batch.counts.failed or batch.counts.cancelled:
        steps += [f"parley show {name}  (what failed, and why)", f"parley retry {name}  (makes those again)"]
    if batch.counts.deliverable:
        steps.append(f"parley export {name} --out out/")
    if words.possibly_spent(batch.spend):
        steps.append(f"{calls.look_command(name)}, then parley settle")
    return steps


def _raise_budget(batch: batch_pb2.Batch, hold: batch_pb2.Hold) -> str:
    name = words.bare_id(batch.name)
    if hold.HasField("clears_at"):
        return "parley spend  (the day's budget; the batch goes on by itself)"
    if not hold.HasField("needed_budget"):
        return f"parley set {name} --budget AMOUNT && parley watch {name}  (a higher budget lets it go on)"
    return f"{holds.raise_command(batch, hold)} && parley watch {name}"


def watch_command(name: str) -> str:
    return f"parley watch {words.bare_id(name)}"


def _tell_left(session: Session, batch: batch_pb2.Batch) -> None:
    name = words.bare_id(batch.name)
    if batch.state in words.SETTLED:
        return
    session.output.note(f"\nYou stopped watching; the batch {name} goes on.")
    session.output.note(f"next: parley watch {name}  (or: parley pause {name}, parley cancel {name})")
