"""The database file: what can't be used is refused in a sentence, and migrations are whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect
from storage_fixtures import opened

from orchestrator_service.storage.database import MIGRATIONS, DatabaseUnusable, migrate, open_database
from orchestrator_service.storage.tables import metadata
from orchestrator_service.storage.writer import REPAIR

pytestmark = pytest.mark.anyio

# Makes a table, and has the process killed before the transaction ends.
KILLED = '''"""Dies half-way."""

import os
import signal

from alembic import op

revision = "9999"
down_revision = "0004"


def upgrade() -> None:
    op.execute("CREATE TABLE half (id INTEGER)")
    op.execute("DROP TABLE answers")
    os.kill(os.getpid(), signal.SIGKILL)
'''
MIGRATE = "import sys, pathlib; from orchestrator_service.storage.database import migrate; " + (
    "migrate(pathlib.Path(sys.argv[1]), migrations=pathlib.Path(sys.argv[2]))"
)


async def refusal(path: Path) -> str:
    with pytest.raises(DatabaseUnusable) as refused:
        async with open_database(path, committed=lambda touched: None):
            raise AssertionError("it was opened")
    return str(refused.value)


def schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    connection.close()
    return found


def overwritten(path: Path, whole: Path, begins: int) -> None:
    content = whole.read_bytes()
    path.write_bytes(content[:begins] + b"\xa5" * (len(content) - begins))


def indexes(path: Path) -> dict[str, str]:
    return {name: sql for name, sql in schema(path).items() if "INDEX" in sql}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "o.db"
    migrate(path)
    return path


# Who may use it.


async def test_a_second_orchestrator_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with opened(path) as first:
        assert await refusal(path) == (
            f"{path} is in use by another orchestrator (process {os.getpid()}). "
            "Stop that one, or give this one its own file with PARLEY_ORCHESTRATOR_DATABASE."
        )
        batch = await first.create()
    async with opened(path) as second:
        await second.check(batch)


async def test_the_generation_stays_as_long_as_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as first, opened(tmp_path / "b.db") as other:
        generation = first.database.generation
        assert generation and generation != other.database.generation
    async with opened(tmp_path / "a.db") as again:
        assert again.database.generation == generation


async def test_a_letter_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    path.write_text("This is a letter, and no database at all." * 100)
    assert await refusal(path) == f"{path} is damaged, or is no database: file is not a database. {REPAIR}"
    assert path.read_text().startswith("This is a letter")


@pytest.mark.parametrize("begins", [100, 4096])
async def test_a_database_that_was_overwritten_is_refused(tmp_path: Path, migrated: Path, begins: int) -> None:
    path = tmp_path / "o.db"
    overwritten(path, migrated, begins)
    assert await refusal(path) == f"{path} is damaged, or is no database: database disk image is malformed. {REPAIR}"


async def test_a_database_of_a_later_version_is_refused(tmp_path: Path, migrated: Path) -> None:
    path = tmp_path / "o.db"
    shutil.copy(migrated, path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = 'later'")
    connection.commit()
    connection.close()
    assert f"{path} was written by another version of Parley: " in await refusal(path)


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE events (id INTEGER)")
    connection.commit()
    connection.close()
    assert await refusal(path) == f"{path} can't be used as Parley's database: table events already exists"
    assert set(schema(path)) == {"events"}


@pytest.fixture
def read_only_folder() -> Generator[Path]:
    """As somebody without rights to it, for root may write everywhere."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    yield folder
    os.seteuid(was)
    folder.rmdir()


async def test_a_read_only_folder_is_named_with_the_setting(read_only_folder: Path) -> None:
    path = read_only_folder / "o.db"
    assert await refusal(path) == f"{path} can't be opened: Permission denied. Set PARLEY_ORCHESTRATOR_DATABASE."


async def test_a_folder_that_can_not_be_made_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "var" / "o.db"
    assert await refusal(path) == f"{path} can't be opened: Not a directory. Set PARLEY_ORCHESTRATOR_DATABASE."


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    path.mkdir()
    assert f"{path} can't be used as Parley's database: unable to open database file" in await refusal(path)


# Migrations.


def test_the_migrations_make_the_tables_that_the_code_speaks_of(migrated: Path) -> None:
    created = migrated.parent / "created.db"
    engine, wanted = create_engine(f"sqlite:///{migrated}"), create_engine(f"sqlite:///{created}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    # Defaults, CHECKs and the conditions of indexes are nothing that Alembic compares well.
    metadata.create_all(wanted)
    for table in metadata.tables:
        for look in ("get_columns", "get_check_constraints", "get_unique_constraints", "get_foreign_keys"):
            made, meant = (getattr(inspect(one), look)(table) for one in (engine, wanted))
            assert sorted(map(str, made)) == sorted(map(str, meant)), (table, look)
    assert indexes(migrated) == indexes(created)
    engine.dispose()
    wanted.dispose()


def test_a_migration_killed_half_way_leaves_the_old_schema(tmp_path: Path, migrated: Path) -> None:
    path, broken = tmp_path / "o.db", tmp_path / "migrations"
    shutil.copy(migrated, path)
    shutil.copytree(MIGRATIONS, broken)
    (broken / "versions" / "9999_killed.py").write_text(KILLED)
    killed = subprocess.run([sys.executable, "-c", MIGRATE, str(path), str(broken)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert schema(path) == schema(migrated)
    migrate(path)
    assert schema(path) == schema(migrated)


def test_a_first_migration_that_fails_half_way_leaves_an_empty_file(tmp_path: Path) -> None:
    broken = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, broken)
    first = broken / "versions" / "0001_batches_and_ledger.py"
    half = 'op.execute("CREATE TABLE calls (id INTEGER)")\n    op.create_table(\n        "answers"'
    first.write_text(first.read_text().replace('op.create_table(\n        "answers"', half))
    with pytest.raises(DatabaseUnusable, match="table calls already exists"):
        migrate(tmp_path / "o.db", migrations=broken)
    assert schema(tmp_path / "o.db") == {}
