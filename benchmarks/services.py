"""The real processes: a sandbox, an estimator and an orchestrator with its database on disk, and what they use up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

START_MAX_S = 60.0
END_MAX_S = 60.0
MIB = 1024 * 1024


class NotServing(Exception):
    """A process ended before it served; the text is what it wrote to stderr."""


@dataclass(frozen=True)
class Service:
    process: psutil.Process
    # The JSON line that it wrote when it served.
    announced: Mapping[str, Any]

    def cpu_s(self) -> float:
        """User and system time of all its threads so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    def peak_mib(self) -> float:
        """The most memory that it ever held: the kernel's own high-water mark (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def held_mib(self) -> float:
        return self.process.memory_info().rss / MIB


@dataclass(frozen=True)
class Services:
    sandbox: Service
    estimator: Service
    orchestrator: Service
    folder: Path

    @property
    def address(self) -> str:
        return f"unix:{self.folder}/o.sock"

    @property
    def database(self) -> Path:
        return self.folder / "orchestrator.db"

    @property
    def sandbox_url(self) -> str:
        return self.sandbox.announced["url"]

    async def forget_prompts(self) -> None:
        """The sandbox answers a prompt that it saw before differently; what comes next meets it as new."""
        request = Request(f"{self.sandbox_url}/stats/reset", method="POST")
        await asyncio.to_thread(lambda: urlopen(request).close())


@asynccontextmanager
async def running(
    folder: Path, *sandbox_options: str, concurrency: int, settings: Mapping[str, str] | None = None
) -> AsyncGenerator[Services]:
    """`settings` are further environment variables of the orchestrator."""
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as stack:
        options = ("-m", "orchestrator_service.sandbox", "--port", "0", *sandbox_options)
        sandbox = await stack.enter_async_context(_running(folder / "sandbox.log", options, {}))
        environment = {
            "PARLEY_ESTIMATOR_LISTEN": f"unix:{folder}/e.sock",
            "PARLEY_ESTIMATOR_DATABASE": f"{folder}/estimator.db",
        }
        estimator = await stack.enter_async_context(
            _running(folder / "estimator.log", ("-m", "estimator_service"), environment)
        )
        environment = {
            "PARLEY_ORCHESTRATOR_LISTEN": f"unix:{folder}/o.sock",
            "PARLEY_ORCHESTRATOR_DATABASE": f"{folder}/orchestrator.db",
            "PARLEY_ESTIMATOR": estimator.announced["address"],
            "PARLEY_MAX_CONCURRENCY": str(concurrency),
            "PARLEY_REQUESTS_PER_MINUTE": "10000000",
            "ANTHROPIC_BASE_URL": sandbox.announced["url"],
            "ANTHROPIC_API_KEY": "sandbox",
            **(settings or {}),
        }
        orchestrator = await stack.enter_async_context(
            _running(folder / "orchestrator.log", ("-m", "orchestrator_service"), environment)
        )
        yield Services(sandbox, estimator, orchestrator, folder)


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncGenerator[None]:
    """Something that goes on until the block has ended."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


@asynccontextmanager
async def _running(log: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> AsyncGenerator[Service]:
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_MAX_S):
            line = await process.stdout.readline()
        if not line:
            raise NotServing(await asyncio.to_thread(log.read_text))
        yield Service(psutil.Process(process.pid), json.loads(line))
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(END_MAX_S):
            await process.wait()
