"""`parley verify`, `parley backup`, `parley restore`: the files of the services here, by the server's own program.

They work on files, so that they work without a server; the client itself knows no database.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from parley.cli import services
from parley.cli.failures import NOT_POSSIBLE, OK, CommandError
from parley.cli.output import Output

PROGRAM = "orchestrator_service.maintenance"
NAMES = ("orchestrator", "estimator")


def verify(output: Output, folder: Path | None) -> int:
    """The services' files, or those of a backup."""
    files = _present() if folder is None else [folder / f"{name}.db" for name in NAMES]
    return _run(output, ["verify"], files)


def backup(output: Output, folder: Path, *, force: bool) -> int:
    return _run(output, ["backup", str(folder), *(["--force"] if force else [])], _present())


def restore(output: Output, folder: Path) -> int:
    code = _run(output, ["restore", str(folder)], _files())
    if code == OK and not output.as_json:
        output.note("next: parley up, then parley list")
    return code


def _files() -> Sequence[Path]:
    return [services.database(name) for name in NAMES]


def _present() -> Sequence[Path]:
    files = _files()
    if not files[0].is_file():
        raise CommandError(
            f"There is no database {files[0]}.",
            exit_code=NOT_POSSIBLE,
            next_step="Set PARLEY_HOME as for `parley up`, or PARLEY_ORCHESTRATOR_DATABASE to the server's file.",
        )
    return files


def _run(output: Output, verb: Sequence[str], files: Sequence[Path]) -> int:
    """The exit code of the program, which means there what it means here; it writes where this command writes."""
    database, estimator = files
    where = ["--database", str(database), "--estimator", str(estimator)]
    as_json = ["--json"] if output.as_json else []
    return subprocess.run([sys.executable, "-m", PROGRAM, *verb, *where, *as_json], check=False).returncode
