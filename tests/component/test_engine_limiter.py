"""The one budget of all batches, with time that the test steps: who is let in when, who is told how long it takes."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from engine_fixtures import SteppedClock, at_rest

from orchestrator_service.engine.limiter import ACCOUNTS_MAX, Limiter, PerMinute, Refusal, Ticket, Wanted
from orchestrator_service.generation.calls import Limits

pytestmark = pytest.mark.anyio

LOW, NORMAL, HIGH = 1, 2, 3
# What a limit of so many a minute lets through at once.
BURST_S = 6.0


def wanted(batch: str = "b", **values: Any) -> Wanted:
    given: dict[str, Any] = {"owner": "ann", "model": "m", "priority": NORMAL, "input_tokens": 0, "output_tokens": 0}
    return Wanted(batch=batch, **given | values)


@dataclass
class Door:
    """Who was let in, and when, in seconds since the beginning."""

    # One a second after the first six, unless told otherwise.
    requests_per_minute: int | None = 60
    window_s: float = 60.0
    clock: SteppedClock = field(default_factory=SteppedClock)
    let_in: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    tickets: deque[Ticket] = field(default_factory=deque[Ticket])
    limiter: Limiter = field(init=False)
    begun_s: float = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.limiter = Limiter(clock=self.clock, requests_per_minute=self.requests_per_minute, window_s=self.window_s)
        self.begun_s = self.clock.now_s

    async def come(self, batch: str = "b", count: int = 1, **values: Any) -> list[asyncio.Task[None]]:
        async def wait() -> None:
            self.tickets.append(await self.limiter.acquire(wanted(batch, **values)))
            self.let_in.append((batch, self.clock.now_s - self.begun_s))

        tasks = [asyncio.create_task(wait()) for _ in range(count)]
        self._tasks += tasks
        await at_rest()
        return tasks

    def exhaust(self) -> None:
        while self.limiter.try_acquire(wanted("first")):
            pass

    def reply(self, **values: Any) -> None:
        """To the call that was let in first."""
        given: dict[str, Any] = {"input_tokens": None, "output_tokens": None, "limits": None}
        self.tickets.popleft().settle(**given | values)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.let_in]

    @property
    def times(self) -> list[float]:
        return [at_s for _, at_s in self.let_in]

    async def close(self) -> None:
        await self.limiter.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def door() -> AsyncGenerator[Door]:
    door = Door()
    yield door
    await door.close()


def about(*times: float) -> Any:
    return pytest.approx(list(times), abs=0.01)


@pytest.mark.parametrize("seed", range(10))
async def test_there_are_never_more_than_the_limit_and_a_burst_in_any_time_and_nobody_is_forgotten(seed: int) -> None:
    rng = Random(seed)
    door = Door(requests_per_minute=rng.choice([7, 60, 600]), window_s=rng.choice([60.0, 6.0]))
    for number in range(40):
        await door.clock.pass_s(rng.choice([0, 0, 0, 0.25, 1.5]))
        await door.come(str(number), priority=rng.choice([LOW, NORMAL, HIGH]), owner=rng.choice("xyz"))
    await door.clock.pass_s(400)
    assert sorted(map(int, door.names)) == list(range(40))
    per_s = (door.requests_per_minute or 0) / door.window_s
    burst = max(1.0, per_s * BURST_S * door.window_s / 60)
    for index, begin_s in enumerate(door.times):
        for count, end_s in enumerate(door.times[index:], start=1):
            assert count <= burst + per_s * (end_s - begin_s) + 0.01
    await door.close()


async def test_a_burst_goes_at_once_and_then_one_after_another(door: Door) -> None:
    await door.come("a", 9)
    await door.clock.pass_s(10.0)
    assert door.times == about(0, 0, 0, 0, 0, 0, 1, 2, 3)


async def test_nobody_jumps_the_queue(door: Door) -> None:
    door.exhaust()
    await door.come("a")
    # There is room again, and `a` is still to be let in.
    door.clock.step(1.0)
    assert door.limiter.try_acquire(wanted()) is None
    await door.clock.pass_s(0.01)
    assert door.names == ["a"]


async def test_models_have_limits_of_their_own(door: Door) -> None:
    door.exhaust()
    await door.come("a")
    await door.come("other", model="m2")
    assert door.names == ["other"]
    await door.clock.pass_s(1.0)
    assert door.names == ["other", "a"]


async def test_models_that_are_not_used_any_more_are_forgotten(door: Door) -> None:
    for number in range(3 * ACCOUNTS_MAX):
        door.limiter.limits(f"model{number}")
    door.exhaust()
    await door.come("a")
    for number in range(3 * ACCOUNTS_MAX):
        door.limiter.limits(f"model{number}")
    # Not the one that somebody waits for.
    await door.clock.pass_s(1.0)
    assert door.names == ["a"]


async def test_two_owners_at_ten_to_one_load_share_evenly() -> None:
    door = Door(requests_per_minute=600)
    door.exhaust()
    for number in range(10):
        await door.come(f"ann{number}", 40)
    await door.come("bob", 400, owner="bob")
    await door.clock.pass_s(40.0)
    of_bob = door.names.count("bob")
    shares = [of_bob, len(door.names) - of_bob]
    assert sum(shares) == 400
    assert sum(shares) ** 2 / (2 * sum(share**2 for share in shares)) > 0.99
    await door.close()


async def test_high_normal_and_low_share_as_nine_to_three_to_one_and_none_is_forgotten() -> None:
    door = Door(requests_per_minute=600)
    door.exhaust()
    for name, priority in (("low", LOW), ("normal", NORMAL), ("high", HIGH)):
        await door.come(name, 200, priority=priority)
    await door.clock.pass_s(13.0)
    assert Counter(door.names) == pytest.approx({"high": 90, "normal": 30, "low": 10}, abs=2)
    await door.clock.pass_s(60.0)
    assert len(door.names) == 600
    await door.close()


async def test_the_chosen_one_waits_for_its_tokens_and_smaller_ones_do_not_overtake_it() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=6_000, output_tokens=60_000, output_tokens_remaining=0))
    await door.come("large", output_tokens=5_000)
    await door.come("small", output_tokens=100, owner="bob")
    await door.clock.pass_s(20.0)
    assert door.let_in == [("large", pytest.approx(5.0, abs=0.01)), ("small", pytest.approx(5.1, abs=0.01))]
    await door.close()


# Who leaves.


async def test_who_leaves_the_queue_takes_nothing(door: Door) -> None:
    door.exhaust()
    leaving = await door.come("a", 3)
    await door.come("b")
    for task in leaving:
        task.cancel()
    await door.clock.pass_s(1.0)
    assert door.let_in == [("b", 1.0)]


async def test_when_the_first_leaves_the_next_may_need_less() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=6_000, output_tokens=60_000, output_tokens_remaining=0))
    (large,) = await door.come("large", output_tokens=50_000)
    await door.come("small", output_tokens=100)
    large.cancel()
    await door.clock.pass_s(0.2)
    assert door.names == ["small"]
    await door.close()


async def test_who_is_let_in_in_the_moment_of_leaving_gives_its_place_back(door: Door) -> None:
    door.exhaust()
    leaving: list[asyncio.Task[None]] = []

    async def cancel_the_next() -> None:
        await door.limiter.acquire(wanted("a"))
        leaving[0].cancel()

    canceller = asyncio.create_task(cancel_the_next())
    await at_rest()
    leaving += await door.come("b")
    await door.come("c")
    # Two are let in at once, and the first cancels the second before that one knows.
    door.clock.step(2.0)
    await door.clock.pass_s(0.1)
    assert canceller.done()
    assert door.names == ["c"]


async def test_when_all_left_the_next_one_waits_for_its_own_turn_only(door: Door) -> None:
    door.exhaust()
    (leaving,) = await door.come("a")
    leaving.cancel()
    await door.clock.pass_s(20.0)
    await door.come("c")
    assert door.let_in == [("c", 20)]


async def test_a_ticket_given_back_lets_the_next_one_in(door: Door) -> None:
    await door.come("a", 6)
    await door.come("b")
    door.tickets[0].give_back()
    # A second time changes nothing.
    door.tickets[0].give_back()
    door.reply(refusal=Refusal("rate", 100.0))
    await door.come("c")
    await door.clock.pass_s(0.1)
    assert door.names[6:] == ["b"]


# Replies.


async def test_a_reply_that_used_less_lets_the_next_one_in() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=6_000, output_tokens=6_000, output_tokens_remaining=4_000))
    await door.come("a", output_tokens=3_900)
    await door.come("b", output_tokens=1_000)
    assert door.names == ["a"]
    door.reply(output_tokens=2_000)
    await door.clock.pass_s(0.1)
    assert door.names == ["a", "b"]
    await door.close()


async def test_what_was_used_more_than_estimated_is_waited_for() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=6_000, output_tokens=6_000, output_tokens_remaining=4_000))
    await door.come("a", output_tokens=1_000)
    door.reply(output_tokens=4_975)
    await door.come("b", output_tokens=1_000)
    await door.clock.pass_s(30.0)
    assert door.let_in == [("a", 0), ("b", pytest.approx(20.0, abs=0.01))]
    await door.close()


async def test_a_higher_limit_that_a_reply_announces_lets_more_in_at_once() -> None:
    door = Door(requests_per_minute=None)
    await door.come("a", 100)
    assert len(door.names) == 5
    await door.clock.pass_s(1.0)
    door.reply(limits=Limits(requests=4_000, requests_remaining=3_990))
    await door.clock.pass_s(0.01)
    assert len(door.names) == 100
    assert door.limiter.limits("m") == PerMinute(requests=4_000, input_tokens=None, output_tokens=None)
    await door.close()


async def test_a_lower_limit_that_a_reply_announces_holds_at_once() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=600, requests_remaining=2))
    await door.come("a", 2)
    door.reply(limits=Limits(requests=60, requests_remaining=0))
    await door.come("b", 2)
    await door.clock.pass_s(5.0)
    assert [at_s for name, at_s in door.let_in if name == "b"][1] >= 1.0
    await door.close()


async def test_the_operators_own_limit_is_kept_whatever_the_provider_allows(door: Door) -> None:
    door.limiter.learn("m", Limits(requests=4_000, requests_remaining=4_000))
    await door.come("a", 10)
    assert len(door.names) == 6
    assert door.limiter.limits("m").requests == 60


async def test_a_refusal_stops_everybody_until_the_time_that_the_server_named(door: Door) -> None:
    await door.come("a", 2)
    door.reply(refusal=Refusal("rate", 7.0))
    await door.come("b", 2)
    assert door.limiter.wait_s("b") == pytest.approx(7.0)
    await door.clock.pass_s(20.0)
    assert [at_s for name, at_s in door.let_in if name == "b"] == about(7.0, 7.0)


async def test_a_wait_that_is_over_sooner_than_it_was_told_is_over_at_once() -> None:
    door = Door(requests_per_minute=None)
    door.limiter.learn("m", Limits(requests=600, requests_remaining=0))
    await door.come("a", 20)
    await door.clock.pass_s(0.05)
    door.limiter.learn("m", Limits(requests=6_000, requests_remaining=6_000))
    await door.clock.pass_s(0.01)
    assert len(door.names) == 20
    await door.close()


# Another pace of time.


async def test_a_faster_clock_holds_for_those_that_wait_already(door: Door) -> None:
    door.exhaust()
    await door.come("a", 3)
    await door.clock.pass_s(0.25)
    door.limiter.rescale(window_s=1.5)
    await door.clock.pass_s(5.0)
    assert door.times == about(0.26875, 0.29375, 0.31875)


async def test_a_slower_clock_counts_what_was_let_in_before() -> None:
    door = Door(window_s=1.5)
    door.exhaust()
    door.limiter.rescale(window_s=60.0)
    await door.come("b")
    await door.clock.pass_s(0.9)
    assert door.names == []
    await door.clock.pass_s(0.2)
    assert door.names == ["b"]
    await door.close()


# How long it takes.


@pytest.mark.parametrize("seed", range(6))
async def test_the_wait_that_is_told_is_about_the_wait(seed: int) -> None:
    rng = Random(seed)
    door = Door(requests_per_minute=None)
    door.limiter.learn(
        "m", Limits(requests=600, requests_remaining=0, output_tokens=600_000, output_tokens_remaining=0)
    )
    for number in range(rng.randint(4, 10)):
        owner, priority = rng.choice("xyz"), rng.choice([LOW, NORMAL, HIGH])
        tokens = rng.uniform(500, 2_000)
        await door.come(f"b{number}", rng.randint(20, 60), owner=owner, priority=priority, output_tokens=tokens)
    await door.clock.pass_s(5.0)
    # Somebody new, at the end of a long line.
    await door.come("new", owner="w", priority=LOW, output_tokens=30_000.0)
    told = {name: door.limiter.wait_s(name) for name in ["new", *(f"b{number}" for number in range(4))]}
    begun_s, known = door.clock.now_s - door.begun_s, len(door.let_in)
    await door.clock.pass_s(120.0)
    for name, told_s in told.items():
        first_s = next((at_s for who, at_s in door.let_in[known:] if who == name), None)
        if first_s is None:
            assert told_s is None
        else:
            assert told_s == pytest.approx(first_s - begun_s, rel=0.2, abs=0.5)
    await door.close()


async def test_the_wait_counts_everybody_who_is_before(door: Door) -> None:
    door.exhaust()
    await door.come("a", 10)
    assert door.limiter.wait_s("a") == pytest.approx(1.0)
    await door.come("b", owner="bob")
    await door.come("c", owner="eve", priority=HIGH)
    assert door.limiter.wait_s("b") == pytest.approx(3.0)
    assert door.limiter.wait_s("c") == pytest.approx(4.0)
    await door.clock.pass_s(10.0)
    assert [first(door, name) for name in "abc"] == about(1.0, 3.0, 4.0)


async def test_a_batch_of_which_none_waits_has_no_wait(door: Door) -> None:
    assert door.limiter.wait_s("a") is None
    door.exhaust()
    (leaving,) = await door.come("a")
    assert door.limiter.wait_s("a") == pytest.approx(1.0)
    leaving.cancel()
    await at_rest()
    assert door.limiter.wait_s("a") is None


async def test_ten_thousand_wait_and_all_are_let_in() -> None:
    door = Door(requests_per_minute=600_000)
    door.exhaust()
    for number in range(100):
        await door.come(f"b{number}", 100, owner=f"o{number % 10}", priority=1 + number % 3)
    assert door.limiter.wait_s("b99") is not None
    await door.clock.pass_s(1.1)
    assert len(door.names) == 10_000
    assert max(Counter(door.names).values()) == 100
    await door.close()


async def test_a_closed_limiter_lets_nobody_in(door: Door) -> None:
    door.exhaust()
    first, _ = await door.come("a", 2)
    await door.limiter.close()
    first.cancel()
    await door.clock.pass_s(60.0)
    assert door.names == []


def first(door: Door, name: str) -> float:
    return next(at_s for who, at_s in door.let_in if who == name)
