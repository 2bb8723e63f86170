"""Budgets that hold: through kills and restarts, over the batches of an owner, and when they are raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from evidence import WAIT_MAX_S, damage, event_log, last_seen, provider_nanos, reset, rows, until
from parley import money
from parley.client import BatchClient
from parley.exceptions import ParleyError
from parley.v1 import batch_pb2
from servers import Pair, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

COUNT = 400
CONCURRENCY = 10
# A call takes about 0.05 s here, and may cost some three times of what it does: half of the cost is more than what
# three kills with ten in flight leave as possibly spent.
PACE = ("--speed-up", "400", "--tokens-mean", "500")
MAX_TOKENS = 1_500


@asynccontextmanager
async def stage(folder: Path, **settings: str) -> AsyncGenerator[tuple[Pair, BatchClient]]:
    async with (
        running_sandbox(folder, *PACE) as sandbox,
        running_pair(folder, sandbox, **settings) as pair,
        pair.client() as client,
    ):
        yield pair, client


def sized(
    count: int, *, seed: int = 1, budget: int | None = None, concurrency: int = CONCURRENCY
) -> batch_pb2.BatchSpec:
    wanted = spec(count, concurrency=concurrency, seed=seed)
    wanted.tiers[0].max_output_tokens = MAX_TOKENS
    if budget is not None:
        wanted.budget.CopyFrom(money.from_nanos(budget))
    return wanted


async def settled(client: BatchClient, name: str, *, budget_nanos: int) -> batch_pb2.Batch:
    """The batch when it is held or has ended; what it spent never passed the budget on the way."""
    seen = batch_pb2.Batch()
    async with asyncio.timeout(WAIT_MAX_S), aclosing(client.watch(name, until="settled")) as messages:
        async for message in messages:
            seen = message.batch
            assert committed(seen) <= budget_nanos
    return seen


def committed(batch: batch_pb2.Batch) -> int:
    spend = batch.spend
    return sum(money.to_nanos(one) for one in (spend.confirmed, spend.reserved, spend.possibly_spent))


def dollars(nanos: int) -> Decimal:
    return Decimal(nanos) / 10**9


async def whole_cost(client: BatchClient) -> int:
    """What so many conversations cost, by having them made."""
    made = await client.create(sized(COUNT, seed=7))
    batch = await settled(client, made.name, budget_nanos=10**15)
    assert batch.counts.deliverable == COUNT
    return committed(batch)


async def test_a_budget_of_half_the_cost_is_never_passed_through_three_kills_and_is_raised_twice(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as (pair, client):
        cost = await whole_cost(client)
        await reset(pair.sandbox)
        budget = cost // 2
        name = (await client.create(sized(COUNT, budget=budget))).name
        for completed in (15, 40, 60):
            await until(pair.sandbox, lambda stats, completed=completed: stats["calls_completed"] >= completed)
            await pair.orchestrator.kill()
            stats = await until(pair.sandbox, lambda stats: stats["in_flight"] == 0)
            (sums,) = rows(
                pair.database,
                f"SELECT confirmed_nanos + reserved_nanos + possibly_spent_nanos AS n FROM batches"  # noqa: S608
                f" WHERE id = '{name.removeprefix('batches/')}'",
            )
            assert sums["n"] <= budget
            assert provider_nanos(stats, pair.database) <= budget
            await pair.restart()

        held = await settled(client, name, budget_nanos=budget)
        assert [hold.reason for hold in held.holds] == [batch_pb2.HOLD_REASON_BUDGET]
        assert held.counts.pending > 0
        assert held.counts.in_flight == 0
        needed = money.to_nanos(held.holds[0].needed_budget)
        # Nothing in flight, and not a dollar for another call.
        assert committed(held) <= budget < needed
        with pytest.raises(ParleyError, match="The hold BUDGET stands"):
            await client.resume(name)

        raised = needed + cost // 4
        await client.update(name, budget=dollars(raised))
        again = await settled(client, name, budget_nanos=raised)
        assert [hold.reason for hold in again.holds] == [batch_pb2.HOLD_REASON_BUDGET]
        assert again.counts.deliverable > held.counts.deliverable

        await client.update(name, budget=dollars(4 * cost))
        ended = await settled(client, name, budget_nanos=4 * cost)
        assert ended.state == batch_pb2.BATCH_STATE_SUCCEEDED
        assert ended.counts.deliverable == COUNT
        marks = [event.budget_mark for event in await event_log(client, name) if event.HasField("budget_mark")]
        assert [mark.share for mark in marks][:2] == [0.8, 0.8]
        assert provider_nanos(await pair.sandbox.stats(), pair.database) <= committed(ended)
        assert not damage(pair.database)


async def test_an_owners_day_holds_their_batches_and_says_until_when(tmp_path: Path) -> None:
    async with stage(tmp_path, PARLEY_OWNER_DAILY_BUDGET="0.10", PARLEY_DAILY_BUDGET="1000") as (pair, client):
        first = await client.create(sized(40, concurrency=3))
        held = await settled(client, first.name, budget_nanos=10**8)
        (hold,) = held.holds
        assert hold.reason == batch_pb2.HOLD_REASON_BUDGET
        assert "PARLEY_OWNER_DAILY_BUDGET" in hold.message
        assert hold.clears_at.seconds % 86_400 == 0
        second = await client.create(sized(3, seed=2))
        assert (await settled(client, second.name, budget_nanos=10**8)).counts.deliverable == 0
        with pytest.raises(ParleyError, match="00:00 UTC"):
            await client.resume(first.name)
        spend = await client.spend()
        owners, servers = spend.daily_budgets
        assert money.to_nanos(owners.budget) == 10**8
        assert money.to_nanos(owners.committed) == committed(held)
        assert owners.resets_at == hold.clears_at
        assert (servers.owner, money.to_nanos(servers.committed)) == ("", committed(held))

        # A higher one lets both go on by themselves, after the restart that it takes.
        assert await pair.orchestrator.stop() == 0
        pair.orchestrator.environment = {**pair.orchestrator.environment, "PARLEY_OWNER_DAILY_BUDGET": "1000"}
        await pair.restart()
        for name, count in ((first.name, 40), (second.name, 3)):
            batch = await last_seen(client, name)
            assert (batch.state, batch.counts.deliverable) == (batch_pb2.BATCH_STATE_SUCCEEDED, count)
