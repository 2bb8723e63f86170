"""A wall clock that jumps in the middle of a batch: times in records follow it, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from engine_fixtures import COST, MADE, RESERVE, SteppedClock, World, engine, failed

from orchestrator_service.domain.budget import DAY_US, DailyBudgets
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.engine.holds import HoldSweep

pytestmark = pytest.mark.anyio

HOUR_S = 3_600.0
# Half an hour after a midnight, so that an hour back is another day.
HALF_PAST_MIDNIGHT_US = 20_000 * DAY_US + DAY_US // 48


class JumpingClock(SteppedClock):
    """Its wall clock can be set; what it measures and how long it sleeps goes on as before."""

    wall_us = HALF_PAST_MIDNIGHT_US

    def now_us(self) -> int:
        return self.wall_us + super().now_us()

    def jump(self, seconds: float) -> None:
        self.wall_us += round(seconds * 1e6)


@asynccontextmanager
async def engine_with_jumps(
    path: Path, daily: DailyBudgets | None = None
) -> AsyncGenerator[tuple[World, JumpingClock]]:
    async with engine(path) as world:
        world.clock = clock = JumpingClock(world.news)
        world.daily = daily or world.daily
        world.employ(requests=1_000_000, window_s=8.0)
        yield world, clock


async def test_a_batch_is_made_through_an_hour_back_and_two_forward(tmp_path: Path) -> None:
    async with engine_with_jumps(tmp_path / "o.db") as (world, clock):
        batch = await world.begin(9)
        for jump_s in (-HOUR_S, 2 * HOUR_S, -HOUR_S):
            await world.calls_in_flight(3)
            clock.jump(jump_s)
            world.desk.answer()
        await world.until_state(batch, "SUCCEEDED")
        assert sorted(world.desk.numbers) == list(range(1, 10))
        assert set((await world.rows(batch)).values()) == {"PASSED"}
        # Reserved on one day, settled on another: each day's sums are those of its calls.
        await world.check(batch)
        days = await world.ask("SELECT day, confirmed_nanos, reserved_nanos FROM daily_spend ORDER BY day")
        assert days == [(19_999, 3 * COST, 0), (20_000, 6 * COST, 0)]
        assert [event.number for event in await world.events(batch)] == list(range(1, 13))


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
async def test_a_wait_between_two_attempts_is_neither_longer_nor_shorter_for_a_jump(
    tmp_path: Path, jump_s: float
) -> None:
    async with engine_with_jumps(tmp_path / "o.db") as (world, clock):
        batch = await world.begin(1)
        await world.calls_in_flight(1)
        world.desk.answer(reply=failed(FailureKind.SERVER_ERROR))
        await world.news.until(lambda: bool(clock.sleepers))
        (delay_s,) = clock.sleepers
        clock.jump(jump_s)
        await clock.pass_s(delay_s - 0.001)
        assert world.desk.numbers == [1]
        clock.step(0.001)
        await world.calls_in_flight(1)
        world.desk.answer()
        await world.until_state(batch, "SUCCEEDED")
        await world.check(batch)


async def test_a_days_budget_holds_until_the_wall_clock_says_that_the_day_is_over(tmp_path: Path) -> None:
    # The second call fits; the third would not once two are settled.
    daily = DailyBudgets(owner_nanos=RESERVE + 2 * COST - 1)
    async with engine_with_jumps(tmp_path / "o.db", daily) as (world, clock):
        sweep = HoldSweep(world.database, world.supervisor, daily=daily, clock=clock)
        batch = await world.begin(3, concurrency=1)
        for _ in range(2):
            await world.calls_in_flight(1)
            world.desk.answer()
        await world.until_state(batch, "PAUSED")
        assert await world.holds(batch) == {"BUDGET"}
        # Back to the day before, which has money left: what holds was said to hold until midnight.
        clock.jump(-HOUR_S)
        await sweep.sweep()
        assert await world.state(batch) == "PAUSED"
        clock.jump(25 * HOUR_S)
        await sweep.sweep()
        await world.calls_in_flight(1)
        world.desk.answer()
        await world.until_state(batch, "SUCCEEDED")
        assert world.desk.numbers == [1, 2, 3]
        await world.check(batch)


async def test_what_was_in_flight_before_the_clock_was_set_back_is_written_off_once(tmp_path: Path) -> None:
    async with engine_with_jumps(tmp_path / "o.db") as (world, clock):
        batch = await world.begin(4)
        await world.calls_in_flight(3)
        await world.supervisor.stop(drain_s=0)
        # The next process finds rows of the future.
        clock.jump(-HOUR_S)
        world.employ(requests=1_000_000, window_s=8.0)
        await world.supervisor.start()
        await world.calls_in_flight(3)
        assert (await world.calls(batch)).count("POSSIBLY_SPENT") == 3
        world.desk.at_once = lambda call: MADE
        world.desk.answer()
        await world.until_state(batch, "SUCCEEDED")
        assert (await world.calls(batch)).count("POSSIBLY_SPENT") == 3
        await world.check(batch)
