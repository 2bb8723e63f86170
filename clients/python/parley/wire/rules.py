"""The contract's rules: checks a message against the buf.validate options of its .proto."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import protovalidate
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from parley.wire.errors import FieldViolation, Refusal


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
    """Raises RuleBroken with every field at fault, named as spec.tiers[1].count or labels["a"]."""
    found = protovalidate.collect_violations(message)
    if found:
        raise RuleBroken([_violation(violation.proto) for violation in found])


def warm(service_names: Iterable[str] = ()) -> None:
    """Compiles the rules of the services' requests, so that the first call does not wait for it."""
    pool = descriptor_pool.Default()
    for service_name in service_names:
        for method in pool.FindServiceByName(service_name).methods:
            protovalidate.collect_violations(message_factory.GetMessageClass(method.input_type)())


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
