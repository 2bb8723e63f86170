"""A backup in the middle of a batch, put back after the server was killed: told to watchers, held, and finished."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
from evidence import Stats, last_seen, rows, until
from parley.client import BatchClient
from parley.v1 import batch_pb2, orchestrator_pb2
from servers import Pair, Sandbox, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

CONVERSATIONS = 12
CONCURRENCY = 3


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Somebody on the servers' machine, with the command."""

    pair: Pair
    folder: Path

    async def run(self, *arguments: str) -> Done:
        environment = {
            **os.environ,
            "PARLEY_ORCHESTRATOR_DATABASE": str(self.pair.database),
            "PARLEY_ESTIMATOR_DATABASE": self.pair.estimator.environment["PARLEY_ESTIMATOR_DATABASE"],
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "parley.cli", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())


@dataclass(frozen=True)
class Story:
    """What was seen on the way; the tests look at it."""

    operator: Operator
    backup: Done
    refused: Done
    # The batch at its end, before all was taken back.
    first_end: batch_pb2.Batch
    restore: Done
    # What a watcher with a token from before the restore is told first.
    told: orchestrator_pb2.WatchBatchResponse
    before_resume: tuple[Stats, Stats]
    second_end: batch_pb2.Batch


async def first_message(client: BatchClient, name: str, token: str = "") -> orchestrator_pb2.WatchBatchResponse:
    async with aclosing(client.watch(name, resume_token=token)) as messages:
        return await anext(messages)


async def last_token(client: BatchClient, name: str) -> str:
    token = ""
    async with aclosing(client.watch(name)) as messages:
        async for message in messages:
            token = message.resume_token
    return token


async def begun(client: BatchClient, sandbox: Sandbox) -> str:
    """A batch of which some conversations are made, and as many as may be are at the provider, which says nothing."""
    name = (await client.create(spec(CONVERSATIONS, concurrency=CONCURRENCY))).name
    await until(sandbox, lambda stats: stats["calls_completed"] >= 2)
    await sandbox.change(paused=True)
    await until(sandbox, lambda stats: stats["in_flight"] == CONCURRENCY)
    return name


async def restored(operator: Operator) -> Done:
    await operator.pair.orchestrator.kill()
    await operator.pair.estimator.stop()
    done = await operator.run("restore", str(operator.folder), "--json")
    await operator.pair.estimator.start()
    await operator.pair.restart()
    return done


@pytest.fixture(name="story", scope="module")
async def told_story(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Story]:
    folder = tmp_path_factory.mktemp("backup")
    async with (
        running_sandbox(folder, "--speed-up", "400", "--tokens-mean", "200") as sandbox,
        running_pair(folder, sandbox) as pair,
        pair.client() as client,
    ):
        operator = Operator(pair, folder / "backups")
        name = await begun(client, sandbox)
        backup = await operator.run("backup", str(operator.folder), "--json")
        await sandbox.change(paused=False)
        first_end = await last_seen(client, name)
        token = await last_token(client, name)
        refused = await operator.run("restore", str(operator.folder))
        restore = await restored(operator)
        told = await first_message(client, name, token)
        stats = await sandbox.stats()
        await operator.run("verify")
        before_resume = (stats, await sandbox.stats())
        await client.resume(name)
        second_end = await last_seen(client, name)
        yield Story(operator, backup, refused, first_end, restore, told, before_resume, second_end)


def test_the_backup_is_of_the_middle(story: Story) -> None:
    assert story.backup.code == 0, story.backup.err
    files = [json.loads(line)["file"] for line in story.backup.out.splitlines()]
    assert files == [f"{story.operator.folder}/{name}.db" for name in ("orchestrator", "estimator")]
    states = rows(story.operator.folder / "orchestrator.db", "SELECT state, count(*) n FROM conversations GROUP BY 1")
    counted = {row["state"]: row["n"] for row in states}
    assert counted["RUNNING"] == CONCURRENCY
    assert counted["GENERATED"] >= 2
    assert sum(counted.values()) == CONVERSATIONS
    # The backup disturbed nobody.
    assert story.first_end.state == batch_pb2.BATCH_STATE_SUCCEEDED


def test_beneath_running_servers_nothing_is_restored(story: Story) -> None:
    assert story.refused.code == 3
    assert "is in use by a running server (process " in story.refused.err


def test_a_restore_says_what_it_replaced_and_what_waits(story: Story) -> None:
    assert story.restore.code == 0, story.restore.err
    first, second = map(json.loads, story.restore.out.splitlines())
    assert first["file"] == str(story.operator.pair.database)
    assert first["held"] == [story.first_end.name.removeprefix("batches/")]
    kept = Path(first["kept"])
    assert rows(kept, "SELECT state FROM batches") == [{"state": "SUCCEEDED"}]
    assert Path(second["kept"]).exists()


def test_a_watcher_from_before_is_told_that_all_is_new(story: Story) -> None:
    assert story.told.reset
    assert story.told.batch.state == batch_pb2.BATCH_STATE_PAUSED
    assert story.told.batch.last_event < story.first_end.last_event
    (hold,) = story.told.batch.holds
    assert hold.reason == batch_pb2.HOLD_REASON_USER
    assert hold.message.startswith("Restored from a backup of ")
    assert hold.next_step == "Resume goes on."


def test_nothing_is_paid_before_a_resume(story: Story) -> None:
    before, after = story.before_resume
    assert after["calls_started"] == before["calls_started"]
    assert story.told.batch.spend.calls_possibly_spent == CONCURRENCY


def test_resume_finishes_what_the_backup_had(story: Story) -> None:
    assert story.second_end.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert story.second_end.counts.deliverable == CONVERSATIONS


async def test_the_restored_file_and_the_backup_agree_with_their_ledgers(story: Story) -> None:
    for arguments in (["verify"], ["verify", str(story.operator.folder)]):
        done = await story.operator.run(*arguments)
        assert (done.code, done.err) == (0, ""), done.out
        orchestrator, estimator = done.out.splitlines()
        assert ": all agrees in 1 batch, 12 conversations, " in orchestrator
        assert estimator.endswith("estimator.db: it is whole")


async def test_verify_finds_what_was_changed_behind_the_ledger(story: Story, tmp_path: Path) -> None:
    assert (await story.operator.run("backup", str(tmp_path))).code == 0
    overwritten = tmp_path / "orchestrator.db"
    overwritten.write_bytes(overwritten.read_bytes()[:20_000])
    done = await story.operator.run("verify", str(tmp_path))
    assert done.code == 1
    assert "is damaged" in done.out
    assert "next: `parley restore FOLDER` brings a backup back" in done.err
