"""Backups of a server's files: copied while it goes on, and put back while it is stopped.

A file is copied as it is, so that the estimator's goes along: only its name is known here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select, update

from orchestrator_service.domain.batch import ACTIVE, BatchState, HoldReason
from orchestrator_service.storage.database import DatabaseUnusable, amend, migrate
from orchestrator_service.storage.lock import InUse, locked
from orchestrator_service.storage.recovery import recover
from orchestrator_service.storage.tables import batches, store
from orchestrator_service.storage.transitions import NewHold, hold
from orchestrator_service.storage.verify import Damage, contents, damages, opened_read_only
from orchestrator_service.storage.writer import Fact, Transaction

# What the files are called in a backup's folder, wherever the servers have them.
ORCHESTRATOR = "orchestrator.db"
ESTIMATOR = "estimator.db"
PAGES_A_STEP = 1_000
# What SQLite may have beside a file: it would apply them to another file of that name.
WRITTEN_BESIDE = ("-wal", "-journal")
INDEX_BESIDE = "-shm"


@dataclass(frozen=True, kw_only=True)
class Restored:
    path: Path
    # What was there before; None where nothing was.
    kept: Path | None
    # The batches that wait for a Resume.
    held: Sequence[str] = ()


def _nothing(_pages_left: int) -> None:
    pass


def refuse_existing(targets: Iterable[Path], *, force: bool) -> None:
    for target in targets:
        if target.exists() and not force:
            raise DatabaseUnusable(f"{target} exists already. Name another folder, or say --force to write it anew.")


def back_up(source: Path, target: Path, *, stepped: Callable[[int], None] = _nothing) -> None:
    """A copy of one moment of `source`, checked, at `target` when it is whole. Raises DatabaseUnusable.

    `stepped` is told how many pages are left.
    """
    if not source.is_file():
        raise DatabaseUnusable(f"There is no database {source}.")
    with _told(f"{source} can't be backed up to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(_beside(target, ".partial")) as partial:
            _copy(source, partial, stepped=stepped)
            _require_whole(partial, f"{source} is damaged, and no backup was made of it")
            shutil.copymode(source, partial)
            _replace(partial, target)


def restore(folder: Path, *, database: Path, estimator: Path | None, now_us: int) -> Sequence[Restored]:
    """All of it or nothing: each server is stopped and each copy ready before the first is put in place.

    Raises DatabaseUnusable.
    """
    if not (folder / ORCHESTRATOR).is_file():
        raise DatabaseUnusable(f"There is no backup {folder / ORCHESTRATOR}.")
    pairs = {folder / ORCHESTRATOR: database}
    if estimator is not None and (folder / ESTIMATOR).is_file():
        pairs[folder / ESTIMATOR] = estimator
    with ExitStack() as stack:
        for path in pairs.values():
            stack.enter_context(_stopped(path))
        copies = {path: stack.enter_context(_copied(backup, path)) for backup, path in pairs.items()}
        held = _begin_anew(copies[database], now_us=now_us)
        kept = {path: _put_in_place(copy, path, now_us=now_us) for path, copy in copies.items()}
    return [Restored(path=path, kept=kept[path], held=held if path == database else ()) for path in kept]


def hold_all(message: str, *, now_us: int) -> Fact[list[str]]:
    """The first fact of a restored file: old tokens are told apart, and nothing spends before a person says so."""

    def fact(tx: Transaction) -> list[str]:
        recover(now_us=now_us)(tx)
        tx.connection.execute(update(store).values(generation=secrets.token_hex(8)))
        under_way = (batches.c.state.in_([*ACTIVE, BatchState.PAUSED]), batches.c.deleted_us.is_(None))
        statement = select(batches.c.id).where(*under_way).order_by(batches.c.position)
        found = list(tx.connection.execute(statement).scalars())
        for batch in found:
            hold(tx, batch, NewHold(HoldReason.USER, message), now_us=now_us)
        return found

    return fact


def shown(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def _copied(backup: Path, path: Path) -> Generator[Path]:
    """A checked copy of the backup, beside the file that it will be."""
    _require_whole(backup, f"{backup} is damaged, and nothing was restored from it")
    with _temporary(_beside(path, ".restoring")) as copy:
        with _told(f"{backup} can't be restored to {path}"):
            _copy(backup, copy)
        yield copy


def _begin_anew(copy: Path, *, now_us: int) -> list[str]:
    """An older schema is brought up to date on the way."""
    with opened_read_only(copy) as connection:
        last_us = contents(connection).last_us
    migrate(copy)
    of = "" if last_us is None else f" of {shown(last_us)}"
    message = f"Restored from a backup{of}: what was made after it is not here and would be paid again."
    held = amend(copy, hold_all(message, now_us=now_us))
    _make_one_file(copy)
    return held


def _put_in_place(copy: Path, path: Path, *, now_us: int) -> Path | None:
    """At every moment there is a whole file at `path`. What is replaced is kept; its path."""
    kept = _beside(path, f".replaced-{datetime.fromtimestamp(now_us / 1_000_000, UTC):%Y%m%dT%H%M%S.%fZ}")
    with _told(f"{path} can't be replaced"):
        if not path.exists():
            _leave_alone(path)
            _replace(copy, path)
            return None
        if _damage(path) is None:
            # What was committed beside it goes into it. Where it is damaged, both are kept as they are.
            with closing(sqlite3.connect(path, isolation_level=None)) as old:
                old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for name in ("", *WRITTEN_BESIDE):
            if _beside(path, name).exists():
                os.link(_beside(path, name), _beside(kept, name))
        _leave_alone(path)
        _like(path, copy)
        _replace(copy, path)
        return kept


def _leave_alone(path: Path) -> None:
    """SQLite would apply what is beside a file to whatever file has its name."""
    for name in (*WRITTEN_BESIDE, INDEX_BESIDE):
        _beside(path, name).unlink(missing_ok=True)


def _copy(source: Path, target: Path, *, stepped: Callable[[int], None] = _nothing) -> None:
    where = f"{source.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(where, uri=True, isolation_level=None)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        # One read transaction for all steps: otherwise each commit of the server would make the copy begin anew.
        old.execute("BEGIN")
        old.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # Told of each step also where nobody listens: only there a Ctrl-C gets through.
        old.backup(new, pages=PAGES_A_STEP, progress=lambda _status, left, _total: stepped(left))
    _make_one_file(target)


def _make_one_file(path: Path) -> None:
    """Nothing is beside it any more, so that it can be moved."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        assert mode == "delete", f"{path} has the journal mode {mode}"


