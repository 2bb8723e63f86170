"""The test's side of mortal.py: a server whose lives begin in a fifth of a second and end where the test says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mortal import Doom, Life
from servers import END_MAX_S, START_MAX_S, NotServing, Server

MORTAL = Path(__file__).with_name("mortal.py")


@dataclass
class MortalServer(Server):
    """Started like any other; `begin` and `died` are for lives that end before or without being killed from here."""

    pid: int | None = None

    async def start(self) -> None:
        await self.begin()
        await self.serving()

    async def begin(self, doom: Doom | None = None) -> None:
        """Until the process is there, and no further."""
        assert self.pid is None, "one life at a time"
        stdin = await self._parent()
        stdin.write(Life(environment={**self.environment}, doom=doom).as_line())
        self.pid = (await self._line())["pid"]

    async def serving(self) -> None:
        self.announced = await self._line()
        if "ended" in self.announced:
            self.pid = None
            raise NotServing(self.log.read_text())

    async def died(self) -> None:
        """Until it has ended itself."""
        assert await self._ended() == -signal.SIGKILL, self.log.read_text()

    async def stop(self) -> int:
        code = await super().stop()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(END_MAX_S):
            await self.process.wait()
        return code

    async def _end(self, number: signal.Signals) -> int:
        if self.pid is None:
            return 0
        os.kill(self.pid, number)
        return await self._ended()

    async def _ended(self) -> int:
        while "ended" not in (line := await self._line()):
            pass
        self.pid = None
        return line["ended"]

    async def _parent(self) -> asyncio.StreamWriter:
        if self.process is None:
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(MORTAL),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                )
        assert self.process.stdin is not None
        return self.process.stdin

    async def _line(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(START_MAX_S + END_MAX_S):
            return json.loads(await self.process.stdout.readline())
