"""Bytes that no client of ours would send: out of a request that reads, others that hardly do."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from corpus import Field, is_map
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

MEGABYTE = 1_000_000
MARK = "SURROGATE"
NOT_UTF8 = b"\xed\xa0\x80\xed\xb0\x80\xff\xfe\xfd"


def garbage(rng: Random, kind: Descriptor, body: bytes) -> bytes:
    makers: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.choice((1, 2, 5, 50, 5_000))),
        lambda: body[: rng.randrange(len(body) + 1)],
        lambda: _flipped(rng, body),
        lambda: body + rng.randbytes(20),
        # Fields that nobody knows: a number, a text of a megabyte, a group within groups.
        lambda: body + b"\xf8\xff\xff\xff\x0f" + b"\xff" * 9 + b"\x01",
        lambda: body + b"\xfa\xff\xff\xff\x0f" + _length(MEGABYTE) + b"\0" * MEGABYTE,
        lambda: body + (depth := rng.choice((5, 50, 99, 100, 101, 10_000))) * b"\x0b" + depth * b"\x0c",
        lambda: body + b"\x0b" * 10_000,
        lambda: body + _nested(rng.choice((20, 40, 49, 50, 51, 99, 100, 101, 5_000)), way_to_struct(kind)),
        lambda: _with_mark(kind).replace(MARK.encode(), NOT_UTF8),
        # A length that lies.
        lambda: body + b"\x0a\xff\xff\xff\xff\x07x",
    ]
    return rng.choice(makers)()


def _flipped(rng: Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _length(number: int) -> bytes:
    packed = bytearray()
    while number >= 0x80:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _field(number: int, content: bytes) -> bytes:
    return _length(number << 3 | 2) + _length(len(content)) + content


def way_to_struct(kind: Descriptor) -> tuple[int, ...]:
    """The field numbers that lead from a request to its first Struct; the first field where it has none."""
    waiting: list[tuple[Descriptor, tuple[int, ...]]] = [(kind, ())]
    seen: set[str] = set()
    while waiting:
        message, way = waiting.pop(0)
        if message.full_name == "google.protobuf.Struct":
            return way
        if message.full_name not in seen:
            seen.add(message.full_name)
            inside = [f for f in list[Field](message.fields) if f.message_type is not None and not is_map(f)]
            waiting += [(field.message_type, (*way, field.number)) for field in inside]
    return (1,)


def _nested(depth: int, way: tuple[int, ...]) -> bytes:
    """A Struct with a list in a list in a list, at the end of the way."""
    content = b""
    for _ in range(depth):
        # Value.list_value is 6, ListValue.values is 1.
        content = _field(6, _field(1, content))
    content = _field(1, _field(1, b"deep") + _field(2, content))
    for number in reversed(way):
        content = _field(number, content)
    return content


def _with_mark(kind: Descriptor) -> bytes:
    made = message_factory.GetMessageClass(kind)()
    texts = [f for f in kind.fields if f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated]
    for field in texts:
        setattr(made, field.name, MARK)
    return made.SerializeToString()
