"""The verbs of people on a batch, each one fact: repeated ones succeed before the etag is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, or_, select, update

from orchestrator_service.domain.batch import FINAL, BatchState, Event, HoldReason
from orchestrator_service.domain.breaker import NO_ENDS
from orchestrator_service.domain.budget import BudgetScope, DailyBudgets
from orchestrator_service.domain.conversation import KEPT_BACK, UNMADE, ConversationState, Review
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import budgets, events, requests
from orchestrator_service.storage.batches import etag_of, not_found
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.rates import PricedAt, keep_rate
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.tables import (
    answers,
    batches,
    calls,
    conversations,
    estimates,
    holds,
    labels,
    specs,
    texts,
    tiers,
)
from orchestrator_service.storage.tables import events as event_log
from orchestrator_service.storage.transitions import (
    NewHold,
    drop_holds,
    happen,
    hold,
    hold_reasons,
    refuse_where_forbidden,
)
from orchestrator_service.storage.writer import Fact, Transaction


@dataclass(frozen=True, kw_only=True)
class At:
    """The provider of this process."""

    base_url: str
    sandbox: bool
    speed_up: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What UpdateBatch changes; `fields` names those that are meant."""

    fields: Sequence[str]
    display_name: str = ""
    labels: Mapping[str, str] | None = None
    budget_nanos: int | None = None
    concurrency: int = 0
    hold_after: int | None = None
    priority: int = 0


def pause(batch: str, *, etag: str, now_us: int) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        row = _batch(tx, batch)
        refuse_where_forbidden(BatchState(row["state"]), Event.PAUSE)
        if HoldReason.USER in hold_reasons(tx, batch):
            return
        _compare_etag(row, etag)
        # The rows of Pause and of a hold that arises are the same where Pause is not refused.
        hold(tx, batch, NewHold(HoldReason.USER, "Somebody paused the batch."), now_us=now_us)

    return fact


def hold_batch(batch: str, new: NewHold, *, now_us: int) -> Fact[None]:
    """A hold that arises outside of a claim or a settlement."""

    def fact(tx: Transaction) -> None:
        hold(tx, batch, new, now_us=now_us)

    return fact


def resume(
    batch: str,
    *,
    etag: str,
    at: At | None = None,
    priced: PricedAt | None = None,
    daily: DailyBudgets = budgets.NO_LIMITS,
    now_us: int,
) -> Fact[None]:
    """`at` is the provider that the batch goes on at: resuming is the consent to another than it was started at.

    `priced` is what its model costs now. Raises HOLD_STANDS while a budget is still too low.
    """

    def fact(tx: Transaction) -> None:
        row = _batch(tx, batch)
        if row["state"] in (BatchState.QUEUED, BatchState.RUNNING):
            return
        if row["state"] in (BatchState.PAUSING, BatchState.PAUSED):
            _compare_etag(row, etag)
            _clear_holds(tx, row, daily=daily, now_us=now_us)
            _renew(tx, row, at=at, priced=priced, now_us=now_us)
        happen(tx, batch, Event.RESUME, now_us=now_us)

    return fact


def cancel(batch: str, *, etag: str, now_us: int) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        row = _batch(tx, batch)
        if row["state"] not in (BatchState.CANCELLING, BatchState.CANCELLED):
            _compare_etag(row, etag)
        happen(tx, batch, Event.CANCEL, now_us=now_us)

    return fact


def retry(
    batch: str, which: Which, *, etag: str, request: Request, priced: PricedAt | None = None, now_us: int
) -> Fact[int]:
    """How many conversations wait for their turn again."""

    def fact(tx: Transaction) -> int:
        row = _batch(tx, batch)
        known = requests.find(tx.connection, request)
        if known is not None:
            return known.requeued
        refuse_where_forbidden(BatchState(row["state"]), Event.RETRY)
        _compare_etag(row, etag)
        matching = _retriable(tx, batch, which)
        if matching:
            happen(tx, batch, Event.RETRY, now_us=now_us)
            _requeue(tx, row, which, now_us=now_us)
            if row["state"] in FINAL:
                _renew(tx, row, priced=priced, now_us=now_us)
        requests.remember(tx, request, batch=batch, requeued=matching, now_us=now_us)
        return matching

    return fact


