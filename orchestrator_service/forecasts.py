"""Where running batches are heading: the estimator is asked as conversations end, at a bounded rate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from orchestrator_service.convert.course import forecast_request, stored_forecast
from orchestrator_service.convert.forecast import is_plausible
from orchestrator_service.domain.batch import BatchState
from orchestrator_service.engine.clock import Clock
from orchestrator_service.quotes import Away, Estimator, Unfit
from orchestrator_service.storage import course, estimates
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.estimates import UnderWay
from orchestrator_service.storage.writer import StorageFailed

PERIOD_S = 1.0
# Of one batch: at most this often, and then only where something ended or changed, and else this seldom.
SOONEST_S = 2.0
LATEST_S = 10.0
# An answer that took long is one that cost its maker much: of a batch's time it may take a twentieth.
PAUSE_FACTOR = 20
# Over all batches: questions at the same time, and those of one round; the others come in the next one.
IN_FLIGHT_MAX = 2
ROUND_MAX = 20

log = structlog.get_logger()


@dataclass(frozen=True)
class _Asked:
    """The last time that a batch was asked for."""

    time_s: float
    seen: UnderWay
    is_fresh: bool
    # How long the answer took; 0 where there was none.
    took_s: float

    @property
    def soonest_s(self) -> float:
        return max(SOONEST_S, PAUSE_FACTOR * self.took_s)

    @property
    def latest_s(self) -> float:
        return max(LATEST_S, self.soonest_s)


class Forecasts:
    """A batch never waits for it: without an answer its last forecast stays, and says that it is stale."""

    def __init__(self, database: Database, estimator: Estimator, clock: Clock, *, first_after_s: float = 0.0) -> None:
        """`first_after_s`: so long the quote of a batch stands; one that is made by then needs no forecast."""
        self._database = database
        self._estimator = estimator
        self._clock = clock
        self._first_after_s = first_after_s
        self._seen_s: dict[str, float] = {}
        self._asked: dict[str, _Asked] = {}

    async def run(self) -> None:
        while True:
            try:
                await self.refresh()
            except StorageFailed as error:
                log.warning("forecasts wait", error=str(error))
            await self._clock.sleep_s(PERIOD_S)

    async def refresh(self) -> None:
        """Asks for those whose turn it is, the longest waiting first."""
        found = await self._database.read(estimates.under_way)
        due = deque(self._due(found))
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT_MAX):
                group.create_task(self._ask_all(due))

    def _due(self, found: Sequence[UnderWay]) -> Sequence[UnderWay]:
        # Of what is under way no more nothing is kept.
        self._asked = {seen.id: self._asked[seen.id] for seen in found if seen.id in self._asked}
        now_s = self._clock.monotonic_s()
        self._seen_s = {seen.id: self._seen_s.get(seen.id, now_s) for seen in found}
        waited_s = {seen.id: now_s - self._asked[seen.id].time_s for seen in found if seen.id in self._asked}
        known = [seen for seen in found if now_s - self._seen_s[seen.id] >= self._first_after_s]
        due = [seen for seen in known if self._is_due(seen, waited_s.get(seen.id))]
        return sorted(due, key=lambda seen: waited_s.get(seen.id, now_s), reverse=True)[:ROUND_MAX]

    def _is_due(self, seen: UnderWay, waited_s: float | None) -> bool:
        if waited_s is None:
            # One that is held since before this process was started has its forecast.
            return seen.state != BatchState.PAUSED
        asked = self._asked[seen.id]
        if waited_s < asked.latest_s:
            return waited_s >= asked.soonest_s and seen != asked.seen
        return seen.state != BatchState.PAUSED or not asked.is_fresh or seen != asked.seen

    async def _ask_all(self, due: deque[UnderWay]) -> None:
        while due:
            seen = due.popleft()
            is_fresh, began_s = False, self._clock.monotonic_s()
            try:
                is_fresh = await self._ask(seen)
            except Away as error:
                # Nobody is there to ask for the others.
                due.clear()
                await self._stale(seen.id, error, with_all=True)
            except StorageFailed as error:
                log.warning("forecast not kept", batch=seen.id, error=str(error))
            except Exception as error:
                # A mistake of ours over one batch: the others must not wait for the next process.
                log.error("forecast failed", batch=seen.id, exc_info=error)
            now_s = self._clock.monotonic_s()
            self._asked[seen.id] = _Asked(now_s, seen, is_fresh, took_s=now_s - began_s if is_fresh else 0.0)

    async def _stale(self, batch: str, error: Exception | str, *, with_all: bool = False) -> None:
        before = self._asked.get(batch)
        if before is None or before.is_fresh:
            # Said once for each time that it is away, not at every question.
            log.warning("forecast is stale", batch=batch, error=str(error))
        try:
            await self._database.write(estimates.mark_stale(batch, with_all=with_all))
        except StorageFailed as failure:
            log.warning("forecast not kept", batch=batch, error=str(failure))

    async def _ask(self, seen: UnderWay) -> bool:
        """Whether there is a new one. Raises Away where the estimator can't be reached."""
        now = await self._database.read(partial(course.read, batch=seen.id))
        if now is None:
            return True
        # Thousands of calls may have ended that are not at the estimator yet.
        request = await asyncio.to_thread(forecast_request, now, now_us=self._clock.now_us())
        try:
            forecast = await self._estimator.forecast(request)
        except (Unfit, Away) as error:
            if isinstance(error, Away) and not error.is_reachable:
                raise
            await self._stale(seen.id, error)
            return False
        if not is_plausible(forecast):
            await self._stale(seen.id, "the estimator's answer makes no sense")
            return False
        kept = stored_forecast(forecast, now_us=self._clock.now_us())
        await self._database.write(estimates.keep_forecast(seen.id, run=seen.run, forecast=kept))
        return True
