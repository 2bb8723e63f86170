"""File systems and locks that fail on command, under a process that goes on writing."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from servers import Pair

SMALL_BYTES = 16 * 1024 * 1024
IMAGE_BYTES = 8 * 1024 * 1024
COMMAND_MAX_S = 30.0

Fault = Callable[[Pair], AbstractContextManager[None]]


@contextmanager
def locked_by_another_program(pair: Pair) -> Generator[None]:
    with closing(sqlite3.connect(pair.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def file_size_limited(pair: Pair) -> Generator[None]:
    """What is there may be read and written, and no file may grow."""
    process = pair.orchestrator.process
    assert process is not None
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    largest_bytes = max(path.stat().st_size for path in pair.database.parent.glob(f"{pair.database.name}*"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_bytes, before[1]))
    yield
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def disk_full(pair: Pair) -> Generator[None]:
    """Fills the file system of the database up to its last byte; it should be small."""
    ballast = pair.database.with_name("ballast")
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        while True:
            file.write(bytes(4096))
    yield
    ballast.unlink()


@asynccontextmanager
async def small_disk(folder: Path) -> AsyncGenerator[Path | None]:
    """In memory, gone at the end. None where nothing may be mounted."""
    mount = folder / "disk"
    mount.mkdir()
    if not await _is_mounted("-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", str(mount)):
        yield None
        return
    try:
        yield mount
    finally:
        await _run("umount", str(mount))


class Disk:
    """A file system of its own in an image file, which can break down under its users and be repaired without them."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self.mount = folder / "disk"

    async def make(self) -> bool:
        """False where that is not possible."""
        if shutil.which("mkfs.ext4") is None or shutil.which("fsck.ext4") is None:
            return False
        self.mount.mkdir()
        self._image.touch()
        os.truncate(self._image, IMAGE_BYTES)
        return await _run("mkfs.ext4", "-q", str(self._image)) == 0 and await self._enter()

    async def break_down(self) -> None:
        """As after an error of the hardware: what is open stays open, and nothing is written any more."""
        assert await _run("mount", "-o", "remount,abort", str(self.mount)) == 0

    async def repair(self) -> None:
        """Once nobody has a file open there."""
        await self.leave()
        # 1: there were errors, and they are corrected.
        assert await _run("fsck.ext4", "-p", str(self._image)) in (0, 1)
        assert await self._enter()

    async def leave(self) -> None:
        assert await _run("umount", str(self.mount)) == 0

    async def _enter(self) -> bool:
        return await _is_mounted("-o", "loop", str(self._image), str(self.mount))


@asynccontextmanager
async def breakable_disk(folder: Path) -> AsyncGenerator[Disk]:
    disk = Disk(folder)
    if not await disk.make():
        pytest.skip("making and mounting an ext4 image is not permitted here")
    try:
        yield disk
    finally:
        await disk.leave()


async def _is_mounted(*arguments: str) -> bool:
    return shutil.which("mount") is not None and await _run("mount", *arguments) == 0


async def _run(*command: str) -> int:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    async with asyncio.timeout(COMMAND_MAX_S):
        return await process.wait()
