"""The bound of a makespan: first-come list scheduling, which spends no time on anything but the calls."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def list_schedule_s(durations_s: Sequence[float], *, concurrency: int) -> float:
    """Each call, in the given order, starts on the slot that is free first."""
    slots = [0.0] * concurrency
    for duration_s in durations_s:
        heapq.heapreplace(slots, slots[0] + duration_s)
    return max(slots)


def list_starts_s(durations_s: Sequence[float], *, concurrency: int) -> list[float]:
    """When each call starts by the same rule, in the given order."""
    slots = [0.0] * concurrency
    starts_s: list[float] = []
    for duration_s in durations_s:
        starts_s.append(slots[0])
        heapq.heapreplace(slots, slots[0] + duration_s)
    return starts_s
