"""What happens after a call that failed: again (when, and changed how), given up, or the whole batch held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class FailureKind(StrEnum):
    # 5xx, or an error in the middle of a stream.
    SERVER_ERROR = "SERVER_ERROR"
    # Never connected, or cut before the answer was whole.
    CONNECTION_LOST = "CONNECTION_LOST"
    # No answer within the deadline.
    TIMEOUT = "TIMEOUT"
    # 429: too many requests or tokens a minute.
    RATE_LIMITED = "RATE_LIMITED"
    # 529: the provider has no capacity.
    OVERLOADED = "OVERLOADED"
    # Answered 200 with a body that is no message of the API.
    UNREADABLE = "UNREADABLE"
    # Answered, and not in the asked-for form.
    MALFORMED = "MALFORMED"
    # The answer reached max_tokens.
    CUT = "CUT"
    # The model refused.
    REFUSED = "REFUSED"
    # The provider refuses the request itself.
    REQUEST_REFUSED = "REQUEST_REFUSED"
    # Prompt and answer do not fit the model's context.
    TOO_LONG = "TOO_LONG"
    # Answered, with a stop reason that this server does not know.
    UNKNOWN_STOP = "UNKNOWN_STOP"
    # The provider refuses the key or the model: no conversation of the batch can be made.
    CREDENTIALS = "CREDENTIALS"
    # A spend limit is reached or the credit used up.
    PROVIDER_LIMIT = "PROVIDER_LIMIT"


class Change(StrEnum):
    """What the next attempt does differently, for the same call would fail the same way."""

    MORE_TOKENS = "MORE_TOKENS"
    STRICTER = "STRICTER"


@dataclass(frozen=True, kw_only=True)
class Policy:
    max_attempts: int = 5
    # How often a conversation may be told to wait (429, 529); waiting is no attempt.
    max_waits: int = 50
    delay_base_s: float = 1.0
    delay_max_s: float = 60.0
    # In real seconds, as all delays here; a sandbox's are shorter by its speed-up.
    server_delay_max_s: float = 120.0
    speed_up: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How slow a model may be before a call is given up, in real time; what is said here holds until some was seen."""

    tokens_per_s: float = 15.0
    # The longest that a call may well take, by those that were answered.
    longest_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RetryAfter:
    delay_s: float
    # Whether an attempt of max_attempts is used up; otherwise it was a wait.
    counts: bool
    change: Change | None = None


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    # A name of the contract's enum FailureReason.
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class HoldBatch:
    # A name of the contract's enum HoldReason.
    reason: str
    message: str
    next_step: str
    # Until it clears by itself, where the provider says so.
    clears_after_s: float | None = None


# Limits are of a day or a month; what is told beyond that is no time to wait for.
CLEARS_AFTER_MAX_S = 32 * 86_400.0

Decision = RetryAfter | GiveUp | HoldBatch
UNKNOWN_SPEED = Speed()


@dataclass(frozen=True, kw_only=True)
class _Again:
    """Tried again until the attempts are out; the first time with a change, where one may help."""

    reason: str
    message: str
    change: Change | None = None
    # False: only the changed attempt is worth its money.
    unchanged_too: bool = True
    # False: it was told to wait, which is no attempt.
    counts: bool = True


