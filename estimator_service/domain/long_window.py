"""The sliding window of a batch that is too large to be walked through: a part of it is, and the rest follows its pace.

Where the slots are many the part would have to be large, too. Then all slots are taken for busy until nothing waits any
more, and what is in flight runs out.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from estimator_service.domain.bucket import Array
from estimator_service.domain.window import Work, walk

# So many conversations are walked through, and better so many times those that are in flight together.
WALKED_MIN, WALKED_MAX = 800, 2_000
WALKED_OF_FLIGHT, WALKED_OF_FLIGHT_MIN = 8, 3
# Where few are in flight the limits' bookkeeping costs some of them, more or less from part to part.
SLOWED_FLIGHT_MAX = 40
STRETCHES_MAX = 8
STRETCH_OF_FLIGHT = 20


def approximated_s(work: Work, *, slots: int, busy_s: Array | None = None) -> Array:
    """As `walked_s`, with every conversation of `work` standing for its scale."""
    busy_s = np.zeros((work.draws, 0)) if busy_s is None else busy_s
    flight = min(slots, _in_flight_max(work))
    part = work.thinned(round(min(max(WALKED_MIN, WALKED_OF_FLIGHT * flight), WALKED_MAX)))
    if part.columns < WALKED_OF_FLIGHT_MIN * flight:
        return _run_out_s(work, slots=slots, busy_s=busy_s)
    walked = walk(part, slots=slots, busy_s=busy_s)
    pace_s = _paces_s(work, slots)
    # What the part leaves out, by its own conversations.
    left_out = np.repeat(np.array(work.sizes) * work.scales / part.sizes - 1, part.sizes)
    left_out_s = np.repeat(pace_s, part.sizes, axis=1) * left_out
    slowness = _slowness(np.repeat(pace_s, part.sizes, axis=1), walked.starts_s, flight=flight)
    return walked.ends_s + (left_out_s * slowness).sum(axis=1)


def _slowness(pace_s: Array, starts_s: Array, *, flight: float) -> Array:
    """Of the walk against the pace, stretch by stretch, behind those that start all together: draws x conversations."""
    columns = pace_s.shape[1]
    slowness = np.ones_like(pace_s)
    if flight > SLOWED_FLIGHT_MAX:
        return slowness
    stretches = int(min(STRETCHES_MAX, max(1, columns // (STRETCH_OF_FLIGHT * flight))))
    marks = [number * (columns - 1) // stretches for number in range(stretches + 1)]
    for first, last in pairwise(marks):
        begun = max(first, min(round(2 * flight), (first + last) // 2))
        paced_s = pace_s[:, begun:last].sum(axis=1)
        measured: Array = (starts_s[:, last] - starts_s[:, begun]) / paced_s
        slowness[:, first : last + 1] = measured[:, None]
    return slowness


def _in_flight_max(work: Work) -> float:
    """That the limits allow in the long run, in the mean."""
    flights = [
        demand.limit.per_second * work.total_s.mean() / max(float(work.of_all(demand.amounts).mean()), 1e-9)
        for demand in work.demands
    ]
    return min(flights, default=math.inf)


def _paces_s(work: Work, slots: int) -> Array:
    """Of one conversation of each group, by what is slowest for it, slots or a limit: draws x groups."""
    pace_s = work.by_group(work.seconds) / slots
    for demand in work.demands:
        np.maximum(pace_s, work.by_group(demand.amounts) / demand.limit.per_second, out=pace_s)
    return pace_s / (np.array(work.sizes) * work.scales)


def _run_out_s(work: Work, *, slots: int, busy_s: Array) -> Array:
    """When the queue is empty each slot holds a conversation of a length-biased draw, at a uniform point of it.

    Busy time is the total over the slots less the mean of those rests; the end is the longest of them later. No limit
    lets the last one start before everything but one full bucket has refilled.
    """
    scales = np.repeat(work.scales, work.sizes)
    count = min(int(np.searchsorted(scales[::-1].cumsum(), slots)) + 1, work.columns)
    last = work.seconds[:, -count:]
    bias = (last**2).mean(axis=1, keepdims=True) / last.mean(axis=1, keepdims=True) ** 2
    rest_s = np.random.default_rng(0).random(last.shape) * last * bias
    average_s = (work.total_s + busy_s.sum(axis=1)) / slots
    ends_s = [average_s + rest_s.max(axis=1) - rest_s.mean(axis=1), busy_s.max(axis=1, initial=0.0)]
    for demand in work.demands:
        burst = 0.0 if busy_s.shape[1] else demand.limit.full
        after = demand.amounts[:, -count:] * scales[-count:]
        after = after[:, ::-1].cumsum(axis=1)[:, ::-1] - after
        starts_s = (work.of_all(demand.amounts)[:, None] - burst - after) / demand.limit.per_second
        ends_s.append((starts_s + last).max(axis=1))
    return np.max(ends_s, axis=0)
