"""`parley init`: a first spec with its prompts, and the schema that editors complete it by."""

from __future__ import annotations

from pathlib import Path

from parley.cli import starter
from parley.cli.failures import NOT_POSSIBLE, OK, CommandError, Fault
from parley.cli.output import Output, json_line


def init(output: Output, folder: Path, *, force: bool) -> int:
    sources = {folder / name: starter.FOLDER / name for name in starter.FILES}
    sources[folder / starter.SCHEMA.name] = starter.SCHEMA
    existing = [path for path in sources if path.exists()]
    if existing and not force:
        raise CommandError(
            f"{folder} has such files already; nothing was written.",
            exit_code=NOT_POSSIBLE,
            faults=[Fault(str(path), "exists") for path in existing],
            next_step="Name another folder, or say --force to overwrite them.",
        )
    for path, source in sources.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
    if output.as_json:
        output.line(json_line({"files": [str(path) for path in sources]}))
        return OK
    for path in sources:
        output.text(str(path))
    output.note(f"next: parley quote {folder / 'spec.yaml'}")
    return OK
