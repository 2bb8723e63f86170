"""The fair order: owners evenly, batches by weight, nobody forgotten, nobody counted who left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_service.domain.fair_queue import WEIGHTS, FairQueue, Place
from orchestrator_service.domain.rate_limit import Amounts, RateLimit

LOW, NORMAL, HIGH = WEIGHTS.values()
REQUEST: Amounts = (1.0, 0.0, 0.0)


def cost(amounts: Amounts) -> float:
    """Of a limit of 1,000 requests and 1,000,000 tokens of each kind."""
    requests, input_tokens, output_tokens = amounts
    return max(requests / 1e3, input_tokens / 1e6, output_tokens / 1e6)


class Line:
    """A queue whose places are called after their batch."""

    def __init__(self) -> None:
        self.queue = FairQueue[str]()

    def come(
        self, batch: str, count: int = 1, *, owner: str = "ann", weight: float = NORMAL, amounts: Amounts = REQUEST
    ) -> list[Place[str]]:
        return [
            self.queue.push(owner=owner, batch=batch, weight=weight, amounts=amounts, cost=cost(amounts), who=batch)
            for _ in range(count)
        ]

    def serve(self, count: int = 1_000_000) -> list[str]:
        served: list[str] = []
        while len(served) < count and (place := self.queue.head()) is not None:
            self.queue.let_through(place, cost=cost(place.amounts))
            served.append(place.who)
        return served


@pytest.fixture
def line() -> Line:
    return Line()


def about(served: Sequence[str]) -> Any:
    """How often each was served; who came first may be a turn ahead."""
    return pytest.approx(Counter(served), abs=1)


def jain(shares: Sequence[float]) -> float:
    """1 where all are equal, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def test_owners_share_evenly_whatever_they_ask_for(line: Line) -> None:
    line.come("small", 100, owner="bob")
    for number in range(10):
        line.come(f"large{number}", 100)
    served = Counter("bob" if who == "small" else "ann" for who in line.serve(190))
    assert jain([served["ann"], served["bob"]]) > 0.999


def test_an_owner_with_larger_calls_gets_as_many_tokens_and_fewer_calls(line: Line) -> None:
    line.come("long", 200, owner="bob", amounts=(1.0, 0.0, 30_000.0))
    line.come("short", 200, amounts=(1.0, 0.0, 10_000.0))
    served = line.serve(100)
    assert about(served) == {"short": 75, "long": 25}


def test_priorities_share_as_nine_to_three_to_one(line: Line) -> None:
    for batch, weight in (("low", LOW), ("normal", NORMAL), ("high", HIGH)):
        line.come(batch, 1_000, weight=weight)
    assert about(line.serve(650)) == {"high": 450, "normal": 150, "low": 50}


def test_a_priority_is_about_the_batches_of_one_owner_only(line: Line) -> None:
    line.come("low", 100, owner="bob", weight=LOW)
    line.come("high", 100, weight=HIGH)
    assert about(line.serve(100)) == {"high": 50, "low": 50}


def test_a_changed_priority_holds_from_the_next_turn_on(line: Line) -> None:
    line.come("a", 200, weight=LOW)
    line.come("b", 200, weight=LOW)
    assert about(line.serve(20)) == {"a": 10, "b": 10}
    line.come("a", weight=HIGH)
    assert about(line.serve(100)) == {"a": 90, "b": 10}


def test_first_come_first_in_a_batch(line: Line) -> None:
    places = line.come("a", 50)
    for place in places:
        head = line.queue.head()
        assert head is place
        line.queue.let_through(place, cost=1.0)


def test_a_low_one_has_its_turn_however_many_high_ones_keep_coming(line: Line) -> None:
    line.come("low", weight=LOW)
    line.come("high", 5, weight=HIGH)
    served: list[str] = []
    for _ in range(30):
        line.come("high", weight=HIGH)
        served += line.serve(1)
    assert "low" in served[:11]


def test_ever_new_owners_do_not_keep_the_head_from_its_turn(line: Line) -> None:
    line.come("old", 3)
    for number in range(5):
        line.come(f"b{number}", owner=f"o{number}")
        assert line.queue.head()
    served: list[str] = []
    for number in range(30):
        line.come(f"n{number}", owner=f"new{number}")
        served += line.serve(1)
    assert [who for who in served if who == "old"] == ["old"] * 3


def test_ever_new_batches_do_not_keep_an_older_one_from_its_turn(line: Line) -> None:
    line.come("old", 3, weight=LOW)
    served: list[str] = []
    for number in range(60):
        line.come(f"new{number}", weight=HIGH)
        served += line.serve(1)
    assert served.count("old") == 3


def test_who_waits_for_tokens_is_not_overtaken_by_who_comes_later(line: Line) -> None:
    line.come("a", 3)
    line.serve(1)
    line.come("big", owner="bob", amounts=(1.0, 0.0, 500_000.0))
    line.come("a", 3)
    line.serve(1)
    head = line.queue.head()
    assert head
    line.come("tiny", owner="eve", amounts=(1.0, 0.0, 1.0))
    assert line.queue.head() is head


