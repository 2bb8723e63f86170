"""Money in the engine: budgets that are never passed, what is counted, and what dooms the list."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from engine_fixtures import COST, MADE, RESERVE, World, at_rest, engine, failed, in_turn

from orchestrator_service.domain.budget import DailyBudgets
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.engine.holds import HoldSweep

pytestmark = pytest.mark.anyio


@pytest.fixture(name="world")
async def a_world(tmp_path: Path) -> AsyncGenerator[World]:
    async with engine(tmp_path / "o.db") as world:
        yield world


async def test_a_tight_budget_makes_them_one_by_one_and_never_stalls(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    count = 40
    batch = await world.begin(count, concurrency=5, budget_nanos=(count - 1) * COST + RESERVE)
    await world.until_state(batch, "SUCCEEDED")
    assert len(world.desk.calls) == count
    assert (await world.get(batch)).row["confirmed_nanos"] == count * COST
    await world.check(batch)


async def test_a_budget_is_never_overdrawn_and_a_raised_one_goes_on_by_itself(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    batch = await world.begin(4, concurrency=3, budget_nanos=2 * COST + RESERVE)
    await world.until_state(batch, "PAUSED")
    (hold,) = (await world.get(batch)).holds
    assert (hold["reason"], hold["needs_nanos"]) == ("BUDGET", 3 * COST + RESERVE)
    assert len(world.desk.calls) == 3
    with pytest.raises(ParleyError, match="The hold BUDGET stands"):
        await world.resume(batch)
    await world.verb("change", batch, budget=3 * COST + RESERVE)
    await world.until_state(batch, "SUCCEEDED")


async def test_where_a_budget_is_in_force_what_a_call_may_cost_is_counted_once(world: World) -> None:
    world.desk.counted = 7
    world.desk.at_once = in_turn(failed(FailureKind.OVERLOADED, server_delay_s=0.0), MADE, MADE)
    unlimited = await world.begin(1)
    await world.news.until(lambda: len(world.clock.sleepers) == 1)
    await world.clock.pass_s(1.0)
    await world.until_state(unlimited, "SUCCEEDED")
    assert world.desk.counts_asked == 0
    limited = await world.begin(1, budget_nanos=10 * RESERVE)
    await world.until_state(limited, "SUCCEEDED")
    assert world.desk.counts_asked == 1


async def test_a_days_budget_waits_for_what_other_batches_have_in_flight(tmp_path: Path) -> None:
    async with engine(tmp_path / "o.db") as world:
        world.daily = DailyBudgets(owner_nanos=RESERVE + COST)
        world.supervisor = world.another_supervisor()
        first = await world.begin(1)
        await world.calls_in_flight(1)
        second = await world.begin(2, first=11, concurrency=2)
        await at_rest()
        assert world.desk.numbers == [1]
        world.desk.answer()
        await world.news.until(lambda: len(world.desk.calls) == 2)
        assert await world.state(first) == "SUCCEEDED"
        world.desk.answer()
        await world.until_state(second, "PAUSED")
        (hold,) = (await world.get(second)).holds
        assert hold["scope"] == "OWNER_DAY"
        sweep = HoldSweep(world.database, world.supervisor, daily=world.daily, clock=world.clock)
        await sweep.sweep()
        assert await world.state(second) == "PAUSED"
        world.clock.step(86_400.0)
        world.desk.at_once = lambda call: MADE
        await sweep.sweep()
        await world.until_state(second, "SUCCEEDED")


# What dooms the list.


async def test_a_spend_limit_that_ends_lets_the_batch_go_on_by_itself(world: World) -> None:
    world.desk.at_once = in_turn(failed(FailureKind.PROVIDER_LIMIT, server_delay_s=3_600.0), MADE)
    batch = await world.begin(1)
    await world.until_state(batch, "PAUSED")
    sweep = HoldSweep(world.database, world.supervisor, daily=world.daily, clock=world.clock)
    world.clock.step(3_599.0)
    await sweep.sweep()
    assert await world.state(batch) == "PAUSED"
    world.clock.step(2.0)
    await sweep.sweep()
    await world.until_state(batch, "SUCCEEDED")


async def test_the_breaker_holds_before_the_rest_of_the_list_burns(world: World) -> None:
    world.desk.at_once = lambda call: failed(FailureKind.REFUSED)
    batch = await world.begin(40, concurrency=4)
    await world.until_state(batch, "PAUSED")
    assert await world.holds(batch) == {"TOO_MANY_FAILURES"}
    # Ten in a row, and what was in flight beside the tenth.
    assert 10 <= len(world.desk.calls) <= 13
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "PARTIALLY_SUCCEEDED")
