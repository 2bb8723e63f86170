"""The JSON Schema by which editors complete and check a spec file; `python -m parley.cli.schema` writes it anew.

Built from the contract (fields, simple rules, comments), with the shorthands that the reader takes beside them.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.type import money_pb2

from parley.cli.spec_reader import enum_words
from parley.cli.starter import SCHEMA
from parley.v1 import batch_pb2

Schema = dict[str, Any]

# Any scalar is taken as it is written where a text is wanted: 1.10 stays 1.10.
TEXT: Schema = {"type": ["string", "number", "boolean"]}
PROMPT_FILE: Schema = {"type": "string", "pattern": r"^[^\s]+\.(md|txt|j2)$", "description": "A file beside the spec."}


def build() -> Schema:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Parley spec",
        **_message(batch_pb2.BatchSpec.DESCRIPTOR),
        "required": ["name"],
    }


def text() -> str:
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"


def _message(message: Descriptor) -> Schema:
    properties: Schema = {}
    for field in message.fields:
        described = {"description": _comments().get((message.name, field.name), ""), **_field(field)}
        properties[field.name] = described
        if field.json_name != field.name:
            # Taken too, but an editor should offer one name only.
            properties[field.json_name] = {"$ref": f"#{_pointer(message)}/{field.name}", "deprecated": True}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _pointer(message: Descriptor) -> str:
    nested = {
        "BatchSpec": "/properties",
        "Tier": "/properties/tiers/items/properties",
        "ConversationSpec": "/properties/conversations/items/properties",
        "CircuitBreaker": "/properties/circuit_breaker/properties",
    }
    return nested[message.name]


def _field(field: FieldDescriptor) -> Schema:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(rules.map)
    if field.message_type is batch_pb2.Axis.DESCRIPTOR:
        return _axes()
    if field.is_repeated:
        items = _one(field, rules.repeated.items)
        return {"type": "array", "items": items, **_present(maxItems=rules.repeated.max_items)}
    return _one(field, rules)


def _one(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
    if field.message_type is not None:
        special = _shorthands().get(field.message_type.full_name)
        return special if special is not None else _message(field.message_type)
    if field.enum_type is not None:
        return {"enum": list(enum_words(field.enum_type))}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return {**TEXT, **_string(rules.string)}
    if rules.HasField("double"):
        return {"type": "number", "minimum": rules.double.gte, "maximum": rules.double.lte}
    number = rules.int32 if rules.HasField("int32") else rules.uint64
    least = number.gte if number.HasField("gte") else 0
    return {"type": "integer", "minimum": least, **({"maximum": number.lte} if number.HasField("lte") else {})}


def _string(rules: validate_pb2.StringRules) -> Schema:
    # The lengths in bytes have no word in JSON Schema.
    return _present(pattern=rules.pattern, minLength=rules.min_len, maxLength=rules.max_len)


def _map(rules: validate_pb2.MapRules) -> Schema:
    return {
        "type": "object",
        "maxProperties": rules.max_pairs,
        "propertyNames": _string(rules.keys.string),
        "additionalProperties": {**TEXT, **_string(rules.values.string)},
    }


def _shorthands() -> Mapping[str, Schema]:
    return {
        batch_pb2.Prompt.DESCRIPTOR.full_name: _prompt(),
        batch_pb2.ExchangeRange.DESCRIPTOR.full_name: _exchanges(),
        money_pb2.Money.DESCRIPTOR.full_name: _money(),
        struct_pb2.Struct.DESCRIPTOR.full_name: {"type": "object", "maxProperties": 200},
    }


def _prompt() -> Schema:
    by_key = {
        "type": "object",
        "properties": {"text": {"type": "string"}, "file": PROMPT_FILE},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [PROMPT_FILE, {"type": "string", "description": "The text itself."}, by_key]}


def _exchanges() -> Schema:
    bound = {"type": "integer", "minimum": 1, "maximum": 50}
    by_key = {"type": "object", "properties": {"min": bound, "max": bound}, "additionalProperties": False}
    return {"anyOf": [{"type": "string", "pattern": r"^\d+(\s*(-|to)\s*\d+)?$"}, bound, by_key]}


def _money() -> Schema:
    by_key = {
        "type": "object",
        "properties": {
            "units": {"type": "integer", "minimum": 0},
            "nanos": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
            "currency_code": {"const": "USD"},
        },
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\$?[\d,]+(\.\d+)?$"}, by_key]}


def _axes() -> Schema:
    axis = batch_pb2.Axis.DESCRIPTOR
    rules = axis.fields_by_name["id"].GetOptions().Extensions[validate_pb2.field].string
    values: Schema = {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"anyOf": [TEXT, _axis_value()]}}
    described = {**values, "description": _comments().get(("Axis", "values"), "")}
    one = {
        "type": "object",
        "properties": {"id": {**TEXT, **_string(rules)}, "values": described},
        "required": ["id", "values"],
        "additionalProperties": False,
    }
    by_id = {"type": "object", "propertyNames": _string(rules), "additionalProperties": values, "maxProperties": 16}
    return {"anyOf": [{"type": "array", "items": one, "maxItems": 16}, by_id]}


def _axis_value() -> Schema:
    value = batch_pb2.AxisValue.DESCRIPTOR
    rules = value.fields_by_name["id"].GetOptions().Extensions[validate_pb2.field].string
    return {
        "type": "object",
        "properties": {"id": {**TEXT, **_string(rules)}, "text": TEXT},
        "required": ["id"],
        "additionalProperties": False,
    }


def _present(**rules: str | int) -> Schema:
    return {name: value for name, value in rules.items() if value}


@cache
def _comments() -> dict[tuple[str, str], str]:
    """The contract's comments by message and field: the generated .pyi has them, the compiled descriptors don't."""
    stub = Path(batch_pb2.__file__).with_suffix(".pyi")
    comments: dict[tuple[str, str], str] = {}
    for message in ast.parse(stub.read_text()).body:
        if not isinstance(message, ast.ClassDef):
            continue
        for member, follower in zip(message.body, [*message.body[1:], None], strict=True):
            if isinstance(member, ast.FunctionDef) and (doc := ast.get_docstring(member)):
                comments[message.name, member.name] = doc
            elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name) and (doc := _doc(follower)):
                comments[message.name, member.target.id] = doc
    return comments


def _doc(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
    sys.stderr.write(f"{SCHEMA}\n")
