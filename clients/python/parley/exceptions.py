"""What the client raises.

ParleyError                 every error of a call; catch this one to catch them all
├── InvalidRequest          a field, the spec or a token breaks a rule: correct it (INVALID_ARGUMENT)
├── Unauthenticated         the token is missing, unknown or may not do that (UNAUTHENTICATED, PERMISSION_DENIED)
├── NotFound                no such batch, conversation, call, quote or outcome (NOT_FOUND)
├── Conflict                etag, request_id or figures do not match what the server has (ABORTED, ALREADY_EXISTS)
├── WrongState              not in this state, or not while a hold stands (FAILED_PRECONDITION)
│   └── QuoteStale          the quote is stale; `fresh_quote` is the one to look at
├── NotBuilt                in the contract, not served yet (UNIMPLEMENTED)
├── Unavailable             server, estimator or provider can't be reached, or too late (UNAVAILABLE, DEADLINE_EXCEEDED)
├── LimitReached            the server has enough for now; `retry_after_s` says for how long (RESOURCE_EXHAUSTED)
├── ServerError             something unforeseen; the server's log has it under `request_id`
└── DownloadDamaged         an exported file did not arrive as it was sent; nothing of it was kept
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc

from parley.v1 import quote_pb2

if TYPE_CHECKING:
    from parley.wire.errors import WireError


class ParleyError(Exception):
    """One refused or failed call.

    `reason` is a name of parley.v1.Reason without its prefix ("BATCH_NOT_FOUND"), or empty where the server did not
    say; `message` is one sentence; `fields` maps field paths to what is wrong with them; `metadata` holds the facts;
    `next_step` says what a person can do; `retry_after_s` is how long the server asks to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        fields: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        next_step: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.fields = dict(fields or {})
        self.metadata = dict(metadata or {})
        self.next_step = next_step
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        faults = "; ".join(f"{field}: {fault}" for field, fault in self.fields.items())
        return f"{self.message} ({faults})" if faults else self.message


class InvalidRequest(ParleyError):
    """A field, the spec or a token breaks a rule."""


class Unauthenticated(ParleyError):
    """The token is missing, unknown or may not do that."""


class NotFound(ParleyError):
    """There is no such batch, conversation, call or quote, or nothing is known yet of what became of it."""


class Conflict(ParleyError):
    """The etag, request_id or figures do not match what the server has."""


class WrongState(ParleyError):
    """The batch, or the provider, does not allow this now."""


class QuoteStale(WrongState):
    """The quote is stale; `fresh_quote` is the new one, where the server sent it."""

    fresh_quote: quote_pb2.Quote | None = None


class NotBuilt(ParleyError):
    """In the contract, not served yet."""


class Unavailable(ParleyError):
    """The server, the estimator or the provider can't be reached, or did not answer in time."""


class LimitReached(ParleyError):
    """The server has enough for now."""


class ServerError(ParleyError):
    """Something unforeseen went wrong in the server."""


class DownloadDamaged(ParleyError):
    """An exported file did not arrive as it was sent."""


BY_REASON: Mapping[str, type[ParleyError]] = {"QUOTE_STALE": QuoteStale}
BY_CODE: Mapping[grpc.StatusCode, type[ParleyError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.UNIMPLEMENTED: NotBuilt,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReached,
}


def from_wire(error: WireError) -> ParleyError:
    """The exception for what was read off a failed call: by its reason where that has one, else by its code."""
    kind = BY_REASON.get(error.reason) or BY_CODE.get(error.code, ServerError)
    # Without a reason no Parley server spoke: gRPC's own words are for the log, its sentence for a person.
    message, transport = (error.message, {}) if error.reason else (error.sentence, {"transport": error.message})
    raised = kind(
        message,
        reason=error.reason,
        code=error.code,
        fields=_fields(error),
        metadata={**error.metadata, **transport},
        next_step=error.next_step,
        request_id=error.request_id,
        retry_after_s=error.retry_after_s,
    )
    if isinstance(raised, QuoteStale):
        raised.fresh_quote = error.attachment(quote_pb2.Quote)
    return raised


def _fields(error: WireError) -> dict[str, str]:
    fields: dict[str, str] = {}
    for violation in error.violations:
        known = fields.get(violation.field)
        fields[violation.field] = f"{known}; {violation.message}" if known else violation.message
    return fields
