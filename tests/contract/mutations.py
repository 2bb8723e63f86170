"""How a request is spoilt while it still reads: a field of it made odd."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from corpus import Author, Corpus, Field, bounds, is_map, rules_of
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

INT64_MAX = 2**63 - 1
REPEATED_MAX = 2_000
MEGABYTE = 1_000_000
# Of a list, so many entries are looked into: an axis has a thousand alike.
LOOKED_INTO = 3

ODD_TEXTS = (
    "", " ", "\n", "\0", "a\0b", "%", "%s%n%00", "..", "/", "../../../etc/passwd", "\\", "'", '"', "';--", "*", ":",
    "NaN", "null", "-0", "1e999", "\u0663", "\u0130", "\u00df", "e\u0301", "\u202e", "\u2028", "\ufeff", "\uffff",
    "\U0001f600", "\U0001f600" * 200, "x" * 63, "x" * 64, "x" * 65, "x" * 200, "x" * 201, "x" * 500, "x" * 501,
    "batches/", "batches/abcd", "quotes/abcd", "batches/abcd/conversations/999999999",
    "batches/abcd/calls/999999999999999999", "x" * 10_000, "\u00e9" * 40_000,
)  # fmt: skip
ODD_TEMPLATES = (
    "{{", "{%", "{{ x }}", "{{ topic.__class__ }}", "{{ topic | nothing }}", "{% for i in topic %}{{ i }}{% endfor %}",
    "{% if topic is in 5 %}x{% endif %}", "{{ 1 + 'a' }}", "{{ -topic }}", "{{ '\\ud800' }}", "{{ 1e999 }}",
    "{{ " + "1" * 5_000 + " }}", "{{ " + "(" * 500 + " }}", "{{ " + "-" * 3_000 + "1 }}", "{{ [] + [] }}",
    "{{ topic[99999999999999999999] }}", "{{ topic | join(',') }}", "{{ 5 | length }}", "{% raw %}{{ x }}{% endraw %}",
    "{#" * 1_000, "x" * 262_145, "{{ loop.index }}", "{{ self }}", "{{ client.age + 1 }}", "{{ words | first }}",
    "{% for w in words %}{{ loop.index }}{{ w }}{% endfor %}", "{{ client }}", "{{ 0.1 + 0.2 }}", "{{ 'a' < 1 }}",
)  # fmt: skip
ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 5e-324, 1e-9, 1.7e308, -1.7e308, float("inf"), float("-inf"), float("nan"))
ODD_INTS = (
    0, 1, -1, 2, 50, 51, 999, 1_000, 1_001, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, INT64_MAX, -(2**63), 2**64 - 1,
)  # fmt: skip
TOKEN_ENDS = ("", "0", "-1", "00", "1e3", "\u0663", "9" * 18, "9" * 19, "9" * 40, "9" * 300)

RANGES: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), INT64_MAX),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def odd_structs() -> list[Message]:
    keys = ("", " ", "a b", "self", "loop", "tier", "topic", "__class__", "\0", "x" * 1_000, "client", "words")
    numbers = (float("nan"), float("inf"), 1.7e308, -0.0, 1e16, 5e-324)
    many, deep = Struct(), Struct()
    for number in range(201):
        many.fields[f"p{number}"].number_value = number
    inner = deep
    for _ in range(25):
        inner = inner.fields["client"].struct_value
    return [
        *(Struct(fields={key: Value(string_value=key)}) for key in keys),
        *(Struct(fields={"words": Value(number_value=number)}) for number in numbers),
        Struct(fields={"words": Value()}),
        Struct(fields={"words": Value(list_value=ListValue(values=[Value(number_value=float("nan"))]))}),
        Struct(fields={"words": Value(string_value="x" * 262_145)}),
        many,
        deep,
    ]


ODD_WELL_KNOWN: dict[str, list[Message]] = {
    "google.protobuf.Timestamp": [
        *(Timestamp(seconds=s) for s in (INT64_MAX, -(2**63), -62_135_596_801, 253_402_300_800, 253_402_300_799, -1)),
        *(Timestamp(nanos=nanos) for nanos in (-1, 999_999_999, 1_000_000_000, 2**31 - 1)),
    ],
    "google.protobuf.Duration": [
        *(Duration(seconds=s) for s in (INT64_MAX, -(2**63), 315_576_000_000, 315_576_000_001, -1)),
        *(Duration(seconds=s, nanos=n) for s, n in ((0, -1), (1, -1), (-1, 1), (0, 2**31 - 1), (3_153_600_000, 1))),
    ],
    "google.type.Money": [
        *(Money(currency_code=code, units=1) for code in ("", "EUR", "usd", "US", "USDX", "\0\0\0")),
        *(Money(currency_code="USD", units=units) for units in (INT64_MAX, -(2**63), -1, 9_223_372_037, 999_999)),
        *(Money(currency_code="USD", nanos=nanos) for nanos in (-1, 1, 999_999_999, 1_000_000_000, 2**31 - 1)),
    ],
    "google.protobuf.FieldMask": [
        *(FieldMask(paths=[path]) for path in ("", "*", "name", "budget.units", "displayName", "x" * 10_000, "\0")),
        FieldMask(paths=["budget"] * 1_000),
        FieldMask(paths=["display_name", "labels", "budget", "concurrency", "hold_after", "priority"]),
    ],
    "google.protobuf.Struct": odd_structs(),
}


class Mutator:
    def __init__(self, rng: Random, corpus: Corpus, author: Author) -> None:
        self._rng = rng
        self._corpus = corpus
        self._author = author

    def spoil(self, message: Message) -> None:
        """One field, anywhere in the message, is no longer what a client would send."""
        holder, field = self._rng.choice(list(_places(message)))
        if self._rng.random() < 0.1:
            holder.ClearField(field.name)
        elif is_map(field):
            self._spoil_map(holder, field)
        elif field.is_repeated:
            self._spoil_list(holder, field)
        elif field.message_type is not None:
            self._spoil_message(holder, field)
        else:
            setattr(holder, field.name, self._odd_scalar(field, getattr(holder, field.name)))

    def _spoil_map(self, holder: Message, field: Field) -> None:
        key, value = field.message_type.fields
        place: Any = getattr(holder, field.name)
        for number in range(self._rng.choice((1, 1, 1, 17, 300))):
            text = self._odd_text(key, "") if number == 0 else f"k{number}"
            if value.message_type is not None:
                place[text].MergeFromString(self._odd_message(value.message_type).SerializeToString())
            else:
                place[text] = self._odd_scalar(value, "")

    def _spoil_list(self, holder: Message, field: Field) -> None:
        place: Any = getattr(holder, field.name)
        if not place or self._rng.random() < 0.5:
            place.append(
                self._odd_message(field.message_type) if field.message_type is not None else self._odd_scalar(field, "")
            )
        one = place[self._rng.randrange(len(place))]
        most = min(rules_of(field).repeated.max_items or 20, REPEATED_MAX)
        wanted = self._rng.choice((1, 1, 1, 2, most - len(place), most + 1 - len(place)))
        # Copies of one large entry would only be large.
        large = (len(one) if isinstance(one, str) else one.ByteSize() if field.message_type is not None else 0) > 1_000
        place.extend([one] * min(wanted, 2 if large else wanted))

    def _spoil_message(self, holder: Message, field: Field) -> None:
        place: Any = getattr(holder, field.name)
        place.CopyFrom(self._odd_message(field.message_type))

    def _odd_message(self, kind: Descriptor) -> Message:
        made = message_factory.GetMessageClass(kind)()
        if kind.full_name in ODD_WELL_KNOWN:
            made.ParseFromString(self._rng.choice(ODD_WELL_KNOWN[kind.full_name]).SerializeToString())
        elif self._rng.random() < 0.7:
            made = self._author.message(kind)
        return made

    def _odd_scalar(self, field: Field, now: Any) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return self._odd_text(field, now)
            case FieldDescriptor.CPPTYPE_BOOL:
                return not now
            case FieldDescriptor.CPPTYPE_ENUM:
                return self._rng.choice((0, 1, 2, 6, 99, -1, 2**31 - 1, -(2**31)))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._rng.choice((*ODD_FLOATS, *_edges(field)))
            case _:
                low, high = RANGES[field.cpp_type]
                return self._rng.choice([number for number in (*ODD_INTS, *_edges(field)) if low <= number <= high])

    def _odd_text(self, field: Field, now: str) -> str:
        most = rules_of(field).string.max_len or rules_of(field).string.max_bytes or 200
        chance = self._rng.random()
        if field.name in ("text", "system_prompt") and chance < 0.7:
            return self._rng.choice(ODD_TEMPLATES)
        if chance < 0.3:
            return self._rng.choice(("x", "\U0001f600")) * (most + self._rng.choice((-1, 0, 1)))
        if chance < 0.35:
            return "x" * MEGABYTE
        if chance < 0.5:
            return self._rng.choice(self._corpus.texts(field.name) or ODD_TEXTS)
        return self._near(now) if now and chance < 0.75 else self._rng.choice(ODD_TEXTS)

    def _near(self, text: str) -> str:
        """Another text that is almost this one; of a token, one that is made as a token is."""
        at = self._rng.randrange(len(text))
        changes: list[Callable[[], str]] = [
            lambda: text[:-1],
            lambda: text + "\n",
            lambda: text + "0",
            text.upper,
            lambda: text * 2,
            lambda: text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :],
            lambda: f"%{ord(text[0]):02x}" + text[1:],
            lambda: self._forged(text),
            lambda: self._forged(text),
            lambda: self._forged(text),
        ]
        # Half of a pair can't be sent at all; UTF-8 that is none comes with the garbage.
        return self._rng.choice(changes)().encode("utf-8", "replace").decode()

    def _forged(self, token: str) -> str:
        try:
            plain = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            return token[::-1]
        if not plain:
            return token
        if self._rng.random() < 0.7:
            changed = plain.rpartition(b":")[0] + b":" + self._rng.choice(TOKEN_ENDS).encode()
        else:
            at = self._rng.randrange(len(plain))
            changed = plain[:at] + bytes([plain[at] ^ (1 << self._rng.randrange(8))]) + plain[at + 1 :]
        return base64.urlsafe_b64encode(changed).decode().rstrip("=")


def _edges(field: Field) -> list[Any]:
    """The last numbers that the rules allow, and the first ones that they don't."""
    least, most = bounds(rules_of(field), low=0, high=0)
    return [least - 1, least, most, most + 1]


def _places(message: Message) -> Iterator[tuple[Message, Field]]:
    """Every field of the message and of what is set inside it."""
    for field in list[Field](message.DESCRIPTOR.fields):
        yield message, field
        if field.message_type is None or is_map(field) or field.message_type.full_name.startswith("google."):
            continue
        value: Any = getattr(message, field.name)
        if field.is_repeated:
            for inner in value[:LOOKED_INTO]:
                yield from _places(inner)
        elif message.HasField(field.name):
            yield from _places(value)
