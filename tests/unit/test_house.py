"""The house's own rules, where no linter knows them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("orchestrator_service", "estimator_service", "clients/python/parley", "tests", "benchmarks")
GENERATED = ("clients/python/parley/v1/", "migrations/versions/")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not any(part in path.as_posix() for part in GENERATED)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(*FOLDERS), ids=name)
def test_a_file_is_one_noun_and_says_which(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX, f"{name(path)} is over {FILE_LINES_MAX} lines: split it"
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{name(path)} does not say what lives in it"


@pytest.mark.parametrize("path", files(*FOLDERS), ids=name)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name(path)}: {node.name} has {lines} lines"


def test_only_storage_imports_sqlalchemy_and_only_claude_the_sdk() -> None:
    places = {
        "sqlalchemy": "/storage/",
        "aiosqlite": "/storage/",
        "alembic": "/storage/",
        "anthropic": "/generation/claude.py",
    }
    for path in files("orchestrator_service", "estimator_service"):
        for module in imported(path) & places.keys():
            assert places[module] in path.as_posix(), f"{name(path)} imports {module}"


def test_no_file_is_called_after_nothing() -> None:
    nothing = re.compile(r"(^|_)(util|helper|manager|common|misc|base)s?\.py$")
    assert [name(path) for path in files(*FOLDERS) if nothing.search(path.name)] == []


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
