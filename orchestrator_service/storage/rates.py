"""The last known rates, for batches that run unquoted while the estimator is away."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from orchestrator_service.storage.tables import store
from orchestrator_service.storage.writer import Fact, Transaction


def kept_rate_card(connection: Connection) -> str | None:
    return connection.execute(select(store.c.rate_card)).scalar_one_or_none()


def keep_rate_card(card: str) -> Fact[None]:
    """Writes only what changed: rates seldom do."""

    def fact(tx: Transaction) -> None:
        differs = store.c.rate_card.is_distinct_from(card)
        tx.connection.execute(update(store).where(store.c.id == 1, differs).values(rate_card=card))

    return fact
