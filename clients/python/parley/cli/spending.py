"""Spend: sums of the ledger by day, owner, label, model or batch, and how far the daily budgets are used."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from parley import money
from parley.cli import words
from parley.cli.failures import BAD_USAGE, OK, CommandError
from parley.cli.output import Output
from parley.cli.session import Session
from parley.cli.spec_reader import enum_words
from parley.v1 import batch_pb2, orchestrator_pb2
from parley.wire import clock

# Whose it is where it has no owner.
THE_SERVER = "this server"


async def spend(session: Session, *, by: Sequence[str], label: str, owner: str, batch: str) -> int:
    keys = enum_words(orchestrator_pb2.SpendKey.DESCRIPTOR)
    if unknown := [word for word in by if word not in keys]:
        raise CommandError(f"--by {unknown[0]} is not known; there are {', '.join(keys)}.", exit_code=BAD_USAGE)
    group_by = [orchestrator_pb2.SpendKey.ValueType(keys[word]) for word in by]
    async with session.client() as client:
        sums = await client.spend(group_by=group_by, label_key=label, owner=owner, batch=batch)
    if session.output.as_json:
        session.output.message(sums)
        return OK
    amounts = ("calls", "spent", "possibly", "tokens in", "tokens out")
    rows = [(*row.keys, *_amounts(row.spend)) for row in sums.rows] if by else []
    total = (*(["all", *[""] * (len(by) - 1)] if by else []), *_amounts(sums.total))
    session.output.table((*by, *amounts), [*rows, total], right=amounts)
    if sums.daily_budgets:
        _show_daily_budgets(session.output, sums.daily_budgets, clock.utc_now())
    return OK


def _amounts(spend: batch_pb2.Spend) -> tuple[object, ...]:
    return (
        spend.calls_settled,
        money.show(spend.confirmed),
        money.show(spend.possibly_spent),
        f"{words.input_tokens(spend.usage):,}",
        f"{spend.usage.output_tokens:,}",
    )


def _show_daily_budgets(output: Output, budgets: Sequence[orchestrator_pb2.DailyBudget], now: datetime) -> None:
    columns = ("daily budget", "used", "of", "whole again")
    rows = [
        (
            budget.owner or THE_SERVER,
            money.show(budget.committed),
            money.show(budget.budget),
            words.moment(budget.resets_at, now),
        )
        for budget in budgets
    ]
    if output.live:
        output.show()
    output.table(columns, rows, right=("used", "of"))