def _require_whole(path: Path, otherwise: str) -> None:
    damage = _damage(path)
    if damage is not None:
        raise DatabaseUnusable(f"{otherwise}. {damage}")


def _damage(path: Path) -> Damage | None:
    with opened_read_only(path) as connection:
        return next(damages(connection), None)


@contextmanager
def _stopped(path: Path) -> Generator[None]:
    """No server has the file, and none can take it meanwhile."""
    with ExitStack() as stack:
        lock = _beside(path, ".lock")
        is_new = not lock.exists()
        try:
            stack.enter_context(locked(path))
        except InUse as error:
            raise DatabaseUnusable(
                f"{path} is in use by a running server (process {error.process}). Stop it first, with `parley down` or "
                "as it was started."
            ) from error
        except OSError as error:
            raise DatabaseUnusable(f"{path} can't be restored: {error.strerror}.") from error
        if is_new:
            _like(path if path.exists() else path.parent, lock)
        yield


@contextmanager
def _temporary(path: Path) -> Generator[Path]:
    """Nothing is left of it, neither of this run nor of one that was killed."""
    _remove(path)
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def _told(sentence: str) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DatabaseUnusable(f"{sentence}: {error}.") from error


def _replace(new: Path, old: Path) -> None:
    """On the disk when this returns, or as before."""
    _sync(new)
    os.replace(new, old)
    _sync(old.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _like(model: Path, path: Path) -> None:
    """The server must be able to write what root has made."""
    status = model.stat()
    if model.is_file():
        path.chmod(status.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(path, status.st_uid, status.st_gid)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _leave_alone(path)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