def change(batch: str, settings: Settings, *, etag: str, now_us: int) -> Fact[None]:
    def fact(tx: Transaction) -> None:
        row = _batch(tx, batch)
        _compare_etag(row, etag)
        for event in _limits_changed(row, settings):
            happen(tx, batch, event, now_us=now_us)
        _write_settings(tx, batch, settings)
        events.append(tx, batch, "settings_changed", {"fields": list(settings.fields)}, now_us=now_us)
        budgets.lift(tx, batch, now_us=now_us)

    return fact


def remove(batch: str, *, etag: str, now_us: int) -> Fact[None]:
    """Texts, prompts and answers go; calls and labels stay, for the sums."""

    def fact(tx: Transaction) -> None:
        row = _batch(tx, batch)
        _compare_etag(row, etag)
        if row["state"] not in FINAL | {BatchState.PAUSED}:
            raise ParleyError(
                "STATE_FORBIDS",
                f"Delete is not possible: the batch is {row['state']}. Cancel or pause it first.",
                metadata={"state": row["state"]},
            )
        ours = select(calls.c.id).where(calls.c.batch == batch)
        tx.connection.execute(delete(answers).where(answers.c.call.in_(ours)))
        for table in (texts, conversations, event_log, specs, estimates, holds):
            tx.connection.execute(delete(table).where(table.c.batch == batch))
        values = {"deleted_us": now_us, "display_name": ""}
        tx.connection.execute(update(batches).where(batches.c.id == batch).values(values))
        tx.touch(batch)

    return fact


def _batch(tx: Transaction, batch: str) -> RowMapping:
    visible = (batches.c.id == batch, batches.c.deleted_us.is_(None), batches.c.state != BatchState.PREPARING)
    row = tx.connection.execute(select(batches).where(*visible)).mappings().one_or_none()
    if row is None:
        raise not_found(batch)
    return row


def _compare_etag(row: RowMapping, etag: str) -> None:
    if etag and etag != etag_of(row):
        raise ParleyError("ETAG_MISMATCH", "The batch was changed since you read it.", metadata={"etag": etag_of(row)})


def _clear_holds(tx: Transaction, row: RowMapping, *, daily: DailyBudgets, now_us: int) -> None:
    refused = budgets.refused_by(tx, row, daily=daily, now_us=now_us)
    if refused is not None:
        raise _hold_stands(*refused)
    if HoldReason.CHECKPOINT in hold_reasons(tx, row["id"]):
        # Going on is the approval.
        approved = {"hold_after": None, "settings_version": batches.c.settings_version + 1}
        tx.connection.execute(update(batches).where(batches.c.id == row["id"]).values(approved))
    drop_holds(tx, row["id"], set(HoldReason), now_us=now_us)


def _hold_stands(standing: RowMapping, budget_nanos: int) -> ParleyError:
    named, remedy = {
        BudgetScope.OWNER_DAY: (
            "the owner's budget for a day (PARLEY_OWNER_DAILY_BUDGET)",
            "It is whole again at 00:00 UTC.",
        ),
        BudgetScope.SERVER_DAY: (
            "the server's budget for a day (PARLEY_DAILY_BUDGET)",
            "It is whole again at 00:00 UTC.",
        ),
    }.get(standing["scope"], ("the budget", "Raise the budget."))
    needs: int = standing["needs_nanos"]
    return ParleyError(
        "HOLD_STANDS",
        f"The hold BUDGET stands: {named} is ${budget_nanos / 1e9:.2f}, and the next call needs "
        f"${needs / 1e9:.4f}. {remedy}",
        metadata={
            "hold": "BUDGET",
            "scope": standing["scope"],
            "needs_nanos": str(needs),
            "budget_nanos": str(budget_nanos),
        },
    )


def _renew(tx: Transaction, row: RowMapping, *, priced: PricedAt | None, at: At | None = None, now_us: int) -> None:
    """What a batch takes up when a person lets it go on: the provider of now, its prices, and failures counted anew."""
    values: dict[str, Any] = {"recent_ends": NO_ENDS}
    if at is not None:
        values |= {"base_url": at.base_url, "sandbox": at.sandbox, "speed_up": at.speed_up}
    if priced is not None and priced.rate != row["rate"]:
        keep_rate(tx, row["model"], priced)
        values |= {"rate": priced.rate, "rate_version": priced.version}
        events.append(tx, row["id"], "rates_changed", {"rate_version": priced.version}, now_us=now_us)
    tx.connection.execute(update(batches).where(batches.c.id == row["id"]).values(values))


