"""The settlement: answer, usage, cost, verdict, row, counters and event of one call in one fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, case, delete, insert, update

from orchestrator_service.domain.batch import BatchState, HoldReason
from orchestrator_service.domain.breaker import FULL, Breaker, trips
from orchestrator_service.domain.conversation import ConversationState, Review
from orchestrator_service.domain.ledger import CallOutcome, CallState, Usage
from orchestrator_service.storage import budgets, events
from orchestrator_service.storage.prepared import Prepared, Row
from orchestrator_service.storage.tables import USAGE_COLUMNS, answers, batches, calls, conversations, texts, tiers
from orchestrator_service.storage.transitions import NewHold, hold, settle, state_of
from orchestrator_service.storage.writer import Fact, Transaction


@dataclass(frozen=True)
class Made:
    """The conversation is there; it passed its checks or is quarantined."""

    turns: Sequence[tuple[str, str]]
    # Check name, outcome, message.
    checks: Sequence[tuple[str, str, str]]
    passed: bool


@dataclass(frozen=True)
class GivenUp:
    reason: str
    message: str


@dataclass(frozen=True)
class Again:
    """Back to PENDING; being told to wait does not use up a try."""

    counts: bool


@dataclass(frozen=True, kw_only=True)
class Settlement:
    batch: str
    number: int
    call: int
    outcome: CallOutcome
    result: Made | GivenUp | Again
    # None where the provider told no usage: free if it refused, POSSIBLY_SPENT if the answer was lost.
    usage: Usage | None
    cost_nanos: int
    possibly_spent: bool
    stop_reason: str = ""
    provider_request_id: str = ""
    http_status: int = 0
    first_token_s: float | None = None
    duration_s: float = 0.0
    error: str = ""
    raw: str = ""
    hold: NewHold | None = None
    stop_on_error: bool = False
    breaker: Breaker = Breaker()
    now_us: int


_CALL_VERDICT = ("state", "outcome", "cost_nanos", "settled_us")
_CALL_FACTS = ("stop_reason", "provider_request_id", "http_status", "first_token_s", "duration_s", "error")
_CALL = Prepared(
    update(calls)
    .where(calls.c.id == bindparam("b_call"), calls.c.state == bindparam("b_state"))
    .values({name: bindparam(f"v_{name}") for name in (*_CALL_VERDICT, *_CALL_FACTS, *USAGE_COLUMNS)})
    .returning(calls.c.reserved_nanos, calls.c.attempt, calls.c.created_us, calls.c.tier)
)
_ANSWER = Prepared(insert(answers))
# The domain's breaker.after_end; doubled by an end, as it is otherwise.
_ENDS = batches.c.recent_ends * bindparam("v_end_factor") + bindparam("v_end_bit")
_BATCH = Prepared(
    update(batches)
    .where(batches.c.id == bindparam("b_id"))
    .values(
        {
            name: batches.c[name] + bindparam(f"v_{name}")
            for name in (
                "confirmed_nanos",
                "reserved_nanos",
                "possibly_spent_nanos",
                "calls_settled",
                "calls_possibly_spent",
                "made",
                "answered",
                "answered_s",
                "last_event",
                *USAGE_COLUMNS,
            )
        }
    )
    .values(recent_ends=case((_ENDS >= 2 * FULL, _ENDS % FULL + FULL), else_=_ENDS))
    .returning(
        batches.c.id,
        batches.c.owner,
        batches.c.state,
        batches.c.last_event,
        batches.c.recent_ends,
        batches.c.budget_nanos,
        batches.c.confirmed_nanos,
        batches.c.possibly_spent_nanos,
    )
)
_VERDICT = ("review", "failure_reason", "failure_message", "checks", "ended_us")
_CONVERSATION = Prepared(
    update(conversations)
    .where(
        conversations.c.batch == bindparam("b_id"),
        conversations.c.number == bindparam("b_number"),
        conversations.c.state == ConversationState.RUNNING,
        conversations.c.attempts == bindparam("b_attempt"),
    )
    .values({name: bindparam(f"v_{name}") for name in ("state", *_VERDICT)})
    .values({name: conversations.c[name] + bindparam(f"v_{name}") for name in ("cost_nanos", "tries", *USAGE_COLUMNS)})
    .returning(conversations.c.tier, conversations.c.cost_nanos)
)
_COUNTS = ("pending", "running", "generated", "failed", "deliverable", "quarantined", "cost_nanos")
_TIER = Prepared(
    update(tiers)
    .where(tiers.c.batch == bindparam("b_id"), tiers.c.tier == bindparam("b_tier"))
    .values({name: tiers.c[name] + bindparam(f"v_{name}") for name in _COUNTS})
    .returning(tiers.c.pending, tiers.c.running)
)
_TEXT = Prepared(insert(texts))
_OLD_TEXT = delete(texts).where(texts.c.batch == bindparam("b_id"), texts.c.number == bindparam("b_number"))


def settle_call(done: Settlement) -> Fact[BatchState]:
    """The batch's state after it: anything but RUNNING means that no further call may start."""

    def fact(tx: Transaction) -> BatchState:
        before = CallState.RESERVED
        call = _write_call(tx, done, before)
        if call is None:
            # It was written off before.
            before = CallState.POSSIBLY_SPENT
            call = _write_call(tx, done, before)
        if call is None:
            # Told twice; it counts once.
            return state_of(tx, done.batch)
        row = _write_conversation(tx, done, attempt=call["attempt"])
        ended = row is not None and not isinstance(done.result, Again)
        money = _money(done, call["reserved_nanos"], before)
        batch = _BATCH.one(tx.connection, _sums(done, before, ended=ended) | _prefixed(money))
        if ended and row is not None:
            detail = _ended_detail(done, row)
            events.insert_numbered(
                tx, done.batch, batch["last_event"], "conversation_ended", detail, now_us=done.now_us
            )
        _book(tx, batch, money, journalled_us=call["created_us"], now_us=done.now_us)
        tx.touch(done.batch)
        if row is None:
            # The claim was taken back meanwhile; what was paid is its conversation's all the same.
            _add_cost(tx, done, call["tier"])
            return state_of(tx, done.batch)
        return _follow(tx, done, row, batch, ended=ended)

    return fact


