"""What a process looks like from outside: memory, open files, threads, and what its log complains of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

BAD_LEVELS = ("error", "critical")


@dataclass(frozen=True, kw_only=True)
class Vitals:
    memory_bytes: int
    open_files: int
    threads: int


def vitals_of(pid: int) -> Vitals:
    process = Path("/proc") / str(pid)
    resident_pages = int((process / "statm").read_text().split()[1])
    return Vitals(
        memory_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        open_files=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
    )


def complaints(log: Path) -> list[str]:
    """Lines that no log of a healthy server has: tracebacks, errors, and what some library printed past the log."""
    return [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip() and _is_bad(line)]


def _is_bad(line: str) -> bool:
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return True
    if not isinstance(entry, dict):
        return True
    told = cast("dict[str, Any]", entry)
    return "exception" in told or told.get("level") in BAD_LEVELS
