"""A provider with token buckets and calls that meet it, event by event: no loop, no clock, no randomness of its own."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from orchestrator_service.domain.rate_limit import Grant, RateLimit, Refusal
from orchestrator_service.domain.throttle import RefusalKind

Limit = tuple[int | None, int | None]


class Door:
    """One of the provider's buckets."""

    def __init__(self, per_minute: int, burst_s: float, *, share: float = 1.0) -> None:
        self.per_minute = per_minute
        self.per_s = per_minute / 60
        self.full = max(1.0, self.per_s * burst_s)
        self.level = self.full * share
        self.at_s = 0.0

    def refill(self, now_s: float) -> None:
        self.level = min(self.full, self.level + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s

    def lets_in(self, amount: float, now_s: float) -> bool:
        self.refill(now_s)
        return self.level >= min(amount, self.full) - 1e-6

    def wait_s(self, amount: float) -> float:
        return max(0.0, min(amount, self.full) - self.level) / self.per_s

    def told(self, now_s: float) -> Limit:
        self.refill(now_s)
        return self.per_minute, max(0, int(self.level))


@dataclass
class Provider:
    """Takes requests and input at the door, and output when an answer is done."""

    requests: Door
    input: Door | None = None
    output: Door | None = None
    tells: bool = True
    # A fault at the door, before or after the buckets: the kind of refusal.
    fault: Callable[[], RefusalKind | None] = lambda: None

    def lets_in(self, input_tokens: int, now_s: float) -> RefusalKind | None:
        doors = ((self.requests, 1), (self.input, input_tokens), (self.output, 1))
        if not all(door is None or door.lets_in(amount, now_s) for door, amount in doors):
            return "rate"
        self.requests.level -= 1
        if self.input:
            self.input.level -= input_tokens
        return self.fault()

    def wait_s(self, input_tokens: int) -> float:
        """As `retry-after` tells it: whole seconds, at least one."""
        doors = ((self.requests, 1), (self.input, input_tokens), (self.output, 1))
        return max(1.0, *(math.ceil(door.wait_s(amount)) for door, amount in doors if door))

    def charge(self, output_tokens: int, now_s: float) -> None:
        if self.output:
            self.output.refill(now_s)
            self.output.level -= output_tokens

    def told(self, now_s: float) -> tuple[Limit, Limit, Limit] | None:
        if not self.tells:
            return None
        requests, input_tokens, output_tokens = (
            door.told(now_s) if door else (None, None) for door in (self.requests, self.input, self.output)
        )
        return requests, input_tokens, output_tokens


@dataclass(frozen=True)
class Call:
    comes_s: float
    input_tokens: int
    # As estimated, and as it turns out.
    output_reserved: float
    output_tokens: int
    # To the provider's door, and from there to the end of the answer.
    transit_s: float
    answer_s: float


@dataclass
class Story:
    """What happened: when calls were let in, what was refused, and when all was done."""

    admitted_s: list[float] = field(default_factory=list[float])
    refused_s: list[float] = field(default_factory=list[float])
    done_s: float = 0.0
    share: list[float] = field(default_factory=list[float])


@dataclass
class Play:
    """Calls, in the order of their coming, through our limit and the provider's door; refused ones come again."""

    provider: Provider
    limit: RateLimit
    concurrency: int = 1_000_000
    # How long a refused call waits before it comes again.
    again_s: Callable[[], float] = lambda: 0.0
    # Whether refusals name a time.
    retry_after: bool = False
    story: Story = field(default_factory=Story)
    _now_s: float = 0.0
    _in_flight: int = 0
    _waiting: deque[Call] = field(default_factory=deque[Call])
    _events: list[tuple[float, int, Callable[[], None]]] = field(
        default_factory=list[tuple[float, int, Callable[[], None]]]
    )
    _number: int = 0
    _look_s: float = math.inf

    def run(self, calls: Iterable[Call]) -> Story:
        for call in calls:
            self._at(call.comes_s, partial(self._come, call))
        while self._events:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        return self.story

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time_s, self._number, happen))

    def _come(self, call: Call) -> None:
        self._waiting.append(call)
        self._look()

    def _look_again(self) -> None:
        self._look_s = math.inf
        self._look()

    def _look(self) -> None:
        while self._waiting and self._in_flight < self.concurrency:
            call = self._waiting[0]
            amounts = (1.0, float(call.input_tokens), call.output_reserved)
            grant = self.limit.take(amounts, self._now_s)
            if grant is None:
                due_s = self._now_s + min(1.0, max(1e-3, self.limit.wait_s(amounts, self._now_s)))
                if due_s < self._look_s:
                    self._look_s = due_s
                    self._at(due_s, self._look_again)
                return
            self._waiting.popleft()
            self._in_flight += 1
            self._at(self._now_s + call.transit_s, partial(self._knock, call, grant))

    def _knock(self, call: Call, grant: Grant) -> None:
        refused = self.provider.lets_in(call.input_tokens, self._now_s)
        if refused is None:
            self.story.admitted_s.append(self._now_s)
            self._at(self._now_s + call.answer_s, partial(self._answer, call, grant))
            return
        self.story.refused_s.append(self._now_s)
        names_time = self.retry_after and refused == "rate"
        delay_s = self.provider.wait_s(call.input_tokens) if names_time else None
        self._reply(call, grant, Refusal(refused, delay_s))
        self._at(self._now_s + self.again_s(), partial(self._come, call))

    def _answer(self, call: Call, grant: Grant) -> None:
        self.provider.charge(call.output_tokens, self._now_s)
        self._reply(call, grant, None)

    def _reply(self, call: Call, grant: Grant, refusal: Refusal | None) -> None:
        self._in_flight -= 1
        self.limit.settle(
            grant,
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
            told=self.provider.told(self._now_s),
            refusal=refusal,
            now_s=self._now_s,
        )
        self.story.done_s = self._now_s
        self.story.share.append(self.limit.share)
        self._look()


def play(calls: Iterable[Call], provider: Provider, limit: RateLimit, **how: Any) -> Story:
    return Play(provider, limit, **how).run(calls)


def calls_of(
    rng: Random,
    count: int,
    *,
    span_s: float = 0.0,
    transit_max_s: float = 0.0,
    answer_s: tuple[float, float] = (40.0, 84.0),
    output: tuple[int, int] = (1_500, 3_500),
    reserved: float | None = None,
) -> list[Call]:
    """`reserved` None: exactly as it turns out."""
    made: list[Call] = []
    for _ in range(count):
        tokens = rng.randint(*output)
        made.append(
            Call(
                comes_s=rng.uniform(0, span_s),
                input_tokens=rng.randint(1_500, 3_000),
                output_reserved=float(tokens) if reserved is None else reserved,
                output_tokens=tokens,
                transit_s=rng.uniform(0, transit_max_s),
                answer_s=rng.uniform(*answer_s),
            )
        )
    return sorted(made, key=lambda call: call.comes_s)
