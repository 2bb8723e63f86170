"""What must hold of the rows: a table of rules, each recomputes from the ledger or the rows and yields what differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, Table, and_, case, func, literal, or_, select, union_all

from orchestrator_service.domain.batch import FINAL, BatchState
from orchestrator_service.domain.budget import DAY_US
from orchestrator_service.domain.conversation import DELIVERABLE, ConversationState, Review
from orchestrator_service.domain.ledger import CallOutcome, CallState, Usage, cost_nanos
from orchestrator_service.storage.books import Books, Difference, Doubt, compare, count_of, each, total, unequal
from orchestrator_service.storage.tables import (
    USAGE_COLUMNS,
    answers,
    batches,
    calls,
    conversations,
    daily_spend,
    estimates,
    events,
    holds,
    rates,
    specs,
    texts,
    tiers,
)

Rule = Callable[[Books], Iterator[Difference | Doubt]]

# A batch that is being stored has its rows later; a deleted one has none any more.
_WHOLE = and_(batches.c.deleted_us.is_(None), batches.c.state != BatchState.PREPARING)
_MONEY = ("confirmed_nanos", "reserved_nanos", "possibly_spent_nanos")


def _batch_sums(books: Books) -> Iterator[Difference]:
    sums = (
        select(
            calls.c.batch.label("id"),
            *_money(),
            count_of(calls.c.state == CallState.SETTLED).label("calls_settled"),
            count_of(calls.c.state == CallState.POSSIBLY_SPENT).label("calls_possibly_spent"),
            *[func.sum(calls.c[name]).label(name) for name in USAGE_COLUMNS],
        )
        .group_by(calls.c.batch)
        .subquery()
    )
    columns = (*_MONEY, "calls_settled", "calls_possibly_spent", *USAGE_COLUMNS)
    return compare(books, batches, sums, by=("id",), columns=columns, batch=batches.c.id)


def _conversation_sums(books: Books) -> Iterator[Difference]:
    """Attempts too: an attempt is journalled by its call."""
    sums = (
        select(
            calls.c.batch,
            calls.c.conversation.label("number"),
            func.max(calls.c.attempt).label("attempts"),
            total(calls.c.cost_nanos).label("cost_nanos"),
            *[func.sum(calls.c[name]).label(name) for name in USAGE_COLUMNS],
        )
        .where(calls.c.conversation > 0)
        .group_by(calls.c.batch, calls.c.conversation)
        .subquery()
    )
    columns = ("attempts", "cost_nanos", *USAGE_COLUMNS)
    place = _named("conversation", conversations.c.number)
    return compare(
        books, conversations, sums, by=("batch", "number"), columns=columns, batch=conversations.c.batch, place=place
    )


def _tier_counts(books: Books) -> Iterator[Difference]:
    states = {state.value.lower(): count_of(conversations.c.state == state) for state in ConversationState}
    counts = (
        select(
            conversations.c.batch,
            conversations.c.tier,
            func.count().label("total"),
            *[count.label(name) for name, count in states.items()],
            count_of(conversations.c.review.in_(DELIVERABLE)).label("deliverable"),
            count_of(conversations.c.review == Review.QUARANTINED).label("quarantined"),
            total(conversations.c.cost_nanos).label("cost_nanos"),
        )
        .group_by(conversations.c.batch, conversations.c.tier)
        .subquery()
    )
    columns = ("total", *states, "deliverable", "quarantined", "cost_nanos")
    place = _named("tier", tiers.c.tier)
    whole = tiers.c.batch.in_(select(batches.c.id).where(_WHOLE))
    return compare(
        books, tiers, counts, by=("batch", "tier"), columns=columns, batch=tiers.c.batch, place=place, where=whole
    )


def _batch_starts(books: Books) -> Iterator[Difference]:
    counts = (
        select(conversations.c.batch.label("id"), func.count().label("started"))
        .where(conversations.c.attempts > 0)
        .group_by(conversations.c.batch)
        .subquery()
    )
    return compare(books, batches, counts, by=("id",), columns=("started",), batch=batches.c.id, where=_WHOLE)


def _batch_events(books: Books) -> Iterator[Difference]:
    ended = events.c.kind == "conversation_ended"
    counts = (
        select(
            events.c.batch.label("id"),
            func.max(events.c.number).label("last_event"),
            count_of(ended).label("made"),
            # Quotation marks inside of texts are escaped, so that this can only be the state.
            count_of(ended & events.c.detail.contains('"state": "GENERATED"')).label("answered"),
        )
        .group_by(events.c.batch)
        .subquery()
    )
    columns = ("last_event", "made", "answered")
    return compare(books, batches, counts, by=("id",), columns=columns, batch=batches.c.id, where=_WHOLE)


def _event_numbers(books: Books) -> Iterator[Difference]:
    last = func.max(events.c.number)
    statement = (
        select(events.c.batch, func.count().label("stored"), last.label("recomputed"))
        .group_by(events.c.batch)
        .having(or_(func.count() != last, func.min(events.c.number) != 1))
    )
    return each(books, statement, what="events without a gap")


def _event_states(books: Books) -> Iterator[Difference]:
    """The log's changes of state follow one another, from the first to the one that the batch is in."""
    statement = (
        select(batches.c.id, batches.c.state, events.c.number, events.c.detail)
        .join(events, events.c.batch == batches.c.id)
        .where(_WHOLE, events.c.kind == "state_changed")
        .order_by(batches.c.id, events.c.number)
    )
    batch, state, told = "", "", ""
    for row in books.rows(statement):
        if row["id"] != batch:
            if told != state:
                yield Difference(batch=batch, what="state", stored=state, recomputed=told)
            batch, state, told = row["id"], row["state"], BatchState.PREPARING
        change = json.loads(row["detail"])
        if change["from"] != told:
            what = f"event {row['number']}: the state that it leaves"
            yield Difference(batch=batch, what=what, stored=change["from"], recomputed=told)
        told = change["to"]
    if told != state:
        yield Difference(batch=batch, what="state", stored=state, recomputed=told)


