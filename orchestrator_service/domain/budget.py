"""Budgets: of a batch, and of a UTC day for an owner or for the server; what fits, and when a mark is reached."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DAY_US = 86_400_000_000
# The share of a batch's budget that is worth an event.
MARK_SHARE = 0.8


class BudgetScope(StrEnum):
    """Whose budget a hold is about."""

    BATCH = "BATCH"
    OWNER_DAY = "OWNER_DAY"
    SERVER_DAY = "SERVER_DAY"


@dataclass(frozen=True, kw_only=True)
class DailyBudgets:
    """The most that a UTC day may cost, in nano-dollars; None for no limit."""

    owner_nanos: int | None = None
    server_nanos: int | None = None


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What stands against a budget, in nano-dollars."""

    # Confirmed and possibly spent.
    committed_nanos: int
    # Worst case of the calls in flight.
    reserved_nanos: int


@dataclass(frozen=True)
class Fits:
    """The reserve may be taken."""


@dataclass(frozen=True)
class WaitForSettlement:
    """It does not fit while calls are in flight: what they settle for may be less than they reserve."""

    scope: BudgetScope


@dataclass(frozen=True, kw_only=True)
class OverBudget:
    """It does not fit, and nothing in flight could change that."""

    scope: BudgetScope
    budget_nanos: int
    committed_nanos: int
    next_nanos: int

    @property
    def needs_nanos(self) -> int:
        return self.committed_nanos + self.next_nanos


def admit(
    scope: BudgetScope, *, budget_nanos: int | None, amount: Amount, next_nanos: int
) -> Fits | WaitForSettlement | OverBudget:
    """The invariant of every claim: committed + reserved + the next call's worst case <= the budget in force."""
    if budget_nanos is None or amount.committed_nanos + amount.reserved_nanos + next_nanos <= budget_nanos:
        return Fits()
    if amount.reserved_nanos:
        return WaitForSettlement(scope)
    return OverBudget(
        scope=scope, budget_nanos=budget_nanos, committed_nanos=amount.committed_nanos, next_nanos=next_nanos
    )


def day_of(time_us: int) -> int:
    """Days since 1970, UTC."""
    return time_us // DAY_US


def next_day_us(time_us: int) -> int:
    return (day_of(time_us) + 1) * DAY_US


def reaches_mark(*, budget_nanos: int | None, before_nanos: int, after_nanos: int) -> bool:
    """Whether committed money passes 80 % of the budget on its way from `before_nanos` to `after_nanos`."""
    if not budget_nanos:
        return False
    mark_nanos = budget_nanos * MARK_SHARE
    return before_nanos < mark_nanos <= after_nanos


def over_budget_message(over: OverBudget) -> str:
    whose = {
        BudgetScope.BATCH: "The budget",
        BudgetScope.OWNER_DAY: "The owner's budget for a day (PARLEY_OWNER_DAILY_BUDGET)",
        BudgetScope.SERVER_DAY: "The server's budget for a day (PARLEY_DAILY_BUDGET)",
    }[over.scope]
    return (
        f"{whose} is ${over.budget_nanos / 1e9:.2f}; ${over.committed_nanos / 1e9:.4f} is spent or may be, and the "
        f"next call may cost up to ${over.next_nanos / 1e9:.4f}."
    )
