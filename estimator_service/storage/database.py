"""The database file: locked against a second estimator, migrated at start, written by one connection."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from estimator_service.domain.errors import EstimatorError

T = TypeVar("T")
log = structlog.get_logger()
READERS = 4
BUSY_MS = 5_000
RETRY_S = 2.0
TURN_MAX_S = 20.0
MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseUnusable(Exception):
    """The file can't be opened, is held by another estimator, or is no database of ours; the text says which."""


class StorageFailed(EstimatorError):
    """The database takes nothing for now: full, locked by another program, read-only. Trying again may help."""

    def __init__(self) -> None:
        # What the database says of it is for the log.
        super().__init__("STORAGE_UNAVAILABLE", "The server's database can't be used for now.", retry_after_s=RETRY_S)


@dataclass(frozen=True, slots=True)
class Database:
    """Reads on read-only connections, writes one after the other."""

    _writer: AsyncEngine
    _readers: AsyncEngine

    async def write(self, fact: Callable[[Connection], T]) -> T:
        """Runs `fact` in a transaction of its own, which has committed when this returns. Raises StorageFailed."""
        return await _to_its_end(_in_transaction(self._writer, fact))

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Runs `query` in one read transaction: all that it reads is of one moment. Raises StorageFailed."""
        return await _to_its_end(_in_transaction(self._readers, query))


async def _to_its_end(transaction: Coroutine[Any, Any, T]) -> T:
    """A caller who leaves does not stop it: given up half-way, it would keep the file locked until it is collected."""
    task = asyncio.create_task(transaction)
    # A failure that nobody is left to hear was logged.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


async def _in_transaction(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    except (OperationalError, PoolTimeoutError) as error:
        # What a database says of its own state. Without the statement: its values belong to callers.
        log.error("database failed", error=str(error.orig if isinstance(error, OperationalError) else error))
        raise StorageFailed from error


@asynccontextmanager
async def open_database(path: Path, *, busy_ms: int = BUSY_MS) -> AsyncGenerator[Database]:
    """Locks, migrates and opens the file. Raises DatabaseUnusable before anything is served."""
    with _locked(path):
        await asyncio.to_thread(migrate, path)
        writer = _async_engine(path, connections=1, begin="BEGIN IMMEDIATE", busy_ms=busy_ms)
        pragmas = ("query_only = ON",)
        readers = _async_engine(path, connections=READERS, begin="BEGIN", busy_ms=busy_ms, pragmas=pragmas)
        try:
            yield Database(writer, readers)
        finally:
            await readers.dispose()
            await writer.dispose()


def migrate(path: Path, *, migrations: Path = MIGRATIONS) -> None:
    """Brings the schema to the newest version in one transaction: killed half-way, the old schema is there."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    engine = create_engine(_url(path, "sqlite"), **_arguments(BUSY_MS))
    _configure(engine, begin="BEGIN IMMEDIATE")
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise DatabaseUnusable(f"{path} can't be used as the estimator's database: {error.orig}") from error
    except CommandError as error:
        raise DatabaseUnusable(f"{path} was written by another version of the estimator: {error}") from error
    finally:
        engine.dispose()


def _arguments(busy_ms: int) -> dict[str, Any]:
    return {"connect_args": {"isolation_level": None, "timeout": busy_ms / 1000}}


def _url(path: Path, driver: str) -> URL:
    return URL.create(driver, database=str(path))


def _async_engine(
    path: Path, *, connections: int, begin: str, busy_ms: int, pragmas: tuple[str, ...] = ()
) -> AsyncEngine:
    url = _url(path, "sqlite+aiosqlite")
    # A slow disk is not down: our own calls wait for each other longer than for another program.
    engine = create_async_engine(
        url, pool_size=connections, max_overflow=0, pool_timeout=TURN_MAX_S, **_arguments(busy_ms)
    )
    _configure(engine.sync_engine, begin=begin, pragmas=pragmas)
    return engine


def _configure(engine: Engine, *, begin: str, pragmas: tuple[str, ...] = ()) -> None:
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


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """An advisory lock beside the file, held while we live: the system drops it when the process ends, however."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseUnusable(f"{path} can't be opened: {error.strerror}. Set PARLEY_ESTIMATOR_DATABASE.") from error
    try:
        _take_lock(handle, path)
        yield
    finally:
        os.close(handle)


def _take_lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DatabaseUnusable(
            f"{path} is in use by another estimator. "
            "Stop that one, or give this one its own file with PARLEY_ESTIMATOR_DATABASE."
        ) from error
