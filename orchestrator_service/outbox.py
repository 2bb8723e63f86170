"""Settled calls on their way to the estimator: each is sent until it is taken, also after a restart."""

from __future__ import annotations

from functools import partial

import structlog

from orchestrator_service.convert.workload import observation_of
from orchestrator_service.engine.clock import Clock
from orchestrator_service.quotes import Estimator
from orchestrator_service.storage import ledger
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.writer import StorageFailed

PAGE = 500
PERIOD_S = 2.0

log = structlog.get_logger()


class Outbox:
    """The ledger is the outbox: a call that was not observed yet is one to send."""

    def __init__(self, database: Database, estimator: Estimator, clock: Clock) -> None:
        self._database = database
        self._estimator = estimator
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                sent = await self.send_page()
            except StorageFailed as error:
                # What the estimator has already and is not marked is sent again; it knows calls by their names.
                log.error("database refuses, trying again", error=str(error))
                sent = 0
            if sent < PAGE:
                await self._clock.sleep_s(PERIOD_S)

    async def send_page(self) -> int:
        """How many calls the estimator took."""
        rows = await self._database.read(partial(ledger.unobserved, limit=PAGE))
        if not rows or not await self._estimator.observe([observation_of(row) for row in rows]):
            return 0
        await self._database.write(ledger.mark_observed([row["id"] for row in rows]))
        return len(rows)
