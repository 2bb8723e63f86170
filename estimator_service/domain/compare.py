"""A quote beside what happened: the difference by group, and by cause, the causes adding up to the whole of it.

Cost, in this order:
  price     what was paid less what the same calls would have cost at the prices of the quote;
  failures  what calls cost that were paid for nothing, at the prices of the quote, less what the quote expected of
            them (each group's cost times its share of failing calls);
  tokens    the rest: more or fewer tokens, more or fewer calls and conversations.

Time is compared in seconds that calls were under way (at real speed), which are brought to wall time by the quote's own
ratio of wall time to such seconds: it holds concurrency, limits and a sandbox's speed as they were quoted.
  tokens    what the answered calls should have taken at the quoted speed, less what the quote expected of answered
            calls. The quoted seconds of a call are the delay of its first token, as it was observed, and the rest
            in proportion to its output tokens; all in proportion where no call was streamed;
  failures  what failed calls took, less what the quote expected of them;
  speed     what the answered calls took, less what they should have taken at the quoted speed;
  waiting   the rest: limits, back-off, idle slots, a changed concurrency.

Tiers and models that were not quoted count as tokens. Only calls that make conversations count: what judging, warming
and checking cost is in tokens, what they took in waiting. Where no call was observed nothing tells tokens from failures
or speed: the cost's difference is price and tokens, the time's is waiting.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from estimator_service.domain.observation import Outcome

# Refused before it began: the time until it may come again is waiting.
_NOT_UNDER_WAY = Outcome.LIMITED
# Of quoted calls, tokens or seconds: less is nothing, and what is divided by it would leave the range of a double.
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What happened to a quoted workload."""

    cost_nanos: int
    # None where prices were those of the quote.
    cost_at_quoted_nanos: int | None
    # Without holds.
    duration: timedelta
    # That were made.
    conversations: int
    # By the group's id; empty where it was not told.
    cost_by_group: Mapping[str, int]
    # None where it was not told.
    end_time: datetime | None = None

    @property
    def price_nanos(self) -> int:
        """What changed prices cost."""
        return 0 if self.cost_at_quoted_nanos is None else self.cost_nanos - self.cost_at_quoted_nanos


def first_difference(before: Actual, now: Actual) -> str | None:
    """The field, in the contract's words."""
    return next((name for field, name in _FIELDS.items() if getattr(before, field) != getattr(now, field)), None)


