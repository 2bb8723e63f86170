"""Expected failures: each has a reason of the contract, one sentence, and the fields or facts behind it.

EstimatorError
+-- InvalidRequest      a field breaks a rule; names every field at fault
+-- everything else by its reason: QUOTE_NOT_FOUND, REQUEST_ID_REUSED, TOKEN_STALE, OWNER_FORBIDDEN, NOT_BUILT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    field: str
    message: str


class EstimatorError(Exception):
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
        # A protobuf message that goes with the error; opaque here.
        self.attachment = attachment


class InvalidRequest(EstimatorError):
    """A field of the request is at fault."""

    def __init__(self, field: str, message: str) -> None:
        violation = FieldViolation(field, message)
        super().__init__("INVALID_FIELD", f"{field}: {message}", violations=[violation], metadata={"field": field})
        self.field = field
