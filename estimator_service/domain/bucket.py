"""The orchestrator's rate limits, in every draw at once: what it lets through, learning from what the provider tells.

Its own bucket follows the provider's: full at the start, and set right by every reply. Requests and input tokens are
counted when a call begins. Output tokens are counted when it ends; until then the length that is expected is set aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Number = TypeVar("Number", float, Array)
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

MINUTE_S = 60.0
# Of real time. The provider's bucket holds a minute, as Claude's does; our own holds less after a pause.
PROVIDER_BURST_S = 60.0
OWN_BURST_S = 6.0
# Of our clock, however fast a sandbox is: how far apart calls may come that left together, and how long a reply takes.
JITTER_S = 0.25
REPLY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """`per_minute` of real time, at a provider that is `speed_up` times faster."""

    name: str
    per_minute: float
    speed_up: float = 1.0
    counted_late: bool = False

    @property
    def per_second(self) -> float:
        """Of our clock."""
        return self.per_minute * self.speed_up / MINUTE_S

    @property
    def full(self) -> float:
        """What the provider lets through at once."""
        return max(1.0, self.per_minute * PROVIDER_BURST_S / MINUTE_S)

    @property
    def sure(self) -> float:
        """As much of it as the orchestrator counts on."""
        return self.full - self.margin(self.full)

    @property
    def door(self) -> float:
        """What is counted late costs nothing at the provider's door, but so much must be left there."""
        return 1.0 + min(self.per_second * REPLY_S, self.full / 2)

    def margin(self, left: Number) -> Number:
        """What of the rest may be gone by the time that a call arrives."""
        return np.minimum(self.per_second * JITTER_S, left / 2)  # pyright: ignore[reportReturnType]

    def capacity(self, largest: Array, *, burst: float) -> Array:
        """One call fits in, however small the bucket is."""
        return np.maximum(max(1.0, burst), np.minimum(largest, self.per_minute * self.speed_up))


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the conversations, in the order of their start, take from one limit: draws x conversations."""

    limit: Limit
    amounts: Array
    # What is set aside for each until its end; only where the limit is counted late.
    expected: Array | None = None

    def of(self, columns: Rows) -> Demand:
        """Of some of the conversations."""
        expected = None if self.expected is None else self.expected[:, columns]
        return Demand(limit=self.limit, amounts=self.amounts[:, columns], expected=expected)


class EarlyBucket:
    """Of requests or input tokens. `jobs` are places in the flat amounts: one for each draw."""

    def __init__(self, demand: Demand, *, full: bool) -> None:
        limit, largest = demand.limit, demand.amounts.max(axis=1)
        self._rate = limit.per_second
        self._amounts = padded(demand.amounts)
        self._capacity = limit.capacity(largest, burst=limit.sure)
        self._level = self._capacity if full else np.zeros_like(largest)

    def wait_s(self, jobs: Rows) -> Array:
        return (np.minimum(self._amounts[jobs], self._capacity) - self._level) / self._rate

    def go_on(self, by_s: Array, *, starting: Mask, jobs: Rows) -> None:
        """Time goes by, and then some start."""
        self._level = np.minimum(self._capacity, self._level + by_s * self._rate) - self._amounts[jobs] * starting


class LateBucket:
    """Of output tokens: our level and the provider's own, with all that passes between them."""

    def __init__(self, demand: Demand, *, full: bool) -> None:
        assert demand.expected is not None, "what is counted late is reserved by its expectation"
        self._limit = limit = demand.limit
        self._actual, self._expected = padded(demand.amounts), padded(demand.expected)
        draws = len(demand.amounts)
        burst = min(limit.per_second * OWN_BURST_S / limit.speed_up, limit.sure)
        self._capacity = limit.capacity(demand.expected.max(axis=1), burst=burst)
        self._level = np.full(draws, limit.sure if full else 0.0)
        self._theirs = np.full(draws, limit.full if full else limit.door)
        self._used = np.zeros(draws)
        self._counted = np.zeros(draws)
        # By job: when it started, and what was counted until then.
        self._started_s = np.zeros_like(self._actual)
        self._mark = np.zeros_like(self._actual)

    def wait_s(self, jobs: Rows) -> Array:
        own = (np.minimum(self._expected[jobs], self._capacity) - self._level) / self._limit.per_second
        return np.maximum(own, (self._limit.door - self._theirs) / self._limit.per_second)

    def end(self, by_s: Array, now_s: Array, *, ending: Mask, jobs: Rows, looked: Mask) -> None:
        """Time goes by, and then some end. `looked`: someone waits, so that the level was brought up to date before."""
        gained = by_s * self._limit.per_second
        actual = self._actual[jobs] * ending
        kept = self._expected[jobs] * ending - actual
        self._theirs = np.minimum(self._limit.full, self._theirs + gained) - actual
        self._used -= kept
        self._counted += actual
        level = np.where(looked, self._refilled(self._level, gained), self._level)
        level = np.where(level > self._capacity, level + kept, np.minimum(self._capacity, level + kept))
        level = np.where(looked, level, self._refilled(level, gained))
        self._level = np.where(ending, self._told(level, now_s, jobs), level)

    def start(self, now_s: Array, *, starting: Mask, jobs: Rows) -> None:
        expected = self._expected[jobs] * starting
        self._level = self._level - expected
        self._used += expected
        self._started_s[jobs] = np.where(starting, now_s, self._started_s[jobs])
        self._mark[jobs] = np.where(starting, self._counted, self._mark[jobs])

    def _told(self, level: Array, now_s: Array, jobs: Rows) -> Array:
        """The provider's rest bounds our level from both sides."""
        left = np.floor(np.maximum(0.0, self._theirs))
        most = left + 1 + (now_s - self._started_s[jobs]) * self._limit.per_second
        least = left - self._limit.margin(left) - (self._used - self._mark[jobs])
        return np.maximum(np.minimum(level, most), least)

    def _refilled(self, level: Array, gained: Array) -> Array:
        # Above the capacity, where only the provider's word brings it, nothing is added.
        return np.where(level < self._capacity, np.minimum(self._capacity, level + gained), level)


def padded(amounts: Array) -> Array:
    """Flat, with a place of nobody behind each draw."""
    return np.pad(amounts, ((0, 0), (0, 1))).ravel()
