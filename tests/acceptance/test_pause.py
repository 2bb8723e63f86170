"""Holding a batch and letting it go on: nothing in flight is lost, nothing new starts, nothing is paid twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal

import pytest
from evidence import WAIT_MAX_S, calls_of, event_log, last_seen, reset, until
from parley import money
from parley.client import BatchClient
from parley.exceptions import WrongState
from parley.v1 import batch_pb2, conversation_pb2
from servers import Pair, Sandbox, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

State = batch_pb2.BatchState


@dataclass(frozen=True)
class Stage:
    """Both services and a provider that holds calls when told to, shared by the stories of this file."""

    client: BatchClient
    sandbox: Sandbox
    pair: Pair


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("pause")
    async with running_sandbox(folder) as sandbox, running_pair(folder, sandbox) as pair, pair.client() as client:
        yield Stage(client, sandbox, pair)


async def in_flight(stage: Stage, wanted: batch_pb2.BatchSpec, calls: int) -> batch_pb2.Batch:
    """A new batch of which so many calls are at the provider, which answers none of them yet."""
    await reset(stage.sandbox, paused=True)
    batch = await stage.client.create(wanted)
    await until(stage.sandbox, lambda stats: stats["in_flight"] == calls)
    return batch


async def tell_states(client: BatchClient, name: str, told: asyncio.Queue[int]) -> None:
    """Every state that a watcher is shown until the batch has settled."""
    shown = batch_pb2.BATCH_STATE_UNSPECIFIED
    async with asyncio.timeout(WAIT_MAX_S), aclosing(client.watch(name, until="settled")) as messages:
        async for message in messages:
            if message.batch.state != shown:
                shown = message.batch.state
                await told.put(shown)


async def state_changes(client: BatchClient, name: str) -> list[tuple[int, int]]:
    changes = [event.state_changed for event in await event_log(client, name) if event.HasField("state_changed")]
    return [(getattr(change, "from"), change.to) for change in changes]


async def test_a_pause_keeps_the_ten_in_flight_and_starts_no_other(stage: Stage) -> None:
    client, sandbox = stage.client, stage.sandbox
    created = await in_flight(stage, spec(30, concurrency=10), 10)
    told: asyncio.Queue[int] = asyncio.Queue()
    watching = asyncio.create_task(tell_states(client, created.name, told))
    assert await asyncio.wait_for(told.get(), WAIT_MAX_S) == State.BATCH_STATE_RUNNING

    pausing = await client.pause(created.name)
    assert pausing.state == State.BATCH_STATE_PAUSING
    assert pausing.counts.in_flight == 10
    # Once more changes nothing.
    assert (await client.pause(created.name)).state == State.BATCH_STATE_PAUSING
    assert await asyncio.wait_for(told.get(), WAIT_MAX_S) == State.BATCH_STATE_PAUSING
    await sandbox.change(paused=False)
    assert await asyncio.wait_for(told.get(), WAIT_MAX_S) == State.BATCH_STATE_PAUSED
    await watching

    paused = await client.get(created.name)
    assert (paused.counts.deliverable, paused.counts.pending, paused.counts.in_flight) == (10, 20, 0)
    assert [hold.reason for hold in paused.holds] == [batch_pb2.HOLD_REASON_USER]
    await a_restart_keeps_it_paused(stage, paused)
    await client.resume(created.name)
    batch = await last_seen(client, created.name)
    stats = await sandbox.stats()
    assert batch.state == State.BATCH_STATE_SUCCEEDED
    assert batch.counts.deliverable == 30
    assert (stats["calls_started"], stats["calls_completed"], stats["paid_by_prompt_max"]) == (30, 30, 1)


async def a_restart_keeps_it_paused(stage: Stage, paused: batch_pb2.Batch) -> None:
    assert await stage.pair.orchestrator.stop() == 0
    await stage.pair.restart()
    after = await stage.client.get(paused.name)
    assert (after.state, after.counts, after.last_event) == (paused.state, paused.counts, paused.last_event)
    assert (await stage.sandbox.stats())["calls_started"] == 10


async def test_a_pause_of_waiting_conversations_is_at_once(stage: Stage) -> None:
    """Only a call at the provider is in flight: an idle batch has none, so there is nothing to wait for."""
    await reset(stage.sandbox)
    created = await stage.client.create(spec(5, hold_after=0))
    await last_seen(stage.client, created.name, until="settled")
    paused = await stage.client.pause(created.name)
    assert paused.state == State.BATCH_STATE_PAUSED
    assert (await stage.sandbox.stats())["calls_started"] == 0
    cancelled = await stage.client.cancel(created.name)
    assert (cancelled.state, cancelled.counts.cancelled) == (State.BATCH_STATE_CANCELLED, 5)


def three_tiers() -> batch_pb2.BatchSpec:
    wanted = spec(8, concurrency=2, hold_after=3)
    for tier in ("scenario", "edge_case"):
        added = wanted.tiers.add()
        added.CopyFrom(wanted.tiers[0])
        added.id = tier
    return wanted


async def test_a_pilot_of_three_has_one_of_each_tier_and_grows_when_it_is_raised(stage: Stage) -> None:
    await reset(stage.sandbox)
    client = stage.client
    created = await client.create(three_tiers())
    pilot = await last_seen(client, created.name, until="settled")
    assert pilot.state == State.BATCH_STATE_PAUSED
    assert [hold.reason for hold in pilot.holds] == [batch_pb2.HOLD_REASON_CHECKPOINT]
    assert {tier.tier: tier.counts.generated for tier in pilot.tiers} == {"template": 1, "scenario": 1, "edge_case": 1}

    await client.update(created.name, hold_after=10)
    more = await last_seen(client, created.name, until="settled")
    assert (more.state, more.counts.generated) == (State.BATCH_STATE_PAUSED, 10)
    await client.resume(created.name)
    batch = await last_seen(client, created.name)
    assert batch.counts.deliverable == 24
    # The pilot's conversations are the batch's own: nothing is paid twice.
    assert (await stage.sandbox.stats())["calls_completed"] == 24


async def test_stop_on_error_holds_at_the_first_failure_and_loses_nothing(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"refusal": 1.0})
    client = stage.client
    created = await client.create(spec(6, concurrency=1, error_mode=batch_pb2.ERROR_MODE_STOP))
    held = await last_seen(client, created.name, until="settled")
    assert held.state == State.BATCH_STATE_PAUSED
    assert [hold.reason for hold in held.holds] == [batch_pb2.HOLD_REASON_STOP_ON_ERROR]
    assert (held.counts.failed, held.counts.pending) == (1, 5)
    assert (await stage.sandbox.stats())["calls_started"] == 1

    await stage.sandbox.change(faults={})
    await client.resume(created.name)
    some = await last_seen(client, created.name)
    assert (some.state, some.counts.deliverable) == (State.BATCH_STATE_PARTIALLY_SUCCEEDED, 5)
    retried = await client.retry(created.name)
    assert (retried.requeued, retried.batch.run) == (1, 2)
    batch = await last_seen(client, created.name)
    assert (batch.state, batch.counts.deliverable) == (State.BATCH_STATE_SUCCEEDED, 6)


async def test_cancel_keeps_what_is_in_flight_and_retry_makes_the_rest(stage: Stage) -> None:
    client = stage.client
    created = await in_flight(stage, spec(20, concurrency=5), 5)
    assert (await client.cancel(created.name)).state == State.BATCH_STATE_CANCELLING
    with pytest.raises(WrongState) as refused:
        await client.retry(created.name)
    assert refused.value.reason == "STATE_FORBIDS"
    await stage.sandbox.change(paused=False)
    cancelled = await last_seen(client, created.name)
    assert cancelled.state == State.BATCH_STATE_CANCELLED
    assert (cancelled.counts.deliverable, cancelled.counts.cancelled) == (5, 15)
    assert (await stage.sandbox.stats())["calls_started"] == 5

    retried = await client.retry(created.name, request_id="once")
    assert (retried.requeued, retried.batch.run) == (15, 2)
    # The same request once more puts nothing back.
    assert (await client.retry(created.name, request_id="once")).requeued == 15
    batch = await last_seen(client, created.name)
    assert (batch.state, batch.counts.deliverable) == (State.BATCH_STATE_SUCCEEDED, 20)
    assert (await stage.sandbox.stats())["calls_completed"] == 20
    assert await state_changes(client, created.name) == [
        (State.BATCH_STATE_PREPARING, State.BATCH_STATE_QUEUED),
        (State.BATCH_STATE_QUEUED, State.BATCH_STATE_RUNNING),
        (State.BATCH_STATE_RUNNING, State.BATCH_STATE_CANCELLING),
        (State.BATCH_STATE_CANCELLING, State.BATCH_STATE_CANCELLED),
        (State.BATCH_STATE_CANCELLED, State.BATCH_STATE_QUEUED),
        (State.BATCH_STATE_QUEUED, State.BATCH_STATE_RUNNING),
        (State.BATCH_STATE_RUNNING, State.BATCH_STATE_SUCCEEDED),
    ]


async def test_a_budget_is_kept_and_raising_it_goes_on_by_itself(stage: Stage) -> None:
    await reset(stage.sandbox)
    client = stage.client
    # A call's worst case is about ten times what it comes to, so the budget is spent for the most part, never passed.
    wanted = spec(40, concurrency=4, budget=money.from_decimal(Decimal("0.05")))
    wanted.tiers[0].max_output_tokens = 2000
    created = await client.create(wanted)
    held = await last_seen(client, created.name, until="settled")
    assert held.state == State.BATCH_STATE_PAUSED
    assert [hold.reason for hold in held.holds] == [batch_pb2.HOLD_REASON_BUDGET]
    assert 0 < held.counts.generated < 40
    assert money.to_nanos(held.spend.confirmed) <= 50_000_000
    with pytest.raises(WrongState) as refused:
        await client.resume(created.name)
    assert refused.value.reason == "HOLD_STANDS"
    assert int(refused.value.metadata["needs_nanos"]) > 50_000_000

    await client.update(created.name, budget=Decimal("5"))
    batch = await last_seen(client, created.name)
    assert (batch.state, batch.counts.deliverable) == (State.BATCH_STATE_SUCCEEDED, 40)
    assert (await stage.sandbox.stats())["calls_completed"] == 40


async def test_a_lower_concurrency_holds_from_the_next_claim_and_aborts_nothing(stage: Stage) -> None:
    client = stage.client
    created = await in_flight(stage, spec(20, concurrency=6), 6)
    await client.update(created.name, concurrency=2)
    assert (await stage.sandbox.stats())["in_flight"] == 6
    await stage.sandbox.change(paused=False)
    batch = await last_seen(client, created.name)
    assert batch.counts.deliverable == 20
    outcomes = Counter(call.outcome for call in await calls_of(client, created.name))
    assert outcomes == {conversation_pb2.CALL_OUTCOME_ANSWERED: 20}
