"""The outbox: sends what the estimator has not got until it is taken, also after a restart."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from orchestrator_service.domain.ledger import Rate
from orchestrator_service.engine.bell import Bell, rung_or_over
from orchestrator_service.engine.clock import Clock
from orchestrator_service.outbox.observations import Observations
from orchestrator_service.outbox.outcomes import Outcomes
from orchestrator_service.outbox.refinements import Refinements
from orchestrator_service.quotes import Away, Estimator
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.writer import StorageFailed

PERIOD_S = 2.0

log = structlog.get_logger()


class Outbox:
    """`rested` rings when a batch has nothing under way any more: what is left of it is sent at once."""

    def __init__(
        self,
        database: Database,
        estimator: Estimator,
        clock: Clock,
        *,
        rested: Bell,
        rate: Callable[[str | None], Rate | None],
    ) -> None:
        self._clock = clock
        self._rested = rested
        self._observations = Observations(database, estimator)
        self._outcomes = Outcomes(database, estimator, rate=rate)
        self._refinements = Refinements(database, estimator, clock)
        self._is_waiting = False

    async def run(self) -> None:
        while True:
            rested = self._rested.next()
            try:
                await self.send()
                self._is_waiting = False
            except (StorageFailed, Away) as error:
                # What the estimator has already and is not marked is sent again; it knows calls by their names.
                self._note(error)
            except Exception as error:
                # A mistake of ours in one of them: the others must not wait for the next process.
                log.error("outbox failed", exc_info=error)
            await rung_or_over(rested, self._clock.sleep_s(PERIOD_S))

    async def send(self) -> None:
        """All that waits. A batch's observations come first: its outcome and its refined quote rest on them."""
        await self._observations.send()
        await self._outcomes.send()
        await self._refinements.ask()

    def _note(self, error: Exception) -> None:
        """Once for each time that it is away, not every two seconds."""
        if not self._is_waiting:
            log.warning("observations wait", error=str(error))
        self._is_waiting = True
