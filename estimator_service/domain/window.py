"""A sliding window, in every draw at once: so many conversations at a time, each next one as soon as limits let it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimator_service.domain.bucket import Array, Demand, EarlyBucket, LateBucket, Mask, Rows, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Conversations in the order of their start, group by group: draws x conversations."""

    seconds: Array
    demands: tuple[Demand, ...] = ()
    # Of each group: how many of the conversations are its own, and how many each of them stands for.
    sizes: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def draws(self) -> int:
        return self.seconds.shape[0]

    @property
    def columns(self) -> int:
        return self.seconds.shape[1]

    @property
    def total_s(self) -> Array:
        return self.of_all(self.seconds)

    def of_all(self, amounts: Array) -> Array:
        """The sum over all conversations, in every draw."""
        return self.by_group(amounts).sum(axis=1)

    def by_group(self, amounts: Array) -> Array:
        """The sums over all conversations of each group: draws x groups."""
        firsts = np.cumsum((0, *self.sizes[:-1]))
        sums: Array = np.add.reduceat(amounts, firsts, axis=1) * self.scales
        return sums

    def thinned(self, most: int) -> Work:
        """About so many of the conversations, each for itself; at least one of each group."""
        share = min(1.0, most / self.columns)
        sizes = tuple(max(1, round(size * share)) for size in self.sizes)
        firsts = np.repeat(np.cumsum((0, *self.sizes[:-1])), sizes)
        # The first ones of each group.
        kept = firsts + np.arange(sum(sizes)) - np.repeat(np.cumsum((0, *sizes[:-1])), sizes)
        return Work(
            seconds=self.seconds[:, kept],
            demands=tuple(demand.of(kept) for demand in self.demands),
            sizes=sizes,
            scales=(1.0,) * len(sizes),
        )


@dataclass(frozen=True, slots=True)
class Walked:
    """When each conversation starts (draws x conversations), and when the last one ends in every draw."""

    starts_s: Array
    ends_s: Array


def walked_s(work: Work, *, slots: int, busy_s: Array | None = None) -> Array:
    """When the last one ends, in every draw; scales do not count here.

    `busy_s`, draws x calls: what is in flight already, and for how long. It takes slots, as far as there are any, and
    the limits have no burst left.
    """
    busy_s = np.zeros((work.draws, 0)) if busy_s is None else busy_s
    ends_s = busy_s.max(axis=1, initial=0.0)
    if not work.columns:
        return ends_s
    if not work.demands and slots >= work.columns + busy_s.shape[1]:
        return np.maximum(ends_s, work.seconds.max(axis=1))
    return walk(work, slots=slots, busy_s=busy_s).ends_s


def walk(work: Work, *, slots: int, busy_s: Array) -> Walked:
    """As `walked_s`, where there is work."""
    return _Walk(work, slots, busy_s).walked()


class _Walk:
    """Event by event: in each step every draw either starts its next conversation or sees its next one end."""

    def __init__(self, work: Work, slots: int, busy_s: Array) -> None:
        draws, self._columns = work.seconds.shape
        self._seconds = padded(work.seconds)
        # Where each draw's jobs begin in the flat arrays.
        self._first = np.arange(draws, dtype=np.intp) * (self._columns + 1)
        self._next = np.zeros(draws, dtype=np.intp)
        self._now_s = np.zeros(draws)
        self._last_s = busy_s.max(axis=1, initial=0.0)
        self._starts_s = np.zeros_like(self._seconds)
        self._slots = _Slots(draws, slots, busy_s, nobody=self._columns)
        fresh = not busy_s.shape[1]
        self._early = [EarlyBucket(each, full=fresh) for each in work.demands if not each.limit.counted_late]
        self._late = [LateBucket(each, full=fresh) for each in work.demands if each.limit.counted_late]

    def walked(self) -> Walked:
        while (open_ := self._next < self._columns).any():
            self._step(open_)
        starts_s = self._starts_s.reshape(-1, self._columns + 1)[:, :-1]
        return Walked(starts_s=starts_s, ends_s=self._last_s)

    def _step(self, open_: Mask) -> None:
        jobs = self._first + self._next
        end_s, slot = self._slots.earliest()
        full = self._slots.full
        ready_s = self._now_s + self._wait_s(jobs)
        ending = open_ & (full | (end_s <= ready_s))
        starting = open_ & ~ending
        now_s = np.where(ending, np.maximum(end_s, self._now_s), np.where(starting, ready_s, self._now_s))
        self._count(now_s, ending, starting, jobs, slot, full)
        self._now_s = now_s
        self._slots.free(np.flatnonzero(ending), slot)
        self._start(np.flatnonzero(starting))

    def _wait_s(self, jobs: Rows) -> Array:
        wait_s = np.zeros(len(jobs))
        for bucket in (*self._early, *self._late):
            np.maximum(wait_s, bucket.wait_s(jobs), out=wait_s)
        return wait_s

    def _count(self, now_s: Array, ending: Mask, starting: Mask, jobs: Rows, slot: Rows, full: Mask) -> None:
        by_s = now_s - self._now_s
        for bucket in self._early:
            bucket.go_on(by_s, starting=starting, jobs=jobs)
        for bucket in self._late:
            bucket.end(by_s, now_s, ending=ending, jobs=self._first + self._slots.jobs(slot), looked=~(ending & full))
            bucket.start(now_s, starting=starting, jobs=jobs)

    def _start(self, rows: Rows) -> None:
        numbers = self._next[rows]
        jobs = self._first[rows] + numbers
        self._starts_s[jobs] = self._now_s[rows]
        ends_s = self._now_s[rows] + self._seconds[jobs]
        self._slots.take(rows, ends_s, numbers)
        self._last_s[rows] = np.maximum(self._last_s[rows], ends_s)
        self._next[rows] += 1


class _Slots:
    """What is in flight: the first so many places of each draw are taken, the others empty."""

    def __init__(self, draws: int, slots: int, busy_s: Array, *, nobody: int) -> None:
        # Lowered concurrency: a call beyond the slots makes room for nobody when it ends.
        busy_s = np.sort(busy_s, axis=1)[:, -slots:]
        self._count = slots
        self._ends_s = np.full((draws, slots), np.inf)
        self._ends_s[:, : busy_s.shape[1]] = busy_s
        self._flat_ends_s = self._ends_s.ravel()
        self._jobs = np.full(draws * slots, nobody, dtype=np.intp)
        self._first = np.arange(draws, dtype=np.intp) * slots
        self._taken = np.full(draws, busy_s.shape[1], dtype=np.intp)

    @property
    def full(self) -> Mask:
        return self._taken == self._count

    def earliest(self) -> tuple[Array, Rows]:
        """When the next one ends, and its place; infinite where nothing is in flight."""
        slot = self._ends_s[:, : max(1, int(self._taken.max()))].argmin(axis=1)
        return self._flat_ends_s[self._first + slot], slot

    def jobs(self, slot: Rows) -> Rows:
        return self._jobs[self._first + slot]

    def take(self, rows: Rows, ends_s: Array, numbers: Rows) -> None:
        places = self._first[rows] + self._taken[rows]
        self._flat_ends_s[places], self._jobs[places] = ends_s, numbers
        self._taken[rows] += 1

    def free(self, rows: Rows, slot: Rows) -> None:
        """The last one moves into the place."""
        places = self._first[rows] + slot[rows]
        self._taken[rows] -= 1
        moved = self._first[rows] + self._taken[rows]
        self._flat_ends_s[places], self._jobs[places] = self._flat_ends_s[moved], self._jobs[moved]
        self._flat_ends_s[moved] = np.inf
