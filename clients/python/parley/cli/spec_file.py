"""Spec files: a YAML file into a checked BatchSpec, or every fault with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import protovalidate
import yaml

from parley.cli.spec_reader import SpecFault, SpecReader
from parley.v1 import batch_pb2
from parley.wire import rules

SPEC_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SpecFile:
    path: Path
    spec: batch_pb2.BatchSpec
    # The line of every field that was written, by its path.
    lines: Mapping[str, int]

    def line_of(self, field: str) -> int | None:
        """The line of a field, or of the nearest one around it that was written."""
        while field:
            if field in self.lines:
                return self.lines[field]
            field = re.sub(r"(\.[^.\[\]]*|\[[^\]]*\]|^[^.\[]*)$", "", field)
        return None


class SpecFileError(Exception):
    """The file is no spec. Every fault has its line (0 for the file as a whole), its field and what was expected."""

    def __init__(self, path: Path, faults: Sequence[SpecFault]) -> None:
        count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        super().__init__(f"{path} has {count}.")
        self.path = path
        self.faults = tuple(faults)


def load(path: Path) -> SpecFile:
    """Raises SpecFileError with everything that is wrong."""
    loader = yaml.SafeLoader(_read(path))
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise SpecFileError(path, [SpecFault(1, "", "expected a mapping with name, tiers and so on")])
        reader, spec = SpecReader(path.parent, loader), batch_pb2.BatchSpec()
        reader.message(node, spec, "")
    except yaml.YAMLError as error:
        raise SpecFileError(path, [_yaml_fault(error)]) from error
    except RecursionError as error:
        raise SpecFileError(path, [SpecFault(0, "", "is nested too deeply, or contains itself")]) from error
    finally:
        loader.dispose()
    file = SpecFile(path, spec, reader.lines)
    # Rules of the contract are told beside faults of form, but not of fields that could not be read.
    broken = {fault.field for fault in reader.faults}
    rules = [fault for fault in _rule_faults(file) if not any(_same(fault.field, field) for field in broken)]
    if faults := sorted({*reader.faults, *rules}):
        raise SpecFileError(path, faults)
    return file


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecFileError(path, [SpecFault(0, "", f"can't be read: {error.strerror}")]) from error
    if len(content) > SPEC_MAX_BYTES:
        raise SpecFileError(path, [SpecFault(0, "", f"has {len(content):,} bytes; at most {SPEC_MAX_BYTES:,} may be")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecFileError(path, [SpecFault(0, "", "is not UTF-8 text")]) from error


def _yaml_fault(error: yaml.YAMLError) -> SpecFault:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return SpecFault(error.problem_mark.line + 1, "", f"is not YAML: {error.problem}")
    return SpecFault(0, "", f"is not YAML: {error}")


def _rule_faults(file: SpecFile) -> list[SpecFault]:
    try:
        rules.check(file.spec)
    except rules.RuleBroken as broken:
        return [SpecFault(file.line_of(fault.field) or 1, fault.field, fault.message) for fault in broken.violations]
    except protovalidate.EvaluationError:
        # A rule that can't be worked out here is the server's to judge; it checks all of them again.
        return []
    return []


def _same(one: str, other: str) -> bool:
    return one == other or one.startswith((f"{other}.", f"{other}["))
