"""Prices: the last known card, for batches that run unquoted, and what each version said of a model, for the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from orchestrator_service.storage.tables import rates, store
from orchestrator_service.storage.writer import Fact, Transaction


@dataclass(frozen=True, kw_only=True)
class PricedAt:
    """What a version of the rate card says of one model; the rate as batches.rate has it."""

    version: str
    rate: str


def kept_rate_card(connection: Connection) -> str | None:
    return connection.execute(select(store.c.rate_card)).scalar_one_or_none()


def keep_rate_card(card: str) -> Fact[None]:
    """Writes only what changed: rates seldom do."""

    def fact(tx: Transaction) -> None:
        differs = store.c.rate_card.is_distinct_from(card)
        tx.connection.execute(update(store).where(store.c.id == 1, differs).values(rate_card=card))

    return fact


def keep_rate(tx: Transaction, model: str, priced: PricedAt) -> None:
    """A call names the version that priced it: what the version says must be there as long as the call is."""
    known = select(rates.c.model).where(rates.c.version == priced.version, rates.c.model == model)
    if tx.connection.execute(known).one_or_none() is None:
        row = {"version": priced.version, "model": model, "rate": priced.rate}
        tx.connection.execute(insert(rates), row)
