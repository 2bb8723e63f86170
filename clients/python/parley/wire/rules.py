"""The contract's rules: checks a message against the buf.validate options of its .proto."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import protovalidate
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from parley.wire.errors import FieldViolation, Refusal

# A spec of two axes with a thousand values each has two thousand.
PARTS_NAMED_MAX = 5_000
# Of all parameters of a request together, each entry of a list or map one; their rules take a microsecond or two each.
VALUES_MAX = 250_000
# No rule of the contract allows more entries.
LIST_MAX = 100_000


class RuleBroken(Refusal):
    """At least one field breaks a rule; `violations` names them all."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        where = f"{first.field}: " if first.field else ""
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(
            "INVALID_FIELD", f"{where}{first.message}{more}", violations=violations, metadata={"field": first.field}
        )


def check(message: Message) -> None:
    """Raises RuleBroken with every field at fault, named as spec.tiers[1].count or labels["a"].

    Of a request with very many parts only the first: to name a million takes a minute and a gigabyte.
    """
    large = _is_large(message)
    if large:
        _refuse_many_values(message)
    found = protovalidate.collect_violations(message, fail_fast=large)
    if found:
        raise RuleBroken([_violation(violation.proto) for violation in found])


def warm(service_names: Iterable[str] = ()) -> None:
    """Compiles the rules of the services' requests, so that the first call does not wait for it."""
    pool = descriptor_pool.Default()
    for service_name in service_names:
        for method in pool.FindServiceByName(service_name).methods:
            protovalidate.collect_violations(message_factory.GetMessageClass(method.input_type)())


def _is_large(message: Message) -> bool:
    """Whether it has many parts. A part takes at least a byte, so most requests need no counting."""
    return message.ByteSize() > PARTS_NAMED_MAX and _parts(message, PARTS_NAMED_MAX) > PARTS_NAMED_MAX


def _refuse_many_values(message: Message) -> None:
    """Before their rules are looked at: those of a Struct first copy all that is in it."""
    left = VALUES_MAX
    for path, struct in _structs(message, ""):
        left -= _parts(struct, left)
        if left < 0:
            raise RuleBroken([FieldViolation(path, f"up to here the request has more than {VALUES_MAX:,} values")])


def _parts(message: Message, most: int) -> int:
    """Fields, and entries of lists and maps, in all of it; counted no further than beyond `most`."""
    count, waiting = 0, [message]
    while waiting and count <= most:
        for field, value in waiting.pop().ListFields():
            count += len(value) if field.is_repeated else 1
            if field.message_type is not None and count <= most:
                waiting += _inner(field, value)
    return count


def _inner(field: Any, value: Any) -> Iterable[Message]:
    if not field.is_repeated:
        return [value]
    if field.message_type.GetOptions().map_entry:
        return value.values() if field.message_type.fields_by_name["value"].message_type is not None else []
    return value


def _structs(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        # A longer list breaks its own rule, which comes first.
        for at, inner in enumerate(islice(_inner(field, value), LIST_MAX)):
            where = f"{path}.{field.name}[{at}]" if field.is_repeated else f"{path}.{field.name}"
            if field.message_type.full_name == "google.protobuf.Struct":
                yield where.lstrip("."), inner
            else:
                yield from _structs(inner, where)


def _violation(violation: Any) -> FieldViolation:
    path = "".join(_step(element) for element in violation.field.elements) if violation.field else ""
    message = f"the key {violation.message}" if violation.for_key else violation.message
    return FieldViolation(path.lstrip("."), message)


def _step(element: Any) -> str:
    subscript = element.subscript
    if subscript is None:
        return f".{element.field_name}"
    # Lists come with an index, maps with a key; JSON writes both (and true, false) as a reader expects.
    return f".{element.field_name}[{json.dumps(subscript.value, ensure_ascii=False)}]"
