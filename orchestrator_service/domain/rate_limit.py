"""The rate limit of an account, which is a key and a model: three buckets, what replies teach, what refusals cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator_service.domain.bucket import Bucket
from orchestrator_service.domain.throttle import RefusalKind, Throttle

# The lowest limit of requests that providers give: until they announce another.
START_REQUESTS_PER_MINUTE = 50
# Real seconds, all three. Providers may enforce 60 a minute as one a second, so bursts start small.
BURST_S = 6.0
PERIOD_S = 5.0
SERVER_DELAY_MAX_S = 120.0
# Seconds of our clock, however fast a sandbox says it is: below that a round trip is not seen.
PERIOD_MIN_S = 0.1
SERVER_DELAY_CAP_MIN_S = 1.0

# Requests, input tokens, output tokens: in this order everywhere.
Amounts = tuple[float, float, float]
NOTHING: Amounts = (0.0, 0.0, 0.0)
# For each of them what the provider allows in a minute of our clock and what is left of it; None where not told.
Told = tuple[tuple[int | None, int | None], tuple[int | None, int | None], tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Refusal:
    kind: RefusalKind
    # What the server said; by our clock, as it says it.
    delay_s: float | None = None


@dataclass(slots=True)
class Grant:
    """One call let through: what it took, and what it needs to understand its reply."""

    amounts: Amounts
    marks: Amounts
    at_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PerMinute:
    """Limits in real minutes; None where none is known."""

    requests: float | None
    input_tokens: float | None
    output_tokens: float | None


class RateLimit:
    """Units: what the provider announces and refuses by is of our clock, and so is everything inside; settings and
    the constants above are real time, which is `speed_up` times longer."""

    def __init__(self, *, requests_per_minute: int | None, speed_up: float, now_s: float) -> None:
        self._requests_per_minute = requests_per_minute
        self._throttle = Throttle(period_s=PERIOD_S, begun_s=now_s)
        self._stopped_until_s = -math.inf
        self._requests = Bucket(counted_late=False, at_s=now_s)
        self._input = Bucket(counted_late=False, at_s=now_s)
        self._output = Bucket(counted_late=True, at_s=now_s)
        self._buckets = (self._requests, self._input, self._output)
        self.rescale(speed_up=speed_up, now_s=now_s)

    def rescale(self, *, speed_up: float, now_s: float) -> None:
        """Another pace of time at the provider; what it announced stays, for that is of our clock."""
        self._speed_up = speed_up
        self._throttle.period_s = max(PERIOD_S / speed_up, PERIOD_MIN_S)
        own = self._requests_per_minute
        start = (own or START_REQUESTS_PER_MINUTE) * speed_up
        burst_s = BURST_S / speed_up
        self._requests.pace(now_s, start=start, cap=own and own * speed_up, burst_s=burst_s)
        self._input.pace(now_s, start=None, cap=None, burst_s=burst_s)
        self._output.pace(now_s, start=None, cap=None, burst_s=burst_s)

    @property
    def share(self) -> float:
        """How much of the limits is used, after refusals."""
        return self._throttle.share

    def take(self, amounts: Amounts, now_s: float) -> Grant | None:
        """All three or nothing."""
        if now_s < self._stopped_until_s:
            return None
        self._tick(now_s)
        requests, input_tokens, output_tokens = amounts
        if not (
            self._requests.has(requests, now_s)
            and self._input.has(input_tokens, now_s)
            and self._output.has(output_tokens, now_s)
        ):
            return None
        self._throttle.granted += 1
        marks = (
            self._requests.take(requests, now_s),
            self._input.take(input_tokens, now_s),
            self._output.take(output_tokens, now_s),
        )
        return Grant(amounts, marks, now_s)

    def wait_s(self, amounts: Amounts, now_s: float, *, ahead: Amounts = NOTHING) -> float:
        """About how long until `take` gives this, where so much is taken ahead of it."""
        self._tick(now_s)
        stop_s = max(0.0, self._stopped_until_s - now_s)
        return max(
            bucket.wait_s(amount, ahead=before, now_s=now_s, stop_s=stop_s)
            for bucket, amount, before in zip(self._buckets, amounts, ahead, strict=True)
        )

    def give_back(self, grant: Grant) -> None:
        """The call is not made."""
        self._throttle.granted = max(0, self._throttle.granted - 1)
        for bucket, amount in zip(self._buckets, grant.amounts, strict=True):
            bucket.give_back(amount, granted_s=grant.at_s)

    def settle(
        self,
        grant: Grant,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        told: Told | None,
        refusal: Refusal | None,
        now_s: float,
    ) -> None:
        """The call came back. Tokens are None where nobody knows: the estimate then stands."""
        self._tick(now_s)
        if refusal is not None:
            self._refused(grant, refusal, told, now_s)
        else:
            _, reserved_input, reserved_output = grant.amounts
            self._input.settle(reserved_input, reserved_input if input_tokens is None else input_tokens)
            self._output.settle(reserved_output, reserved_output if output_tokens is None else output_tokens)
        if told is not None:
            self._hear(told, grant.marks, granted_s=grant.at_s, may_raise=refusal is None, now_s=now_s)
        self._throttle.reply(refusal and refusal.kind, granted_s=grant.at_s)

    def learn(self, told: Told, now_s: float) -> None:
        """What a call that costs nothing came back with, just now."""
        self._tick(now_s)
        requests, input_tokens, output_tokens = self._buckets
        marks = (requests.mark(now_s), input_tokens.mark(now_s), output_tokens.mark(now_s))
        self._hear(told, marks, granted_s=None, may_raise=True, now_s=now_s)

    def share_of(self, amounts: Amounts) -> float:
        """The largest share that this is of a minute's limit: what it costs in a fair order."""
        limits = (bucket.limit for bucket in self._buckets)
        return max(amount / limit for amount, limit in zip(amounts, limits, strict=True) if limit is not None)

    def per_minute(self) -> PerMinute:
        """Without what refusals lowered for now: they are gone in minutes."""
        limits = [bucket.limit and bucket.limit / self._speed_up for bucket in self._buckets]
        return PerMinute(requests=limits[0], input_tokens=limits[1], output_tokens=limits[2])

    def _refused(self, grant: Grant, refusal: Refusal, told: Told | None, now_s: float) -> None:
        if refusal.delay_s is not None:
            delay_max_s = max(SERVER_DELAY_MAX_S / self._speed_up, SERVER_DELAY_CAP_MIN_S)
            self._stopped_until_s = max(self._stopped_until_s, now_s + min(refusal.delay_s, delay_max_s))
        if refusal.kind == "overload":
            # The door had let it in, so request and input are counted; output there was none.
            self._output.give_back(grant.amounts[2], granted_s=grant.at_s)
            return
        for bucket, amount in zip(self._buckets, grant.amounts, strict=True):
            bucket.give_back(amount, granted_s=grant.at_s)
        for bucket in self._exhausted(told):
            bucket.empty(now_s, granted_s=grant.at_s)

    def _exhausted(self, told: Told | None) -> tuple[Bucket, ...]:
        if told is None:
            return (self._requests,)
        return tuple(bucket for bucket, (_, left) in zip(self._buckets, told, strict=True) if left == 0)

    def _hear(self, told: Told, marks: Amounts, *, granted_s: float | None, may_raise: bool, now_s: float) -> None:
        for bucket, (limit, remaining), mark in zip(self._buckets, told, marks, strict=True):
            bucket.hear_limit(now_s, limit)
            if remaining is not None:
                bucket.hear_remaining(now_s, remaining, mark=mark, granted_s=granted_s, may_raise=may_raise)

    def _tick(self, now_s: float) -> None:
        if self._throttle.tick(now_s):
            for bucket in self._buckets:
                bucket.slow(now_s, share=self._throttle.share)