_FIELDS = {
    "cost_nanos": "actuals.cost",
    "cost_at_quoted_nanos": "actuals.cost_at_quoted_prices",
    "duration": "actuals.duration",
    "conversations": "actuals.conversations",
    "cost_by_group": "actuals.cost_by_group",
    "end_time": "end_time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotedGroup:
    """The figures of a whole group, failing calls included; seconds at real speed."""

    id: str
    tier: str
    model: str
    cost_nanos: int
    calls: float
    output_tokens: float
    seconds: float
    failure_share: float

    @property
    def key(self) -> tuple[str, str]:
        return self.tier, self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    cost_nanos: int
    # Wall time at the provider's speed.
    time_s: float
    groups: tuple[QuotedGroup, ...]

    @property
    def wall_of_call_second(self) -> float:
        seconds = sum(group.seconds for group in self.groups)
        return self.time_s / seconds if seconds >= _LEAST else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsSeen:
    """The calls of one tier, model and outcome that a batch made; seconds at real speed."""

    tier: str
    model: str
    outcome: Outcome
    calls: int
    output_tokens: int
    seconds: float
    # Of those that were streamed.
    first_token_calls: int
    first_token_s: float
    # At the prices of the quote.
    cost_nanos: int


@dataclass(frozen=True, slots=True)
class Variance:
    """A group's or a cause's share of actual less quoted."""

    cause: str
    cost_nanos: int
    seconds: float


def by_cause(quoted: Quoted, actual: Actual, seen: Sequence[CallsSeen]) -> tuple[Variance, ...]:
    """tokens, price, failures, speed and waiting; their sum is the whole difference, to the nano-dollar."""
    cost = actual.cost_nanos - quoted.cost_nanos
    failures_nanos = _failures_nanos(quoted, seen)
    pairs = _pairs(quoted, seen)
    wall = quoted.wall_of_call_second
    tokens_s = wall * sum(pair.expected_s - pair.quoted_s for pair in pairs)
    failures_s = wall * sum(pair.failed_s - pair.quoted_failed_s for pair in pairs)
    speed_s = wall * sum(pair.answered_s - pair.expected_s for pair in pairs)
    waiting_s = actual.duration.total_seconds() - quoted.time_s - tokens_s - failures_s - speed_s
    return (
        Variance("tokens", cost - actual.price_nanos - failures_nanos, tokens_s),
        Variance("price", actual.price_nanos, 0.0),
        Variance("failures", failures_nanos, failures_s),
        Variance("speed", 0, speed_s),
        Variance("waiting", 0, waiting_s),
    )


def by_group(quoted: Quoted, actual: Actual, seen: Sequence[CallsSeen]) -> tuple[Variance, ...]:
    """In the quote's order; empty where what the groups cost was not told.

    A group's seconds are those of its calls, brought to wall time; groups of one tier and model share them as quoted.
    """
    if not actual.cost_by_group:
        return ()
    wall = quoted.wall_of_call_second
    more_s = {pair.key: pair.answered_s + pair.failed_s - pair.quoted_all_s for pair in _pairs(quoted, seen)}
    shares = _shares(quoted.groups)
    return tuple(
        Variance(
            group.id,
            actual.cost_by_group.get(group.id, 0) - group.cost_nanos,
            wall * more_s.get(group.key, 0.0) * shares[group.id],
        )
        for group in quoted.groups
    )


def _failures_nanos(quoted: Quoted, seen: Sequence[CallsSeen]) -> int:
    if not seen:
        return 0
    paid = sum(each.cost_nanos for each in seen if each.outcome != Outcome.ANSWERED)
    return paid - round(sum(group.cost_nanos * group.failure_share for group in quoted.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Quoted and seen seconds of the calls of one tier and model."""

    key: tuple[str, str]
    # Of answered calls.
    quoted_s: float
    quoted_failed_s: float
    # What the answered calls should have taken at the quoted speed.
    expected_s: float
    answered_s: float
    failed_s: float

    @property
    def quoted_all_s(self) -> float:
        return self.quoted_s + self.quoted_failed_s


def _pairs(quoted: Quoted, seen: Sequence[CallsSeen]) -> list[_Pair]:
    """Of every tier and model that was quoted or seen; none where nothing was seen."""
    if not seen:
        return []
    keys = dict.fromkeys([*(group.key for group in quoted.groups), *((each.tier, each.model) for each in seen)])
    return [
        _pair(
            key,
            [group for group in quoted.groups if group.key == key],
            [each for each in seen if (each.tier, each.model) == key],
        )
        for key in keys
    ]


def _pair(key: tuple[str, str], groups: Sequence[QuotedGroup], seen: Sequence[CallsSeen]) -> _Pair:
    answered = [each for each in seen if each.outcome == Outcome.ANSWERED]
    answered_s = sum(each.seconds for each in answered)
    was_quoted = sum(group.calls for group in groups) >= _LEAST
    failed = (each.seconds for each in seen if each.outcome not in (Outcome.ANSWERED, _NOT_UNDER_WAY))
    return _Pair(
        key=key,
        quoted_s=sum(group.seconds * (1 - group.failure_share) for group in groups),
        quoted_failed_s=sum(group.seconds * group.failure_share for group in groups),
        expected_s=_at_quoted_speed(groups, answered) if was_quoted else answered_s,
        answered_s=answered_s,
        failed_s=sum(failed),
    )


def _at_quoted_speed(groups: Sequence[QuotedGroup], answered: Sequence[CallsSeen]) -> float:
    """What these calls should have taken."""
    calls, tokens = sum(group.calls for group in groups), sum(group.output_tokens for group in groups)
    call_s = sum(group.seconds for group in groups) / calls
    streamed = sum(each.first_token_calls for each in answered)
    first_s = min(sum(each.first_token_s for each in answered) / streamed, call_s) if streamed else 0.0
    if tokens < _LEAST:
        return call_s * sum(each.calls for each in answered)
    token_s = (call_s - first_s) * calls / tokens
    return sum(each.calls * first_s + each.output_tokens * token_s for each in answered)


def _shares(groups: Sequence[QuotedGroup]) -> dict[str, float]:
    """Each group's share of what was quoted for its tier and model."""
    totals: defaultdict[tuple[str, str], float] = defaultdict(float)
    for group in groups:
        totals[group.key] += group.seconds
    alike = Counter(group.key for group in groups)
    return {
        group.id: group.seconds / totals[group.key] if totals[group.key] > 0 else 1 / alike[group.key]
        for group in groups
    }
