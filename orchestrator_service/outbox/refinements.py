"""Quotes made anew at a checkpoint, from what a batch took so far: asked for until they are there, once each."""

from __future__ import annotations

from functools import partial

import structlog
from parley.v1 import quote_pb2

from orchestrator_service.convert.course import is_plausible_quote, refined_detail, refined_request
from orchestrator_service.engine.clock import Clock
from orchestrator_service.quotes import Away, Estimator, Unfit
from orchestrator_service.storage import course, estimates
from orchestrator_service.storage.course import Course
from orchestrator_service.storage.database import Database

# So many a round, for each may take seconds, and observations wait meanwhile.
ROUND_MAX = 5

log = structlog.get_logger()


class Refinements:
    def __init__(self, database: Database, estimator: Estimator, clock: Clock) -> None:
        self._database = database
        self._estimator = estimator
        self._clock = clock
        # The last one that the estimator stumbled over: the others come first.
        self._put_off: set[str] = set()

    async def ask(self) -> None:
        """For the batches that hold at a checkpoint. Raises Away where the estimator can't be reached."""
        limit = ROUND_MAX + len(self._put_off)
        found = await self._database.read(partial(estimates.at_checkpoint, limit=limit))
        self._put_off &= set(found)
        for batch in sorted(found, key=lambda batch: batch in self._put_off)[:ROUND_MAX]:
            self._put_off.discard(batch)
            held = await self._database.read(partial(course.read, batch=batch))
            if held is not None:
                await self._ask(batch, held)

    async def _ask(self, batch: str, held: Course) -> None:
        at = estimates.checkpoint(held.row)
        try:
            quote = await self._estimator.refine(refined_request(held))
        except Unfit as error:
            log.error("no refined quote", batch=batch, error=str(error))
            await self._database.write(estimates.give_up_refined(batch, at=at))
            return
        except Away as error:
            if not error.is_reachable:
                raise
            log.warning("refined quote waits", batch=batch, error=str(error))
            self._put_off.add(batch)
            return
        await self._keep(batch, quote, held, at=at)

    async def _keep(self, batch: str, quote: quote_pb2.Quote, held: Course, *, at: str) -> None:
        if not is_plausible_quote(quote):
            log.error("no refined quote", batch=batch, error="the estimator's answer makes no sense", quote=quote.name)
            await self._database.write(estimates.give_up_refined(batch, at=at))
            return
        fact = estimates.keep_refined(
            batch, at=at, quote=quote.name, detail=refined_detail(quote, held), now_us=self._clock.now_us()
        )
        await self._database.write(fact)
        log.info("quote refined", batch=batch, quote=quote.name)
