"""One conversation on its way: attempts, what each reply means, and what is settled for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator_service.domain.batch import HoldReason
from orchestrator_service.domain.ledger import (
    FREE,
    CallOutcome,
    CallPurpose,
    Rate,
    cost_nanos,
    counted_input_tokens,
    most_input_tokens,
    reserve_nanos,
)
from orchestrator_service.domain.plan import Item
from orchestrator_service.domain.retry import (
    UNKNOWN_SPEED,
    Change,
    Decision,
    FailureKind,
    GiveUp,
    HoldBatch,
    Policy,
    RetryAfter,
    Speed,
    deadline_s,
    decide,
)
from orchestrator_service.domain.spec import Spec
from orchestrator_service.generation.calls import STRICTER
from orchestrator_service.generation.checks import Malformed, check, parse
from orchestrator_service.generation.claude import CallFailure, Reply, Request
from orchestrator_service.generation.planning import max_tokens
from orchestrator_service.generation.prompts import Filled
from orchestrator_service.storage.settlements import Again, GivenUp, Made, Settlement
from orchestrator_service.storage.transitions import NewHold

# What the schema of the answer adds to the input, at the most.
SCHEMA_TOKENS = 500

OUTCOMES = {
    FailureKind.SERVER_ERROR: CallOutcome.PROVIDER_ERROR,
    FailureKind.CONNECTION_LOST: CallOutcome.CONNECTION_LOST,
    FailureKind.TIMEOUT: CallOutcome.TIMEOUT,
    FailureKind.RATE_LIMITED: CallOutcome.LIMITED,
    FailureKind.OVERLOADED: CallOutcome.LIMITED,
    FailureKind.UNREADABLE: CallOutcome.MALFORMED,
    FailureKind.MALFORMED: CallOutcome.MALFORMED,
    FailureKind.CUT: CallOutcome.CUT,
    FailureKind.REFUSED: CallOutcome.REFUSED,
    FailureKind.REQUEST_REFUSED: CallOutcome.PROVIDER_ERROR,
    FailureKind.TOO_LONG: CallOutcome.PROVIDER_ERROR,
    FailureKind.UNKNOWN_STOP: CallOutcome.UNKNOWN_STOP,
    FailureKind.CREDENTIALS: CallOutcome.PROVIDER_ERROR,
    FailureKind.PROVIDER_LIMIT: CallOutcome.LIMITED,
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all conversations of a batch have in common."""

    batch: str
    owner: str
    epoch: int
    spec: Spec
    model: str
    # None where no price is known: cost is then written as 0.
    rate: Rate | None
    policy: Policy
    # 1 is low, 2 normal, 3 high.
    priority: int
    stop_on_error: bool
    # Whether a budget is in force, so that what a call may cost is counted and not guessed.
    counted: bool


@dataclass(kw_only=True)
class Attempts:
    """What one conversation remembers between its attempts."""

    item: Item
    filled: Filled
    changes: set[Change] = field(default_factory=set[Change])
    waits: int = 0
    # Input tokens as the provider counted them, for the prompt as it is without changes.
    counted_tokens: int | None = None

    @property
    def characters(self) -> int:
        return len(self.filled.system) + len(self.filled.user)

    @property
    def purpose(self) -> CallPurpose:
        return CallPurpose.REPAIR if Change.STRICTER in self.changes else CallPurpose.GENERATE

    @property
    def max_tokens(self) -> int:
        return max_tokens(self.item.tier, more=Change.MORE_TOKENS in self.changes)

    def request(self, terms: Terms, *, speed: Speed = UNKNOWN_SPEED) -> Request:
        return Request(
            model=terms.model,
            system=self.filled.system,
            user=self.filled.user,
            max_tokens=self.max_tokens,
            schema=True,
            effort=terms.spec.effort,
            prompt_cache=terms.spec.prompt_cache,
            deadline_s=deadline_s(self.max_tokens, speed_up=terms.policy.speed_up, speed=speed),
            stricter=Change.STRICTER in self.changes,
        )

    def reserve_nanos(self, terms: Terms) -> int:
        return reserve_nanos(
            self._most_input_tokens(), self.max_tokens, terms.rate or FREE, prompt_cache=terms.spec.prompt_cache
        )

    def _most_input_tokens(self) -> int:
        added = STRICTER if Change.STRICTER in self.changes else ""
        if self.counted_tokens is not None:
            return counted_input_tokens(self.counted_tokens) + most_input_tokens(added)
        return most_input_tokens(self.filled.system) + most_input_tokens(self.filled.user + added) + SCHEMA_TOKENS


@dataclass(frozen=True)
class Judged:
    """What a reply comes to: the fact to commit, and how long to wait where there is another attempt."""

    settlement: Settlement
    # None where the conversation is done with, or where the batch is held.
    retry_after_s: float | None


