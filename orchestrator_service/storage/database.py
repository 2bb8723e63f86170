"""The database file: locked against a second orchestrator, migrated at start, written by one connection."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, insert, select
from sqlalchemy.exc import DBAPIError

from orchestrator_service.storage.lock import InUse, locked
from orchestrator_service.storage.tables import store
from orchestrator_service.storage.writer import (
    REPAIR,
    Fact,
    StorageDamaged,
    StorageFailed,
    Transaction,
    Writer,
    failure_of,
)

T = TypeVar("T")
READERS = 4
BUSY_MS = 5_000
MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseUnusable(Exception):
    """The file can't be opened, is held by another orchestrator, or is no database of ours; the text says which."""


@dataclass(frozen=True)
class Database:
    """Reads on read-only connections, writes through the one writer.

    A read is one visit to a thread, whatever it asks for: a hop for each statement took four times the CPU.
    """

    writer: Writer
    reading: Engine
    readers: ThreadPoolExecutor
    generation: str

    async def write(self, fact: Fact[T]) -> T:
        return await self.writer.write(fact)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Runs `query` in one read transaction: all that it reads is of one moment."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, _read, self.reading, query)


@asynccontextmanager
async def open_database(path: Path, *, committed: Callable[[set[str]], None]) -> AsyncGenerator[Database]:
    """Locks, migrates and opens the file. Raises DatabaseUnusable before anything is served."""
    with _locked(path):
        await asyncio.to_thread(migrate, path)
        writing = _configure(create_engine(_url(path), **_ARGUMENTS), begin="BEGIN IMMEDIATE")
        reading = _configure(
            create_engine(_url(path), pool_size=READERS, max_overflow=0, **_ARGUMENTS),
            begin="BEGIN",
            pragmas=("query_only = ON",),
        )
        writer = Writer(writing, committed=committed)
        running = asyncio.create_task(writer.run())
        try:
            with ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="reader") as readers:
                yield Database(writer, reading, readers, await _read_generation(writer, path))
        finally:
            writer.close()
            await running
            reading.dispose()
            writing.dispose()


def migrate(path: Path, *, migrations: Path = MIGRATIONS) -> None:
    """Brings the schema to the newest version in one transaction: killed half-way, the old schema is there."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    engine = _configure(create_engine(_url(path), **_ARGUMENTS), begin="BEGIN IMMEDIATE")
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise unusable(path, failure_in(error, engine)) from error
    except CommandError as error:
        raise DatabaseUnusable(f"{path} was written by another version of Parley: {error}") from error
    finally:
        engine.dispose()


def amend(path: Path, fact: Fact[T]) -> T:
    """Runs one fact on a file that no server has: on a restored copy, before it is put in place."""
    engine = _configure(create_engine(_url(path), **_ARGUMENTS), begin="BEGIN IMMEDIATE")
    try:
        with engine.begin() as connection:
            return fact(Transaction(connection))
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        raise unusable(path, failure_in(error, engine)) from error
    finally:
        engine.dispose()


def unusable(path: Path, failure: StorageFailed) -> DatabaseUnusable:
    if isinstance(failure, StorageDamaged):
        return DatabaseUnusable(f"{path} is damaged, or is no database: {failure.detail}. {REPAIR}")
    return DatabaseUnusable(f"{path} can't be used as Parley's database: {failure.detail}")


def failure_in(error: Exception, engine: Engine) -> StorageFailed:
    said = error.orig if isinstance(error, DBAPIError) else error
    return failure_of(error, engine.dialect) or StorageFailed(str(said))


async def _read_generation(writer: Writer, path: Path) -> str:
    try:
        return await writer.write(_generation)
    except StorageFailed as error:
        raise unusable(path, error) from error


def _generation(transaction: Transaction) -> str:
    known = transaction.connection.execute(select(store.c.generation)).scalar_one_or_none()
    if known is not None:
        return known
    drawn = secrets.token_hex(8)
    transaction.connection.execute(insert(store).values(id=1, generation=drawn))
    return drawn


def _read(engine: Engine, query: Callable[[Connection], T]) -> T:
    try:
        with engine.connect() as connection, connection.begin():
            return query(connection)
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        raise failure_in(error, engine) from error


_ARGUMENTS: dict[str, Any] = {"connect_args": {"isolation_level": None, "timeout": BUSY_MS / 1000}}


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


def _configure(engine: Engine, *, begin: str, pragmas: tuple[str, ...] = ()) -> Engine:
    """The driver begins nothing by itself, so that DDL rolls back too; FULL, so that a commit survives a power cut."""

    def connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def began(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", began)
    return engine


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            raise DatabaseUnusable(
                f"{path} can't be opened: {error.strerror}. Set PARLEY_ORCHESTRATOR_DATABASE."
            ) from error
        except InUse as error:
            raise DatabaseUnusable(
                f"{path} is in use by another orchestrator (process {error.process}). "
                "Stop that one, or give this one its own file with PARLEY_ORCHESTRATOR_DATABASE."
            ) from error
        yield
