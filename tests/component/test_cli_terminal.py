"""The command on a terminal: it asks before it spends, and draws in place."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import sys
import termios
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from client_fixtures import QUOTE, Told, batch, plain_environment, quoted, serving, watched
from parley.v1 import batch_pb2, orchestrator_pb2

pytestmark = pytest.mark.anyio

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLUMNS = 80
WAIT_MAX_S = 20.0


class Terminal:
    """The command with a terminal of 80 columns before it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self._readable = asyncio.Event()
        self.raw = b""
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            got = os.read(self._master, 65_536)
        except OSError:
            # The other end is gone: the command has ended.
            got = b""
        if not got:
            asyncio.get_running_loop().remove_reader(self._master)
        self.raw += got
        self._readable.set()

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw.decode()).replace("\r\n", "\n")

    async def shows(self, text: str) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while text not in self.text:
                self._readable.clear()
                await self._readable.wait()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_MAX_S):
            return await self.process.wait()


@asynccontextmanager
async def terminal(*arguments: str, target: str) -> AsyncGenerator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "parley.cli", *arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        # Ctrl-C reaches whoever has the terminal: this makes it the command's own.
        preexec_fn=take_terminal,
        env=plain_environment(PARLEY_ORCHESTRATOR=target),
    )
    os.close(slave)
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


def take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(name="spec")
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text("name: Plants\ntiers:\n  - id: scenario\n    count: 90\n")
    return str(path)


def ready() -> Told:
    end = watched(batch(batch_pb2.BATCH_STATE_SUCCEEDED, done=90), 2, last=True)
    return Told(quotes=deque([quoted(sandbox=False)]), watches=deque([[watched(batch(), 1), end]]))


async def test_start_asks_before_it_spends_and_takes_a_no(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("Spend about $3.28 and start it? [y/N]")
        shown.type("n\n")
        assert await shown.ended() == 0
        await shown.shows("Nothing was started.")
    assert told.asked(orchestrator_pb2.CreateBatchRequest) == []


async def test_a_yes_starts_the_quoted_batch_and_draws_it_in_place(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("[y/N]")
        shown.type("y\n")
        await shown.shows("next: parley export plants1")
        assert await shown.ended() == 0
    assert told.asked(orchestrator_pb2.CreateBatchRequest)[0].quote == QUOTE
    assert "90/90  0 failed  0 in flight" in shown.text
    # In place: the cursor goes up before the panel is drawn again.
    assert b"\x1b[1A" in shown.raw
    assert max(len(line) for line in re.split("[\r\n]", shown.text)) <= COLUMNS


async def test_ctrl_c_at_the_question_starts_nothing(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("[y/N]")
        shown.type("\x03")
        assert await shown.ended() == 130
        await shown.shows("Nothing was started.")
    assert told.asked(orchestrator_pb2.CreateBatchRequest) == []


async def test_ctrl_c_while_watching_says_how_to_go_on(spec: str) -> None:
    told = ready()
    told.watches = deque([[watched(batch(), 1)]])
    async with serving(told) as target, terminal("start", spec, "--yes", target=target) as shown:
        await shown.shows("34/90")
        shown.type("\x03")
        await shown.shows("You stopped watching; the batch plants1 goes on.")
        assert await shown.ended() == 130
    assert told.asked(orchestrator_pb2.CancelBatchRequest) == []