def test_idle_time_earns_no_credit(line: Line) -> None:
    line.come("a", 1_000)
    line.come("b", 1, owner="bob")
    line.serve(500)
    line.come("b", 1_000, owner="bob")
    assert about(line.serve(100)) == {"a": 50, "b": 50}


def test_leaving_and_coming_back_gains_nothing(line: Line) -> None:
    line.come("a", 1_000)
    served: list[str] = []
    while len(served) < 100:
        # As soon as it was served it comes anew.
        if not any(not place.left for place in line.come("b", 0, owner="bob")) and "b" not in served[-1:]:
            line.come("b", owner="bob", amounts=(1.0, 0.0, 10_000.0))
        served += line.serve(1)
    # Its calls cost ten times as much as the others'.
    assert served.count("b") <= 10


def test_an_owner_that_is_done_is_forgotten_when_its_turn_would_be(line: Line) -> None:
    line.come("a", 3)
    line.come("b", 2, owner="bob")
    (leaving,) = line.come("c", owner="eve")
    line.queue.leave(leaving)
    line.queue.leave(leaving)
    (other,) = line.come("d")
    line.queue.leave(other)
    assert len(line.queue) == 5
    assert Counter(line.serve()) == {"a": 3, "b": 2}
    assert len(line.queue) == 0
    assert line.queue.head() is None


def test_rows_of_those_who_left_do_not_grow(line: Line) -> None:
    line.come("a")
    places = line.come("b", 1) + line.come("b", 10_000)
    for place in places[1:]:
        line.queue.leave(place)
    assert len(line.queue) == 2
    assert len(places[0].batch.row) < 50
    assert line.serve() == ["a", "b"]


@given(st.integers(0, 100_000))
def test_everybody_who_stays_is_served_once_and_in_the_order_of_the_batch(seed: int) -> None:
    rng, line = Random(seed), Line()
    here: list[Place[str]] = []
    for _ in range(120):
        match rng.choice("ccclsss"):
            case "c":
                owner = rng.choice("xyz")
                weight, tokens = rng.choice([LOW, NORMAL, HIGH]), rng.choice([0.0, 500.0, 9_000.0])
                here += line.come(
                    owner + rng.choice("12"), rng.randint(1, 3), owner=owner, weight=weight, amounts=(1.0, 0.0, tokens)
                )
            case "l" if here:
                line.queue.leave(here.pop(rng.randrange(len(here))))
            case _:
                head = line.queue.head()
                assert (head is None) == (not here)
                if head is not None:
                    # Nobody of its batch came earlier.
                    assert next(place for place in here if place.who == head.who) is head
                    here.remove(head)
                    line.queue.let_through(head, cost=cost(head.amounts))
        assert len(line.queue) == len(here)
    assert Counter(line.serve()) == Counter(place.who for place in here)


@given(st.integers(0, 100_000))
def test_what_is_ahead_of_a_batch_is_what_is_let_through_before_it(seed: int) -> None:
    rng, line = Random(seed), Line()
    batches = [(owner + number, owner, rng.choice([LOW, NORMAL, HIGH])) for owner in "xyz" for number in "12"]
    for batch, owner, weight in rng.sample(batches, 6):
        line.come(batch, rng.randint(0, 20), owner=owner, weight=weight)
    line.serve(rng.randint(0, 20))
    for batch, owner, weight in rng.sample(batches, 3):
        line.come(batch, rng.randint(0, 5), owner=owner, weight=weight)
    told = {batch: line.queue.ahead(batch, cost=cost) for batch, _, _ in batches}
    served = line.serve()
    for batch, ahead in told.items():
        if batch not in served:
            assert ahead is None
        else:
            assert ahead is not None
            # Where two have their turn at the same time either may be first.
            assert ahead[0][0] == pytest.approx(served.index(batch), rel=0.2, abs=4)
            assert ahead[1] == REQUEST


def test_nothing_is_ahead_of_a_batch_that_is_not_known(line: Line) -> None:
    line.come("a")
    assert line.queue.ahead("b", cost=cost) is None


def test_the_first_of_a_batch_is_one_who_still_waits(line: Line) -> None:
    first, _ = line.come("a", amounts=(1.0, 5.0, 0.0)) + line.come("a", amounts=(1.0, 7.0, 0.0))
    line.queue.leave(first)
    ahead = line.queue.ahead("a", cost=cost)
    assert ahead == ((0.0, 0.0, 0.0), (1.0, 7.0, 0.0))


def test_a_call_costs_the_largest_share_that_it_takes_of_a_limit() -> None:
    limit = RateLimit(requests_per_minute=100, speed_up=1.0, now_s=0.0)
    assert limit.share_of((1.0, 1e9, 1e9)) == 0.01
    limit.learn(((None, None), (100_000, None), (10_000, None)), 0.0)
    assert limit.share_of((1.0, 500.0, 50.0)) == 0.01
    assert limit.share_of((1.0, 5_000.0, 50.0)) == 0.05
    assert limit.share_of((1.0, 5_000.0, 1_000.0)) == 0.1