def _retriable(tx: Transaction, batch: str, which: Which) -> int:
    statement = select(func.count()).select_from(conversations).where(*_retry_clause(batch, which))
    return tx.connection.execute(statement).scalar_one()


def _retry_clause(batch: str, which: Which) -> tuple[ColumnElement[bool], ...]:
    """Without a filter all that failed or was cancelled; quarantined and rejected ones only when named."""
    asked = which.states or which.reviews
    unmade = conversations.c.state.in_(UNMADE)
    kept_back = conversations.c.review.in_(KEPT_BACK)
    return (conversations.c.batch == batch, or_(unmade, kept_back) if asked else unmade, which.clause())


def _requeue(tx: Transaction, old: RowMapping, which: Which, *, now_us: int) -> None:
    batch: str = old["id"]
    clause = _retry_clause(batch, which)
    counted = (
        select(
            conversations.c.tier,
            func.count().label("n"),
            func.count().filter(conversations.c.state == ConversationState.FAILED).label("failed"),
            func.count().filter(conversations.c.state == ConversationState.CANCELLED).label("cancelled"),
            func.count().filter(conversations.c.review == Review.QUARANTINED).label("quarantined"),
        )
        .where(*clause)
        .group_by(conversations.c.tier)
    )
    rows = tx.connection.execute(counted).mappings().all()
    for row in rows:
        _requeue_tier(tx, batch, row)
    back = {"state": ConversationState.PENDING, "review": None, "failure_reason": None, "failure_message": None}
    tx.connection.execute(update(conversations).where(*clause).values(**back, checks=None, ended_us=None, tries=0))
    # A batch that had ended begins a new run.
    run = old["run"] + (old["state"] in FINAL)
    # Somebody looked: failures are counted anew, also where the batch still runs.
    tx.connection.execute(update(batches).where(batches.c.id == batch).values(run=run, recent_ends=NO_ENDS))
    detail = {"count": sum(row["n"] for row in rows), "run": run}
    events.append(tx, batch, "conversations_requeued", detail, now_us=now_us)


def _requeue_tier(tx: Transaction, batch: str, row: RowMapping) -> None:
    generated = row["n"] - row["failed"] - row["cancelled"]
    tx.connection.execute(
        update(tiers)
        .where(tiers.c.batch == batch, tiers.c.tier == row["tier"])
        .values(
            pending=tiers.c.pending + row["n"],
            failed=tiers.c.failed - row["failed"],
            cancelled=tiers.c.cancelled - row["cancelled"],
            generated=tiers.c.generated - generated,
            quarantined=tiers.c.quarantined - row["quarantined"],
        )
    )


def _limits_changed(row: RowMapping, settings: Settings) -> list[Event]:
    """Which rows of the state table the change is: all are looked up, so that one that is refused changes nothing."""
    found: list[Event] = []
    if "budget" in settings.fields:
        raised = settings.budget_nanos is None or settings.budget_nanos >= (row["budget_nanos"] or 0)
        found.append(Event.RAISE_LIMIT if raised else Event.LOWER_BUDGET)
    if "hold_after" in settings.fields:
        found.append(Event.RAISE_LIMIT)
    if "concurrency" in settings.fields:
        found.append(Event.CHANGE_CONCURRENCY)
    return found


def _write_settings(tx: Transaction, batch: str, settings: Settings) -> None:
    columns = ("display_name", "budget_nanos", "concurrency", "hold_after", "priority")
    meant = {"budget_nanos" if name == "budget" else name for name in settings.fields}
    values: dict[str, Any] = {name: getattr(settings, name) for name in columns if name in meant}
    values["settings_version"] = batches.c.settings_version + 1
    tx.connection.execute(update(batches).where(batches.c.id == batch).values(values))
    if settings.labels is not None:
        tx.connection.execute(delete(labels).where(labels.c.batch == batch))
        rows = [{"batch": batch, "key": key, "value": value} for key, value in settings.labels.items()]
        if rows:
            tx.connection.execute(insert(labels), rows)
