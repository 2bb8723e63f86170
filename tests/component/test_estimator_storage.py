"""The database file: migrations that are whole or not at all, one estimator a file, pages that fit the wire."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sqlite3
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import IntegrityError

from estimator_service.storage import quotes
from estimator_service.storage.database import MIGRATIONS, DatabaseUnusable, StorageFailed, migrate, open_database
from estimator_service.storage.quotes import PAGE_BYTES_MAX, NewQuote
from estimator_service.storage.tables import metadata

pytestmark = pytest.mark.anyio

KILLED = '''"""Dies after its first statement."""

from alembic import op

revision = "9999"
down_revision = "0003"


def upgrade() -> None:
    op.execute("CREATE TABLE half (id INTEGER)")
    op.execute("INSERT INTO half VALUES (1)")
    raise KeyboardInterrupt
'''


def schema(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
    connection.close()
    return found


def new_quote(number: int, *, body: bytes = b"x", request_id: str = "", sha256: str = "0" * 64) -> NewQuote:
    return NewQuote(
        id=f"id{number:08}",
        owner="ann",
        caller="ann",
        request_id=request_id,
        request_sha256=sha256,
        create_time=datetime(2026, 11, 23, tzinfo=UTC),
        body=body,
    )


async def test_callers_who_leave_in_the_middle_leave_no_lock_behind(tmp_path: Path) -> None:
    gc.disable()
    try:
        async with open_database(tmp_path / "e.db", busy_ms=100) as database:
            for number in range(100):
                leaving = asyncio.create_task(database.write(partial(quotes.insert_quote, new=new_quote(number))))
                await asyncio.wait((leaving,), timeout=number / 20_000)
                leaving.cancel()
                await asyncio.wait((leaving,))
                await database.read(partial(quotes.get_page, owner="", before=None, size=1))
            assert await database.write(partial(quotes.insert_quote, new=new_quote(1_000)))
    finally:
        gc.enable()


async def test_a_database_that_another_program_locks_is_unavailable_for_now(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with open_database(path, busy_ms=1) as database:
        stranger = sqlite3.connect(path, isolation_level=None)
        stranger.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageFailed) as failed:
            await database.write(partial(quotes.insert_quote, new=new_quote(1)))
        stranger.rollback()
        stranger.close()
        assert failed.value.reason == "STORAGE_UNAVAILABLE"
        assert "locked" not in failed.value.message
        assert await database.write(partial(quotes.insert_quote, new=new_quote(1)))


def test_the_migrations_make_the_tables_that_the_code_speaks_of(tmp_path: Path) -> None:
    migrate(tmp_path / "e.db")
    migrated = create_engine(f"sqlite:///{tmp_path / 'e.db'}")
    wanted = create_engine("sqlite://")
    metadata.create_all(wanted)
    for table in metadata.tables:
        for look in ("get_columns", "get_indexes", "get_unique_constraints", "get_check_constraints"):
            made, meant = (getattr(inspect(engine), look)(table) for engine in (migrated, wanted))
            assert sorted(map(str, made)) == sorted(map(str, meant))
    migrated.dispose()
    wanted.dispose()


def test_a_migration_killed_half_way_leaves_the_old_schema(tmp_path: Path) -> None:
    path, broken = tmp_path / "e.db", tmp_path / "migrations"
    migrate(path)
    before = schema(path)
    shutil.copytree(MIGRATIONS, broken)
    (broken / "versions" / "9999_killed.py").write_text(KILLED, "utf-8")
    with pytest.raises(KeyboardInterrupt):
        migrate(path, migrations=broken)
    assert schema(path) == before
    migrate(path)
    assert schema(path) == before


def test_a_database_of_a_newer_estimator_is_refused(tmp_path: Path) -> None:
    migrate(tmp_path / "e.db")
    with sqlite3.connect(tmp_path / "e.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
    connection.close()
    with pytest.raises(DatabaseUnusable, match="another version"):
        migrate(tmp_path / "e.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.db").write_text("This is a letter, and no database at all." * 100, "utf-8")
    with pytest.raises(DatabaseUnusable, match="can't be used"):
        migrate(tmp_path / "e.db")


async def test_a_second_estimator_on_the_same_file_is_refused(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db"):
        with pytest.raises(DatabaseUnusable, match="in use by another estimator"):
            async with open_database(tmp_path / "e.db"):
                pass
    async with open_database(tmp_path / "e.db"):
        pass


async def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(DatabaseUnusable, match="PARLEY_ESTIMATOR_DATABASE"):
        async with open_database(tmp_path / "file" / "e.db"):
            pass


async def test_commits_survive_a_power_cut_and_readers_can_not_write(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        pragmas = [
            await database.write(lambda c, name=name: c.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert pragmas == ["wal", 2, 1]
        with pytest.raises(StorageFailed) as failed:
            await database.read(partial(quotes.insert_quote, new=new_quote(1)))
        assert "readonly" in str(failed.value.__cause__)


async def test_the_schema_repeats_the_rules(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        with pytest.raises(IntegrityError, match="request_sha256_length"):
            await database.write(partial(quotes.insert_quote, new=new_quote(1, sha256="short")))


async def test_a_request_id_is_stored_once_and_its_absence_often(tmp_path: Path) -> None:
    async with open_database(tmp_path / "e.db") as database:
        stored = [
            await database.write(partial(quotes.insert_quote, new=new_quote(number, request_id=request_id)))
            for number, request_id in enumerate(["r1", "r1", "", ""])
        ]
    assert stored == [True, False, True, True]


async def test_a_page_ends_before_it_is_too_large_for_the_wire(tmp_path: Path) -> None:
    large = bytes(PAGE_BYTES_MAX // 2)
    async with open_database(tmp_path / "e.db") as database:
        for number, body in enumerate([large, large, large, large + large + b"x"]):
            await database.write(partial(quotes.insert_quote, new=new_quote(number, body=body)))
        counts: list[int] = []
        before = None
        more = True
        while more:
            page = await database.read(partial(quotes.get_page, owner="ann", before=before, size=10))
            counts.append(len(page.quotes))
            before, more = page.quotes[-1].position, page.more
    assert counts == [1, 2, 1]
