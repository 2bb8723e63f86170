"""A token bucket for one resource of an account, kept in step with what the provider tells of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE_S = 60.0
# Levels that differ by less are equal: seconds times rates are not exact.
ROUNDING = 1e-6
# Of calls that were granted together one may come to the provider's door so much later than another.
JITTER_S = 0.25
# What is counted at the end of calls may have been counted so long ago, and its reply is still on its way.
REPLY_S = 0.1
# What was granted longer ago than this has come to the door, or never will.
UNDERWAY_S = 0.5
# However small a bucket is, one fits in.
CAPACITY_MIN = 1.0


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Refills all the time at the limit's pace up to a small burst, and is corrected by the provider's own numbers.

    Every rate is by our clock: a sandbox that is 40 times faster announces 40 times the limit, and is told apart
    nowhere in here. The level is what may be granted now, with all that is in flight already taken from it. It is
    below zero where more was used than estimated, and above the capacity where the provider said that it has more.
    """

    # Whether the provider counts at the end of a call, as it does with output, or when it lets the call in.
    counted_late: bool
    at_s: float
    # A minute: announced by the provider, taken until it announces, never to be passed. None: no such limit is known.
    told: float | None = None
    start: float | None = None
    cap: float | None = None
    # A burst has so much of our time's worth of the limit, and fits the largest that was ever wanted at once.
    burst_s: float = 0.0
    largest: float = CAPACITY_MIN
    # How much of the limit is used after refusals.
    share: float = 1.0
    # Follows from the above; None where there is no limit.
    rate_per_s: float | None = None
    provider_rate_per_s: float = math.inf
    capacity: float = CAPACITY_MIN
    # What is counted late costs nothing at the provider's door, but so much must be left there for anybody to get in.
    door: float = 1.0
    level: float = 0.0
    # The most that the provider ever had left, under the limit told last: its bucket holds that much for sure.
    held: float | None = None
    # All that was ever granted. Where it is counted late: less what was reserved too much, and so much is counted.
    used: float = 0.0
    counted: float = 0.0
    # Where it is counted late: the provider's own level. It tells 0 for all that is below; None where it told nothing.
    theirs: float | None = None
    # What was used at two moments, the older one at least UNDERWAY_S ago.
    used_before: float = 0.0
    used_lately: float = 0.0
    lately_s: float = -math.inf
    # When a refusal showed that nothing is left.
    emptied_s: float = -math.inf

    @property
    def limit(self) -> float | None:
        """What is granted a minute in the long run, while nothing is refused."""
        known = self.start if self.told is None else self.told
        if known is None or self.cap is None:
            return known
        return min(known, self.cap)

    def pace(self, now_s: float, *, start: float | None, cap: float | None, burst_s: float) -> None:
        self.refill(now_s)
        self.start, self.cap, self.burst_s = start, cap, burst_s
        self._shape()

    def slow(self, now_s: float, *, share: float) -> None:
        self.refill(now_s)
        self.share = share
        self._shape()

    def refill(self, now_s: float) -> None:
        if self.rate_per_s is not None and self.level < self.capacity:
            self.level = min(self.capacity, self.level + (now_s - self.at_s) * self.rate_per_s)
        if self.theirs is not None:
            # It may hold more than was ever seen; what matters is whether anything is left.
            theirs = self.theirs + (now_s - self.at_s) * self.provider_rate_per_s
            self.theirs = min(theirs, max(self.held or 0.0, self.door))
        self.at_s = now_s

    def has(self, amount: float, now_s: float) -> bool:
        """Whether `amount` may be taken; more than a minute's worth may be once that is there."""
        self._fit(amount)
        if self.rate_per_s is None:
            return True
        self.refill(now_s)
        return self.level >= min(amount, self.capacity) - ROUNDING and self._door_lacks() <= ROUNDING

    def wait_s(self, amount: float, *, ahead: float, now_s: float, stop_s: float) -> float:
        """Until `amount` may be taken, where so much `ahead` is taken first and nothing before the stop is over."""
        self._fit(amount)
        if self.rate_per_s is None:
            return stop_s
        self.refill(now_s)
        level = self.level
        if level < self.capacity:
            level = min(self.capacity, level + stop_s * self.rate_per_s)
        lacking = ahead + min(amount, self.capacity) - level
        at_door_s = self._door_lacks() / self.provider_rate_per_s
        return max(stop_s + (lacking / self.rate_per_s if lacking > ROUNDING else 0.0), at_door_s)

    def take(self, amount: float, now_s: float) -> float:
        """The mark by which the call's reply is understood later."""
        mark = self.mark(now_s)
        self.level -= amount
        self.used += amount
        return mark

    def mark(self, now_s: float) -> float:
        """So much of what is used the provider has counted for sure when it answers a call that is granted now."""
        if self.counted_late:
            return self.counted
        quiet_s = now_s - self.lately_s
        if quiet_s >= UNDERWAY_S:
            self.used_before = self.used if quiet_s >= 2 * UNDERWAY_S else self.used_lately
            self.used_lately, self.lately_s = self.used, now_s
        return self.used_before

    def settle(self, reserved: float, actual: float) -> None:
        """The truth takes the place of the estimate."""
        self._refund(reserved - actual)
        if self.counted_late:
            self.used += actual - reserved
            self.counted += actual
            if self.theirs is not None:
                self.theirs -= actual
        elif actual > reserved:
            # Never less: when the provider counted it is not known, and the marks between were made without it.
            self.used += actual - reserved

    def give_back(self, amount: float, *, granted_s: float) -> None:
        """It was not counted: refused at the door, or never sent."""
        if self.counted_late:
            self.used -= amount
        # What is known of an emptied bucket is newer than the grant, and has this in it.
        if granted_s > self.emptied_s:
            self._refund(amount)

    def empty(self, now_s: float, *, granted_s: float) -> None:
        """Refused: nothing is left. Those granted before the bucket was emptied say nothing new."""
        if granted_s > self.emptied_s:
            self.refill(now_s)
            self.level = min(self.level, 0.0)
            self.emptied_s = now_s

    def hear_limit(self, now_s: float, per_minute: int | None) -> None:
        if per_minute and per_minute != self.told:
            self.refill(now_s)
            self.told, self.held, self.theirs = float(per_minute), None, None
            self._shape()

    def hear_remaining(
        self, now_s: float, remaining: int, *, mark: float, granted_s: float | None, may_raise: bool
    ) -> None:
        """What the provider has left bounds our level from both sides; `granted_s` is None for a call that was free.

        It told so at some time since the grant, and may have refilled since then: no more than that is left. And it
        has counted all up to the mark: no less is left than what it told without everything granted since.
        """
        limit = self.limit
        if limit is None:
            return
        self.refill(now_s)
        if self.held is None or remaining > self.held:
            self.held = float(remaining)
            self._shape()
        if self.counted_late:
            # Below zero only our own count says how far.
            self.theirs = float(remaining) if remaining else min(self.theirs or 0.0, 0.0)
        sure = remaining - self._margin(remaining)
        if granted_s is None:
            self.level = min(self.level, sure)
        else:
            # The fraction that `remaining` leaves out may be nearly one.
            refilled = (now_s - granted_s) * self.provider_rate_per_s
            self.level = min(self.level, remaining + 1 + refilled)
        # Where refusals or a setting hold us back, a burst would go around them.
        if may_raise and self.share == 1.0 and limit == self.told:
            self.level = max(self.level, sure - (self.used - mark))

    def _door_lacks(self) -> float:
        return 0.0 if self.theirs is None else max(0.0, self.door - self.theirs)

    def _refund(self, amount: float) -> None:
        # Above the capacity nothing refilled since it was taken; below, it may have.
        if self.level > self.capacity:
            self.level += amount
        else:
            self.level = min(self.capacity, self.level + amount)

    def _fit(self, amount: float) -> None:
        if amount > self.largest:
            self.largest = amount
            self._shape()

    def _shape(self) -> None:
        """Rate and capacity anew; the level follows where the bucket became smaller."""
        limit = self.limit
        if limit is None:
            return
        was_unlimited, capacity = self.rate_per_s is None, self.capacity
        self.provider_rate_per_s = (self.told or limit) / MINUTE_S
        self.rate_per_s = limit / MINUTE_S * self.share
        burst = self.rate_per_s * self.burst_s
        if self.held is not None:
            burst = min(burst, self.held - self._margin(self.held))
            self.door = 1.0 + min(self.provider_rate_per_s * REPLY_S, self.held / 2)
        self.capacity = max(CAPACITY_MIN, burst, min(self.largest, limit))
        if was_unlimited:
            self.level = self.capacity - (self.used - self.counted if self.counted_late else 0.0)
        elif self.capacity < capacity:
            self.level = min(self.level, self.capacity)

    def _margin(self, amount: float) -> float:
        """What the provider's full bucket may lose of its refill while calls come later than they were granted."""
        return min(self.provider_rate_per_s * JITTER_S, amount / 2)
