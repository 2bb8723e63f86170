"""Backup and restore: a whole copy of one moment, put back so that nothing spends and nothing replaced is lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from client_fixtures import parley
from damaged_files import change, cut, no_larger_files, of_first_version, overwrite
from storage_fixtures import Store, opened

from orchestrator_service import maintenance
from orchestrator_service.convert.rate import rate_from_json
from orchestrator_service.domain.ledger import FREE, Rate
from orchestrator_service.storage.backup import back_up
from orchestrator_service.storage.lock import locked
from orchestrator_service.storage.verify import contents, findings, opened_read_only
from orchestrator_service.storage.writer import Transaction

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Machine:
    """The files of both services and a folder for backups; the estimator's is any database of SQLite."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def database(self) -> Path:
        return self.home / "data" / "o.db"

    @property
    def estimator(self) -> Path:
        return self.home / "data" / "e.db"

    @property
    def folder(self) -> Path:
        return self.home / "backups" / "monday"

    @property
    def backup_file(self) -> Path:
        return self.folder / "orchestrator.db"

    def run(self, verb: str, *options: str) -> Said:
        files = ("--database", str(self.database), "--estimator", str(self.estimator))
        code = maintenance.main([verb, str(self.folder), *files, *options])
        out, err = self.capsys.readouterr()
        return Said(code, out, err)

    def write_estimator(self, said: str) -> None:
        change(self.estimator, "CREATE TABLE IF NOT EXISTS quotes (said TEXT)", "DELETE FROM quotes")
        change(self.estimator, f"INSERT INTO quotes VALUES ('{said}')")  # noqa: S608  our own text

    def estimator_says(self) -> str:
        return ask(self.estimator, "SELECT said FROM quotes")[0][0]

    def files(self) -> set[str]:
        return {path.name for path in self.database.parent.iterdir() if not path.name.endswith(".lock")}

    def kept(self, name: str = "o.db") -> Path:
        (path,) = self.database.parent.glob(f"{name}.replaced-*Z")
        return path


@pytest.fixture(name="machine")
def one_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    machine = Machine(tmp_path, capsys)
    machine.database.parent.mkdir()
    return machine


