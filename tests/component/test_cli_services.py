"""`parley up` and `parley down` with the real services, on free ports and in a home of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from client_fixtures import Done, parley

pytestmark = pytest.mark.anyio

NAMES = ("sandbox", "estimator", "orchestrator")


class Machine:
    """Three free ports and a home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        ports = free_ports(3)
        self.environment = {
            "PARLEY_HOME": str(home),
            **{f"PARLEY_{name.upper()}_LISTEN": f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)},
        }
        self.target = self.environment["PARLEY_ORCHESTRATOR_LISTEN"]

    async def parley(self, *arguments: str) -> Done:
        return await parley(*arguments, target=self.target, **self.environment)

    async def up(self) -> dict[str, int | None]:
        """The process that each service was started as; None for one that ran before."""
        done = await self.parley("up", "--json")
        assert done.code == 0, done.err
        return {line["service"]: line["pid"] for line in map(json.loads, done.out.splitlines())}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(name="machine")
async def one_machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "home")
    yield machine
    await machine.parley("down")


async def test_up_starts_what_is_missing_and_down_ends_it(machine: Machine) -> None:
    first = await machine.up()
    assert set(first) == set(NAMES)
    assert all(first.values())
    assert (await machine.parley("list")).code == 0
    assert await machine.up() == dict.fromkeys(NAMES)
    down = await machine.parley("down", "--json")
    assert set(json.loads(down.out)["ended"]) == set(NAMES)
    assert (await machine.parley("list")).code == 4
    assert not any(psutil.pid_exists(pid) for pid in first.values() if pid)
    assert "nothing that `parley up` started is running" in (await machine.parley("down")).out


async def test_up_starts_again_only_what_has_ended(machine: Machine) -> None:
    first = await machine.up()
    estimator = first["estimator"]
    assert estimator is not None
    os.kill(estimator, 9)
    second = await machine.up()
    assert [name for name, pid in second.items() if pid] == ["estimator"]


async def test_a_service_that_ends_at_its_start_is_told_with_its_log(machine: Machine) -> None:
    host, _, port = machine.environment["PARLEY_ESTIMATOR_LISTEN"].rpartition(":")
    # Somebody else's program listens there.
    with closing(socket.create_server((host, int(port)))):
        done = await machine.parley("up")
    assert done.code == 4
    assert "error: The estimator ended at its start (exit code 2)." in done.err
    assert "another process listens there" in done.err
    assert f"next: The whole log is {machine.home}/estimator.log." in done.err


async def test_down_leaves_a_process_that_only_has_the_old_number(machine: Machine) -> None:
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    machine.home.mkdir()
    record = {"pid": stranger.pid, "module": "orchestrator_service"}
    (machine.home / "orchestrator.pid").write_text(json.dumps(record))
    done = await machine.parley("down")
    assert "nothing" in done.out
    assert stranger.returncode is None
    assert "orchestrator.pid" not in os.listdir(machine.home)
    await stranger.communicate(b"\n")
    assert stranger.returncode == 0


async def test_the_demo_exports_the_spec_and_ends_what_it_started(machine: Machine, tmp_path: Path) -> None:
    made = await machine.parley("init", str(tmp_path / "mine"))
    assert made.code == 0
    out = tmp_path / "out"
    done = await machine.parley("demo", "--spec", str(tmp_path / "mine" / "spec.yaml"), "--out", str(out))
    assert done.code == 0, done.err
    (file,) = [path for path in os.listdir(out) if path.endswith(".jsonl")]
    rows = (out / file).read_text().splitlines()
    assert len(rows) == 9
    assert json.loads(rows[0])["messages"][0]["role"] == "system"
    assert f"The dataset is {out}/{file}." in done.err
    assert "succeeded  9/9 done" in done.out
    assert (await machine.parley("list")).code == 4
