"""Money against budgets: what a day has cost, whether the next call fits, marks, and holds that a budget lifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, func, insert, select, update

from orchestrator_service.domain.batch import BatchState, Event, HoldReason
from orchestrator_service.domain.budget import (
    MARK_SHARE,
    Amount,
    BudgetScope,
    DailyBudgets,
    Fits,
    OverBudget,
    WaitForSettlement,
    admit,
    day_of,
    next_day_us,
    over_budget_message,
    reaches_mark,
)
from orchestrator_service.storage import events
from orchestrator_service.storage.prepared import Prepared, Row
from orchestrator_service.storage.tables import batches, daily_spend, holds
from orchestrator_service.storage.transitions import NewHold, drop_holds, happen, hold_reasons
from orchestrator_service.storage.writer import Fact, Transaction

NO_LIMITS = DailyBudgets()
_SUMS = ("confirmed_nanos", "reserved_nanos", "possibly_spent_nanos")
_DAY = (daily_spend.c.day == bindparam("b_day"), daily_spend.c.owner == bindparam("b_owner"))
_ADD = Prepared(
    update(daily_spend)
    .where(*_DAY)
    .values({name: daily_spend.c[name] + bindparam(f"v_{name}") for name in _SUMS})
    .returning(daily_spend.c.day)
)
_BEGIN = Prepared(insert(daily_spend))
_TOTALS = [
    func.coalesce(func.sum(daily_spend.c.confirmed_nanos + daily_spend.c.possibly_spent_nanos), 0).label("committed"),
    func.coalesce(func.sum(daily_spend.c.reserved_nanos), 0).label("reserved"),
]
_OF_OWNER = Prepared(select(*_TOTALS).where(*_DAY))
_OF_ALL = Prepared(select(*_TOTALS).where(_DAY[0]))


def add(
    tx: Transaction,
    *,
    owner: str,
    time_us: int,
    confirmed_nanos: int = 0,
    reserved_nanos: int = 0,
    possibly_spent_nanos: int = 0,
) -> None:
    """`time_us` is when the call was journalled: its money stays with that day, whenever it is settled."""
    if not (confirmed_nanos or reserved_nanos or possibly_spent_nanos):
        return
    key = {"b_day": day_of(time_us), "b_owner": owner}
    amounts = {
        "v_confirmed_nanos": confirmed_nanos,
        "v_reserved_nanos": reserved_nanos,
        "v_possibly_spent_nanos": possibly_spent_nanos,
    }
    if _ADD.one_or_none(tx.connection, key | amounts) is None:
        row = {name: amounts[f"v_{name}"] for name in _SUMS}
        _BEGIN.all(tx.connection, {"day": key["b_day"], "owner": owner, **row})


def of_day(connection: Connection, *, owner: str | None, time_us: int) -> Amount:
    """What the day of `time_us` has cost an owner; all of them where None."""
    key = {"b_day": day_of(time_us)}
    row = _OF_ALL.one(connection, key) if owner is None else _OF_OWNER.one(connection, key | {"b_owner": owner})
    return Amount(committed_nanos=row["committed"], reserved_nanos=row["reserved"])


def next_call(
    tx: Transaction, batch: Row, *, next_nanos: int, daily: DailyBudgets, now_us: int
) -> Fits | WaitForSettlement | OverBudget:
    """Whether a call fits every budget that holds for it: the batch's, its owner's and the server's of the day."""
    own = Amount(
        committed_nanos=batch["confirmed_nanos"] + batch["possibly_spent_nanos"],
        reserved_nanos=batch["reserved_nanos"],
    )
    verdict = admit(BudgetScope.BATCH, budget_nanos=batch["budget_nanos"], amount=own, next_nanos=next_nanos)
    if isinstance(verdict, Fits) and daily.owner_nanos is not None:
        of_owner = of_day(tx.connection, owner=batch["owner"], time_us=now_us)
        verdict = admit(BudgetScope.OWNER_DAY, budget_nanos=daily.owner_nanos, amount=of_owner, next_nanos=next_nanos)
    if isinstance(verdict, Fits) and daily.server_nanos is not None:
        of_all = of_day(tx.connection, owner=None, time_us=now_us)
        verdict = admit(BudgetScope.SERVER_DAY, budget_nanos=daily.server_nanos, amount=of_all, next_nanos=next_nanos)
    return verdict


def hold_of(over: OverBudget, *, now_us: int) -> NewHold:
    """A day's budget is whole again at midnight, UTC."""
    clears_us = None if over.scope is BudgetScope.BATCH else next_day_us(now_us)
    message = over_budget_message(over)
    return NewHold(HoldReason.BUDGET, message, clears_us=clears_us, scope=over.scope, needs_nanos=over.needs_nanos)


def note_mark(tx: Transaction, batch: Row | RowMapping, *, before_nanos: int, now_us: int) -> None:
    """The event of the mark, where the batch's committed money has reached it. `batch` is as it is now."""
    spent = batch["confirmed_nanos"] + batch["possibly_spent_nanos"]
    if not reaches_mark(budget_nanos=batch["budget_nanos"], before_nanos=before_nanos, after_nanos=spent):
        return
    detail = {"share": MARK_SHARE, "spent_nanos": spent, "budget_nanos": batch["budget_nanos"]}
    events.append(tx, batch["id"], "budget_mark", detail, now_us=now_us)


