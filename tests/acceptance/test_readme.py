"""What the README shows works as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from servers import Pair, running_pair, running_sandbox

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LISTEN = "127.0.0.1:0"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncGenerator[Pair]:
    async with (
        running_sandbox(tmp_path) as sandbox,
        running_pair(tmp_path, sandbox, PARLEY_ORCHESTRATOR_LISTEN=LISTEN) as pair,
    ):
        yield pair


def block(language: str, *, holding: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(text for text in blocks if holding in text)


async def run(*arguments: str, folder: Path, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_python_example_makes_and_exports_conversations(pair: Pair, tmp_path: Path) -> None:
    address = pair.orchestrator.announced["address"]
    example = block("python", holding="BatchClient")
    shown = await run(sys.executable, "-c", example, folder=tmp_path, PARLEY_ORCHESTRATOR=address)
    assert shown.splitlines()[-1] == "3 of 3"
    [dataset] = (tmp_path / "out").iterdir()
    assert len(dataset.read_text().splitlines()) == 3


async def test_the_shell_example_starts_a_batch_by_reflection(pair: Pair, tmp_path: Path) -> None:
    address = pair.orchestrator.announced["address"]
    example = block("sh", holding="buf curl").replace("127.0.0.1:7460", address)
    example = example.replace(".venv/bin/buf", str(Path(sys.executable).parent / "buf"))
    assert '"displayName": "By hand"' in await run("sh", "-c", example, folder=tmp_path)


def test_every_command_of_the_readme_exists() -> None:
    commands = set(re.findall(r"(?<![\w/.-])parley ([a-z]+)\b", README)) - {"command"}
    from parley.cli.app import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands <= known, commands - known