def judge(
    reply: Reply, attempts: Attempts, terms: Terms, *, call: int, tries: int, now_us: int, rng: Callable[[], float]
) -> Judged:
    """Pure but for `attempts`, which learns what the next attempt does differently."""
    made = _made(reply, attempts)
    if isinstance(made, Made):
        return Judged(_settlement(reply, attempts, terms, call, CallOutcome.ANSWERED, made, now_us=now_us), None)
    decision = decide(
        terms.policy,
        kind=made.kind,
        attempt=tries,
        server_delay_s=made.server_delay_s,
        waits=attempts.waits,
        rng=rng,
        was_changed=_was_changed(made.kind, attempts),
    )
    result = _result(decision, attempts)
    settlement = _settlement(
        reply,
        attempts,
        terms,
        call,
        OUTCOMES[made.kind],
        result,
        failure=made,
        hold=_hold(decision, made, now_us=now_us),
        now_us=now_us,
    )
    return Judged(settlement, decision.delay_s if isinstance(decision, RetryAfter) else None)


def unjudged(reply: Reply, attempts: Attempts, terms: Terms, *, call: int, now_us: int) -> Judged:
    """For an answer that our own mistake keeps us from judging: paid, kept raw, and no second one is asked for."""
    given_up = GivenUp("MALFORMED", "The answer could not be judged; it is kept in the ledger.")
    return Judged(_settlement(reply, attempts, terms, call, CallOutcome.MALFORMED, given_up, now_us=now_us), None)


def bare(settlement: Settlement) -> Settlement:
    """The settlement without texts, for a database that refuses it with them: money and counts stay right."""
    given_up = GivenUp("PROVIDER_ERROR", "The answer could not be stored.")
    return replace(
        settlement, result=given_up, raw="", error="", stop_reason="", provider_request_id="", first_token_s=None
    )


def _made(reply: Reply, attempts: Attempts) -> Made | CallFailure:
    if reply.failure is not None:
        return reply.failure
    parsed = parse(reply.text)
    if isinstance(parsed, Malformed):
        return CallFailure(kind=FailureKind.MALFORMED, message=parsed.message, server_delay_s=None, possibly_paid=False)
    checked = check(parsed.value, attempts.item.tier.exchange_range)
    return Made(
        turns=[(turn.role, turn.content) for turn in checked.turns],
        checks=[(result.check, result.outcome, result.message) for result in checked.results],
        passed=checked.passed,
    )


def _was_changed(kind: FailureKind, attempts: Attempts) -> bool:
    change = {FailureKind.CUT: Change.MORE_TOKENS, FailureKind.MALFORMED: Change.STRICTER}.get(kind)
    return change in attempts.changes


def _result(decision: Decision, attempts: Attempts) -> GivenUp | Again:
    match decision:
        case GiveUp(reason=reason, message=message):
            return GivenUp(reason, message)
        case HoldBatch():
            # Not the conversation's fault: it keeps its try for when the batch goes on.
            return Again(counts=False)
        case RetryAfter(counts=counts, change=change):
            attempts.waits += not counts
            if change is not None:
                attempts.changes.add(change)
            return Again(counts=counts)


def _hold(decision: Decision, failure: CallFailure, *, now_us: int) -> NewHold | None:
    if not isinstance(decision, HoldBatch):
        return None
    after_s = decision.clears_after_s
    return NewHold(
        HoldReason(decision.reason),
        f"{decision.message} {failure.message}".strip(),
        clears_us=None if after_s is None else now_us + round(after_s * 1e6),
    )


def _settlement(
    reply: Reply,
    attempts: Attempts,
    terms: Terms,
    call: int,
    outcome: CallOutcome,
    result: Made | GivenUp | Again,
    *,
    now_us: int,
    failure: CallFailure | None = None,
    hold: NewHold | None = None,
) -> Settlement:
    # What the provider told of tokens is paid, whatever became of the answer.
    cost = cost_nanos(reply.usage, terms.rate) if reply.usage and terms.rate else 0
    return Settlement(
        batch=terms.batch,
        number=attempts.item.number,
        call=call,
        outcome=outcome,
        result=result,
        usage=reply.usage,
        cost_nanos=cost,
        possibly_spent=reply.usage is None and failure is not None and failure.possibly_paid,
        stop_reason=reply.stop_reason,
        provider_request_id=reply.request_id,
        http_status=reply.http_status,
        first_token_s=reply.first_token_s,
        duration_s=reply.duration_s,
        error=failure.message if failure else "",
        raw=reply.raw,
        hold=hold,
        stop_on_error=terms.stop_on_error,
        breaker=terms.spec.breaker,
        now_us=now_us,
    )


def axis_values_json(item: Item) -> str:
    return json.dumps(item.axis_values, sort_keys=True)
