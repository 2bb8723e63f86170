"""What the model says and what is stored, in the same words, to be compared."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from batch_model import Batch
from engine_watch import Event, Row
from model_terms import DAY_US

EVENT_FACTS = {
    "state_changed": ("from", "to"),
    "hold_added": ("reason", "clears_us", "scope", "needs_nanos"),
    "hold_cleared": ("reason",),
    "conversation_ended": ("number", "tier", "state", "review", "failure_reason", "cost_nanos"),
    "settings_changed": ("fields",),
    "conversations_requeued": ("count", "run"),
    "recovered": ("calls_possibly_spent", "conversations_requeued"),
    "budget_mark": ("spent_nanos", "budget_nanos"),
    "call_settled": ("cost_nanos", "by"),
}

Told = tuple[str, str, dict[str, Any]]


def plain_events(events: Sequence[Event]) -> list[Told]:
    """Key facts alone. Holds that clear together may do so in any order."""
    found: list[Told] = []
    for event in events:
        facts = {name: event.detail.get(name) for name in EVENT_FACTS[event.kind]}
        if event.kind == "settings_changed":
            facts["fields"] = sorted(event.detail["fields"])
        if event.kind == "hold_added":
            facts["needs_nanos"] = facts["needs_nanos"] or 0
        found.append((event.batch, event.kind, facts))
    return [one for _, run in groupby(found, key=_kind) for one in sorted(run, key=_reason)]


def model_view(batch: Batch) -> dict[str, Any]:
    return {
        "state": batch.state,
        "run": batch.run,
        "epoch": batch.epoch,
        "settings": (batch.budget, batch.hold_after, batch.concurrency),
        "started": batch.started,
        "money": tuple(batch.money),
        "call_states": tuple(
            sum(call.state == state for call in batch.calls.values()) for state in ("SETTLED", "POSSIBLY_SPENT")
        ),
        "holds": {hold.reason: (hold.scope, hold.clears_us, hold.needs) for hold in batch.holds.values()},
        "rows": [
            (row.number, row.tier, row.state, row.review, row.failure, row.attempts, row.tries, row.cost)
            for row in batch.rows.values()
        ],
        "texts": [row.number for row in batch.rows.values() if row.state == "GENERATED"],
        "tiers": {
            tier: (
                *(counts[state] for state in ("PENDING", "RUNNING", "GENERATED", "FAILED", "CANCELLED")),
                counts["PASSED"],
                counts["QUARANTINED"],
                sum(row.cost for row in batch.rows.values() if row.tier == tier),
            )
            for tier, counts in batch.counts().items()
        },
        "calls": [
            (call.id, call.conversation, call.attempt, call.purpose, call.state, call.reserve, call.cost, call.day)
            for call in batch.calls.values()
        ],
        "events": [(number, kind) for number, (kind, _) in enumerate(batch.events, start=1)],
    }


def stored_view(file: sqlite3.Connection, batch: str) -> dict[str, Any]:
    def ask(columns: str, table: str, order: str) -> list[tuple[Any, ...]]:
        sql = f"SELECT {columns} FROM {table} WHERE batch = ? ORDER BY {order}"  # noqa: S608  our own text
        return file.execute(sql, (batch,)).fetchall()

    (row,) = _rows(file, "SELECT * FROM batches WHERE id = ?", batch)
    made = {number for number, state in ask("number, state", "conversations", "number") if state == "GENERATED"}
    counters = "pending, running, generated, failed, cancelled, deliverable, quarantined, cost_nanos"
    return {
        "state": row["state"],
        "run": row["run"],
        "epoch": row["epoch"],
        "settings": (row["budget_nanos"], row["hold_after"], row["concurrency"]),
        "started": row["started"],
        "money": (row["confirmed_nanos"], row["reserved_nanos"], row["possibly_spent_nanos"]),
        "call_states": (row["calls_settled"], row["calls_possibly_spent"]),
        "holds": {
            reason: tuple(rest)
            for reason, *rest in ask("reason, scope, clears_us, coalesce(needs_nanos, 0)", "holds", "reason")
        },
        "rows": ask(
            "number, tier, state, review, failure_reason, attempts, tries, cost_nanos", "conversations", "number"
        ),
        # One that is made again may keep its old text until then.
        "texts": [
            number
            for (number,) in ask("number", "conversations NATURAL JOIN conversation_texts", "number")
            if number in made
        ],
        "tiers": {tier: tuple(rest) for tier, *rest in ask(f"tier, {counters}", "batch_tiers", "position")},
        "calls": ask(
            f"id, conversation, attempt, purpose, state, reserved_nanos, cost_nanos, created_us / {DAY_US}",
            "calls",
            "id",
        ),
        "events": ask("number, kind", "events", "number"),
    }


def stored_days(file: sqlite3.Connection) -> dict[tuple[int, str], tuple[int, int, int]]:
    sums = {
        (row["day"], row["owner"]): (row["confirmed_nanos"], row["reserved_nanos"], row["possibly_spent_nanos"])
        for row in _rows(file, "SELECT * FROM daily_spend")
    }
    return {key: money for key, money in sums.items() if any(money)}


def _kind(told: Told) -> tuple[str, str]:
    return told[0], told[1]


def _reason(told: Told) -> str:
    return told[2]["reason"] if told[1] == "hold_cleared" else ""


def _rows(file: sqlite3.Connection, sql: str, *values: Any) -> list[Row]:
    cursor = file.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
