"""The batch said once more: a pure model of what DESIGN.md, the issue and the contract promise of it.

It knows nothing of storage or engine, nor the domain's own tables. Facts are applied one by one in the order of their
commits; one that the rules do not allow raises Disagreement, one that they refuse to a person raises Refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from model_terms import (
    DAY_US,
    DELIVERABLE,
    NANOS_A_TOKEN,
    Answer,
    Call,
    Conversation,
    Hold,
    Money,
    Now,
    Obstacle,
    Refused,
    Terms,
    agree,
    total,
)
from state_table import CELLS

FINAL = ("CANCELLED", "SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED")
KEPT_BACK = ("QUARANTINED", "REJECTED")
MAX_ATTEMPTS = 3
WINDOW = 20
# No back-off is longer, and no server is waited for longer, whatever it tells.
BACKOFF_MAX_S, TOLD_MAX_S = 60.0, 120.0

# Answers by what follows: tried again while attempts last, told to wait, asked once more and differently, given up.
AGAIN = {
    "SERVER_ERROR": "PROVIDER_ERROR",
    "CONNECTION_LOST": "PROVIDER_ERROR",
    "UNREADABLE": "PROVIDER_ERROR",
    "TIMEOUT": "TIMEOUT",
}
TOLD_TO_WAIT = ("RATE_LIMITED", "OVERLOADED")
DIFFERENTLY = {"MALFORMED": "MALFORMED", "CUT": "MAX_TOKENS"}
HOPELESS = {
    "REFUSED": "REFUSAL",
    "REQUEST_REFUSED": "REQUEST_REFUSED",
    "TOO_LONG": "TOO_LONG",
    "UNKNOWN_STOP": "UNKNOWN_STOP",
}
DOOMS_ALL = ("CREDENTIALS", "PROVIDER_LIMIT")


@dataclass
class House:
    """All batches, and what their days may cost."""

    owner_day: int | None = None
    server_day: int | None = None
    batches: dict[str, Batch] = field(default_factory=dict[str, "Batch"])

    def of_day(self, day: int, owner: str | None) -> Money:
        """Of one owner, or of all where None."""
        theirs = [batch for batch in self.batches.values() if owner in (None, batch.terms.owner)]
        return total(call for batch in theirs for call in batch.calls.values() if call.day == day)

    def by_day(self) -> dict[tuple[int, str], Money]:
        days = {(call.day, batch.terms.owner) for batch in self.batches.values() for call in batch.calls.values()}
        sums = {key: self.of_day(*key) for key in days}
        return {key: money for key, money in sums.items() if any(money)}

    def limit_of(self, scope: str) -> int | None:
        return self.owner_day if scope == "OWNER_DAY" else self.server_day

    def sweep(self, now: Now) -> None:
        for batch in self.batches.values():
            batch.sweep(now)

    def free(self, payer: Batch, call: Call, nanos: int) -> None:
        """Money that was possibly spent was not: holds of the budgets that it stood against ask for less."""
        for batch in self.batches.values():
            hold = batch.holds.get("BUDGET", Hold("BUDGET"))
            of_owner = hold.scope == "SERVER_DAY" or batch.terms.owner == payer.terms.owner
            if (batch is payer and hold.scope == "BATCH") or (of_owner and hold.asks_of_day(call.day)):
                hold.needs -= nanos

    def look_again(self, settled: Batch) -> None:
        """Who waits for money in flight asks again when some of it is settled."""
        for batch in self.batches.values():
            for row in batch.pending:
                if row.waits_for != "BATCH" or batch is settled:
                    row.waits_for = ""

    def recover(self) -> None:
        for batch in self.batches.values():
            if batch.state not in FINAL:
                batch.recover()


@dataclass
class Batch:
    name: str
    terms: Terms
    house: House
    state: str = "PREPARING"
    run: int = 1
    epoch: int = 0
    budget: int | None = None
    hold_after: int | None = None
    concurrency: int = 3
    rows: dict[int, Conversation] = field(default_factory=dict[int, Conversation])
    calls: dict[int, Call] = field(default_factory=dict[int, Call])
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    # Kind and key facts, the oldest first.
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    # How conversations ended since somebody let the batch go on: whether it counts as a failure.
    ends: list[bool] = field(default_factory=list[bool])

    def __post_init__(self) -> None:
        tiers = [tier for tier, count in self.terms.tiers.items() for _ in range(count)]
        self.rows = {number: Conversation(number, tier) for number, tier in enumerate(tiers, start=1)}
        self.budget, self.hold_after = self.terms.budget, self.terms.hold_after
        self.concurrency = self.terms.concurrency
        self._move("QUEUED")

    # What it is.

    @property
    def in_flight(self) -> dict[int, Call]:
        return {call.conversation: call for call in self.calls.values() if call.state == "RESERVED"}

    @property
    def pending(self) -> list[Conversation]:
        return [row for row in self.rows.values() if row.state == "PENDING"]

    @property
    def money(self) -> Money:
        return total(self.calls.values())

    @property
    def started(self) -> int:
        return sum(row.attempts > 0 for row in self.rows.values())

    def counts(self) -> dict[str, Counter[str]]:
        """By tier: how many rows have each state, and each review."""
        found = {tier: Counter[str]() for tier, count in self.terms.tiers.items() if count}
        for row in self.rows.values():
            found[row.tier].update([row.state] if row.review is None else [row.state, row.review])
        return found

    # What a call needs to start.

    def obstacle(self, row: Conversation, tokens: int, now: Now) -> Obstacle | None:
        if self.hold_after is not None and self.started >= self.hold_after and not row.attempts:
            return Obstacle(Hold("CHECKPOINT"))
        budgets = [("BATCH", self.budget, self.money)]
        for scope, owner in (("OWNER_DAY", self.terms.owner), ("SERVER_DAY", None)):
            budgets.append((scope, self.house.limit_of(scope), self.house.of_day(now.day, owner)))
        for scope, budget, money in budgets:
            if budget is None or money.committed + money.reserved + tokens * NANOS_A_TOKEN <= budget:
                continue
            if money.reserved:
                return Obstacle(None, scope)
            midnight_us = None if scope == "BATCH" else (now.day + 1) * DAY_US
            return Obstacle(Hold("BUDGET", midnight_us, scope, money.committed + tokens * NANOS_A_TOKEN), scope)
        return None

    def obstacles(self, row: Conversation, now: Now) -> list[Obstacle | None]:
        return [self.obstacle(row, tokens, now) for _, tokens in row.asks()]

    def owed(self, now: Now) -> str | None:
        """What should have happened by itself, with nothing left to wait for."""
        if self.state not in ("QUEUED", "RUNNING"):
            return None
        sleeping = [row for row in self.pending if row.waits_at(now) or self._still_waits(row)]
        ready = [(row.number, self.obstacles(row, now)) for row in self.pending if row not in sleeping]
        free = [number for number, met in ready if all(one is None or one.hold is not None for one in met)]
        # One between two attempts keeps its place, and so does one that waits for money in flight.
        places = self.concurrency - len(self.in_flight) - len(sleeping) - (len(ready) - len(free))
        if not free or places <= 0:
            return None
        return f"{self.name} is {self.state} with {places} free places, and nothing comes of conversations {free}"

    def out_of_turn(self) -> list[int]:
        """What waits for its first turn while a later one had it. Whoever waits for a budget may let others pass."""
        begun = max((row.number for row in self.rows.values() if row.attempts), default=0)
        changed = [facts["fields"] for kind, facts in self.events if kind == "settings_changed"]
        if self.terms.budget is not None or any("budget" in fields for fields in changed):
            return []
        return [row.number for row in self.pending if not row.attempts and row.number < begun]

    def _still_waits(self, row: Conversation) -> bool:
        """What it waits for may be free by now, and it looks again only when something in flight is settled."""
        others = [self] if row.waits_for == "BATCH" else list(self.house.batches.values())
        return bool(row.waits_for) and any(batch.in_flight for batch in others)

    # What the engine does.

    def claim(self, call: int, number: int, *, purpose: str, tokens: int, now: Now) -> None:
        row = self.rows[number]
        told = f"conversation {number} of {self.name}"
        agree(self.state in ("QUEUED", "RUNNING"), f"{told} is claimed while the batch is {self.state}")
        agree(not self.holds, f"{told} is claimed in spite of holds {set(self.holds)}")
        agree(row.state == "PENDING", f"{told} is claimed and is {row.state}")
        # One that is answered is no call any more, also where the database does not take the answer yet.
        under_way = sum(not other.answered for other in self.in_flight.values())
        agree(under_way < self.concurrency, f"{told} is claimed beyond a concurrency of {self.concurrency}")
        agree(row.interrupted or now.s >= row.earliest_s, f"{told} is claimed before the time that it was told")
        agree((purpose, tokens) in row.asks(), f"{told} asks {purpose} with {tokens} tokens, not {row.asks()}")
        met = self.obstacle(row, tokens, now)
        agree(met is None, f"{told} is claimed in spite of {met}")
        if (purpose, tokens) != row.asks()[0]:
            row.changes = frozenset()
        row.state, row.interrupted, row.waits_for = "RUNNING", False, ""
        row.attempts += 1
        row.tries += 1
        self.calls[call] = Call(call, number, row.attempts, purpose, tokens * NANOS_A_TOKEN, now.day)
        self._happen("CLAIM")

    def wait(self, number: int, scope: str, now: Now) -> None:
        """The claim was told to wait until something in flight is settled."""
        row = self.rows[number]
        met = self.obstacles(row, now)
        agree(Obstacle(None, scope) in met, f"{number} of {self.name} waits for {scope}, and has no need to: {met}")
        row.waits_for = scope

    def hold_at_claim(self, reason: str, scope: str, needs: int, now: Now) -> None:
        """A claim did not go through, and left a hold."""
        met = [one.hold for row in self.pending for one in self.obstacles(row, now) if one and one.hold]
        same = [hold for hold in met if (hold.reason, hold.scope, hold.needs) == (reason, scope, needs)]
        agree(bool(same), f"{self.name} is held by {reason} of {scope} for {needs}, with nothing but {met}")
        self._hold(same[0])

    def settle(self, number: int, answer: Answer, now: Now) -> None:
        row, before = self.rows[number], self.money.committed
        call = self.in_flight[number]
        if answer.tokens is None and answer.lost:
            call.state = "POSSIBLY_SPENT"
        else:
            call.state, call.cost = "SETTLED", (answer.tokens or 0) * NANOS_A_TOKEN
            row.cost += call.cost
        self.house.look_again(self)
        holds = self._judge(row, answer, now)
        if row.state in ("GENERATED", "FAILED"):
            self._tell_end(row)
            holds += self._ended(row)
        self._mark(before)
        for hold in holds:
            self._hold(hold)
        self._come_to_rest()

    def recover(self) -> None:
        """The process, or the batch's runner, came down with what it had in flight, and is back."""
        before, lost = self.money.committed, list(self.in_flight.values())
        for call in lost:
            call.state, call.written_off = "POSSIBLY_SPENT", True
            row = self.rows[call.conversation]
            # No fault of the conversation: it keeps its try.
            row.state, row.tries = "PENDING", row.tries - 1
        for row in self.pending:
            row.forget()
        self.epoch += 1
        self._mark(before)
        if lost:
            self._tell("recovered", calls_possibly_spent=len(lost), conversations_requeued=len(lost))
        self._happen("RESTART")

    def sweep(self, now: Now) -> None:
        if self.state in ("PAUSING", "PAUSED"):
            self._clear([reason for reason in self.holds if self._is_due(self.holds[reason], now)])

    def is_due(self, now: Now) -> bool:
        return self.state in ("PAUSING", "PAUSED") and any(self._is_due(hold, now) for hold in self.holds.values())

    def broke_down(self) -> None:
        """The engine failed on it again and again."""
        self._hold(Hold("TOO_MANY_FAILURES"))

    # What people do.

    def pause(self) -> None:
        self._refuse_where_forbidden("PAUSE")
        self._hold(Hold("USER"))

    def resume(self, now: Now) -> None:
        self._refuse_where_forbidden("RESUME")
        if CELLS["RESUME", self.state] == "=":
            return
        if "BUDGET" in self.holds and self._stands(self.holds["BUDGET"], now):
            raise Refused("HOLD_STANDS")
        if "CHECKPOINT" in self.holds:
            # Going on is the approval.
            self.hold_after = None
        self._drop(list(self.holds))
        self.ends.clear()
        self._happen("RESUME")

    def cancel(self) -> None:
        self._refuse_where_forbidden("CANCEL")
        self._happen("CANCEL")

    def retry(self, *, states: Collection[str] = (), reviews: Collection[str] = ()) -> int:
        self._refuse_where_forbidden("RETRY")
        chosen = [row for row in self.rows.values() if _is_asked_again(row, states, reviews)]
        if not chosen:
            return 0
        self.run += self.state in FINAL
        self._happen("RETRY")
        for row in chosen:
            row.end("PENDING")
            row.tries = 0
        self._tell("conversations_requeued", count=len(chosen), run=self.run)
        self.ends.clear()
        return len(chosen)

    def update(self, fields: Mapping[str, Any], now: Now) -> None:
        for name, value in fields.items():
            raises = value is None or value >= (self.budget or 0)
            event = "RAISE_LIMIT" if name == "hold_after" or raises else "LOWER_BUDGET"
            self._refuse_where_forbidden("CHANGE_CONCURRENCY" if name == "concurrency" else event)
        for name, value in fields.items():
            setattr(self, name, value)
        self._tell("settings_changed", fields=sorted(fields))
        self._lift(now)

    def settle_by_person(self, call_id: int, cost: int, by: str, now: Now) -> None:
        call, before = self.calls[call_id], self.money.committed
        if call.by_person and call.cost == cost:
            return
        if call.state != "POSSIBLY_SPENT":
            raise Refused("STATE_FORBIDS")
        call.state, call.cost, call.by_person, call.written_off = "SETTLED", cost, True, False
        self.rows[call.conversation].cost += cost
        self._tell("call_settled", cost_nanos=cost, by=by)
        self._mark(before)
        self.house.free(self, call, call.reserve - cost)
        self._lift(now)

    def answer_late(self, call_id: int, cost: int, now: Now) -> str:
        """A worker that was thought dead has the answer after all: it is paid, whatever became of its conversation."""
        call, before = self.calls[call_id], self.money.committed
        if call.state != "POSSIBLY_SPENT":
            # Known by now: it counts once.
            return self.state
        call.state, call.cost, call.written_off = "SETTLED", cost, False
        self.rows[call.conversation].cost += cost
        self._mark(before)
        self.house.free(self, call, call.reserve - cost)
        self._lift(now)
        return self.state

    # What follows.

    def _judge(self, row: Conversation, answer: Answer, now: Now) -> list[Hold]:
        """What the answer means for its conversation, and for the whole batch."""
        kind = answer.kind
        if kind in ("MADE", "QUARANTINED"):
            row.end("GENERATED", review="PASSED" if kind == "MADE" else kind)
        elif kind in HOPELESS:
            row.end("FAILED", failure=HOPELESS[kind])
        elif kind in AGAIN and row.tries >= MAX_ATTEMPTS:
            row.end("FAILED", failure=AGAIN[kind])
        elif kind in DIFFERENTLY and (row.tries >= MAX_ATTEMPTS or kind in row.changes):
            row.end("FAILED", failure=DIFFERENTLY[kind])
        else:
            return self._put_back(row, answer, now)
        return []

    def _put_back(self, row: Conversation, answer: Answer, now: Now) -> list[Hold]:
        row.state = "PENDING"
        if answer.kind in DOOMS_ALL:
            row.tries -= 1
            row.interrupt()
            ends = answer.kind == "PROVIDER_LIMIT" and answer.delay_s is not None
            return [Hold(answer.kind, now.us + round((answer.delay_s or 0) * 1e6) if ends else None)]
        if answer.kind in DIFFERENTLY:
            row.changes |= {answer.kind}
            row.earliest_s = row.latest_s = now.s
            return []
        row.tries -= answer.kind in TOLD_TO_WAIT
        told_s = min(answer.delay_s or 0.0, TOLD_MAX_S)
        # The server's own delay first, then jitter.
        row.earliest_s, row.latest_s = now.s + told_s, now.s + told_s + BACKOFF_MAX_S
        return []

    def _ended(self, row: Conversation) -> list[Hold]:
        failed = row.review != "PASSED"
        self.ends.append(failed)
        holds = [Hold("STOP_ON_ERROR")] if self.terms.stop_on_error and row.state == "FAILED" else []
        if failed and self._burns():
            holds.append(Hold("TOO_MANY_FAILURES"))
        return holds

    def _burns(self) -> bool:
        in_a_row, last = self.terms.failures_in_a_row, self.ends[-WINDOW:]
        if in_a_row and len(self.ends) >= in_a_row and all(self.ends[-in_a_row:]):
            return True
        return len(last) == WINDOW and sum(last) > self.terms.failure_share * WINDOW

    def _tell_end(self, row: Conversation) -> None:
        facts = {"state": row.state, "review": row.review, "failure_reason": row.failure, "cost_nanos": row.cost}
        self._tell("conversation_ended", number=row.number, tier=row.tier, **facts)

    def _mark(self, before: int) -> None:
        after = self.money.committed
        if self.budget and 5 * before < 4 * self.budget <= 5 * after:
            self._tell("budget_mark", spent_nanos=after, budget_nanos=self.budget)

    def _hold(self, hold: Hold) -> None:
        if self.state in FINAL or hold.reason in self.holds:
            return
        facts = {"clears_us": hold.clears_us, "scope": hold.scope, "needs_nanos": hold.needs}
        self._tell("hold_added", reason=hold.reason, **facts)
        if self.state != "CANCELLING":
            self.holds[hold.reason] = hold
        self._happen("HOLD")

    def _lift(self, now: Now) -> None:
        """A limit that is high enough takes its hold away; a day's is looked at by the sweep."""
        gone = [reason for reason in ("CHECKPOINT",) if self.hold_after is None or self.started < self.hold_after]
        budget = self.holds.get("BUDGET")
        if budget and budget.scope == "BATCH" and not self._stands(budget, now):
            gone.append("BUDGET")
        self._clear([reason for reason in gone if reason in self.holds])

    def _stands(self, hold: Hold, now: Now) -> bool:
        """Whether the next call still does not fit the budget that the hold is about."""
        if hold.clears_us is not None and hold.clears_us <= now.us:
            return False
        limit = self.budget if hold.scope == "BATCH" else self.house.limit_of(hold.scope)
        return limit is not None and hold.needs > limit

    def _is_due(self, hold: Hold, now: Now) -> bool:
        if hold.clears_us is None:
            return False
        return hold.clears_us <= now.us or (hold.reason == "BUDGET" and not self._stands(hold, now))

    def _clear(self, reasons: list[str]) -> None:
        if reasons:
            self._drop(reasons)
            self._happen("RAISE_LIMIT")

    def _drop(self, reasons: Collection[str]) -> None:
        for reason in sorted(reasons):
            del self.holds[reason]
            self._tell("hold_cleared", reason=reason)

    def _refuse_where_forbidden(self, event: str) -> None:
        if CELLS[event, self.state] == "x":
            raise Refused("STATE_FORBIDS")

    def _happen(self, event: str) -> None:
        cell = CELLS[event, self.state]
        if cell == "verdict":
            self._drop(list(self.holds))
            self._move(self._verdict())
        elif cell not in ("=", "-", "x") and not (event == "RAISE_LIMIT" and self.holds):
            self._move(cell)
            self._come_to_rest()
        if self.state not in ("QUEUED", "RUNNING"):
            for row in self.pending:
                row.interrupt()

    def _come_to_rest(self) -> None:
        """With nothing in flight: PAUSING becomes PAUSED, CANCELLING CANCELLED, and what has no work left ends."""
        if not self.in_flight:
            self._happen("IDLE" if self.pending else "DRAINED")
        elif self.state not in ("QUEUED", "RUNNING"):
            for row in self.pending:
                row.interrupt()

    def _move(self, state: str) -> None:
        self._tell("state_changed", **{"from": self.state, "to": state})
        self.state = state
        if state == "CANCELLED":
            for row in self.pending:
                row.end("CANCELLED")
            self._drop(list(self.holds))

    def _verdict(self) -> str:
        passed = [row.review in DELIVERABLE for row in self.rows.values()]
        if all(passed):
            return "SUCCEEDED"
        return "PARTIALLY_SUCCEEDED" if any(passed) else "FAILED"

    def _tell(self, kind: str, **facts: Any) -> None:
        self.events.append((kind, facts))


def _is_asked_again(row: Conversation, states: Collection[str], reviews: Collection[str]) -> bool:
    """Without a filter what failed or was cancelled; what was kept back only by name."""
    unmade, kept_back = row.state in ("FAILED", "CANCELLED"), row.review in KEPT_BACK
    if not states and not reviews:
        return unmade
    return (unmade or kept_back) and (not states or row.state in states) and (not reviews or row.review in reviews)
