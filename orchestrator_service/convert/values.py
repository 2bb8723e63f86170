"""Money, times and enums."""

from __future__ import annotations

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

NANOS = 1_000_000_000
# The years 1 to 9999.
TIME_MIN_S = -62_135_596_800
TIME_MAX_S = 253_402_300_799


def money(nanos: int) -> Money:
    # Units and nanos have the same sign, as the type asks.
    units = abs(nanos) // NANOS * (1 if nanos >= 0 else -1)
    return Money(currency_code="USD", units=units, nanos=nanos - units * NANOS)


def nanos(value: Money) -> int:
    return value.units * NANOS + value.nanos


def timestamp(us: int | None) -> Timestamp | None:
    if us is None:
        return None
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def is_time(value: Timestamp) -> bool:
    """Whether it is one, by the type's own rules: a request may carry any two numbers."""
    return TIME_MIN_S <= value.seconds <= TIME_MAX_S and 0 <= value.nanos < NANOS


def microseconds(value: Timestamp) -> int:
    return value.seconds * 1_000_000 + value.nanos // 1000


def duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    whole, nanos = divmod(round(seconds * NANOS), NANOS)
    return Duration(seconds=whole, nanos=nanos)


def seconds(value: Duration) -> float:
    return value.seconds + value.nanos / 1e9


def number_of(enum: EnumDescriptor, word: str | None) -> int:
    """The number of a domain word: BatchState RUNNING is BATCH_STATE_RUNNING. None is the zero value."""
    return enum.values_by_name[_prefix(enum) + word].number if word else 0


def word_of(enum: EnumDescriptor, number: int) -> str:
    """The domain's word for a number; empty for the zero value."""
    return enum.values_by_number[number].name.removeprefix(_prefix(enum)) if number else ""


_PREFIXES: dict[str, str] = {}


def _prefix(enum: EnumDescriptor) -> str:
    known = _PREFIXES.get(enum.full_name)
    if known is None:
        zero = enum.values_by_number[0].name
        known = _PREFIXES[enum.full_name] = zero.removesuffix("UNSPECIFIED")
    return known
