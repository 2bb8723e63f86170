"""Pure functions in a process of their own, so that what they compute keeps no caller of this one waiting.

A plain child that speaks through its pipes, for it is there in 0.1 s and holds 31 MB: those of `multiprocessing` import
the parent's main module with gRPC and take 0.55 s and 97 MB. Nothing is forked that has threads.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, cast

import structlog

from estimator_service import worker
from estimator_service.domain.errors import EstimatorError

# Beyond it callers are told to come again; the others wait for their turn, as long as their own deadline lets them.
WAITING_MAX = 64
# Far beyond the longest there is (2 s): who takes that long will never end.
RUN_MAX_S = 60.0
TRIES = 2
RETRY_AFTER_S = 1.0
ENVIRONMENT = {
    # Only elementwise arithmetic is done: more threads would only hold memory.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

log = structlog.get_logger(__name__)
T = TypeVar("T")


class WorkerLost(Exception):
    """The process ended, or did not end with its work, each time it was tried."""


class WorkerFailed(Exception):
    """The function failed by our own mistake; the text is its traceback."""


class Workers:
    """One worker process, started by the first run or by `warm`, replaced when it dies. One function at a time."""

    def __init__(self, *, waiting_max: int = WAITING_MAX, run_max_s: float = RUN_MAX_S) -> None:
        self._waiting_max = waiting_max
        self._run_max_s = run_max_s
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._warming: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        async with self._turn:
            await self._end()

    def warm(self, module: str) -> None:
        """Starts the process and imports the module there, beside whatever goes on here."""
        self._warming = asyncio.create_task(self._warm(module))

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What the function returns. Both must be picklable; a caller that leaves ends the work on its behalf."""
        request = worker.packed((function, arguments))
        if self._waiting >= self._waiting_max:
            told = f"The estimator is busy: {self._waiting} calls wait for their turn."
            raise EstimatorError("ESTIMATOR_UNAVAILABLE", told, retry_after_s=RETRY_AFTER_S)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return cast("T", _value(await self._replied(request)))
        finally:
            self._turn.release()

    async def _warm(self, module: str) -> None:
        try:
            await self.run(worker.load, module)
        except (WorkerLost, WorkerFailed, OSError) as error:
            # Every run tries again, and its caller hears of it.
            log.warning("worker not warmed", error=str(error))

    async def _replied(self, request: bytes) -> worker.Reply:
        for attempt in range(1, TRIES + 1):
            process = await self._ready()
            try:
                async with asyncio.timeout(self._run_max_s):
                    return await _exchange(process, request)
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
                await self._end()
                log.error("worker lost", exit_code=process.returncode, attempt=attempt, error=type(error).__name__)
            except asyncio.CancelledError:
                # Its answer would be taken for the next one's. Reaped by whoever needs the next process.
                _kill(process)
                raise
        raise WorkerLost(f"The worker process was lost {TRIES} times over the same work.")

    async def _ready(self) -> asyncio.subprocess.Process:
        process = self._process
        if process is not None and process.returncode is None and not _is_closing(process):
            return process
        await self._end()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            # With -m its classes would be those of __main__, which are others than ours.
            "-c",
            f"from {worker.__name__} import main; main()",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            # Ctrl-C goes to the whole group: this one ends when its parent does, after the last call is answered.
            process_group=0,
        )
        return self._process

    async def _end(self) -> None:
        """Kills it, for it holds nothing that could be lost, and waits until it is gone."""
        process = self._process
        if process is None:
            return
        _kill(process)
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()
        self._process = None


async def _exchange(process: asyncio.subprocess.Process, request: bytes) -> worker.Reply:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    await process.stdin.drain()
    (size,) = worker.HEADER.unpack(await process.stdout.readexactly(worker.HEADER.size))
    return pickle.loads(await process.stdout.readexactly(size))


def _value(reply: worker.Reply) -> object:
    match reply:
        case worker.Returned(value):
            return value
        case worker.Refused():
            raise reply.error()
        case worker.Failed(told):
            raise WorkerFailed(told)


def _is_closing(process: asyncio.subprocess.Process) -> bool:
    """Killed, and its end not noticed yet."""
    assert process.stdin is not None
    return process.stdin.is_closing()


def _kill(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is None:
        process.kill()