def _texts(books: Books) -> Iterator[Difference]:
    theirs = and_(texts.c.batch == conversations.c.batch, texts.c.number == conversations.c.number)
    statement = _made().where(~select(texts.c.number).where(theirs).exists())
    return _missing(books, statement, "text")


def _raw_answers(books: Books) -> Iterator[Difference]:
    """What was paid for is kept as it came."""
    kept = (
        select(calls.c.batch, calls.c.conversation)
        .join(answers, answers.c.call == calls.c.id)
        .where(calls.c.outcome == CallOutcome.ANSWERED)
        .distinct()
        .subquery()
    )
    theirs = and_(kept.c.batch == conversations.c.batch, kept.c.conversation == conversations.c.number)
    return _missing(books, _made().outerjoin(kept, theirs).where(kept.c.batch.is_(None)), "raw answer")


# What each state says of the rows: "some" or "none"; what is not named may be either.
_FITS: dict[BatchState, dict[str, str]] = {
    BatchState.QUEUED: {"running": "none", "pending": "some", "holds": "none"},
    BatchState.RUNNING: {"unfinished": "some", "holds": "none"},
    BatchState.PAUSING: {"running": "some", "holds": "some"},
    BatchState.PAUSED: {"running": "none", "pending": "some", "holds": "some"},
    BatchState.CANCELLING: {"running": "some"},
} | {state: {"unfinished": "none", "holds": "none"} for state in FINAL}
_ROWS_NAMED = {
    "running": "conversations RUNNING",
    "pending": "conversations PENDING",
    "unfinished": "conversations PENDING or RUNNING",
    "holds": "holds",
}


def _batch_states(books: Books) -> Iterator[Difference]:
    in_tiers = (
        select(
            conversations.c.batch,
            count_of(conversations.c.state == ConversationState.RUNNING).label("running"),
            count_of(conversations.c.state == ConversationState.PENDING).label("pending"),
        )
        .group_by(conversations.c.batch)
        .subquery()
    )
    held = select(func.count()).where(holds.c.batch == batches.c.id).scalar_subquery()
    statement = (
        select(
            batches.c.id,
            batches.c.state,
            batches.c.ended_us,
            func.coalesce(in_tiers.c.running, 0).label("running"),
            func.coalesce(in_tiers.c.pending, 0).label("pending"),
            held.label("holds"),
        )
        .outerjoin(in_tiers, in_tiers.c.batch == batches.c.id)
        .where(_WHOLE)
    )
    for row in books.rows(statement):
        yield from _batch_state(row)