def _add_cost(tx: Transaction, done: Settlement, tier: str) -> None:
    theirs = (conversations.c.batch == done.batch, conversations.c.number == done.number)
    spent = {"cost_nanos": done.cost_nanos} | {name: getattr(done.usage or Usage(), name) for name in USAGE_COLUMNS}
    added = {name: conversations.c[name] + amount for name, amount in spent.items()}
    tx.connection.execute(update(conversations).where(*theirs).values(added))
    of_tier = (tiers.c.batch == done.batch, tiers.c.tier == tier)
    tx.connection.execute(update(tiers).where(*of_tier).values(cost_nanos=tiers.c.cost_nanos + done.cost_nanos))


def _book(tx: Transaction, batch: Row, money: Mapping[str, int], *, journalled_us: int, now_us: int) -> None:
    """The money against the budgets: of the call's day, the mark, and a hold that waits for less."""
    budgets.add(tx, owner=batch["owner"], time_us=journalled_us, **money)
    moved = money["confirmed_nanos"] + money["possibly_spent_nanos"]
    spent = batch["confirmed_nanos"] + batch["possibly_spent_nanos"]
    budgets.note_mark(tx, batch, before_nanos=spent - moved, now_us=now_us)
    if money["possibly_spent_nanos"] < 0:
        budgets.freed(tx, batch, -moved, journalled_us=journalled_us, now_us=now_us)


def _follow(tx: Transaction, done: Settlement, row: Row, batch: Row, *, ended: bool) -> BatchState:
    """What the settlement brings about: a hold, the end of the batch, or nothing."""
    counts = _TIER.one(tx.connection, _counts(done, row))
    state = BatchState(batch["state"])
    for new in _holds(done, batch, ended=ended):
        state = hold(tx, done.batch, new, now_us=done.now_us)
    if state is BatchState.RUNNING and counts["pending"] + counts["running"]:
        return state
    return settle(tx, done.batch, now_us=done.now_us)


def _holds(done: Settlement, batch: Row, *, ended: bool) -> list[NewHold]:
    found = [] if done.hold is None else [done.hold]
    if done.stop_on_error and isinstance(done.result, GivenUp):
        message = f"Conversation {done.number} failed: {done.result.message}"
        found.append(NewHold(HoldReason.STOP_ON_ERROR, message))
    if ended and _failed(done) and (message := trips(done.breaker, batch["recent_ends"])):
        found.append(NewHold(HoldReason.TOO_MANY_FAILURES, message))
    return found


def _write_call(tx: Transaction, done: Settlement, before: CallState) -> Row | None:
    """Its reserve and attempt; None where its state is not `before`."""
    state = CallState.POSSIBLY_SPENT if done.possibly_spent else CallState.SETTLED
    values: dict[str, Any] = {f"v_{name}": getattr(done, name) for name in _CALL_FACTS} | _usage(done)
    values |= {
        "b_call": done.call,
        "b_state": before,
        "v_state": state,
        "v_outcome": done.outcome,
        "v_settled_us": done.now_us,
    }
    values["v_cost_nanos"] = None if done.possibly_spent else done.cost_nanos
    call = _CALL.one_or_none(tx.connection, values)
    if call is not None and done.raw:
        _ANSWER.all(tx.connection, {"call": done.call, "raw": done.raw})
    return call


