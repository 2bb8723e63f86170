"""Database files that something went wrong with: spoilt, cut off, changed behind Parley's back, a disk that fails."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator_service.storage.database import MIGRATIONS, migrate

FILE_MAX_BYTES = 1024 * 1024


@contextmanager
def no_larger_files() -> Generator[None]:
    """As on a disk that fails: writing beyond a megabyte is an error of the disk, and no lack of room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def change(path: Path, *statements: str) -> None:
    """What no server would write: constraints are not asked."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            connection.execute(statement)


def overwrite(path: Path, table: str) -> None:
    """Spoils the page that the table begins with; the server notices nothing until it comes there."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Into one file, so that no newer page stands in for the spoilt one.
        connection.execute("PRAGMA journal_mode = DELETE")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


def cut(path: Path) -> None:
    """As a copy that broke off leaves it."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def of_first_version(path: Path) -> None:
    """Empty, in the schema of the first migration."""
    old = path.parent / "old-migrations"
    shutil.copytree(MIGRATIONS, old)
    for newer in old.glob("versions/*.py"):
        if not newer.name.startswith("0001"):
            newer.unlink()
    migrate(path, migrations=old)
