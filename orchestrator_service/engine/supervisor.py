"""Owns the runners: starts one for every batch with work, at the start too, and drains them at the end."""

from __future__ import annotations

import asyncio

import structlog

from orchestrator_service.domain.batch import HoldReason
from orchestrator_service.engine.runner import Runner, Tools
from orchestrator_service.storage import batches
from orchestrator_service.storage.recovery import recover, recover_batch
from orchestrator_service.storage.transitions import NewHold
from orchestrator_service.storage.verbs import hold_batch
from orchestrator_service.storage.writer import StorageFailed

RETRY_MIN_S = 1.0
RETRY_MAX_S = 60.0

# So often in a row may a batch bring its runner down.
FAILURES_MAX = 3
_BROKEN = NewHold(HoldReason.TOO_MANY_FAILURES, f"The engine failed {FAILURES_MAX} times on this batch; see its log.")

log = structlog.get_logger()


class Supervisor:
    """The engine's seam: start, ensure_running, stop. Work comes from storage, never from a call."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._runners: dict[str, Runner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    @property
    def stopping(self) -> bool:
        return self._stopping

    async def start(self) -> None:
        """Puts in order what the last process left, and goes on with it."""
        recovered = await self._tools.database.write(recover(now_us=self._tools.clock.now_us()))
        active = await self._tools.database.read(batches.active)
        log.info("recovered", under_way=recovered, active=len(active))
        for batch in active:
            self.ensure_running(batch)

    def ensure_running(self, batch: str) -> None:
        """The batch may have work, or its settings changed."""
        if self._stopping:
            return
        runner = self._runners.get(batch)
        if runner is not None:
            runner.wake()
            return
        self._runners[batch] = Runner(batch, self._tools)
        self._tasks[batch] = asyncio.create_task(self._run(batch), name=f"runner {batch}")

    def limit_wait_s(self, batch: str) -> float | None:
        """About how long until the rate limit lets the batch's next call through; None where none waits for it."""
        return self._tools.limiter.wait_s(batch) if batch in self._runners else None

    async def stop(self, *, drain_s: float) -> None:
        """Starts nothing more; calls in flight have `drain_s` to end, then they are given up and possibly spent."""
        self._stopping = True
        for runner in self._runners.values():
            runner.stop()
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _done, late = await asyncio.wait(tasks, timeout=drain_s)
        if late:
            log.warning("drain ran out", batches=len(late))
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, batch: str) -> None:
        delay_s, failures = RETRY_MIN_S, 0
        try:
            while not self._stopping:
                runner, began_s = self._runners[batch], self._tools.clock.monotonic_s()
                try:
                    await runner.run()
                except Exception as error:
                    if self._tools.clock.monotonic_s() - began_s > RETRY_MAX_S:
                        # It did its work for a while: not the same failure over and over.
                        delay_s, failures = RETRY_MIN_S, 0
                    log.error("runner failed", batch=batch, exc_info=error, again_in_s=delay_s)
                    failures += 1
                    await self._put_in_order(batch, held=failures >= FAILURES_MAX)
                    await self._tools.clock.sleep_s(delay_s)
                    delay_s = min(RETRY_MAX_S, 2 * delay_s)
                    self._runners[batch] = Runner(batch, self._tools)
                    continue
                # A wake between the runner's last look and here must not be lost.
                if not runner.has_news:
                    return
        finally:
            self._runners.pop(batch, None)
            self._tasks.pop(batch, None)
            self._tools.rested.ring()

    async def _put_in_order(self, batch: str, *, held: bool) -> None:
        """Tried until the database takes it: otherwise nobody would look after the batch, but for the next process."""
        while not self._stopping:
            now_us = self._tools.clock.now_us()
            try:
                await self._tools.database.write(recover_batch(batch, now_us=now_us))
                # What was in flight is no longer: a batch that waits for its share of a day's budget looks again.
                self._tools.settled.ring()
                if held:
                    # Each failure may pay for calls whose answers are lost: a person must look.
                    await self._tools.database.write(hold_batch(batch, _BROKEN, now_us=now_us))
                return
            except StorageFailed as error:
                log.error("database refuses, trying again", batch=batch, error=str(error))
                await self._tools.clock.sleep_s(RETRY_MIN_S)