def ask(path: Path, statement: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def wrong(path: Path) -> list[str]:
    """What `verify` finds, prices aside: the fixtures have none."""
    with opened_read_only(path) as connection:
        found = [str(finding) for finding in findings(connection, rate_of=rate)]
    return [sentence for sentence in found if "no price of" not in sentence]


def rate(stored: str) -> Rate:
    return rate_from_json(stored) or FREE


def calls_in(path: Path) -> int:
    with opened_read_only(path) as connection:
        return contents(connection).calls


def as_killed(path: Path, target: Path) -> None:
    """The files as a killed server leaves them: the newest commits are beside the database."""
    target.parent.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{target}{suffix}")
    assert Path(f"{target}-wal").stat().st_size > 0


# Backup.


def enlarged(tx: Transaction) -> None:
    """So that a copy takes many steps."""
    tx.connection.exec_driver_sql("UPDATE store SET rate_card = ?", ("x" * 40_000_000,))


async def make_until(done: asyncio.Event, store: Store, batch: str) -> int:
    """Conversations, one after the other; how many."""
    for number in range(1, 2_000):
        if done.is_set():
            return number - 1
        await store.make(batch, number)
    raise AssertionError("the backup took longer than 2,000 conversations")


async def test_a_backup_beside_a_busy_writer_is_whole_and_of_one_moment(machine: Machine) -> None:
    async with opened(machine.database) as store:
        batch = await store.create({"template": 2_000})
        await store.write(enlarged)
        done = asyncio.Event()
        making = asyncio.create_task(make_until(done, store, batch))
        await asyncio.to_thread(back_up, machine.database, machine.backup_file)
        done.set()
        made = await making
        assert made > 1
        await store.check(batch)
    assert wrong(machine.backup_file) == []
    # What was committed while the steps were copied is in the file, and not in the copy.
    assert calls_in(machine.backup_file) < calls_in(machine.database) == made


def test_commits_between_the_steps_do_not_make_a_backup_begin_anew(machine: Machine) -> None:
    machine.write_estimator("then")
    change(machine.estimator, "PRAGMA journal_mode = WAL", "CREATE TABLE bulk AS SELECT zeroblob(20000000)")
    left: list[int] = []

    def commit(pages_left: int) -> None:
        assert pages_left < min(left, default=10**9), "it began anew"
        left.append(pages_left)
        machine.write_estimator("now")

    back_up(machine.estimator, machine.backup_file, stepped=commit)
    assert len(left) > 3
    assert ask(machine.backup_file, "SELECT said FROM quotes") == [("then",)]


async def test_a_backup_is_told_with_what_is_in_it(machine: Machine) -> None:
    async with opened(machine.database) as store:
        await store.make(await store.create())
        machine.write_estimator("quotes")
        said = machine.run("backup")
        generation = store.database.generation
    first, second = said.out.splitlines()
    inside = f"1 batch, 4 conversations, 1 call, last written 1970-01-01 00:00:00 UTC, generation {generation}"
    assert (said.code, said.err) == (0, "")
    assert first.startswith(f"{machine.folder}/orchestrator.db: 0.")
    assert first.endswith(f" MB, {inside}")
    assert second == f"{machine.folder}/estimator.db: 0.0 MB"
    assert {path.name for path in machine.folder.iterdir()} == {"orchestrator.db", "estimator.db"}


async def test_a_backup_without_an_estimator_here_has_one_file(machine: Machine) -> None:
    async with opened(machine.database):
        pass
    said = machine.run("backup", "--json")
    assert json.loads(said.out)["file"] == str(machine.backup_file)
    assert [path.name for path in machine.folder.iterdir()] == ["orchestrator.db"]


async def test_a_backup_after_a_kill_has_what_was_committed_last(machine: Machine, tmp_path: Path) -> None:
    async with opened(tmp_path / "live.db") as store:
        await store.make(await store.create())
        as_killed(tmp_path / "live.db", machine.database)
    assert machine.run("backup").code == 0
    assert calls_in(machine.backup_file) == 1
    assert wrong(machine.backup_file) == []


async def test_a_backup_that_exists_is_kept_unless_forced(machine: Machine) -> None:
    async with opened(machine.database) as store:
        batch = await store.create()
        assert machine.run("backup").code == 0
        await store.make(batch)
        said = machine.run("backup")
        sentence = f"{machine.backup_file} exists already. Name another folder, or say --force to write it anew."
        assert said == Said(3, "", f"error: {sentence}\n")
        assert calls_in(machine.backup_file) == 0
        assert machine.run("backup", "--force").code == 0
        assert calls_in(machine.backup_file) == 1


async def test_of_a_damaged_file_no_backup_is_made_and_the_older_one_stays(machine: Machine) -> None:
    async with opened(machine.database) as store:
        await store.create()
    assert machine.run("backup").code == 0
    before = machine.backup_file.read_bytes()
    overwrite(machine.database, "events")
    said = machine.run("backup", "--force")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"error: {machine.database} is damaged, and no backup was made of it. Table events is")
    assert machine.backup_file.read_bytes() == before
    assert [path.name for path in machine.folder.iterdir()] == ["orchestrator.db"]


async def test_a_disk_that_takes_no_backup_is_told_and_nothing_is_left(machine: Machine) -> None:
    async with opened(machine.database) as store:
        await store.create()
        await store.write(enlarged)
    with no_larger_files():
        said = machine.run("backup")
    assert said == Said(
        3, "", f"error: {machine.database} can't be backed up to {machine.backup_file}: disk I/O error.\n"
    )
    assert list(machine.folder.iterdir()) == []


def test_without_a_database_there_is_no_backup(machine: Machine) -> None:
    assert machine.run("backup") == Said(3, "", f"error: There is no database {machine.database}.\n")


# Restore.


