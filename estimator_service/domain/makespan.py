"""The wall time of a workload as the orchestrator runs it: in its order, so many at once, under the limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from estimator_service.domain.bucket import Array, Demand, Limit
from estimator_service.domain.draws import GroupDraws
from estimator_service.domain.estimate import GroupEstimate
from estimator_service.domain.history import OVERHEAD_CALL_S
from estimator_service.domain.long_window import approximated_s
from estimator_service.domain.window import Work, walked_s
from estimator_service.domain.workload import Limits, Workload

# More conversations are not walked through one by one.
WALKED_CONVERSATIONS_MAX = 2_000
# Draws that are simulated together have so many values at most: 8 bytes each, of some twenty kinds.
VALUES_MAX = 600_000
# The orchestrator's own figures: it starts the tiers that it expects to be longest first.
EXPECTED_TOKENS = {"template": 3_000.0, "scenario": 4_000.0, "edge_case": 5_000.0}
EXPECTED_OTHERWISE = 4_000.0
# Between the end of one call and the beginning of the next one: two commits. Measured at 10 ms a call: 2.4 to 5 ms.
TURN_S = 0.003
# Calls that differ in length leave a limit unused at times, unless there are so many more slots than it needs.
ENOUGH = 1.25
OUTPUT_TOKENS = "output tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit that sets the pace, and the concurrency that would be as fast."""

    limit: str
    concurrency_enough: int


def makespan_s(
    workload: Workload,
    estimates: Sequence[GroupEstimate],
    draws: Sequence[GroupDraws],
    *,
    speed_up: float,
    busy_s: Array | None = None,
) -> Array:
    """Wall seconds in every draw, at `speed_up`: latency and limits scale with it, our own overhead does not.

    `busy_s`, draws x calls: wall seconds that what is in flight already will take yet.
    """
    if busy_s is None:
        busy_s = np.zeros((len(draws[0].calls), 0))
    step = max(1, VALUES_MAX // max(1, sum(drawn.calls.shape[1] for drawn in draws)))
    parts = [slice(first, first + step) for first in range(0, len(busy_s), step)]
    return np.concatenate(
        [
            _simulated_s(workload, estimates, [_of(drawn, part) for drawn in draws], speed_up, busy_s[part])
            for part in parts
        ]
    )


def _of(drawn: GroupDraws, part: slice) -> GroupDraws:
    return replace(
        drawn,
        calls=drawn.calls[part],
        fresh_input_tokens=drawn.fresh_input_tokens[part],
        output_tokens=drawn.output_tokens[part],
        seconds=drawn.seconds[part],
    )


def _simulated_s(
    workload: Workload, estimates: Sequence[GroupEstimate], draws: Sequence[GroupDraws], speed_up: float, busy_s: Array
) -> Array:
    work = work_of(workload, estimates, draws, speed_up=speed_up)
    if workload.count <= WALKED_CONVERSATIONS_MAX:
        return walked_s(work, slots=workload.concurrency, busy_s=busy_s)
    return approximated_s(work, slots=workload.concurrency, busy_s=busy_s)


def limits_in_force(limits: Limits, *, speed_up: float) -> tuple[Limit, ...]:
    named = (
        ("requests", limits.requests_per_minute),
        ("input tokens", limits.input_tokens_per_minute),
        (OUTPUT_TOKENS, limits.output_tokens_per_minute),
    )
    return tuple(
        Limit(name=name, per_minute=each, speed_up=speed_up, counted_late=name == OUTPUT_TOKENS)
        for name, each in named
        if each > 0
    )


def binding(workload: Workload, estimates: Sequence[GroupEstimate]) -> Binding | None:
    """The limit that makes the workload slower than its concurrency would, by expected figures at real speed."""
    work_s = sum(estimate.group.count * estimate.conversation_duration_mean_s for estimate in estimates)
    needs = _needs(estimates)
    slowest: tuple[float, str] = (0.0, "")
    for limit in limits_in_force(workload.limits, speed_up=1.0):
        slowest = max(slowest, ((needs[limit.name] - limit.full) / limit.per_second, limit.name))
    limited_s, name = slowest
    if limited_s <= 0:
        return None
    enough = max(1, math.ceil(work_s / limited_s * ENOUGH))
    slots = min(workload.concurrency, workload.count)
    return Binding(limit=name, concurrency_enough=enough) if enough < slots else None


def _needs(estimates: Sequence[GroupEstimate]) -> dict[str, float]:
    return {
        "requests": sum(each.group.count * each.calls_mean for each in estimates),
        "input tokens": sum(each.group.count * each.calls_mean * each.fresh_tokens for each in estimates),
        "output tokens": sum(each.group.count * each.output_tokens_mean for each in estimates),
    }


def work_of(
    workload: Workload, estimates: Sequence[GroupEstimate], draws: Sequence[GroupDraws], *, speed_up: float
) -> Work:
    """In the order in which the orchestrator starts them."""
    pairs = [pair for pair in zip(estimates, draws, strict=True) if pair[1].calls.shape[1]]
    pairs.sort(key=lambda pair: -EXPECTED_TOKENS.get(pair[0].group.tier, EXPECTED_OTHERWISE))
    ordered = [drawn for _, drawn in pairs]
    rows = len(draws[0].calls)
    return Work(
        seconds=np.hstack([np.zeros((rows, 0)), *(_seconds(drawn, speed_up) for drawn in ordered)]),
        demands=tuple(_demands(ordered, limits_in_force(workload.limits, speed_up=speed_up))),
        sizes=tuple(drawn.calls.shape[1] for drawn in ordered),
        scales=tuple(drawn.scale for drawn in ordered),
    )


def _demands(ordered: Sequence[GroupDraws], limits: Sequence[Limit]) -> Iterator[Demand]:
    # What is read from the prompt cache does not count towards the limit of input tokens.
    amounts = {
        "requests": [drawn.calls for drawn in ordered],
        "input tokens": [drawn.fresh_input_tokens for drawn in ordered],
        OUTPUT_TOKENS: [drawn.output_tokens for drawn in ordered],
    }
    for limit in limits:
        taken = amounts[limit.name]
        if taken and limit.counted_late:
            # The orchestrator learns the mean length of a tier's answers within its first few.
            means = [np.broadcast_to(each.mean(axis=1, keepdims=True), each.shape) for each in taken]
            yield Demand(limit=limit, amounts=np.hstack(taken), expected=np.hstack(means))
        elif taken:
            yield Demand(limit=limit, amounts=np.hstack(taken))


def _seconds(drawn: GroupDraws, speed_up: float) -> Array:
    seconds: Array = drawn.seconds / speed_up + drawn.calls * (OVERHEAD_CALL_S + TURN_S)
    return seconds
