"""Downloads: the parts of an export into files that appear whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from parley.exceptions import DownloadDamaged
from parley.v1 import orchestrator_pb2


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """What an export wrote, and what it left out: counts by review, and reasons by conversation name."""

    files: tuple[ExportedFile, ...]
    rows: int
    left_out: Mapping[str, int]
    refused: Mapping[str, str]


class Download:
    """Takes the parts in order. Files get their names only once all of them are whole."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._open: _PartFile | None = None
        self._whole: list[_PartFile] = []
        self._summary: orchestrator_pb2.ExportSummary | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (*self._whole, *([self._open] if self._open else [])):
            part.discard()

    def take(self, response: orchestrator_pb2.ExportDatasetResponse) -> None:
        match response.WhichOneof("part"):
            case "header":
                self._begin(response.header)
            case "data":
                self._current().write(response.data)
            case "footer":
                self._whole.append(self._current().checked(response.footer))
                self._open = None
            case "summary":
                self._summary = response.summary
            case _:
                # A part of a newer server that this client can't know.
                return

    def finish(self) -> ExportedFiles:
        """Gives the files their names. Raises DownloadDamaged where the stream ended early."""
        if self._open is not None or self._summary is None:
            raise DownloadDamaged("The export ended before its last part.", next_step="Run the export again.")
        files = tuple(part.publish() for part in self._whole)
        return ExportedFiles(files, self._summary.rows, dict(self._summary.left_out), dict(self._summary.refused))

    def _begin(self, header: orchestrator_pb2.ExportFileHeader) -> None:
        if self._open is not None:
            raise DownloadDamaged(f"{self._open.path.name} was not ended before {header.file_name} began.")
        # The name comes over the wire: it must not lead out of the folder.
        if Path(header.file_name).name != header.file_name or header.file_name in ("", ".", ".."):
            raise DownloadDamaged(f"The server sent the file name {header.file_name!r}, which is not a plain one.")
        if any(part.path.name == header.file_name for part in self._whole):
            raise DownloadDamaged(f"The server sent two files with the name {header.file_name}.")
        self._open = _PartFile(self._folder / header.file_name)

    def _current(self) -> _PartFile:
        if self._open is None:
            raise DownloadDamaged("The server sent bytes before a file's header.")
        return self._open


class _PartFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._file: BinaryIO = self._part.open("wb")
        self._hash = hashlib.sha256()
        self._footer = orchestrator_pb2.ExportFileFooter()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    def checked(self, footer: orchestrator_pb2.ExportFileFooter) -> Self:
        if self._hash.hexdigest() != footer.sha256:
            raise DownloadDamaged(
                f"{self.path.name} did not arrive as it was sent: its sha256 differs.",
                next_step="Run the export again.",
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._footer = footer
        return self

    def publish(self) -> ExportedFile:
        self._part.replace(self.path)
        return ExportedFile(self.path, self._footer.rows, self._footer.size_bytes, self._footer.sha256)

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)
