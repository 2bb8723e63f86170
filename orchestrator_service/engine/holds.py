"""Holds that clear by themselves: a spend limit at the time that the provider told, a day's budget at midnight."""

from __future__ import annotations

from functools import partial

import structlog

from orchestrator_service.domain.budget import DailyBudgets
from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.supervisor import Supervisor
from orchestrator_service.storage import budgets
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.writer import StorageFailed

# Asked this often, not slept until: the wall clock may jump.
PERIOD_S = 1.0

log = structlog.get_logger()


class HoldSweep:
    def __init__(self, database: Database, supervisor: Supervisor, *, daily: DailyBudgets, clock: Clock) -> None:
        self._database = database
        self._supervisor = supervisor
        self._daily = daily
        self._clock = clock

    async def run(self) -> None:
        while True:
            try:
                await self.sweep()
            except StorageFailed as error:
                log.warning("holds not looked at", error=str(error))
            await self._clock.sleep_s(PERIOD_S)

    async def sweep(self) -> None:
        """Lets those batches go on whose holds are over."""
        now_us = self._clock.now_us()
        if not await self._database.read(partial(budgets.due, daily=self._daily, now_us=now_us)):
            return
        for batch in await self._database.write(budgets.clear_due(daily=self._daily, now_us=now_us)):
            log.info("hold cleared", batch=batch)
            self._supervisor.ensure_running(batch)
