"""The messages format: JSON lines of {"messages": [{"role", "content"}]}, lean, as trainers load it."""

from __future__ import annotations

import json
from collections.abc import Sequence

MEDIA_TYPE = "application/jsonl"
SUFFIX = ".jsonl"

# They end a line for some readers (str.splitlines), though not for JSON: written as escapes they do no harm.
_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\u0085": "\\u0085"}


def line(turns: Sequence[tuple[str, str]], *, system: str) -> bytes:
    """One row: UTF-8, no BOM, ended by a line feed."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": role, "content": content} for role, content in turns]
    text = json.dumps({"messages": messages}, ensure_ascii=False)
    for character, escape in _LINE_ENDS.items():
        text = text.replace(character, escape)
    return text.encode() + b"\n"
