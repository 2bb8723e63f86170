"""The real processes: a sandbox, an estimator and an orchestrator on loopback, started, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from parley.client import BatchClient
from parley.v1 import batch_pb2

START_MAX_S = 30.0
END_MAX_S = 30.0


class NotServing(Exception):
    """The process ended before it served; the text is what it wrote to stderr."""


@dataclass
class Server:
    """One process. `announced` is the JSON line that it wrote when it served."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    announced: dict[str, Any] = field(default_factory=dict[str, Any])
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.arguments,
                env={**os.environ, **self.environment},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_MAX_S):
            line = await self.process.stdout.readline()
        if not line:
            await self.process.wait()
            raise NotServing(self.log.read_text())
        self.announced = json.loads(line)

    async def kill(self) -> None:
        """kill -9: nothing is drained, nothing is said."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM, as an operator does; the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(END_MAX_S):
            return await self.process.wait()


@dataclass
class Sandbox:
    server: Server
    url: str

    async def stats(self, *, prompts: bool = False) -> dict[str, Any]:
        return await self._get(f"/stats{'?prompts=all' if prompts else ''}")

    async def change(self, **settings: object) -> None:
        """At run time: faults, api_key, paused, limits, ..."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/settings", json=settings) as response:
            assert response.status == 200, await response.text()

    async def _get(self, path: str) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return await response.json()


@dataclass
class Pair:
    """Both services. The orchestrator keeps its address and its database over restarts."""

    orchestrator: Server
    estimator: Server
    sandbox: Sandbox
    database: Path

    @property
    def address(self) -> str:
        return self.orchestrator.environment["PARLEY_ORCHESTRATOR_LISTEN"]

    def client(self) -> BatchClient:
        return BatchClient(self.address)

    async def restart(self) -> None:
        """After a kill or a stop: the same address, the same database."""
        await self.orchestrator.start()


@asynccontextmanager
async def running_sandbox(folder: Path, *options: str) -> AsyncGenerator[Sandbox]:
    """Answers at once with short texts unless the options say otherwise."""
    chosen = options or ("--zero-latency", "--tokens-mean", "200")
    server = Server(("-m", "orchestrator_service.sandbox", "--port", "0", *chosen), {}, folder / "sandbox.log")
    await server.start()
    try:
        yield Sandbox(server, server.announced["url"])
    finally:
        await server.stop()


@asynccontextmanager
async def running_pair(
    folder: Path, sandbox: Sandbox, launched: type[Server] = Server, /, **settings: str
) -> AsyncGenerator[Pair]:
    """`settings` are environment variables of the orchestrator, `launched` is how it is started."""
    estimator = Server(("-m", "estimator_service"), _estimator_environment(folder), folder / "estimator.log")
    await estimator.start()
    environment = {
        "PARLEY_ORCHESTRATOR_LISTEN": f"unix:{folder}/o.sock",
        "PARLEY_ORCHESTRATOR_DATABASE": str(folder / "orchestrator.db"),
        "PARLEY_ESTIMATOR": estimator.announced["address"],
        "PARLEY_REQUESTS_PER_MINUTE": "1000000",
        "ANTHROPIC_BASE_URL": sandbox.url,
        "ANTHROPIC_API_KEY": "sandbox",
        **settings,
    }
    orchestrator = launched(("-m", "orchestrator_service"), environment, folder / "orchestrator.log")
    await orchestrator.start()
    try:
        yield Pair(orchestrator, estimator, sandbox, Path(environment["PARLEY_ORCHESTRATOR_DATABASE"]))
    finally:
        await orchestrator.stop()
        await estimator.stop()


def _estimator_environment(folder: Path) -> dict[str, str]:
    return {
        "PARLEY_ESTIMATOR_LISTEN": f"unix:{folder}/e.sock",
        "PARLEY_ESTIMATOR_DATABASE": str(folder / "estimator.db"),
    }


def spec(count: int = 6, *, concurrency: int = 3, **fields: Any) -> batch_pb2.BatchSpec:
    """A small spec whose prompts all differ; `fields` are those of BatchSpec."""
    values = [batch_pb2.AxisValue(id=f"v{index}", text=f"Topic number {index}") for index in range(1000)]
    axes = [batch_pb2.Axis(id="topic", values=values), batch_pb2.Axis(id="mood", values=values)]
    prompt = batch_pb2.Prompt(text="Topic: {{ topic }}\nEmotional arc: {{ mood }}\nWrite 2 to 3 exchanges.")
    tier = batch_pb2.Tier(id="template", count=count, prompt=prompt, exchanges=batch_pb2.ExchangeRange(min=2, max=3))
    return batch_pb2.BatchSpec(name="Test", tiers=[tier], axes=axes, concurrency=concurrency, **fields)
