"""Settled calls on their way to the estimator: each is sent until it is taken, also after a restart."""

from __future__ import annotations

from functools import partial

import structlog
from parley.v1 import quote_pb2

from orchestrator_service.convert.workload import observation_of
from orchestrator_service.quotes import Estimator, QuoteGone, Unfit
from orchestrator_service.storage import ledger
from orchestrator_service.storage.database import Database

PAGE = 500
# Quotes that are known to be gone; asking for one more time does no harm.
GONE_MAX = 10_000

log = structlog.get_logger()


class Observations:
    """The ledger is the outbox: a call that was not observed yet is one to send."""

    def __init__(self, database: Database, estimator: Estimator) -> None:
        self._database = database
        self._estimator = estimator
        self._size = PAGE
        self._gone: set[str] = set()

    async def send(self) -> None:
        while await self.send_page():
            pass

    async def send_page(self) -> bool:
        """Whether there may be more to send at once."""
        rows = await self._database.read(partial(ledger.unobserved, limit=self._size))
        if not rows:
            return False
        try:
            await self._observe([observation_of(row) for row in rows])
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

    async def _observe(self, observations: list[quote_pb2.Observation]) -> None:
        """A quote that the estimator lost is left out: what a call took is worth as much without it."""
        while True:
            for observation in observations:
                if observation.quote in self._gone:
                    observation.quote = ""
            try:
                await self._estimator.observe(observations)
            except QuoteGone as error:
                named = {observation.quote for observation in observations} - {""}
                if not named:
                    raise
                self._forget(named & {error.quote} or named)
            else:
                return

    def _forget(self, quotes: set[str]) -> None:
        log.warning("observations go without their quote: the estimator has it no more", quotes=sorted(quotes)[:20])
        if len(self._gone) > GONE_MAX:
            self._gone.clear()
        self._gone |= quotes
