"""What fits a budget, when its mark is reached, and what is said of one that is used up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_service.domain.budget import (
    DAY_US,
    Amount,
    BudgetScope,
    Fits,
    OverBudget,
    WaitForSettlement,
    admit,
    day_of,
    next_day_us,
    over_budget_message,
    reaches_mark,
)

NANOS = st.integers(0, 10**12)


def verdict(budget_nanos: int | None, *, committed: int = 0, reserved: int = 0, next_nanos: int = 10) -> object:
    amount = Amount(committed_nanos=committed, reserved_nanos=reserved)
    return admit(BudgetScope.BATCH, budget_nanos=budget_nanos, amount=amount, next_nanos=next_nanos)


def test_a_call_fits_to_the_last_nano_dollar() -> None:
    assert verdict(100, committed=60, reserved=30) == Fits()
    assert verdict(99, committed=60, reserved=30) == WaitForSettlement(BudgetScope.BATCH)
    assert verdict(None, committed=10**15) == Fits()


def test_it_is_over_only_when_nothing_in_flight_could_give_back() -> None:
    over = verdict(69, committed=60)
    assert over == OverBudget(scope=BudgetScope.BATCH, budget_nanos=69, committed_nanos=60, next_nanos=10)
    assert isinstance(over, OverBudget) and over.needs_nanos == 70


@given(budget=NANOS, committed=NANOS, reserved=NANOS, next_nanos=NANOS)
def test_what_fits_never_passes_the_budget(budget: int, committed: int, reserved: int, next_nanos: int) -> None:
    fits = verdict(budget, committed=committed, reserved=reserved, next_nanos=next_nanos) == Fits()
    assert fits == (committed + reserved + next_nanos <= budget)


def test_the_mark_is_at_eighty_percent_and_is_passed_once() -> None:
    assert reaches_mark(budget_nanos=100, before_nanos=79, after_nanos=80)
    assert not reaches_mark(budget_nanos=100, before_nanos=80, after_nanos=99)
    assert not reaches_mark(budget_nanos=100, before_nanos=10, after_nanos=79)
    assert not reaches_mark(budget_nanos=None, before_nanos=0, after_nanos=10**9)
    assert not reaches_mark(budget_nanos=0, before_nanos=0, after_nanos=1)


def test_a_day_is_of_utc() -> None:
    assert (day_of(DAY_US - 1), day_of(DAY_US), next_day_us(DAY_US)) == (0, 1, 2 * DAY_US)


@pytest.mark.parametrize(
    ("scope", "named"),
    [
        (BudgetScope.BATCH, "The budget is $"),
        (BudgetScope.OWNER_DAY, "PARLEY_OWNER_DAILY_BUDGET"),
        (BudgetScope.SERVER_DAY, "PARLEY_DAILY_BUDGET"),
    ],
)
def test_the_message_names_the_budget_and_the_amounts(scope: BudgetScope, named: str) -> None:
    over = OverBudget(scope=scope, budget_nanos=2 * 10**9, committed_nanos=1_950_000_000, next_nanos=60_000_000)
    message = over_budget_message(over)
    assert named in message
    assert "$2.00; $1.9500 is spent or may be, and the next call may cost up to $0.0600." in message