def _batch_state(row: RowMapping) -> Iterator[Difference]:
    state = BatchState(row["state"])
    counted = {**row, "unfinished": row["running"] + row["pending"]}
    for name, wanted in _FITS[state].items():
        if (counted[name] > 0) != (wanted == "some"):
            what = f"{_ROWS_NAMED[name]} of a batch that is {state}"
            yield Difference(batch=row["id"], what=what, stored=counted[name], recomputed=wanted)
    if (row["ended_us"] is not None) != (state in FINAL):
        yield Difference(
            batch=row["id"],
            what=f"time of the end of a batch that is {state}",
            stored="none" if row["ended_us"] is None else row["ended_us"],
            recomputed="some" if state in FINAL else "none",
        )


def _calls_in_flight(books: Books) -> Iterator[Difference]:
    """One for each conversation that is RUNNING, of the batch's present epoch, and none for any other."""
    reserved = (
        select(calls.c.batch, calls.c.conversation, func.count().label("n"))
        .join(batches, and_(batches.c.id == calls.c.batch, batches.c.epoch == calls.c.epoch))
        .where(calls.c.state == CallState.RESERVED)
        .group_by(calls.c.batch, calls.c.conversation)
        .subquery()
    )
    theirs = and_(reserved.c.batch == conversations.c.batch, reserved.c.conversation == conversations.c.number)
    in_flight = func.coalesce(reserved.c.n, 0)
    running = case((conversations.c.state == ConversationState.RUNNING, 1), else_=0)
    statement = (
        select(
            conversations.c.batch,
            _named("conversation", conversations.c.number, ": calls in flight").label("what"),
            in_flight.label("stored"),
            running.label("recomputed"),
        )
        .outerjoin(reserved, theirs)
        .where(in_flight != running)
    )
    return each(books, statement)


def _calls_without_conversation(books: Books) -> Iterator[Difference]:
    """Of a batch that is not deleted; and a call in flight always has one."""
    row = and_(conversations.c.batch == calls.c.batch, conversations.c.number == calls.c.conversation)
    lost = or_(_WHOLE, calls.c.state == CallState.RESERVED)
    statement = (
        select(
            calls.c.batch,
            _named("call", calls.c.id, ": conversations").label("what"),
            literal(0).label("stored"),
            literal(1).label("recomputed"),
        )
        .join(batches, batches.c.id == calls.c.batch)
        .outerjoin(conversations, row)
        .where(calls.c.conversation > 0, conversations.c.number.is_(None), lost)
    )
    return each(books, statement)


def _budgets(books: Books) -> Iterator[Doubt]:
    """A budget that was changed may have been lowered beneath what was spent already."""
    spent = batches.c.confirmed_nanos + batches.c.possibly_spent_nanos + batches.c.reserved_nanos
    changed = (
        select(events.c.number)
        .where(
            events.c.batch == batches.c.id, events.c.kind == "settings_changed", events.c.detail.contains('"budget"')
        )
        .exists()
    )
    statement = select(batches.c.id, batches.c.budget_nanos, spent.label("spent")).where(
        _WHOLE, spent > batches.c.budget_nanos, ~changed
    )
    for row in books.rows(statement):
        what = f"spent, reserved and possibly spent are {row['spent']} nano-dollars, its budget {row['budget_nanos']}"
        yield Doubt(batch=row["id"], what=what)


