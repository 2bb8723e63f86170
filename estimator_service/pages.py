"""Page tokens: where the next page begins, bound to the filter that it was made for."""

from __future__ import annotations

import base64
import binascii
import hashlib

from estimator_service.domain.errors import EstimatorError

POSITION_BYTES = 8
CHECK_BYTES = 8


def new_token(position: int, *, owner: str) -> str:
    at = position.to_bytes(POSITION_BYTES)
    return base64.urlsafe_b64encode(at + _check(at, owner)).decode()


def read_token(token: str, *, owner: str) -> int:
    try:
        decoded = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    at, check = decoded[:POSITION_BYTES], decoded[POSITION_BYTES:]
    # What a caller may see is decided by the query; this only tells a slip from a page.
    if check != _check(at, owner) or at[0] > 127:
        raise EstimatorError("TOKEN_STALE", "The page token was made for another list.")
    return int.from_bytes(at)


def _check(at: bytes, owner: str) -> bytes:
    return hashlib.sha256(b"ListQuotes:" + at + b":" + owner.encode()).digest()[:CHECK_BYTES]
