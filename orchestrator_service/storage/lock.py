"""The lock of a database file: one server at a time, and no restore beneath a server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class InUse(Exception):
    """Another process has the file; `process` is its id, where it said so."""

    def __init__(self, path: Path, process: str) -> None:
        super().__init__(f"{path} is in use by process {process}")
        self.process = process


@contextmanager
def locked(path: Path) -> Generator[None]:
    """An advisory lock beside the file, held while we live: the system drops it when the process ends, however.

    Raises InUse, and OSError where its folder can't be made or takes no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, path)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        process = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        raise InUse(path, process) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
