"""Expected failures: each has a reason of the contract, one sentence, and the fields or facts behind it.

ParleyError
+-- InvalidRequest      a field breaks a rule; names every field at fault
+-- everything else by its reason: NOT_FOUND, STATE_FORBIDS, QUOTE_STALE, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    field: str
    message: str


class ParleyError(Exception):
    """One refusal. `reason` is a name of the contract's enum Reason without its prefix."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        attachment: object | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        # A protobuf message that goes with the error, such as the fresh quote; opaque here.
        self.attachment = attachment


class InvalidRequest(ParleyError):
    """A field of the request is at fault."""

    def __init__(self, field: str, message: str, *, reason: str = "INVALID_FIELD", **metadata: str) -> None:
        super().__init__(
            reason, message, violations=[FieldViolation(field, message)], metadata={"field": field} | metadata
        )
        self.field = field
