"""Expected failures: each has a reason of the contract, one sentence, and the fields or facts behind it.

EstimatorError
+-- InvalidRequest      a field breaks a rule; names every field at fault
+-- ModelUnknown        a model without a price; says which have one and how to add it
+-- QuoteNotFound       no quote of that name is visible to the caller
+-- DuplicateDiffers    what was recorded before comes again with other figures
+-- everything else by its reason: REQUEST_ID_REUSED, TOKEN_STALE, OWNER_FORBIDDEN, OUTCOME_NOT_FOUND
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


class ModelUnknown(EstimatorError):
    """A model that has no price at that time."""

    def __init__(self, model: str, *, fields: Mapping[str, str], hint: str) -> None:
        """`fields`: why, by the field that names a model; the first is that of `model`. `hint`: what to do."""
        first, why = next(iter(fields.items()))
        violations = [FieldViolation(field, message) for field, message in fields.items()]
        super().__init__("MODEL_UNKNOWN", f"{first}: {why}. {hint}", violations=violations, metadata={"model": model})
        self.model = model


class QuoteNotFound(EstimatorError):
    """`name` is quotes/{quote}."""

    def __init__(self, name: str, *, field: str = "") -> None:
        violations = [FieldViolation(field, f"there is no quote {name}")] if field else []
        super().__init__(
            "QUOTE_NOT_FOUND", f"There is no quote {name}.", violations=violations, metadata={"quote": name}
        )


class DuplicateDiffers(EstimatorError):
    """`thing` names the call or the batch; `field` is the first one whose figures are not those recorded first."""

    def __init__(self, kind: str, thing: str, *, field: str, place: str) -> None:
        super().__init__(
            "DUPLICATE_DIFFERS",
            f"The {kind} {thing} came before with another {field}; what was recorded first stays.",
            violations=[FieldViolation(place, "differs from what was recorded first")],
            metadata={kind: thing, "field": field},
        )
