"""When something breaks: a database that refuses, a runner that crashes, a process that ends and starts again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_fixtures import COST, MADE, RESERVE, WAIT_MAX_S, World, at_rest, engine, failed
from structlog.testing import capture_logs

from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.engine.supervisor import FAILURES_MAX
from orchestrator_service.storage import verbs
from orchestrator_service.storage.verbs import At

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with engine(tmp_path / "o.db") as world:
        yield world


def crash(world: World, number: int) -> None:
    """A mistake of ours, in the middle of what follows this answer."""
    world.clock.is_broken = True
    world.desk.answer(number)


async def sleeping(world: World, count: int) -> None:
    await world.news.until(lambda: len(world.clock.sleepers) == count)


# A database that refuses.


async def test_answers_wait_while_the_database_refuses_and_none_is_lost(world: World) -> None:
    batch = await world.begin(6, concurrency=3)
    await world.calls_in_flight(3)
    async with world.locked():
        world.desk.answer()
        await sleeping(world, 3)
        # Refused once more, and still kept.
        world.clock.step(1.0)
        await at_rest()
        await sleeping(world, 3)
        assert await world.calls(batch) == ["RESERVED"] * 3
    world.clock.step(1.0)
    await world.calls_in_flight(3)
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == [1, 2, 3, 4, 5, 6]
    assert await world.calls(batch) == ["SETTLED"] * 6
    await world.check(batch)


async def test_a_claim_that_is_refused_leaves_calls_in_flight_alone(world: World) -> None:
    batch = await world.begin(3, concurrency=1)
    await world.calls_in_flight(1)
    await world.change(batch, concurrency=2)
    async with world.locked():
        world.supervisor.ensure_running(batch)
        await sleeping(world, 1)
        assert world.desk.in_flight == [1]
    world.clock.step(1.0)
    await world.calls_in_flight(2)
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")
    assert world.desk.numbers == [1, 2, 3]


async def test_a_pause_while_the_database_refuses_still_keeps_the_answers(world: World) -> None:
    batch = await world.begin(3, concurrency=2)
    await world.calls_in_flight(2)
    await world.pause(batch)
    async with world.locked():
        world.desk.answer()
        await sleeping(world, 2)
        world.supervisor.ensure_running(batch)
        await at_rest()
        # A hold ends waits for the limit and between attempts, never this one.
        assert len(world.clock.sleepers) == 2
    world.clock.step(1.0)
    await world.until_state(batch, "PAUSED")
    await world.until_rows(batch, PASSED=2, PENDING=1)


# A runner that crashes.


async def test_a_runner_that_crashes_begins_again_with_what_was_in_flight_written_off(world: World) -> None:
    batch = await world.begin(5, concurrency=3)
    await world.calls_in_flight(3)
    crash(world, 2)
    await sleeping(world, 1)
    snapshot = await world.get(batch)
    assert (snapshot.state, snapshot.row["epoch"]) == ("QUEUED", 1)
    assert await world.calls(batch) == ["POSSIBLY_SPENT"] * 3
    recovered = [event.detail for event in await world.events(batch) if event.kind == "recovered"]
    assert recovered == [{"calls_possibly_spent": 3, "conversations_requeued": 3}]
    await world.check(batch)
    world.desk.at_once = lambda call: MADE
    world.clock.step(1.0)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers[3:]) == [1, 2, 3, 4, 5]
    row = (await world.get(batch)).row
    assert (row["confirmed_nanos"], row["possibly_spent_nanos"]) == (5 * COST, 3 * RESERVE)
    # None of them lost a try by it.
    assert await world.ask("SELECT DISTINCT tries FROM conversations") == [(1,)]
    await world.check(batch)


async def test_a_runner_that_crashes_again_and_again_waits_longer_and_is_held_at_last(world: World) -> None:
    batch = await world.begin(1)
    waited: list[float] = []
    with capture_logs() as logged:
        for _ in range(FAILURES_MAX):
            await world.calls_in_flight(1)
            crash(world, 1)
            await sleeping(world, 1)
            waited += world.clock.sleepers
            world.clock.step(60.0)
        await world.until_state(batch, "PAUSED")
    assert waited == [1, 2, 4]
    assert [line["again_in_s"] for line in logged if line["event"] == "runner failed"] == waited
    assert await world.holds(batch) == {"TOO_MANY_FAILURES"}
    await world.check(batch)
    # Each failure may have been paid for: no more of them until somebody has looked.
    assert await world.calls(batch) == ["POSSIBLY_SPENT"] * 3
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")


async def test_a_provider_that_raises_takes_no_other_call_down(world: World) -> None:
    batch = await world.begin(2, concurrency=2)
    await world.calls_in_flight(2)
    world.desk.calls[0].reply.set_exception(RuntimeError("which the call seam promises not to do"))
    await sleeping(world, 1)
    assert world.desk.in_flight == [2]
    assert await world.calls(batch) == ["POSSIBLY_SPENT", "RESERVED"]
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    world.clock.step(1.0)
    await world.until_state(batch, "SUCCEEDED")
    assert world.desk.numbers == [1, 2, 1]


async def test_an_answer_that_the_database_takes_not_is_written_down_without_its_texts(world: World) -> None:
    batch = await world.begin(2, concurrency=2)
    await world.calls_in_flight(2)
    # Half a character is nothing that SQLite stores.
    world.desk.answer(1, reply=replace(MADE, raw="\ud83d"))
    await world.until_rows(batch, FAILED=1)
    assert world.desk.in_flight == [2]
    world.desk.answer()
    await world.until_state(batch, "PARTIALLY_SUCCEEDED")
    assert (await world.get(batch)).row["confirmed_nanos"] == 2 * COST
    assert await world.ask("SELECT failure_reason FROM conversations WHERE number = 1") == [("PROVIDER_ERROR",)]
    await world.check(batch)


async def test_a_batch_of_another_provider_is_held_until_somebody_resumes_it_here(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    batch = await world.begin(2, base_url="http://elsewhere")
    await world.until_state(batch, "PAUSED")
    (hold,) = (await world.get(batch)).holds
    assert (hold["reason"], hold["message"]) == (
        "CREDENTIALS",
        "The batch was started at http://elsewhere; this server makes conversations at http://127.0.0.1. "
        "Resume goes on at http://127.0.0.1.",
    )
    assert world.desk.calls == []
    here = At(base_url="http://127.0.0.1", sandbox=True, speed_up=1.0)
    await world.write(verbs.resume(batch, etag="", at=here, now_us=world.tick()))
    world.supervisor.ensure_running(batch)
    await world.until_state(batch, "SUCCEEDED")
    assert (await world.get(batch)).row["base_url"] == "http://127.0.0.1"


async def test_a_crash_while_the_database_refuses_is_recovered_later(world: World) -> None:
    batch = await world.begin(2, concurrency=2)
    await world.calls_in_flight(2)
    async with world.locked():
        crash(world, 1)
        await sleeping(world, 1)
        assert await world.calls(batch) == ["RESERVED"] * 2
    world.clock.step(1.0)
    await world.until_state(batch, "QUEUED")
    await sleeping(world, 1)
    world.desk.at_once = lambda call: MADE
    world.clock.step(1.0)
    await world.until_state(batch, "SUCCEEDED")
    assert await world.calls(batch) == ["POSSIBLY_SPENT"] * 2 + ["SETTLED"] * 2


async def test_a_crash_of_one_batch_leaves_the_others_alone(world: World) -> None:
    broken = await world.begin(1, first=100)
    whole = await world.begin(1, first=200)
    await world.calls_in_flight(2)
    crash(world, 100)
    await sleeping(world, 1)
    assert world.desk.in_flight == [200]
    world.desk.answer()
    await world.until_state(whole, "SUCCEEDED")
    assert await world.state(broken) == "QUEUED"


async def test_a_crash_while_it_is_cancelled_ends_cancelled(world: World) -> None:
    batch = await world.begin(3, concurrency=2)
    await world.calls_in_flight(2)
    await world.verb("cancel", batch)
    world.desk.answer(1)
    await world.until_rows(batch, PASSED=1)
    crash(world, 2)
    await world.until_state(batch, "CANCELLED")
    await sleeping(world, 1)
    world.clock.step(1.0)
    await at_rest()
    assert await world.rows(batch) == {1: "PASSED", 2: "CANCELLED", 3: "CANCELLED"}
    assert len(world.desk.calls) == 2
    await world.check(batch)


# The end of a process, and the next one.


async def test_stop_lets_calls_in_flight_finish_and_starts_no_other(world: World) -> None:
    batch = await world.begin(6, concurrency=3)
    await world.calls_in_flight(3)
    stopping = asyncio.create_task(world.supervisor.stop(drain_s=30))
    await at_rest()
    world.supervisor.ensure_running(batch)
    other = await world.begin(1, first=100)
    world.desk.answer(1, 2)
    await world.until_rows(batch, PASSED=2)
    assert not stopping.done()
    world.desk.answer(3)
    await stopping
    assert world.desk.numbers == [1, 2, 3]
    assert (await world.state(batch), await world.calls(batch)) == ("RUNNING", ["SETTLED"] * 3)
    assert await world.state(other) == "QUEUED"
    # The next process goes on, and nothing was lost or paid twice.
    world.desk.at_once = lambda call: MADE
    world.supervisor = world.another_supervisor()
    await world.supervisor.start()
    for name in (batch, other):
        await world.until_state(name, "SUCCEEDED")
    assert sorted(world.desk.numbers) == [1, 2, 3, 4, 5, 6, 100]
    assert "recovered" not in await world.kinds(batch)
    await world.check(batch)


async def test_stop_gives_up_waits_at_once(tmp_path: Path) -> None:
    # A burst of two, and the next in half a second.
    async with engine(tmp_path / "o.db", requests=20) as world:
        batch = await world.begin(4, concurrency=4)
        await world.calls_in_flight(2)
        await world.news.until(lambda: world.limiter.waiting == 2)
        world.desk.answer(*world.desk.in_flight[:1], reply=failed(FailureKind.SERVER_ERROR))
        # One waits for its second attempt; the other sleeper is the limiter.
        await world.news.until(lambda: len(world.clock.sleepers) == 2 and len(world.desk.in_flight) == 1)
        world.desk.answer()
        await world.until_rows(batch, PASSED=1)
        async with asyncio.timeout(WAIT_MAX_S):
            await world.supervisor.stop(drain_s=30)
        assert len(world.desk.calls) == 2
        assert world.limiter.waiting == 0
        await world.until_rows(batch, PASSED=1, PENDING=3)


async def test_a_stop_while_the_runner_looks_for_work_ends_at_once(world: World) -> None:
    """It once began and gave up the same conversations over and over, until the drain ran out."""
    for _ in range(10):
        world.supervisor = world.another_supervisor()
        world.desk.at_once = None
        batch = await world.begin(6, concurrency=4)
        await world.calls_in_flight(4)
        world.desk.answer()
        await world.until_rows(batch, PASSED=4)
        # Whatever came in between, and whatever is on its way.
        world.desk.at_once = lambda call: MADE
        world.desk.answer()
        async with asyncio.timeout(WAIT_MAX_S):
            await world.supervisor.stop(drain_s=30)


async def test_what_outlives_the_drain_is_possibly_spent_for_the_next_process(world: World) -> None:
    batch = await world.begin(5, concurrency=3)
    await world.calls_in_flight(3)
    await world.supervisor.stop(drain_s=0)
    assert await world.calls(batch) == ["RESERVED"] * 3
    world.desk.at_once = lambda call: MADE
    world.supervisor = world.another_supervisor()
    await world.supervisor.start()
    await world.until_state(batch, "SUCCEEDED")
    assert (await world.calls(batch))[:3] == ["POSSIBLY_SPENT"] * 3
    assert sorted(world.desk.numbers) == [1, 1, 2, 2, 3, 3, 4, 5]
    assert await world.rows(batch) == dict.fromkeys(range(1, 6), "PASSED")
    await world.check(batch)


async def test_a_stop_while_a_crashed_runner_waits_starts_nothing(world: World) -> None:
    await world.begin(3, concurrency=1)
    await world.calls_in_flight(1)
    crash(world, 1)
    await sleeping(world, 1)
    stopping = asyncio.create_task(world.supervisor.stop(drain_s=30))
    await at_rest()
    world.clock.step(1.0)
    await stopping
    assert len(world.desk.calls) == 1


async def test_a_start_goes_on_with_every_batch_that_was_under_way(world: World) -> None:
    await world.supervisor.stop(drain_s=0)
    # Nobody runs them: the process ended right behind their creation.
    names = [await world.begin(2, first=100 * number) for number in (1, 2, 3)]
    await world.pause(names[1])
    world.desk.at_once = lambda call: MADE
    world.supervisor = world.another_supervisor()
    await world.supervisor.start()
    for name in (names[0], names[2]):
        await world.until_state(name, "SUCCEEDED")
    assert await world.state(names[1]) == "PAUSED"
    assert sorted(world.desk.numbers) == [100, 101, 300, 301]


async def test_a_batch_without_work_needs_no_runner(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    batch = await world.begin(1)
    await world.until_state(batch, "SUCCEEDED")
    world.supervisor.ensure_running(batch)
    world.supervisor.ensure_running("nobody")
    await world.supervisor.stop(drain_s=30)
    assert world.supervisor.limit_wait_s(batch) is None
    assert len(world.desk.calls) == 1
