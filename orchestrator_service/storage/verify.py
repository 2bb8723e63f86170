"""A database file looked at and never written: its pages, its schema, what is in it, and what the rules say of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from orchestrator_service.domain.ledger import Rate
from orchestrator_service.storage.books import Books, Difference, Doubt
from orchestrator_service.storage.database import BUSY_MS, MIGRATIONS, DatabaseUnusable, failure_in, unusable
from orchestrator_service.storage.rules import RULES, Rule
from orchestrator_service.storage.tables import batches, calls, conversations, events, store

# The first ones tell what a person must know.
FAULTS_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What SQLite itself finds wrong: pages, indexes, constraints, rows that point nowhere."""

    # Empty where it is of the file as a whole.
    table: str
    # At most FAULTS_MAX.
    faults: int
    first: str

    def __str__(self) -> str:
        where = f"Table {self.table}" if self.table else "The file"
        more = f" (and {self.faults - 1} more)" if self.faults > 1 else ""
        return f"{where} is damaged: {self.first}{more}."


Finding = Damage | Difference | Doubt


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a file, to tell one from another."""

    schema: str
    # Empty where no server has opened it yet.
    generation: str
    batches: int
    conversations: int
    calls: int
    # When the last of it was written; None where nothing was.
    last_us: int | None


@contextmanager
def opened_read_only(path: Path) -> Generator[Connection]:
    """One moment of the file, also while a server writes to it. Raises DatabaseUnusable."""
    if not path.is_file():
        raise DatabaseUnusable(f"There is no database {path}.")
    where = f"{path.absolute().as_uri()}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(where, uri=True, isolation_level=None, timeout=BUSY_MS / 1000)

    # Each opening has a connection of its own, which leaves nothing behind.
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", _begin)
    try:
        # What only reads is rolled back at the end: of a damaged file even the commit may fail.
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise unusable(path, failure_in(error, engine)) from error
    except DatabaseUnusable as error:
        raise DatabaseUnusable(f"{path}: {error}") from error


def findings(connection: Connection, *, rate_of: Callable[[str], Rate]) -> Iterator[Finding]:
    """All that is wrong. Raises DatabaseUnusable behind what the pages say, where the rows are not of this version."""
    yield from damages(connection)
    try:
        _require_this_version(connection)
    except DBAPIError:
        # So damaged that not even this can be read, which was said.
        return
    books = Books(connection, rate_of)
    stopped = 0
    for rule in RULES:
        try:
            yield from _understood(rule, books)
        except DBAPIError:
            stopped += 1
    if stopped:
        yield Doubt(batch="", what=f"{stopped} of {len(RULES)} rules can't be checked, because of the damage")


def damages(connection: Connection) -> Iterator[Damage]:
    """Of any SQLite file."""
    whole = _faults(connection, f"PRAGMA integrity_check({FAULTS_MAX})")
    if not whole:
        yield from _lost_references(connection)
        return
    try:
        by_table = list(_damaged_tables(connection))
    except DBAPIError:
        by_table = []
    yield from by_table or [_damage("", whole)]


def contents(connection: Connection) -> Contents:
    """Raises DatabaseUnusable where it is no database of Parley's."""
    schema = _schema(connection)
    written = (events.c.created_us, calls.c.created_us, calls.c.settled_us, batches.c.created_us)
    times = [connection.execute(select(func.max(column))).scalar_one() for column in written]
    count = [
        connection.execute(select(func.count()).select_from(t)).scalar_one() for t in (batches, conversations, calls)
    ]
    return Contents(
        schema=schema,
        generation=connection.execute(select(store.c.generation)).scalar_one_or_none() or "",
        batches=count[0],
        conversations=count[1],
        calls=count[2],
        last_us=max((time_us for time_us in times if time_us is not None), default=None),
    )


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _understood(rule: Rule, books: Books) -> Iterator[Finding]:
    """A rule that can't read a row's JSON says so, and the others go on."""
    try:
        yield from rule(books)
    except (ValueError, KeyError, TypeError) as error:
        name = rule.__name__.strip("_").replace("_", " ")
        yield Doubt(batch="", what=f"the {name} can't be checked: {error!r}")


def _damaged_tables(connection: Connection) -> Iterator[Damage]:
    for table in _tables(connection):
        if faults := _faults(connection, f"PRAGMA integrity_check({_quoted(table)})"):
            yield _damage(table, faults)


def _lost_references(connection: Connection) -> Iterator[Damage]:
    for table in _tables(connection):
        rows = connection.exec_driver_sql(f"PRAGMA foreign_key_check({_quoted(table)})").fetchmany(FAULTS_MAX)
        if rows:
            yield _damage(table, [f"row {row[1]} belongs to a row of {row[2]} that is not there" for row in rows])


def _tables(connection: Connection) -> Sequence[str]:
    statement = text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return connection.execute(statement).scalars().all()


def _faults(connection: Connection, pragma: str) -> Sequence[str]:
    said: list[str] = []
    try:
        said.extend(str(row[0]) for row in connection.exec_driver_sql(pragma))
    except DBAPIError as error:
        # The check itself stumbles over what is damaged most.
        said.append(str(error.orig))
    return [] if said == ["ok"] else said


def _damage(table: str, faults: Sequence[str]) -> Damage:
    first = faults[0].removeprefix("*** in database main ***\n").replace("\n", "; ").rstrip(".")
    return Damage(table=table, faults=len(faults), first=first)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _schema(connection: Connection) -> str:
    known = text("SELECT count(*) FROM sqlite_master WHERE name IN ('alembic_version', 'batches', 'calls')")
    if connection.execute(known).scalar_one() < 3:
        raise DatabaseUnusable("it is a database, and none of Parley's orchestrator.")
    found: Any = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return str(found)


def _require_this_version(connection: Connection) -> None:
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    schema = _schema(connection)
    migrations = ScriptDirectory(str(MIGRATIONS))
    head = migrations.get_current_head()
    if schema == head:
        return
    try:
        migrations.get_revision(schema)
    except CommandError as error:
        raise DatabaseUnusable(
            f"its rows can't be checked: a newer Parley wrote them (schema {schema}; this one knows {head})."
        ) from error
    raise DatabaseUnusable(
        f"its rows can't be checked: they are of schema {schema}, and this Parley's is {head}. "
        "A start of the server brings it up to date, and so does `parley restore`."
    )