RULES: Mapping[FailureKind, _Again | GiveUp | HoldBatch] = {
    FailureKind.SERVER_ERROR: _Again(reason="PROVIDER_ERROR", message="The provider answered with an error"),
    FailureKind.CONNECTION_LOST: _Again(reason="PROVIDER_ERROR", message="The connection to the provider broke"),
    FailureKind.TIMEOUT: _Again(reason="TIMEOUT", message="No answer came within the deadline"),
    FailureKind.RATE_LIMITED: _Again(reason="PROVIDER_ERROR", message="The rate limit was reached", counts=False),
    FailureKind.OVERLOADED: _Again(reason="PROVIDER_ERROR", message="The provider was overloaded", counts=False),
    FailureKind.UNREADABLE: _Again(reason="PROVIDER_ERROR", message="The provider's answer could not be read"),
    FailureKind.MALFORMED: _Again(
        reason="MALFORMED",
        message="The answer was not the asked-for JSON",
        change=Change.STRICTER,
        unchanged_too=False,
    ),
    FailureKind.CUT: _Again(
        reason="MAX_TOKENS",
        message="The answer reached max_tokens",
        change=Change.MORE_TOKENS,
        unchanged_too=False,
    ),
    FailureKind.REFUSED: GiveUp(reason="REFUSAL", message="The model refused."),
    FailureKind.REQUEST_REFUSED: GiveUp(reason="REQUEST_REFUSED", message="The provider refused the request."),
    FailureKind.TOO_LONG: GiveUp(reason="TOO_LONG", message="Prompt and answer do not fit the model's context."),
    FailureKind.UNKNOWN_STOP: GiveUp(
        reason="UNKNOWN_STOP", message="The answer ended for a reason that this server does not know."
    ),
    FailureKind.CREDENTIALS: HoldBatch(
        reason="CREDENTIALS",
        message="The provider refuses the key or the model.",
        next_step="Check ANTHROPIC_API_KEY and the model with `parley check`, then resume the batch.",
    ),
    FailureKind.PROVIDER_LIMIT: HoldBatch(
        reason="PROVIDER_LIMIT",
        message="The provider's spend limit or credit is used up.",
        next_step="Raise the limit or add credit at the provider, then resume the batch.",
    ),
}


def decide(
    policy: Policy,
    *,
    kind: FailureKind,
    attempt: int,
    server_delay_s: float | None,
    waits: int,
    rng: Callable[[], float],
    was_changed: bool,
) -> Decision:
    """The one place where a failed call is judged.

    attempt: the attempt that failed, from 1. waits: how often the conversation was told to wait before this time.
    was_changed: whether an earlier attempt carried this kind's change. rng: a number in [0, 1).
    """
    rule = RULES[kind]
    if isinstance(rule, HoldBatch):
        return replace(rule, clears_after_s=_clears_after_s(kind, server_delay_s))
    if isinstance(rule, GiveUp):
        return rule
    if rule.counts and attempt >= policy.max_attempts:
        return GiveUp(reason=rule.reason, message=f"{rule.message}, attempt after attempt ({attempt}).")
    if not rule.counts and waits >= policy.max_waits:
        return GiveUp(reason=rule.reason, message=f"{rule.message}, and still was after {waits} waits.")
    if rule.change and not was_changed:
        # The provider is well: it answered. Only the answer has to be another.
        return RetryAfter(delay_s=0.0, counts=True, change=rule.change)
    if not rule.unchanged_too:
        return GiveUp(reason=rule.reason, message=f"{rule.message}, also when asked differently.")
    nth = attempt if rule.counts else waits + 1
    return RetryAfter(delay_s=_delay_s(policy, nth=nth, server_delay_s=server_delay_s, rng=rng), counts=rule.counts)


def deadline_s(
    max_tokens: int, *, speed_up: float = 1.0, speed: Speed = UNKNOWN_SPEED, wait_s: float = 30.0, floor_s: float = 10.0
) -> float:
    """How long a call may take: time for the first token, and all of max_tokens at the slow end of the speed."""
    return max(floor_s, max(wait_s + max_tokens / speed.tokens_per_s, speed.longest_s) / speed_up)


def _clears_after_s(kind: FailureKind, server_delay_s: float | None) -> float | None:
    """A spend limit ends at the time that the provider tells; a refused key never does by itself."""
    if kind is not FailureKind.PROVIDER_LIMIT or server_delay_s is None:
        return None
    return min(max(server_delay_s, 0.0), CLEARS_AFTER_MAX_S)


def _delay_s(policy: Policy, *, nth: int, server_delay_s: float | None, rng: Callable[[], float]) -> float:
    # Full jitter: whoever failed together must not come back together. 2 ** 30 already is beyond any cap.
    backoff_s = min(policy.delay_max_s, policy.delay_base_s * 2 ** min(nth - 1, 30)) / policy.speed_up
    if server_delay_s is None:
        return rng() * backoff_s
    # The server's own delay wins, for it knows its queue; it already is at the server's pace.
    told_s = min(max(server_delay_s, 0.0), policy.server_delay_max_s / policy.speed_up)
    spread_s = min(backoff_s, max(told_s, policy.delay_base_s / policy.speed_up))
    return told_s + rng() * spread_s
