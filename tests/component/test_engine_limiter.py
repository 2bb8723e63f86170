"""The one budget of requests: never more in any window, the highest priority first, who leaves takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from random import Random

import pytest
from engine_fixtures import SteppedClock, at_rest

from orchestrator_service.engine.limiter import Limiter

pytestmark = pytest.mark.anyio

LOW, NORMAL, HIGH = 1, 2, 3


@dataclass
class Counter:
    """Who was let in, and when, in seconds since the beginning."""

    requests: int = 1
    window_s: float = 8.0
    clock: SteppedClock = field(default_factory=SteppedClock)
    granted: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    limiter: Limiter = field(init=False)
    begun_s: float = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.limiter = Limiter(requests=self.requests, window_s=self.window_s, clock=self.clock)
        self.begun_s = self.clock.now_s

    async def come(self, name: str, *, priority: int = NORMAL) -> asyncio.Task[None]:
        async def wait() -> None:
            await self.limiter.acquire(priority=priority)
            self.granted.append((name, self.clock.now_s - self.begun_s))

        task = asyncio.create_task(wait())
        self._tasks.append(task)
        await at_rest()
        return task

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.granted)

    async def close(self) -> None:
        await self.limiter.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def counter() -> AsyncGenerator[Counter]:
    counter = Counter()
    yield counter
    await counter.close()


@pytest.mark.parametrize("seed", range(20))
async def test_there_are_never_more_in_any_window_and_nobody_is_forgotten(seed: int) -> None:
    rng = Random(seed)
    counter = Counter(requests=rng.randint(1, 5), window_s=rng.choice([2.0, 8.0]))
    for number in range(40):
        await counter.clock.pass_s(rng.choice([0, 0, 0, 0.25, 1.5]))
        await counter.come(str(number), priority=rng.choice([LOW, NORMAL, HIGH]))
    await counter.clock.pass_s(40 * counter.window_s)
    assert len(counter.granted) == 40
    times = [at_s for _, at_s in counter.granted]
    for begin_s in times:
        assert sum(begin_s <= at_s < begin_s + counter.window_s for at_s in times) <= counter.requests
    await counter.close()


async def test_a_full_window_lets_the_next_in_as_soon_as_one_leaves() -> None:
    counter = Counter(requests=2, window_s=8.0)
    for name in "abcdef":
        await counter.come(name)
    await counter.clock.pass_s(3.0)
    await counter.come("g")
    await counter.clock.pass_s(30.0)
    assert counter.granted == [("a", 0), ("b", 0), ("c", 8), ("d", 8), ("e", 16), ("f", 16), ("g", 24)]
    await counter.close()


async def test_the_window_slides() -> None:
    counter = Counter(requests=2, window_s=8.0)
    await counter.come("a")
    await counter.clock.pass_s(5.0)
    await counter.come("b")
    for name in "cd":
        await counter.come(name)
    await counter.clock.pass_s(20.0)
    assert counter.granted == [("a", 0), ("b", 5), ("c", 8), ("d", 13)]
    await counter.close()


async def test_high_goes_before_normal_before_low(counter: Counter) -> None:
    await counter.come("first")
    for name, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH), ("L", LOW), ("N", NORMAL), ("H", HIGH)):
        await counter.come(name, priority=priority)
    await counter.clock.pass_s(60.0)
    assert counter.names == "firsthHnNlL"


async def test_a_high_one_that_comes_late_goes_before_those_that_wait(counter: Counter) -> None:
    for name in "abc":
        await counter.come(name)
    await counter.clock.pass_s(7.5)
    await counter.come("H", priority=HIGH)
    await counter.clock.pass_s(30.0)
    assert counter.names == "aHbc"


async def test_among_equals_who_came_first_goes_first(counter: Counter) -> None:
    names = "abcdefghij"
    for name in names:
        await counter.come(name)
    await counter.clock.pass_s(100.0)
    assert counter.names == names


async def test_who_leaves_the_queue_takes_nothing(counter: Counter) -> None:
    await counter.come("a")
    leaving = [await counter.come(name) for name in "bcd"]
    await counter.come("e")
    for task in leaving:
        task.cancel()
    await counter.clock.pass_s(8.0)
    assert counter.granted == [("a", 0), ("e", 8)]


async def test_when_all_left_the_next_one_waits_for_the_window_only(counter: Counter) -> None:
    await counter.come("a")
    (await counter.come("b")).cancel()
    await counter.clock.pass_s(20.0)
    await counter.come("c")
    assert counter.granted == [("a", 0), ("c", 20)]


async def test_nobody_jumps_the_queue(counter: Counter) -> None:
    assert counter.limiter.try_acquire()
    assert not counter.limiter.try_acquire()
    await counter.come("a")
    # The window is free again, and `a` is still to be let in.
    counter.clock.step(8.0)
    assert not counter.limiter.try_acquire()
    await counter.clock.pass_s(0.0)
    assert counter.names == "a"


async def test_a_shorter_window_holds_for_those_that_wait_already(counter: Counter) -> None:
    counter.limiter.rescale(window_s=60.0)
    for name in "abc":
        await counter.come(name)
    await counter.clock.pass_s(0.25)
    counter.limiter.rescale(window_s=1.5)
    await counter.clock.pass_s(5.0)
    assert counter.granted == [("a", 0), ("b", 1.5), ("c", 3)]


async def test_a_longer_window_counts_what_was_let_in_before(counter: Counter) -> None:
    counter.limiter.rescale(window_s=1.5)
    await counter.come("a")
    counter.limiter.rescale(window_s=60.0)
    await counter.come("b")
    await counter.clock.pass_s(59.0)
    assert counter.names == "a"
    await counter.clock.pass_s(1.0)
    assert counter.granted == [("a", 0), ("b", 60)]


async def test_a_closed_limiter_lets_nobody_in(counter: Counter) -> None:
    for name in "ab":
        await counter.come(name)
    await counter.limiter.close()
    await counter.clock.pass_s(60.0)
    assert counter.names == "a"
