"""The words of the batch model: clocks, money, what a provider answers, and what is known of calls and rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

DAY_US = 86_400_000_000
TOKENS, MORE_TOKENS = 100, 200
# With input for nothing, the worst case of a call is its output.
NANOS_A_TOKEN = 10
# Reviews with which a conversation is exported.
DELIVERABLE = ("PASSED", "ACCEPTED", "EDITED")


class Disagreement(AssertionError):
    """What happened is not what the rules say."""


class Refused(Exception):
    """A person may not do that now; its text is the reason of the contract."""


def agree(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Disagreement(otherwise)


class Now(NamedTuple):
    """The wall clock, which jumps, and the one that only goes on."""

    us: int
    s: float

    @property
    def day(self) -> int:
        return self.us // DAY_US


class Money(NamedTuple):
    confirmed: int = 0
    reserved: int = 0
    possibly_spent: int = 0

    @property
    def committed(self) -> int:
        return self.confirmed + self.possibly_spent


@dataclass(frozen=True)
class Answer:
    """What the provider answers to one call: MADE, QUARANTINED, or what went wrong."""

    kind: str
    # Output that it says it bills; None where it says nothing.
    tokens: int | None = None
    # Whether it may bill what it did not say.
    lost: bool = False
    delay_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a batch is created with."""

    owner: str = "ann"
    tiers: Mapping[str, int] = field(default_factory=lambda: {"template": 4})
    concurrency: int = 3
    budget: int | None = None
    hold_after: int | None = None
    stop_on_error: bool = False
    # The circuit breaker: 0 for never, 1 for never.
    failures_in_a_row: int = 10
    failure_share: float = 0.5


@dataclass
class Conversation:
    number: int
    tier: str
    state: str = "PENDING"
    review: str | None = None
    failure: str | None = None
    # Ever, and in this run.
    attempts: int = 0
    tries: int = 0
    cost: int = 0
    # What the next attempt does differently, and when it comes: kept in memory, so a hold in between may lose it.
    changes: frozenset[str] = frozenset()
    earliest_s: float = 0.0
    latest_s: float = 0.0
    interrupted: bool = False
    # Whose budget it was told to wait for, until something in flight is settled.
    waits_for: str = ""

    def forget(self) -> None:
        self.changes, self.earliest_s, self.latest_s = frozenset(), 0.0, 0.0
        self.interrupted, self.waits_for = False, ""

    def interrupt(self) -> None:
        """A hold came in between, so that nobody knows what is remembered."""
        self.interrupted, self.waits_for = True, ""

    def end(self, state: str, *, review: str | None = None, failure: str | None = None) -> None:
        self.state, self.review, self.failure = state, review, failure
        self.forget()

    def waits_at(self, now: Now) -> bool:
        return now.s < self.latest_s

    def asks(self) -> list[tuple[str, int]]:
        """Purpose and tokens of its next call; both ways where nobody knows what is remembered."""
        ways = [self.changes, frozenset[str]()] if self.interrupted else [self.changes]
        return [
            ("REPAIR" if "MALFORMED" in way else "GENERATE", MORE_TOKENS if "CUT" in way else TOKENS) for way in ways
        ]


@dataclass
class Call:
    id: int
    conversation: int
    attempt: int
    purpose: str
    reserve: int
    # Of its journalling: its money stays with that day.
    day: int
    state: str = "RESERVED"
    answered: bool = False
    cost: int | None = None
    by_person: bool = False
    # Its process ended before the answer came.
    written_off: bool = False


@dataclass
class Hold:
    reason: str
    clears_us: int | None = None
    # BUDGET: whose, and what that must be at least for the next call to fit.
    scope: str = "BATCH"
    needs: int = 0

    def asks_of_day(self, day: int) -> bool:
        return self.scope != "BATCH" and self.clears_us == (day + 1) * DAY_US


class Obstacle(NamedTuple):
    """Why a call may not start: it waits for others in flight, or a hold arises."""

    hold: Hold | None
    scope: str = ""


def total(calls: Iterable[Call]) -> Money:
    sums = Counter[str]()
    for call in calls:
        sums[call.state] += (call.cost or 0) if call.state == "SETTLED" else call.reserve
    return Money(sums["SETTLED"], sums["RESERVED"], sums["POSSIBLY_SPENT"])