async def backed_up_midway(machine: Machine) -> str:
    """One batch in flight, one held, one at its end: backed up, and gone on with. The generation."""
    async with opened(machine.database) as store:
        running, held, ended = [await store.create({"template": 2}) for _ in range(3)]
        await store.make(ended, 1)
        await store.make(ended, 2)
        await store.pause(held)
        await store.make(running, 1)
        call = await store.claimed(running, 2)
        machine.write_estimator("then")
        assert machine.run("backup").code == 0
        await store.settle(running, call, 2)
        await store.resume(held)
        machine.write_estimator("now")
        return store.database.generation


async def test_after_a_restore_nothing_spends_until_a_person_says_so(machine: Machine) -> None:
    before = await backed_up_midway(machine)
    assert machine.run("restore").code == 0
    assert wrong(machine.database) == []
    async with opened(machine.database) as store:
        assert store.database.generation != before
        assert [await store.state(batch) for batch in ("b1", "b2", "b3")] == ["PAUSED", "PAUSED", "SUCCEEDED"]
        assert await store.calls("b1") == ["SETTLED", "POSSIBLY_SPENT"]
        (hold,) = (await store.get("b1")).holds
        assert (hold["reason"], hold["message"]) == (
            "USER",
            "Restored from a backup of 1970-01-01 00:00:00 UTC: what was made after it is not here and would be paid "
            "again.",
        )
        await store.resume("b1")
        await store.make("b1", 2, epoch=1)
        assert await store.state("b1") == "SUCCEEDED"
    assert wrong(machine.database) == []
    assert machine.estimator_says() == "then"


async def test_what_a_restore_replaces_is_kept(machine: Machine) -> None:
    await backed_up_midway(machine)
    said = machine.run("restore")
    assert machine.files() == {"o.db", "e.db", machine.kept().name, machine.kept("e.db").name}
    assert said.out.splitlines() == [
        f"{machine.database}: restored; what was there is kept as {machine.kept()}; "
        "paused until `parley resume`: b1, b2",
        f"{machine.estimator}: restored; what was there is kept as {machine.kept('e.db')}",
    ]
    assert (calls_in(machine.kept()), wrong(machine.kept())) == (4, [])
    assert ask(machine.kept(), "SELECT state FROM batches WHERE id = 'b1'") == [("SUCCEEDED",)]


async def test_what_a_killed_server_left_beside_its_file_goes_with_it(machine: Machine, tmp_path: Path) -> None:
    async with opened(tmp_path / "live.db") as store:
        batch = await store.create()
        back_up(tmp_path / "live.db", machine.backup_file)
        await store.make(batch)
        as_killed(tmp_path / "live.db", machine.database)
    assert machine.run("restore").code == 0
    # What was beside the file is in it now, so that it can be moved.
    assert machine.files() == {"o.db", machine.kept().name}
    assert (calls_in(machine.database), calls_in(machine.kept())) == (0, 1)
    assert (wrong(machine.database), wrong(machine.kept())) == ([], [])


async def test_a_damaged_file_is_kept_with_what_is_beside_it(machine: Machine) -> None:
    async with opened(machine.database) as store:
        await store.create()
        assert machine.run("backup").code == 0
    machine.database.write_text("This is a letter." * 1_000)
    beside = machine.database.with_name("o.db-wal")
    beside.write_text("And so is this." * 1_000)
    assert machine.run("restore").code == 0
    assert (wrong(machine.database), beside.exists()) == ([], False)
    kept = machine.kept()
    assert kept.read_text().startswith("This is a letter.")
    assert kept.with_name(f"{kept.name}-wal").read_text().startswith("And so is this.")


async def test_a_restore_to_a_new_machine_makes_its_folder(machine: Machine) -> None:
    await backed_up_midway(machine)
    shutil.rmtree(machine.database.parent)
    said = machine.run("restore", "--json")
    first, second = map(json.loads, said.out.splitlines())
    assert first == {"file": str(machine.database), "kept": None, "held": ["b1", "b2"]}
    assert second == {"file": str(machine.estimator), "kept": None, "held": []}
    assert (machine.files(), wrong(machine.database)) == ({"o.db", "e.db"}, [])


