"""Spend: sums of the ledger by day, owner, label, model or batch."""

from __future__ import annotations

from collections.abc import Sequence

from parley import money
from parley.cli.failures import BAD_USAGE, OK, CommandError
from parley.cli.session import Session
from parley.cli.spec_reader import enum_words
from parley.v1 import batch_pb2, orchestrator_pb2


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
    amounts = ("calls", "spent", "possibly", "input tokens", "output tokens")
    rows = [(*row.keys, *_amounts(row.spend)) for row in sums.rows] if by else []
    total = (*(["all", *[""] * (len(by) - 1)] if by else []), *_amounts(sums.total))
    session.output.table((*by, *amounts), [*rows, total], right=amounts)
    return OK


def _amounts(spend: batch_pb2.Spend) -> tuple[object, ...]:
    usage = spend.usage
    tokens_in = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return (
        spend.calls_settled,
        money.show(spend.confirmed),
        money.show(spend.possibly_spent),
        f"{tokens_in:,}",
        f"{usage.output_tokens:,}",
    )
