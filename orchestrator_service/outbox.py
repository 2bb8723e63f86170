"""Settled calls on their way to the estimator: each is sent until it is taken, also after a restart."""

from __future__ import annotations

from functools import partial

import structlog

from orchestrator_service.convert.workload import observation_of
from orchestrator_service.engine.clock import Clock
from orchestrator_service.quotes import Away, Estimator, Unfit
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
        self._size = PAGE

    async def run(self) -> None:
        while True:
            try:
                more = await self.send_page()
            except (StorageFailed, Away) as error:
                # What the estimator has already and is not marked is sent again; it knows calls by their names.
                log.warning("observations wait", error=str(error))
                more = False
            if not more:
                await self._clock.sleep_s(PERIOD_S)

    async def send_page(self) -> bool:
        """Whether there may be more to send at once."""
        rows = await self._database.read(partial(ledger.unobserved, limit=self._size))
        if not rows:
            return False
        try:
            await self._estimator.observe([observation_of(row) for row in rows])
        except Unfit as error:
            if len(rows) > 1:
                # One of them is at fault: halves find it, and the others get through.
                self._size = len(rows) // 2
                return True
            log.error("observation refused for good", call=rows[0]["id"], error=str(error))
        full = len(rows) == self._size
        await self._database.write(ledger.mark_observed([row["id"] for row in rows]))
        self._size = PAGE
        return full
