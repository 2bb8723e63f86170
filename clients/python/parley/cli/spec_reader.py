"""The reader of a spec's YAML: nodes with their lines into a BatchSpec, with the shorthands that people write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from google.protobuf import struct_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.type import money_pb2

from parley import money
from parley.v1 import batch_pb2

PROMPT_FILE_SUFFIXES = (".md", ".txt", ".j2")
PROMPT_MAX_BYTES = 262_144
# Aliases let a small file name a huge tree; this bounds what is read of it.
NODES_MAX = 2_000_000
SLUG_MAX_CHARS = 48

_EXCHANGES = re.compile(r"(\d{1,3})(?:\s*(?:-|to)\s*(\d{1,3}))?")
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True, order=True)
class SpecFault:
    line: int
    field: str
    message: str


class SpecReader:
    """Reads one spec. Goes on after a fault, so that all of them are told at once."""

    def __init__(self, folder: Path, loader: yaml.SafeLoader) -> None:
        self.faults: list[SpecFault] = []
        self.lines: dict[str, int] = {}
        self._folder = folder
        self._loader = loader
        self._nodes = 0
        self._flattened: set[int] = set()
        self._shorthands: Mapping[str, Callable[[yaml.Node, Any, str], None]] = {
            batch_pb2.Prompt.DESCRIPTOR.full_name: self._prompt,
            batch_pb2.ExchangeRange.DESCRIPTOR.full_name: self._exchanges,
            batch_pb2.AxisValue.DESCRIPTOR.full_name: self._axis_value,
            money_pb2.Money.DESCRIPTOR.full_name: self._money,
            struct_pb2.Struct.DESCRIPTOR.full_name: self._struct,
        }

    def message(self, node: yaml.Node, into: Message, path: str) -> None:
        """A mapping whose keys are the fields of a message."""
        # The stubs type compiled descriptors apart from the others; they are used alike.
        declared = cast("Sequence[FieldDescriptor]", into.DESCRIPTOR.fields)
        fields = {name: field for field in declared for name in (field.name, field.json_name)}
        known = [field.name for field in declared]
        for key, value in self._entries(node, path):
            field = fields.get(key.value)
            inner = f"{path}.{key.value}" if path else str(key.value)
            if field is None:
                self._fault(key, inner, _unknown(key.value, known))
            elif value.tag != _NULL:
                self._field(value, into, field, f"{path}.{field.name}" if path else field.name, key)

    def _field(self, node: yaml.Node, into: Message, field: FieldDescriptor, path: str, key: yaml.Node) -> None:
        self.lines[path] = key.start_mark.line + 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._text_map(node, getattr(into, field.name), path)
        elif field.message_type is batch_pb2.Axis.DESCRIPTOR and isinstance(node, yaml.MappingNode):
            self._axes_by_id(node, getattr(into, field.name), path)
        elif field.is_repeated:
            self._list(node, into, field, path)
        elif field.message_type is not None:
            # An empty message is not an absent one: `budget: 0` is a limit.
            getattr(into, field.name).SetInParent()
            self._one(node, getattr(into, field.name), path)
        else:
            value = self._scalar(node, field, path)
            if value is not None:
                self._set(node, into, field, value, path)

    def _one(self, node: yaml.Node, into: Message, path: str) -> None:
        shorthand = self._shorthands.get(into.DESCRIPTOR.full_name)
        if shorthand is None:
            self.message(node, into, path)
        else:
            shorthand(node, into, path)

    def _list(self, node: yaml.Node, into: Message, field: FieldDescriptor, path: str) -> None:
        for index, item in enumerate(self._items(node, path)):
            inner = f"{path}[{index}]"
            self.lines[inner] = item.start_mark.line + 1
            if field.message_type is not None:
                self._one(item, getattr(into, field.name).add(), inner)
            elif (value := self._scalar(item, field, inner)) is not None:
                getattr(into, field.name).append(value)
        if field.message_type is batch_pb2.AxisValue.DESCRIPTOR:
            _make_ids_unique(cast("batch_pb2.Axis", into))

    def _axes_by_id(self, node: yaml.MappingNode, into: Any, path: str) -> None:
        """`persona: [..]` for each axis in place of a list of {id, values}."""
        values = batch_pb2.Axis.DESCRIPTOR.fields_by_name["values"]
        for index, (key, value) in enumerate(self._entries(node, path)):
            axis = into.add(id=key.value)
            self.lines[f"{path}[{index}]"] = self.lines[f"{path}[{index}].id"] = key.start_mark.line + 1
            self._list(value, axis, values, f"{path}[{index}].values")

    def _axis_value(self, node: yaml.Node, into: batch_pb2.AxisValue, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            self.message(node, into, path)
        elif (text := self._text(node, path, "a text, or {id, text}")) is not None:
            into.id, into.text = slug(text), text

    def _prompt(self, node: yaml.Node, into: batch_pb2.Prompt, path: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            text = self._text(node, path, "a text, a path ending in .md, .txt or .j2, or {text} or {file}")
            into.text = self._text_or_file(node, text or "", path)
            return
        given = {str(key.value): value for key, value in self._entries(node, path)}
        if len(given) != 1 or not given.keys() <= {"text", "file"}:
            self._fault(node, path, "expected either {text: ...} or {file: ...}")
            return
        ((kind, value),) = given.items()
        text = self._text(value, f"{path}.{kind}", "a text") or ""
        into.text = text if kind == "text" else self._file(value, text, path)

    def _text_or_file(self, node: yaml.Node, text: str, path: str) -> str:
        is_path = "\n" not in text and text.endswith(PROMPT_FILE_SUFFIXES) and " " not in text
        return self._file(node, text, path) if is_path else text

    def _file(self, node: yaml.Node, name: str, path: str) -> str:
        try:
            content = (self._folder / name).read_bytes()
        except OSError as error:
            self._fault(node, path, f"the file {self._folder / name} can't be read: {error.strerror}")
            return ""
        if len(content) > PROMPT_MAX_BYTES:
            self._fault(node, path, f"the file {name} has {len(content):,} bytes; at most {PROMPT_MAX_BYTES:,} may be")
            return ""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._fault(node, path, f"the file {name} is not UTF-8 text")
            return ""

    def _exchanges(self, node: yaml.Node, into: batch_pb2.ExchangeRange, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            self.message(node, into, path)
            return
        match = _EXCHANGES.fullmatch(str(node.value).strip()) if isinstance(node, yaml.ScalarNode) else None
        if match is None:
            self._fault(node, path, "expected a range such as 4-5, a number, or {min, max}")
            return
        into.min, into.max = int(match[1]), int(match[2] or match[1])

    def _money(self, node: yaml.Node, into: money_pb2.Money, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            self.message(node, into, path)
            into.currency_code = into.currency_code or "USD"
        elif (text := self._text(node, path, "an amount of US dollars, such as 5.00 or $5")) is not None:
            try:
                into.CopyFrom(money.parse(text))
            except ValueError as error:
                self._fault(node, path, str(error))

    def _struct(self, node: yaml.Node, into: struct_pb2.Struct, path: str) -> None:
        for key, value in self._entries(node, path):
            inner = f"{path}.{key.value}"
            self.lines[inner] = key.start_mark.line + 1
            try:
                into.update({str(key.value): self._plain(value, inner)})
            except ValueError:
                self._fault(value, inner, "expected texts, numbers, true, false, lists and mappings only")

    def _plain(self, node: yaml.Node, path: str) -> Any:
        """Any JSON value. Only true and false are booleans: `no` and `off` are words in a parameter."""
        if isinstance(node, yaml.MappingNode):
            return {
                str(key.value): self._plain(value, f"{path}.{key.value}") for key, value in self._entries(node, path)
            }
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, f"{path}[{index}]") for index, item in enumerate(self._items(node, path))]
        return _plain_scalar(cast("yaml.ScalarNode", node))

    def _text_map(self, node: yaml.Node, into: Any, path: str) -> None:
        for key, value in self._entries(node, path):
            inner = f'{path}["{key.value}"]'
            self.lines[inner] = key.start_mark.line + 1
            if (text := self._text(value, inner, "a text")) is not None:
                into[str(key.value)] = text

    def _scalar(self, node: yaml.Node, field: FieldDescriptor, path: str) -> str | int | float | None:
        if field.enum_type is not None:
            return self._enum(node, field.enum_type, path)
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            text = self._text(node, path, "a text")
            return self._text_or_file(node, text, path) if text and field.name == "system_prompt" else text
        if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
            return self._number(node, path, float, "a number")
        return self._number(node, path, int, "a whole number")

    def _number(
        self, node: yaml.Node, path: str, read: Callable[[str], int | float], expected: str
    ) -> int | float | None:
        try:
            if isinstance(node, yaml.ScalarNode):
                return read(str(node.value).replace("_", ""))
        except ValueError:
            pass
        self._fault(node, path, f"expected {expected}, not {_shown(node)}")
        return None

    def _set(self, node: yaml.Node, into: Message, field: FieldDescriptor, value: str | float, path: str) -> None:
        try:
            setattr(into, field.name, value)
        except ValueError:
            self._fault(node, path, f"{value} is out of range")

    def _enum(self, node: yaml.Node, kind: EnumDescriptor, path: str) -> int | None:
        words = enum_words(kind)
        written = str(node.value).strip() if isinstance(node, yaml.ScalarNode) else ""
        number = words.get(
            written.lower(), kind.values_by_name[written].number if written in kind.values_by_name else None
        )
        if number is None:
            self._fault(node, path, f"expected one of {', '.join(words)}, not {_shown(node)}")
        return number

    def _text(self, node: yaml.Node, path: str, expected: str) -> str | None:
        # As written: YAML would make a boolean of `no` and a number of 1.10 where a text is wanted.
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
            return str(node.value)
        self._fault(node, path, f"expected {expected}, not {_shown(node)}")
        return None

    def _entries(self, node: yaml.Node, path: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._fault(node, path, f"expected a mapping of names to values, not {_shown(node)}")
            return
        self._flatten(node, path)
        # What is written beside a merge key wins over what it brings, and comes after it.
        last: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            self._count(node)
            if isinstance(key, yaml.ScalarNode):
                last[str(key.value)] = (key, value)
            else:
                self._fault(key, path, "expected a name before the colon")
        yield from last.values()

    def _flatten(self, node: yaml.MappingNode, path: str) -> None:
        """Resolves the merge key `<<`, once for each mapping: an alias brings it here again."""
        if id(node) in self._flattened:
            return
        self._flattened.add(id(node))
        seen: set[str] = set()
        for key, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            name = str(key.value)
            if name in seen and key.tag != _MERGE:
                self._fault(key, f"{path}.{name}" if path else name, "is given twice")
            seen.add(name)
        self._loader.flatten_mapping(node)

    def _items(self, node: yaml.Node, path: str) -> Iterator[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self._fault(node, path, f"expected a list, not {_shown(node)}")
            return
        for item in cast("list[yaml.Node]", node.value):
            self._count(node)
            yield item

    def _count(self, node: yaml.Node) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise yaml.MarkedYAMLError(problem=f"more than {NODES_MAX:,} values", problem_mark=node.start_mark)

    def _fault(self, node: yaml.Node, path: str, message: str) -> None:
        self.faults.append(SpecFault(node.start_mark.line + 1, path, message))


def enum_words(kind: EnumDescriptor) -> dict[str, int]:
    """The short words of an enum: PROMPT_CACHE_5M is 5m. The unspecified one has none."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper() + "_"
    return {value.name.removeprefix(prefix).lower(): value.number for value in kind.values if value.number}


def slug(text: str) -> str:
    """An id for a text: plain letters, digits and underscores, cut at a word."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    made = ""
    for word in words:
        longer = f"{made}_{word}" if made else word
        if len(longer) > SLUG_MAX_CHARS:
            break
        made = longer
    return made or (words[0][:SLUG_MAX_CHARS] if words else "value")


def _make_ids_unique(axis: batch_pb2.Axis) -> None:
    taken: set[str] = set()
    for value in axis.values:
        number, wanted = 2, value.id
        # Only an id that was made from a text is changed; one that was written twice is the writer's to correct.
        while value.id in taken and value.text and slug(value.text) == wanted:
            value.id, number = f"{wanted}_{number}", number + 1
        taken.add(value.id)


def _unknown(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"is not known; did you mean {close[0]}?" if close else f"is not known; there are {', '.join(known)}"


def _plain_scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    written = str(node.value)
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool" and written.lower() in ("true", "false"):
        return written.lower() == "true"
    if kind in ("int", "float") and ":" not in written:
        try:
            return int(written, 0) if kind == "int" else float(written.replace("_", ""))
        except ValueError:
            return written
    return written


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        return "nothing" if node.tag == _NULL else repr(text if len(text) <= 40 else f"{text[:37]}...")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