async def test_a_backup_of_an_older_version_is_brought_up_to_date(machine: Machine) -> None:
    machine.folder.mkdir(parents=True)
    of_first_version(machine.backup_file)
    assert machine.run("restore").code == 0
    assert wrong(machine.database) == []
    async with opened(machine.database) as store:
        await store.make(await store.create())


async def test_the_restored_file_has_the_rights_of_the_replaced_one(machine: Machine) -> None:
    await backed_up_midway(machine)
    machine.database.chmod(0o640)
    assert machine.run("restore").code == 0
    assert machine.database.stat().st_mode & 0o777 == 0o640


# Refusals: each leaves everything as it was.


@dataclass(frozen=True)
class Before:
    files: dict[str, bytes]

    @classmethod
    def of(cls, machine: Machine) -> Before:
        return cls({name: (machine.database.parent / name).read_bytes() for name in machine.files()})


@pytest.mark.parametrize("service", ["database", "estimator"])
async def test_a_restore_beneath_a_running_server_is_refused(machine: Machine, service: str) -> None:
    await backed_up_midway(machine)
    before, path = Before.of(machine), getattr(machine, service)
    with ExitStack() as stack:
        stack.enter_context(locked(path))
        said = machine.run("restore")
    assert (said.code, said.out) == (3, "")
    assert said.err.startswith(f"error: {path} is in use by a running server (process ")
    assert said.err.endswith("Stop it first, with `parley down` or as it was started.\n")
    assert Before.of(machine) == before


def test_without_a_backup_there_is_no_restore(machine: Machine) -> None:
    assert machine.run("restore") == Said(3, "", f"error: There is no backup {machine.backup_file}.\n")


async def test_a_damaged_backup_is_refused(machine: Machine) -> None:
    await backed_up_midway(machine)
    before = Before.of(machine)
    cut(machine.backup_file)
    said = machine.run("restore")
    assert said.err.startswith(
        f"error: {machine.backup_file} is damaged, and nothing was restored from it. The file is"
    )
    assert (said.code, Before.of(machine)) == (3, before)


async def test_where_one_file_of_a_backup_is_damaged_the_other_is_not_restored(machine: Machine) -> None:
    await backed_up_midway(machine)
    before = Before.of(machine)
    cut(machine.folder / "estimator.db")
    assert machine.run("restore").code == 3
    assert Before.of(machine) == before


async def test_a_backup_of_a_newer_version_is_refused(machine: Machine) -> None:
    await backed_up_midway(machine)
    before = Before.of(machine)
    change(machine.backup_file, "UPDATE alembic_version SET version_num = 'later'")
    said = machine.run("restore")
    assert "was written by another version of Parley" in said.err
    assert (said.code, Before.of(machine)) == (3, before)


async def test_a_file_of_another_program_is_refused_as_a_backup(machine: Machine) -> None:
    await backed_up_midway(machine)
    before = Before.of(machine)
    shutil.copy(machine.folder / "estimator.db", machine.backup_file)
    said = machine.run("restore")
    assert said.err.endswith("it is a database, and none of Parley's orchestrator.\n")
    assert (said.code, Before.of(machine)) == (3, before)


# The command; tests/acceptance/test_backup.py has the whole way.


@pytest.mark.parametrize("arguments", [["verify"], ["backup", "monday"]])
async def test_the_command_names_the_setting_where_it_finds_no_database(tmp_path: Path, arguments: list[str]) -> None:
    done = await parley(*arguments, PARLEY_HOME=str(tmp_path))
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"error: There is no database {tmp_path}/orchestrator.db.\nnext: Set PARLEY_HOME")


async def test_the_command_passes_on_what_the_program_says(tmp_path: Path) -> None:
    async with opened(tmp_path / "orchestrator.db"):
        done = await parley("--json", "verify", PARLEY_HOME=str(tmp_path))
        refused = await parley("restore", str(tmp_path), "--json", PARLEY_HOME=str(tmp_path))
    assert (done.code, json.loads(done.out)["batches"]) == (0, 0)
    assert (refused.code, json.loads(refused.err)["exitCode"]) == (3, 3)
