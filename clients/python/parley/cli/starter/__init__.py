"""The starter: a small spec that runs as it is, for `parley init` to copy."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SCHEMA = FOLDER.parent / "parley-spec.schema.json"
FILES = ("spec.yaml", "prompts/scenario.md")