def _write_conversation(tx: Transaction, done: Settlement, *, attempt: int) -> Row | None:
    values: dict[str, Any] = {"b_id": done.batch, "b_number": done.number, "b_attempt": attempt, **_outcome(done)}
    values |= {"v_cost_nanos": done.cost_nanos, **_usage(done)}
    row = _CONVERSATION.one_or_none(tx.connection, values)
    if row is not None and isinstance(done.result, Made):
        if attempt > 1:
            # A quarantined text of an earlier attempt gives way; its raw answer stays in the ledger.
            tx.connection.execute(_OLD_TEXT, {"b_id": done.batch, "b_number": done.number})
        turns = json.dumps(done.result.turns, ensure_ascii=False)
        _TEXT.all(tx.connection, {"batch": done.batch, "number": done.number, "turns": turns})
    return row


def _outcome(done: Settlement) -> dict[str, Any]:
    values: dict[str, Any] = {f"v_{name}": None for name in _VERDICT}
    values["v_tries"] = 0
    match done.result:
        case Made(checks=checks, passed=passed):
            review = Review.PASSED if passed else Review.QUARANTINED
            values |= {"v_state": ConversationState.GENERATED, "v_review": review, "v_checks": json.dumps(checks)}
            values["v_ended_us"] = done.now_us
        case GivenUp(reason=reason, message=message):
            values |= {"v_state": ConversationState.FAILED, "v_failure_reason": reason, "v_failure_message": message}
            values["v_ended_us"] = done.now_us
        case Again(counts=counts):
            values |= {"v_state": ConversationState.PENDING, "v_tries": 0 if counts else -1}
    return values


def _usage(done: Settlement) -> dict[str, int]:
    usage = done.usage or Usage()
    return {f"v_{name}": getattr(usage, name) for name in USAGE_COLUMNS}


def _money(done: Settlement, reserve: int, before: CallState) -> dict[str, int]:
    """What moves between the sums; a call that was written off before comes back as what it was."""
    was_reserved, was_possible = before is CallState.RESERVED, before is CallState.POSSIBLY_SPENT
    return {
        "confirmed_nanos": done.cost_nanos,
        "reserved_nanos": -reserve if was_reserved else 0,
        "possibly_spent_nanos": reserve * (done.possibly_spent - was_possible),
    }


def _prefixed(values: Mapping[str, int]) -> dict[str, int]:
    return {f"v_{name}": value for name, value in values.items()}


def _sums(done: Settlement, before: CallState, *, ended: bool) -> dict[str, Any]:
    """What the call adds to the batch's sums, beside money."""
    answered = ended and isinstance(done.result, Made)
    return {
        "b_id": done.batch,
        "v_calls_settled": int(not done.possibly_spent),
        "v_calls_possibly_spent": done.possibly_spent - (before is CallState.POSSIBLY_SPENT),
        "v_made": int(ended),
        "v_answered": int(answered),
        "v_answered_s": done.duration_s if answered else 0.0,
        "v_last_event": int(ended),
        "v_end_factor": 1 + ended,
        "v_end_bit": int(ended and _failed(done)),
        **_usage(done),
    }


def _failed(done: Settlement) -> bool:
    """Whether the breaker counts it: given up, or paid for and kept back."""
    return isinstance(done.result, GivenUp) or (isinstance(done.result, Made) and not done.result.passed)


def _counts(done: Settlement, row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {f"v_{name}": 0 for name in _COUNTS}
    values |= {"b_id": done.batch, "b_tier": row["tier"], "v_running": -1, "v_cost_nanos": done.cost_nanos}
    match done.result:
        case Made(passed=passed):
            values |= {"v_generated": 1, "v_deliverable": int(passed), "v_quarantined": int(not passed)}
        case GivenUp():
            values["v_failed"] = 1
        case Again():
            values["v_pending"] = 1
    return values


def _ended_detail(done: Settlement, row: Row) -> Mapping[str, Any]:
    detail: dict[str, Any] = {"number": done.number, "tier": row["tier"], "cost_nanos": row["cost_nanos"]}
    match done.result:
        case Made(passed=passed):
            review = Review.PASSED if passed else Review.QUARANTINED
            return detail | {"state": ConversationState.GENERATED, "review": review}
        case GivenUp(reason=reason, message=message):
            return detail | {"state": ConversationState.FAILED, "failure_reason": reason, "failure_message": message}
        case Again():  # Not an end; never asked for.
            return detail
