"""How quoted batches ended, on its way to the estimator: told once each, so that it scores its quotes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from orchestrator_service.convert.course import outcome_request
from orchestrator_service.domain.ledger import Rate
from orchestrator_service.domain.outcome import OutcomeState
from orchestrator_service.quotes import Away, Estimator, Unfit
from orchestrator_service.storage import outcomes
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.outcomes import Nothing, NotYet, Outcome

PAGE = 20

log = structlog.get_logger()


class Outcomes:
    def __init__(self, database: Database, estimator: Estimator, *, rate: Callable[[str | None], Rate | None]) -> None:
        self._database = database
        self._estimator = estimator
        self._rate = rate

    async def send(self) -> None:
        """Each that waits, once. Raises Away where the estimator can't be reached."""
        after = ""
        while found := await self._database.read(partial(outcomes.waiting, after=after, limit=PAGE)):
            for batch in found:
                await self._send(batch)
            after = found[-1]

    async def _send(self, batch: str) -> None:
        match await self._database.read(partial(outcomes.read, batch=batch)):
            case NotYet():
                pass
            case Nothing():
                await self._database.write(outcomes.mark(batch, OutcomeState.NONE))
            case outcome:
                state = await self._told(outcome)
                if state is not OutcomeState.WAITING:
                    await self._database.write(outcomes.mark(batch, state))

    async def _told(self, outcome: Outcome) -> OutcomeState:
        # Thousands of calls may have another price than the quote's.
        request = await asyncio.to_thread(outcome_request, outcome, self._rate)
        try:
            await self._estimator.conclude(request)
        except Unfit as error:
            log.error("outcome refused for good", batch=outcome.batch, quote=outcome.quote, error=str(error))
            return OutcomeState.REFUSED
        except Away as error:
            if not error.is_reachable:
                raise
            # It stumbles over this one: the others must not wait for it.
            log.warning("outcome waits", batch=outcome.batch, error=str(error))
            return OutcomeState.WAITING
        return OutcomeState.SENT
