"""Opaque tokens: of a page, bound to its request; of a watch, bound to its batch and database."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

from orchestrator_service.domain.errors import InvalidRequest

# Every number of so many digits fits a column; more were never given out.
DIGITS_MAX = 18


@dataclass(frozen=True)
class Seen:
    """How far a watcher has come."""

    generation: str
    number: int


def page_token(position: int, request: Message) -> str:
    return _pack(f"page:{_shape(request)}:{position}")


def page_position(token: str, request: Message) -> int | None:
    """Where the page begins; None for the first. Raises TOKEN_STALE for a token of another request."""
    if not token:
        return None
    kind, shape, position = _unpack(token, "page_token", parts=3)
    if kind != "page" or shape != _shape(request) or not _is_number(position):
        raise _stale("page_token")
    return int(position)


def resume_token(batch: str, seen: Seen) -> str:
    return _pack(f"watch:{batch}:{seen.generation}:{seen.number}")


def seen_of(token: str, batch: str) -> Seen | None:
    if not token:
        return None
    kind, of, generation, number = _unpack(token, "resume_token", parts=4)
    if kind != "watch" or of != batch or not _is_number(number):
        raise _stale("resume_token")
    return Seen(generation, int(number))


def _shape(request: Message) -> str:
    """The request without its page: what a token is valid for."""
    shape = type(request)()
    shape.CopyFrom(request)
    for name in ("page_token", "page_size"):
        shape.ClearField(name)
    # Requests of different lists may have the same bytes, so the kind of list counts too.
    kind = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(kind + b"\0" + shape.SerializeToString(deterministic=True)).hexdigest()[:12]


def _pack(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _unpack(token: str, field: str, *, parts: int) -> list[str]:
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise _stale(field) from error
    found = text.split(":")
    if len(found) != parts:
        raise _stale(field)
    return found


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= DIGITS_MAX


def _stale(field: str) -> InvalidRequest:
    return InvalidRequest(field, f"the {field} does not belong to this request", reason="TOKEN_STALE")
