"""What servers said and accepted so far, and requests in those words: right by the contract's rules, nearly always."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from random import Random
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

KEPT_TEXTS = 64
KEPT_MESSAGES = 16
KEPT_MESSAGE_MAX_BYTES = 20_000
KEPT_TEXT_MAX_CHARS = 1_000
# Of one reply; a page of a thousand batches says no more than its first ones.
NODES_MAX = 300
DEPTH_MAX = 6
REUSED_SHARE = 0.7
WANTED_SHARE = 0.5
# For a rule that nothing heard so far obeys.
WORDS = ("template", "topic", "a", "batches/abcd", "quotes/abcd", "model", "0" * 64)
MASKS = ("display_name", "budget", "concurrency", "labels", "hold_after", "priority")

Rules = validate_pb2.FieldRules
# A FieldDescriptor; the library's stubs know two of them, and that a message has one they can't say.
Field = Any


@cache
def rules_of(field: Field) -> Rules:
    return field.GetOptions().Extensions[validate_pb2.field]


def is_map(field: Field) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def set_fields(message: Message) -> list[tuple[Field, Any]]:
    return list(message.ListFields())


def bounds(rules: Rules, *, low: float, high: float) -> tuple[Any, Any]:
    """The least and the greatest value that the rules allow; `low` and `high` where they say nothing."""
    kind = rules.WhichOneof("type")
    told: Any = getattr(rules, kind) if kind else None
    if told is None or not hasattr(told, "gte"):
        return low, high
    least = told.gte if told.HasField("gte") else told.gt if told.HasField("gt") else low
    most = told.lte if told.HasField("lte") else told.lt if told.HasField("lt") else high
    return least, most


class Corpus:
    """Bounded: the newest push out chance others. Nothing is kept that has the `spared` word in it."""

    def __init__(self, rng: Random, *, spared: str) -> None:
        self._rng = rng
        self._spared = spared
        self._texts: dict[str, list[str]] = defaultdict(list)
        self._obeying: dict[str, list[str]] = {}
        self._messages: dict[str, list[bytes]] = defaultdict(list)

    def hear(self, message: Message) -> None:
        """Takes in texts by the names of their fields, and whole messages by their types."""
        waiting, nodes = [message], 0
        while waiting and nodes < NODES_MAX:
            heard = waiting.pop()
            nodes += 1
            self._keep_message(heard)
            for field, value in set_fields(heard):
                if is_map(field):
                    continue
                values: list[Any] = list(value[:10]) if field.is_repeated else [value]
                if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                    waiting += values
                elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_STRING:
                    for text in values:
                        self._keep_text(field.name, text)

    def forget(self) -> None:
        """What was said of batches that are gone by now only leads to BATCH_NOT_FOUND."""
        self._texts.clear()
        self._obeying.clear()
        self._messages.clear()

    def texts(self, name: str, pattern: str = "") -> list[str]:
        """Of fields whose name ends like that (next_page_token for page_token), else all that obey the pattern."""
        named = [text for known, texts in self._texts.items() if f"_{known}".endswith(f"_{name}") for text in texts]
        fitting = [text for text in named if not pattern or re.fullmatch(pattern, text)]
        return fitting or self._that_obey(pattern)

    def messages(self, kind: str) -> list[bytes]:
        return self._messages[kind]

    def _that_obey(self, pattern: str) -> list[str]:
        if pattern not in self._obeying:
            known = [*WORDS, *(text for texts in self._texts.values() for text in texts)]
            self._obeying[pattern] = [text for text in known if not pattern or re.fullmatch(pattern, text)]
        return self._obeying[pattern]

    def _keep_text(self, name: str, text: str) -> None:
        if not text or len(text) > KEPT_TEXT_MAX_CHARS or self._spared in text or text in self._texts[name]:
            return
        self._keep(self._texts[name], text, KEPT_TEXTS)
        for pattern, obeying in self._obeying.items():
            if not pattern or re.fullmatch(pattern, text):
                self._keep(obeying, text, KEPT_TEXTS)

    def _keep_message(self, message: Message) -> None:
        kind = message.DESCRIPTOR.full_name
        if kind.startswith("google."):
            return
        packed = message.SerializeToString()
        if packed and len(packed) <= KEPT_MESSAGE_MAX_BYTES and self._spared.encode() not in packed:
            self._keep(self._messages[kind], packed, KEPT_MESSAGES)

    def _keep(self, pool: list[Any], one: object, most: int) -> None:
        if len(pool) < most:
            pool.append(one)
        else:
            # What came first is what the test itself began with: it stays.
            pool[self._rng.randrange(most // 2, most)] = one


class Author:
    """Writes messages of any type by its rules, with what the corpus holds where it holds something."""

    def __init__(self, rng: Random, corpus: Corpus) -> None:
        self._rng = rng
        self._corpus = corpus

    def message(self, kind: Descriptor, *, depth: int = 0) -> Message:
        made = message_factory.GetMessageClass(kind)()
        known = self._corpus.messages(kind.full_name)
        if known and self._rng.random() < REUSED_SHARE:
            made.ParseFromString(self._rng.choice(known))
        elif kind.full_name.startswith("google."):
            made.ParseFromString(self._well_known(kind.full_name))
        else:
            for field in list[Field](kind.fields):
                if self._is_wanted(field, depth):
                    self.fill(made, field, depth=depth)
        return made

    def fill(self, message: Message, field: Field, *, depth: int = 0) -> None:
        """Sets the field to something that its rules allow."""
        rules, place = rules_of(field), getattr(message, field.name)
        if is_map(field):
            key, value = field.message_type.fields
            text = self._text(key.name, rules.map.keys)
            if value.message_type is not None:
                place[text].MergeFromString(self.message(value.message_type, depth=depth + 1).SerializeToString())
            else:
                place[text] = self.scalar(value, rules.map.values)
        elif field.is_repeated:
            for _ in range(self._rng.choice((1, 1, 2, 3))):
                self._add(place, field, depth=depth)
        elif field.message_type is not None:
            place.CopyFrom(self.message(field.message_type, depth=depth + 1))
        else:
            setattr(message, field.name, self.scalar(field, rules))

    def _add(self, place: Any, field: Field, *, depth: int) -> None:
        rules = rules_of(field)
        if field.message_type is not None:
            place.append(self.message(field.message_type, depth=depth + 1))
            return
        value = self.scalar(field, rules.repeated.items)
        if not (rules.repeated.unique and value in place):
            place.append(value)

    def scalar(self, field: Field, rules: Rules) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return self._text(field.name, rules)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                return self._rng.choice([value.number for value in field.enum_type.values if value.number] or [0])
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                low, high = bounds(rules, low=0.0, high=1_000.0)
                return self._rng.choice([low, self._rng.uniform(low, min(high, low + 100))])
            case _:
                low, high = bounds(rules, low=0, high=1_000)
                return min(high, low + self._rng.choice((0, 1, 1, 2, 3, 5, 10)))

    def _text(self, name: str, rules: Rules) -> Any:
        listed = list(getattr(rules.string, "in"))
        known = listed or self._corpus.texts(name, rules.string.pattern)
        return self._rng.choice(known)[: rules.string.max_len or None] if known else "a"

    def _is_wanted(self, field: Field, depth: int) -> bool:
        rules = rules_of(field)
        pattern = rules.string.pattern
        needed = rules.required or rules.string.min_len or rules.repeated.min_items
        if needed or (pattern and not re.fullmatch(pattern, "")):
            return True
        return depth < DEPTH_MAX and self._rng.random() < WANTED_SHARE

    def _well_known(self, name: str) -> bytes:
        chance = self._rng.randrange(100)
        made: dict[str, Message] = {
            "google.protobuf.Timestamp": Timestamp(seconds=1_700_000_000 + chance * 3_000_000, nanos=chance),
            "google.protobuf.Duration": Duration(seconds=chance, nanos=chance * 1_000_000),
            "google.protobuf.FieldMask": FieldMask(paths=[self._rng.choice(MASKS)]),
            "google.type.Money": Money(currency_code="USD", units=chance // 20, nanos=chance * 1_000_000),
        }
        if name == "google.protobuf.Struct":
            struct = Struct()
            struct.update({"client": {"age": chance}, "words": ["one", 2, True], "mood_of_day": "fine"})
            return struct.SerializeToString()
        return made[name].SerializeToString() if name in made else b""