def _daily_spend(books: Books) -> Iterator[Difference]:
    """By the day of the call's journalling and the owner of its batch; in both directions, so neither side is first."""
    journalled = (
        select(
            (calls.c.created_us // DAY_US).label("day"), func.coalesce(batches.c.owner, "").label("owner"), *_money()
        )
        .select_from(calls.outerjoin(batches, calls.c.batch == batches.c.id))
        .group_by("day", "owner")
        .subquery()
    )
    nothing = [literal(0).label(f"r_{name}") for name in _MONEY]
    rows = union_all(
        select(daily_spend.c.day, daily_spend.c.owner, *[daily_spend.c[name] for name in _MONEY], *nothing),
        select(journalled.c.day, journalled.c.owner, *nothing, *[journalled.c[name] for name in _MONEY]),
    ).subquery()
    sums = [func.sum(column).label(column.name) for column in rows.c if column.name not in ("day", "owner")]
    for row in books.rows(select(rows.c.day, rows.c.owner, *sums).group_by(rows.c.day, rows.c.owner)):
        place = f"spend of {row['owner'] or 'nobody'} on day {row['day']}: "
        yield from unequal(row, columns=_MONEY, batch="", place=place)


def _call_costs(books: Books) -> Iterator[Difference | Doubt]:
    """A settled call costs its usage at the rate that it names; one that a person settled costs what they said."""
    kept = {(row["version"], row["model"]): books.rate_of(row["rate"]) for row in books.rows(select(rates))}
    usage = [calls.c[name] for name in USAGE_COLUMNS]
    statement = select(
        calls.c.id, calls.c.batch, calls.c.rate_version, calls.c.model, calls.c.cost_nanos, *usage
    ).where(calls.c.state == CallState.SETTLED, calls.c.settled_by == "")
    unpriced: dict[tuple[str, str], int] = {}
    for row in books.rows(statement):
        key = (row["rate_version"], row["model"])
        rate = kept.get(key)
        if rate is None:
            # Without a known price a call counts as free.
            if row["cost_nanos"]:
                unpriced[key] = unpriced.get(key, 0) + 1
            continue
        cost = cost_nanos(Usage(**{name: row[name] for name in USAGE_COLUMNS}), rate)
        if cost != row["cost_nanos"]:
            what = f"call {row['id']}: cost_nanos"
            yield Difference(batch=row["batch"] or "", what=what, stored=row["cost_nanos"], recomputed=cost)
    for (version, model), count in unpriced.items():
        what = f"the cost of {count} calls can't be checked: no price of {model} in version {version!r} is kept"
        yield Doubt(batch="", what=what)


def _deleted(books: Books) -> Iterator[Difference]:
    """A deleted batch keeps its calls and labels, for the sums, and nothing of what was made."""
    for table in (conversations, texts, events, specs, estimates, holds):
        yield from _left_over(books, table, table.c.batch)
    of_calls = select(calls.c.batch).where(calls.c.id == answers.c.call).scalar_subquery()
    yield from _left_over(books, answers, of_calls)


def _left_over(books: Books, table: Table, batch: ColumnElement[Any]) -> Iterator[Difference]:
    gone = select(batches.c.id).where(batches.c.deleted_us.is_not(None))
    statement = select(batch.label("batch"), func.count().label("stored"), literal(0).label("recomputed"))
    statement = statement.select_from(table).where(batch.in_(gone)).group_by(batch)
    return each(books, statement, what=f"{table.name} of a deleted batch")


RULES: Sequence[Rule] = (
    _batch_sums,
    _conversation_sums,
    _tier_counts,
    _batch_starts,
    _batch_events,
    _event_numbers,
    _event_states,
    _texts,
    _raw_answers,
    _batch_states,
    _calls_in_flight,
    _calls_without_conversation,
    _budgets,
    _daily_spend,
    _call_costs,
    _deleted,
)


def _made() -> Select[Any, Any]:
    generated = conversations.c.state == ConversationState.GENERATED
    return select(conversations.c.batch, conversations.c.number).where(generated)


def _missing(books: Books, statement: Select[Any, Any], what: str) -> Iterator[Difference]:
    for row in books.rows(statement):
        place = f"conversation {row['number']}: {what}"
        yield Difference(batch=row["batch"], what=place, stored="none", recomputed="some")


def _money() -> list[ColumnElement[int]]:
    reserve = {"reserved_nanos": CallState.RESERVED, "possibly_spent_nanos": CallState.POSSIBLY_SPENT}
    return [
        total(calls.c.cost_nanos).label("confirmed_nanos"),
        *[total(calls.c.reserved_nanos, calls.c.state == state).label(name) for name, state in reserve.items()],
    ]


def _named(kind: str, of: ColumnElement[Any], what: str = ": ") -> ColumnElement[str]:
    """Such as "conversation 7: "."""
    return literal(f"{kind} ").concat(of).concat(what)