def freed(tx: Transaction, batch: Row | RowMapping, freed_nanos: int, *, journalled_us: int, now_us: int) -> None:
    """Possibly spent money turned out to be less: holds of its budgets ask for less, and the batch's own is lifted.

    Those of the day that the call was journalled on go with the next sweep, for other batches may have them too.
    """
    of_day = (holds.c.reason == HoldReason.BUDGET, holds.c.clears_us == next_day_us(journalled_us))
    of_owner = select(batches.c.id).where(batches.c.owner == batch["owner"])
    ours = (holds.c.batch == batch["id"], holds.c.reason == HoldReason.BUDGET, holds.c.scope == BudgetScope.BATCH)
    theirs = (*of_day, holds.c.scope == BudgetScope.OWNER_DAY, holds.c.batch.in_(of_owner))
    everyones = (*of_day, holds.c.scope == BudgetScope.SERVER_DAY)
    for where in (theirs, everyones, ours):
        lowered = update(holds).where(*where).values(needs_nanos=holds.c.needs_nanos - freed_nanos)
        if tx.connection.execute(lowered).rowcount and where is ours:
            lift(tx, batch["id"], now_us=now_us)


def lift(tx: Transaction, batch: str, *, now_us: int) -> None:
    """A high enough budget or checkpoint takes its own hold away; the last one gone, the batch goes on."""
    row = tx.connection.execute(select(batches).where(batches.c.id == batch)).mappings().one()
    lifted: set[HoldReason] = set()
    standing = standing_hold(tx.connection, batch)
    if standing is not None and standing["scope"] == BudgetScope.BATCH and _stands(standing, row, NO_LIMITS) is None:
        lifted.add(HoldReason.BUDGET)
    if row["hold_after"] is None or row["started"] < row["hold_after"]:
        lifted.add(HoldReason.CHECKPOINT)
    if lifted & hold_reasons(tx, batch):
        drop_holds(tx, batch, lifted, now_us=now_us)
        happen(tx, batch, Event.RAISE_LIMIT, now_us=now_us)


def standing_hold(connection: Connection, batch: str) -> RowMapping | None:
    """The hold BUDGET, where there is one."""
    where = (holds.c.batch == batch, holds.c.reason == HoldReason.BUDGET)
    return connection.execute(select(holds).where(*where)).mappings().one_or_none()


def refused_by(
    tx: Transaction, batch: Mapping[Any, Any], *, daily: DailyBudgets, now_us: int
) -> tuple[RowMapping, int] | None:
    """The hold BUDGET that stands, and the budget that is too low for it; None where the batch may go on."""
    standing = standing_hold(tx.connection, batch["id"])
    if standing is None or _is_over(standing, now_us):
        return None
    budget = _stands(standing, batch, daily)
    return None if budget is None else (standing, budget)


def due(connection: Connection, *, daily: DailyBudgets, now_us: int) -> bool:
    """Whether a hold clears by itself now."""
    return bool(_due(connection, daily=daily, now_us=now_us))


def clear_due(*, daily: DailyBudgets, now_us: int) -> Fact[set[str]]:
    """Takes away what clears by itself: at its time, or because a day's budget was raised. The batches that had it."""

    def fact(tx: Transaction) -> set[str]:
        found = _due(tx.connection, daily=daily, now_us=now_us)
        for row in found:
            drop_holds(tx, row["batch"], {HoldReason(row["reason"])}, now_us=now_us)
            happen(tx, row["batch"], Event.RAISE_LIMIT, now_us=now_us)
        return {row["batch"] for row in found}

    return fact


def _due(connection: Connection, *, daily: DailyBudgets, now_us: int) -> list[RowMapping]:
    statement = (
        select(holds)
        .join(batches, batches.c.id == holds.c.batch)
        # A cancelled batch's holds go with it.
        .where(holds.c.clears_us.is_not(None), batches.c.state.in_([BatchState.PAUSING, BatchState.PAUSED]))
    )
    rows = connection.execute(statement).mappings().all()
    return [row for row in rows if _is_over(row, now_us) or _is_raised(row, daily)]


def _is_over(hold: Mapping[Any, Any], now_us: int) -> bool:
    return hold["clears_us"] is not None and hold["clears_us"] <= now_us


def _is_raised(hold: Mapping[Any, Any], daily: DailyBudgets) -> bool:
    """Whether the hold is about a day's budget that is higher now, or gone."""
    return hold["scope"] != BudgetScope.BATCH and _stands(hold, {}, daily) is None


def _stands(hold: Mapping[Any, Any], batch: Mapping[Any, Any], daily: DailyBudgets) -> int | None:
    """The budget that is too low for what the hold needs; None where it is high enough or none."""
    match hold["scope"]:
        case BudgetScope.OWNER_DAY:
            budget = daily.owner_nanos
        case BudgetScope.SERVER_DAY:
            budget = daily.server_nanos
        case _:
            budget = batch["budget_nanos"]
    return budget if budget is not None and (hold["needs_nanos"] or 0) > budget else None
