"""One batch on its way: a sliding window, holds, cancelling, retries and the shared limit, with replies on demand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from engine_fixtures import COST, MADE, MALFORMED, MAX_TOKENS, RESERVE, World, at_rest, engine, failed, in_turn

from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.engine.limiter import Wanted
from orchestrator_service.generation.claude import Reply

pytestmark = pytest.mark.anyio


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with engine(tmp_path / "o.db") as world:
        yield world


async def sleeping_alone(world: World) -> None:
    await world.news.until(lambda: len(world.clock.sleepers) == 1)


# Concurrency.


async def test_as_many_are_in_flight_as_the_concurrency_says_and_never_in_waves(world: World) -> None:
    batch = await world.begin(8, concurrency=3)
    await world.calls_in_flight(3)
    # The first one takes long: the others go on beside it, one for each that ends.
    for number in (2, 3, 4, 5, 6):
        world.desk.answer(number)
        await world.news.until(lambda number=number: len(world.desk.calls) == number + 2)
        assert len(world.desk.in_flight) == 3 and 1 in world.desk.in_flight
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")
    assert world.desk.numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [call.others for call in world.desk.calls] == [0, 1, 2, 2, 2, 2, 2, 2]
    await world.check(batch)


async def test_a_raised_concurrency_starts_more_at_once(world: World) -> None:
    batch = await world.begin(9, concurrency=1)
    await world.calls_in_flight(1)
    await world.verb("change", batch, concurrency=4)
    await world.calls_in_flight(4)
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")


async def test_a_lowered_concurrency_aborts_none_and_starts_none_until_it_fits(world: World) -> None:
    batch = await world.begin(6, concurrency=3)
    await world.calls_in_flight(3)
    await world.verb("change", batch, concurrency=1)
    for number in (1, 2, 3):
        world.desk.answer(number)
        await world.until_rows(batch, PASSED=number)
    await world.calls_in_flight(1)
    # The fourth came when nothing else was in flight any more.
    assert [(call.number, call.others) for call in world.desk.calls] == [(1, 0), (2, 1), (3, 2), (4, 0)]
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")
    assert all(call.others == 0 for call in world.desk.calls[4:])


async def test_a_batch_larger_than_a_page_is_made_in_order(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    batch = await world.begin(600, concurrency=10)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == list(range(1, 601))
    # Nearly so: calls that are claimed together may reach the provider in another order.
    assert all(abs(number - place) < 10 for place, number in enumerate(world.desk.numbers, start=1))
    await world.check(batch)


# Pause and resume.


async def test_a_pause_lets_ten_in_flight_finish_and_starts_no_other(world: World) -> None:
    batch = await world.begin(25, concurrency=10)
    await world.calls_in_flight(10)
    await world.verb("pause", batch)
    assert await world.state(batch) == "PAUSING"
    for made in range(1, 10):
        world.desk.answer(made)
        await world.until_rows(batch, PASSED=made)
        assert await world.state(batch) == "PAUSING"
    world.desk.answer(10)
    await world.until_state(batch, "PAUSED")
    assert world.desk.numbers == list(range(1, 11))
    assert await world.rows(batch) == {number: "PASSED" if number <= 10 else "PENDING" for number in range(1, 26)}
    assert await world.moves(batch) == ["QUEUED", "RUNNING", "PAUSING", "PAUSED"]
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == list(range(1, 26))
    await world.check(batch)


async def test_a_restart_while_paused_stays_paused(world: World) -> None:
    batch = await world.begin(4, concurrency=2)
    await world.calls_in_flight(2)
    await world.verb("pause", batch)
    world.desk.answer()
    await world.until_state(batch, "PAUSED")
    await world.supervisor.stop(drain_s=0)
    world.supervisor = world.another_supervisor()
    await world.supervisor.start()
    await at_rest()
    assert (await world.state(batch), len(world.desk.calls)) == ("PAUSED", 2)
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == [1, 2, 3, 4]


async def test_a_resume_while_pausing_goes_on_beside_what_is_in_flight(world: World) -> None:
    batch = await world.begin(4, concurrency=2)
    await world.calls_in_flight(2)
    await world.verb("pause", batch)
    world.desk.answer(1)
    await world.until_rows(batch, PASSED=1)
    await world.verb("resume", batch)
    await world.calls_in_flight(2)
    assert world.desk.in_flight == [2, 3]
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")


async def test_a_pause_ends_the_wait_for_the_limit_at_once(tmp_path: Path) -> None:
    async with engine(tmp_path / "o.db", requests=1) as world:
        batch = await world.begin(5, concurrency=3)
        await world.news.until(lambda: world.limiter.waiting == 2 and len(world.desk.in_flight) == 1)
        assert (world.supervisor.limit_wait_s(batch) or 0) > 0
        await world.verb("pause", batch)
        await world.news.until(lambda: world.limiter.waiting == 0)
        await at_rest()
        assert world.supervisor.limit_wait_s(batch) is None
        world.desk.answer()
        await world.until_state(batch, "PAUSED")
        assert len(world.desk.calls) == 1
        await world.clock.pass_s(8.0)
        # The window is free: none of those that left took a place.
        await world.verb("resume", batch)
        await world.news.until(lambda: len(world.desk.calls) == 2)


async def test_a_pause_ends_the_wait_between_two_attempts_at_once(world: World) -> None:
    batch = await world.begin(1)
    await world.calls_in_flight(1)
    world.desk.answer(reply=failed(FailureKind.SERVER_ERROR))
    await world.news.until(lambda: world.clock.sleepers == [1.0])
    await world.verb("pause", batch)
    assert await world.state(batch) == "PAUSED"
    await world.news.until(lambda: not world.clock.sleepers)
    assert len(world.desk.calls) == 1
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")
    assert await world.ask("SELECT tries FROM conversations") == [(2,)]


async def test_a_hold_that_came_and_went_leaves_nothing_behind(world: World) -> None:
    batch = await world.begin(2, concurrency=1)
    await world.calls_in_flight(1)
    world.desk.answer(reply=failed(FailureKind.SERVER_ERROR))
    await world.news.until(lambda: len(world.clock.sleepers) == 1)
    for verb in ("pause", "resume", "pause", "resume"):
        await world.verb(verb, batch)
    world.desk.at_once = lambda call: MADE
    await at_rest()
    world.clock.step(60.0)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == [1, 1, 2]


async def test_a_pilot_runs_and_resume_makes_the_rest(world: World) -> None:
    world.desk.at_once = lambda call: MADE
    batch = await world.begin(10, concurrency=4, hold_after=3)
    await world.until_state(batch, "PAUSED")
    assert (sorted(world.desk.numbers), await world.holds(batch)) == ([1, 2, 3], {"CHECKPOINT"})
    await world.verb("change", batch, hold_after=5)
    await world.news.until(lambda: len(world.desk.calls) == 5)
    await world.until_state(batch, "PAUSED")
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")
    assert len(world.desk.calls) == 10


# Cancel and retry.


async def test_cancel_lets_running_conversations_finish(world: World) -> None:
    batch = await world.begin(8, concurrency=3)
    await world.calls_in_flight(3)
    await world.verb("cancel", batch)
    for made in (1, 2):
        world.desk.answer(made)
        await world.until_rows(batch, PASSED=made)
        assert await world.state(batch) == "CANCELLING"
    world.desk.answer(3)
    await world.until_state(batch, "CANCELLED")
    assert world.desk.numbers == [1, 2, 3]
    await world.until_rows(batch, PASSED=3, CANCELLED=5)
    world.desk.at_once = lambda call: MADE
    await world.verb("retry", batch)
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == list(range(1, 9))
    await world.check(batch)


async def test_cancel_gives_up_the_wait_between_two_attempts(world: World) -> None:
    batch = await world.begin(1)
    await world.calls_in_flight(1)
    world.desk.answer(reply=failed(FailureKind.TIMEOUT))
    await world.news.until(lambda: len(world.clock.sleepers) == 1)
    await world.verb("cancel", batch)
    await world.until_state(batch, "CANCELLED")
    await world.news.until(lambda: not world.clock.sleepers)


async def test_a_retry_right_at_the_end_is_not_missed(world: World) -> None:
    batch = await world.begin(1)
    for calls in range(1, 20):
        await world.calls_in_flight(1)
        world.desk.answer(reply=failed(FailureKind.REFUSED))
        await world.until_state(batch, "FAILED")
        await world.verb("retry", batch)
        await world.news.until(lambda calls=calls: len(world.desk.calls) == calls + 1)
    assert (await world.get(batch)).row["run"] == 20


async def test_a_retry_while_it_runs_takes_the_failed_one_again(world: World) -> None:
    batch = await world.begin(3, concurrency=1)
    await world.calls_in_flight(1)
    world.desk.answer(1, reply=failed(FailureKind.REFUSED))
    await world.news.until(lambda: world.desk.in_flight == [2])
    await world.verb("retry", batch)
    world.desk.at_once = lambda call: MADE
    world.desk.answer()
    await world.until_state(batch, "SUCCEEDED")
    assert sorted(world.desk.numbers) == [1, 1, 2, 3]


# Holds that arise.


async def test_stop_on_error_holds_and_resume_goes_on_with_the_others(world: World) -> None:
    batch = await world.begin(5, concurrency=2, stop_on_error=True)
    await world.calls_in_flight(2)
    world.desk.answer(1, reply=failed(FailureKind.REFUSED))
    await world.until_state(batch, "PAUSING")
    world.desk.answer(2)
    await world.until_state(batch, "PAUSED")
    assert await world.holds(batch) == {"STOP_ON_ERROR"}
    assert world.desk.numbers == [1, 2]
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "PARTIALLY_SUCCEEDED")
    assert await world.rows(batch) == {1: "FAILED", 2: "PASSED", 3: "PASSED", 4: "PASSED", 5: "PASSED"}


@pytest.mark.parametrize("kind", [FailureKind.CREDENTIALS, FailureKind.PROVIDER_LIMIT])
async def test_what_dooms_every_call_holds_the_batch_and_fails_no_conversation(world: World, kind: FailureKind) -> None:
    batch = await world.begin(4, concurrency=3)
    await world.calls_in_flight(3)
    world.desk.answer(1, reply=failed(kind))
    await world.until_state(batch, "PAUSING")
    world.desk.answer(2)
    world.desk.answer(3, reply=failed(kind))
    await world.until_state(batch, "PAUSED")
    (hold,) = (await world.get(batch)).holds
    assert hold["reason"] == kind.value and hold["message"].endswith("So it was.")
    assert await world.rows(batch) == {1: "PENDING", 2: "PASSED", 3: "PENDING", 4: "PENDING"}
    world.desk.at_once = lambda call: MADE
    await world.verb("resume", batch)
    await world.until_state(batch, "SUCCEEDED")
    # It was no fault of theirs: none lost a try.
    assert await world.ask("SELECT tries FROM conversations") == [(1,)] * 4
    assert len(world.desk.calls) == 6


# Retries.


async def test_being_told_to_wait_uses_up_no_try(world: World) -> None:
    limited = failed(FailureKind.RATE_LIMITED, server_delay_s=4.0)
    world.desk.at_once = in_turn(*[limited] * 7, failed(FailureKind.SERVER_ERROR), MADE)
    batch = await world.begin(1)
    for calls in range(1, 9):
        await world.news.until(lambda calls=calls: len(world.desk.calls) == calls and len(world.clock.sleepers) == 1)
        # The server's own delay, and no sooner.
        assert world.clock.sleepers[0] >= (4.0 if calls <= 7 else 0.0)
        world.clock.step(200.0)
    await world.until_state(batch, "SUCCEEDED")
    assert await world.ask("SELECT attempts, tries FROM conversations") == [(9, 2)]
    assert len(world.desk.calls) == 9
    assert await world.ask("SELECT outcome, count(*) FROM calls GROUP BY 1 ORDER BY 1") == [
        ("ANSWERED", 1),
        ("LIMITED", 7),
        ("PROVIDER_ERROR", 1),
    ]


async def test_a_conversation_fails_for_good_when_its_tries_are_out(world: World) -> None:
    world.desk.at_once = lambda call: failed(FailureKind.SERVER_ERROR)
    batch = await world.begin(1)
    for calls in (1, 2):
        await world.news.until(lambda calls=calls: len(world.desk.calls) == calls and len(world.clock.sleepers) == 1)
        assert world.clock.sleepers == [2.0 ** (calls - 1)]
        world.clock.step(2.0)
    await world.until_state(batch, "FAILED")
    assert len(world.desk.calls) == 3
    assert await world.ask("SELECT failure_reason, tries FROM conversations") == [("PROVIDER_ERROR", 3)]


async def test_a_malformed_answer_is_asked_for_again_more_strictly(world: World) -> None:
    world.desk.at_once = in_turn(MALFORMED, MADE)
    batch = await world.begin(1)
    await world.until_state(batch, "SUCCEEDED")
    assert [call.request.stricter for call in world.desk.calls] == [False, True]
    assert await world.ask("SELECT purpose FROM calls ORDER BY id") == [("GENERATE",), ("REPAIR",)]
    # Both were paid, and both are in the sum.
    assert (await world.get(batch)).row["confirmed_nanos"] == 2 * COST
    assert await world.ask("SELECT outcome, cost_nanos FROM calls ORDER BY id") == [
        ("MALFORMED", COST),
        ("ANSWERED", COST),
    ]


async def test_a_repair_that_is_malformed_too_is_given_up(world: World) -> None:
    world.desk.at_once = lambda call: MALFORMED
    batch = await world.begin(1)
    await world.until_state(batch, "FAILED")
    assert len(world.desk.calls) == 2
    assert await world.ask("SELECT failure_reason FROM conversations") == [("MALFORMED",)]


@pytest.mark.parametrize(("second", "ends"), [(MADE, "SUCCEEDED"), (failed(FailureKind.CUT), "FAILED")])
async def test_an_answer_that_was_cut_gets_more_tokens_once(world: World, second: Reply, ends: str) -> None:
    world.desk.at_once = in_turn(failed(FailureKind.CUT, usage=MADE.usage), second)
    batch = await world.begin(1)
    await world.until_state(batch, ends)
    assert [call.request.max_tokens for call in world.desk.calls] == [MAX_TOKENS, 2 * MAX_TOKENS]
    assert await world.ask("SELECT max_tokens, reserved_nanos FROM calls ORDER BY id") == [
        (MAX_TOKENS, RESERVE),
        (2 * MAX_TOKENS, 2 * RESERVE),
    ]
    if ends == "FAILED":
        assert await world.ask("SELECT failure_reason FROM conversations") == [("MAX_TOKENS",)]


async def test_an_answer_that_fails_its_checks_is_kept_and_not_asked_for_again(world: World) -> None:
    one_sided = '{"turns": [{"role": "assistant", "content": "Hello."}]}'
    world.desk.at_once = lambda call: Reply(text=one_sided, usage=MADE.usage, stop_reason="end_turn", raw="{}")
    batch = await world.begin(1)
    await world.until_state(batch, "FAILED")
    assert await world.rows(batch) == {1: "QUARANTINED"}
    assert len(world.desk.calls) == 1


async def test_a_sleeping_conversation_keeps_its_place_and_the_others_go_on(world: World) -> None:
    batch = await world.begin(4, concurrency=2)
    await world.calls_in_flight(2)
    world.desk.answer(1, reply=failed(FailureKind.OVERLOADED))
    await sleeping_alone(world)
    # Whoever looks again from the start must not begin it beside itself.
    await world.verb("change", batch, priority=3)
    world.desk.at_once = lambda call: MADE
    world.desk.answer(2)
    await world.until_rows(batch, PASSED=3)
    await sleeping_alone(world)
    world.clock.step(60.0)
    await world.until_state(batch, "SUCCEEDED")
    assert world.desk.numbers == [1, 2, 3, 4, 1]


# The limit that all share.


async def test_batches_share_the_limit_by_priority(tmp_path: Path) -> None:
    async with engine(tmp_path / "o.db", requests=1, window_s=8.0) as world:
        world.desk.at_once = lambda call: MADE
        taken = Wanted(model="m", owner="bea", batch="b0", priority=3, input_tokens=1.0, output_tokens=1.0)
        assert world.limiter.try_acquire(taken)
        names = [await world.begin(2, first=100 * priority, concurrency=2, priority=priority) for priority in (1, 2, 3)]
        await world.news.until(lambda: world.limiter.waiting == 6)
        for calls in range(1, 7):
            while len(world.desk.calls) < calls:
                await world.news.until(lambda calls=calls: len(world.desk.calls) >= calls or bool(world.clock.sleepers))
                world.clock.step(min(world.clock.sleepers, default=0.0))
        for name in names:
            await world.until_state(name, "SUCCEEDED")
        order = [number // 100 for number in world.desk.numbers]
        # Each had its turn, and the higher was done first.
        assert sorted(order[:3]) == [1, 2, 3]
        assert order[3:] == [3, 2, 1]
