"""What a spec may leave out: a versioned template for each well-known tier, shared instructions, and axes.

All parameters are optional. `domain`, `assistant`, `audience`, `rules` (a list) and `topics` (a list) steer the text.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from orchestrator_service.domain.spec import Builtins, BuiltinTemplate
from orchestrator_service.generation.builtin.axes import AXES

# A change to a template raises its number, a change to the shared text or the axes all three: a version in the ledger
# stands for one text.
VERSIONS = {"template": 1, "scenario": 1, "edge_case": 1}


@cache
def load() -> Builtins:
    return Builtins(
        templates={tier: _template(tier, version) for tier, version in VERSIONS.items()},
        shared_prompt=_read("shared"),
        axes=AXES,
    )


def _template(tier: str, version: int) -> BuiltinTemplate:
    return BuiltinTemplate(id=tier, version=f"{tier}@{version}", text=_read(tier))


def _read(name: str) -> str:
    return (files(__name__) / f"{name}.md.j2").read_text(encoding="utf-8")
