"""The wall time of a sliding window: so many conversations at once, longest expected first, under rate limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from estimator_service.domain.draws import Array, GroupDraws
from estimator_service.domain.duration import OVERHEAD_CALL_S
from estimator_service.domain.estimate import GroupEstimate
from estimator_service.domain.workload import Limits, Workload

# Beyond these the window is not walked through conversation by conversation but bounded.
WALKED_CONVERSATIONS_MAX = 2_000
WALKED_SLOTS_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A token bucket: holds one provider minute, starts full, refills at `per_second` of wall time."""

    name: str
    capacity: float
    per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the conversations, in the order of their start, take from one limit: draws x conversations."""

    limit: Limit
    amounts: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Conversations in the order of their start: draws x conversations, each standing for `scale` of them."""

    seconds: Array
    scale: Array
    demands: tuple[Demand, ...] = ()

    @property
    def total_s(self) -> Array:
        return self.of_all(self.seconds)

    def of_all(self, amounts: Array) -> Array:
        """The sum over all conversations, in every draw."""
        return (amounts * self.scale).sum(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit that sets the pace, and the concurrency that would be as fast."""

    limit: str
    concurrency_enough: int


def makespan_s(
    workload: Workload, estimates: Sequence[GroupEstimate], draws: Sequence[GroupDraws], *, speed_up: float
) -> Array:
    """Wall seconds in every draw, at `speed_up`: latency and limits scale with it, our own overhead does not."""
    work = _work(workload, estimates, draws, speed_up=speed_up)
    if not work.seconds.shape[1]:
        return np.zeros(len(work.seconds))
    slots = min(workload.concurrency, workload.count)
    if _walkable(workload.count, slots):
        return walked_s(work, slots=slots)
    return bounded_s(work, slots=slots, rng=np.random.default_rng(0))


def _walkable(count: int, slots: int) -> bool:
    return count <= WALKED_CONVERSATIONS_MAX and (slots == count or count * slots <= WALKED_SLOTS_MAX)


def limits_in_force(limits: Limits, *, speed_up: float) -> tuple[Limit, ...]:
    named = (
        ("requests", limits.requests_per_minute),
        ("input tokens", limits.input_tokens_per_minute),
        ("output tokens", limits.output_tokens_per_minute),
    )
    return tuple(Limit(name=n, capacity=each, per_second=each * speed_up / 60) for n, each in named if each > 0)


def binding(workload: Workload, estimates: Sequence[GroupEstimate]) -> Binding | None:
    """The limit that makes the workload slower than its concurrency would, by expected figures at real speed."""
    work_s = sum(estimate.group.count * estimate.conversation_duration_mean_s for estimate in estimates)
    needs = _needs(estimates)
    slowest: tuple[float, str] = (0.0, "")
    for limit in limits_in_force(workload.limits, speed_up=1.0):
        slowest = max(slowest, ((needs[limit.name] - limit.capacity) / limit.per_second, limit.name))
    limited_s, name = slowest
    if limited_s <= 0:
        return None
    enough = max(1, math.ceil(work_s / limited_s))
    slots = min(workload.concurrency, workload.count)
    return Binding(limit=name, concurrency_enough=enough) if enough < slots else None


def _needs(estimates: Sequence[GroupEstimate]) -> dict[str, float]:
    return {
        "requests": sum(each.group.count * each.calls_mean for each in estimates),
        "input tokens": sum(each.group.count * each.calls_mean * each.fresh_tokens for each in estimates),
        "output tokens": sum(each.group.count * each.output_tokens_mean for each in estimates),
    }


def _work(
    workload: Workload, estimates: Sequence[GroupEstimate], draws: Sequence[GroupDraws], *, speed_up: float
) -> Work:
    pairs = sorted(zip(estimates, draws, strict=True), key=lambda pair: -pair[0].conversation_duration_mean_s)
    ordered = [drawn for _, drawn in pairs]
    calls = np.hstack([drawn.calls for drawn in ordered])
    # What is read from the prompt cache does not count towards the limit of input tokens.
    amounts = {
        "requests": calls,
        "input tokens": np.hstack([drawn.fresh_input_tokens for drawn in ordered]),
        "output tokens": np.hstack([drawn.output_tokens for drawn in ordered]),
    }
    return Work(
        seconds=np.hstack([drawn.seconds for drawn in ordered]) / speed_up + calls * OVERHEAD_CALL_S,
        scale=np.concatenate([np.full(drawn.calls.shape[1], drawn.scale) for drawn in ordered]),
        demands=tuple(
            Demand(limit=limit, amounts=amounts[limit.name])
            for limit in limits_in_force(workload.limits, speed_up=speed_up)
        ),
    )


class _Bucket:
    """One limit's level in every draw at once."""

    def __init__(self, demand: Demand, draws: int) -> None:
        self._limit = demand.limit
        self._amounts = demand.amounts
        self._level = np.full(draws, demand.limit.capacity)
        self._at_s = np.zeros(draws)

    def ready_s(self, column: int, now_s: Array) -> Array:
        """When the conversation may start; one that wants more than a full bucket waits for a full one."""
        wanted = np.minimum(self._amounts[:, column], self._limit.capacity)
        return now_s + np.maximum(0.0, wanted - self._refilled(now_s)) / self._limit.per_second

    def take(self, column: int, now_s: Array) -> None:
        self._level = self._refilled(now_s) - self._amounts[:, column]
        self._at_s = now_s

    def _refilled(self, now_s: Array) -> Array:
        gained = (now_s - self._at_s) * self._limit.per_second
        return np.minimum(self._limit.capacity, self._level + gained)


def walked_s(work: Work, *, slots: int) -> Array:
    """Every conversation starts, in order, as soon as a slot is free and no bucket forbids it."""
    draws, count = work.seconds.shape
    rows = np.arange(draws, dtype=np.intp)
    free_s = np.zeros((draws, slots))
    start_s = np.zeros(draws)
    buckets = [_Bucket(demand, draws) for demand in work.demands]
    for column in range(count):
        slot = free_s.argmin(axis=1) if slots < count else np.full(draws, column)
        start_s = np.maximum(start_s, free_s[rows, slot])
        for bucket in buckets:
            start_s = bucket.ready_s(column, start_s)
        for bucket in buckets:
            bucket.take(column, start_s)
        free_s[rows, slot] = start_s + work.seconds[:, column]
    return free_s.max(axis=1)


def bounded_s(work: Work, *, slots: int, rng: np.random.Generator) -> Array:
    """List scheduling without the walk: all slots are busy until the queue is empty, then the last calls run out.

    When the queue is empty each slot holds a conversation of a length-biased draw, at a uniform point of it. Busy time
    is total / slots less the mean of those rests; the end is the longest of them later. No limit lets the last one
    start before everything but one full bucket has refilled.
    """
    last = work.seconds[:, -min(slots, work.seconds.shape[1]) :]
    bias = (last**2).mean() / last.mean() ** 2
    rest_s = rng.random(last.shape) * last * bias
    ends = [work.total_s / slots + rest_s.max(axis=1) - rest_s.mean(axis=1)]
    for demand in work.demands:
        lacking = work.of_all(demand.amounts) - demand.limit.capacity
        ends.append(lacking / demand.limit.per_second + last.mean(axis=1))
    return np.max(ends, axis=0)
