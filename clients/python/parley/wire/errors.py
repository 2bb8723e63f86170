"""Errors on the wire: one table from an exception to google.rpc.Status, and the way back to a WireError.

BootError       the process can't start: one sentence, printed as one line, exit 2
Refusal         a call is refused by the wire itself (rules.RuleBroken, auth.TokenRefused)
WireError       what a client reads off a failed call; a value, not an exception
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, TypeVar, cast

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from parley.v1 import reasons_pb2

DOMAIN = "parley.v1"
STATUS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

# gRPC refuses a call whose metadata exceeds options.METADATA_MAX_BYTES; the rest is room for other metadata.
_DETAILS_MAX_BYTES = 48 * 1024
_MESSAGE_MAX_CHARS = 2_000
_FACT_MAX_CHARS = 1_000
_VIOLATIONS_MAX = 20
# A longer wait belongs to the person or the program, not to a call that stands open meanwhile.
_PUSHBACK_MAX_MS = 5_000

_log = structlog.get_logger("parley.wire")
_M = TypeVar("_M", bound=Message)


class BootError(Exception):
    """The process can't start as it is set up. The message is one sentence for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ViolationLike(Protocol):
    @property
    def field(self) -> str: ...
    @property
    def message(self) -> str: ...


class ParleyErrorLike(Protocol):
    """What any exception needs so that it crosses the wire as what it is."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def violations(self) -> Sequence[ViolationLike]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def retry_after_s(self) -> float | None: ...
    @property
    def attachment(self) -> object | None: ...


@dataclass(frozen=True)
class FieldViolation:
    field: str
    message: str


class Refusal(Exception):
    """The wire itself refuses a call."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_s: float | None = None
        self.attachment: object | None = None


def reason_infos() -> Mapping[str, reasons_pb2.ReasonInfo]:
    """Code, sentence and next step of every reason, by its name without the prefix REASON_."""
    return _REASONS


def _read_reasons() -> dict[str, reasons_pb2.ReasonInfo]:
    values = reasons_pb2.Reason.DESCRIPTOR.values
    return {
        v.name.removeprefix("REASON_"): v.GetOptions().Extensions[reasons_pb2.reason_info] for v in values if v.number
    }


_REASONS = _read_reasons()


def is_parley_error(error: object) -> TypeGuard[ParleyErrorLike]:
    """True where the exception carries a reason of the contract and everything that goes with it."""
    names = ("message", "violations", "metadata", "retry_after_s", "attachment")
    reason = getattr(error, "reason", None)
    return isinstance(reason, str) and reason in _REASONS and all(hasattr(error, name) for name in names)


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """The status of an exception. An unknown one is logged in full and leaves as INTERNAL, without its text."""
    if not isinstance(error, Exception):
        # A cancellation is not an error of the call, and swallowing it would leak the handler.
        raise error
    if is_parley_error(error):
        return _fitting(error, request_id)
    if isinstance(error, DecodeError):
        return _fitting(Refusal("INVALID_FIELD", "The request can't be read as this call's message."), request_id)
    _log.error("unforeseen error", request_id=request_id, exc_info=error)
    return _fitting(Refusal("INTERNAL", _REASONS["INTERNAL"].sentence), request_id)


def reason_of(status: status_pb2.Status) -> str:
    """The reason inside a status; empty where it carries none."""
    info = error_details_pb2.ErrorInfo()
    return info.reason if any(detail.Unpack(info) for detail in status.details) else ""


def trailing_metadata(status: status_pb2.Status, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """What goes back with a failed call: the rich status, the request id and, for UNAVAILABLE, when to try again."""
    metadata: tuple[tuple[str, str | bytes], ...] = (
        (STATUS_KEY, status.SerializeToString()),
        (REQUEST_ID_KEY, request_id),
    )
    if status.code != code_pb2.UNAVAILABLE:
        return metadata
    return (*metadata, ("grpc-retry-pushback-ms", _pushback_ms(status)))


def _pushback_ms(status: status_pb2.Status) -> str:
    retry = error_details_pb2.RetryInfo()
    known = any(detail.Unpack(retry) for detail in status.details)
    delay_ms = retry.retry_delay.ToMilliseconds()
    # A service that says UNAVAILABLE has tried already; if each hop retried too, the attempts would multiply.
    return str(delay_ms) if known and delay_ms <= _PUSHBACK_MAX_MS else "-1"


@dataclass(frozen=True)
class _Cut:
    """What is left of the details."""

    violations_max: int
    attachment: bool
    metadata: bool


# From everything to the least; the last always fits.
_CUTS = (
    _Cut(violations_max=10_000, attachment=True, metadata=True),
    _Cut(violations_max=_VIOLATIONS_MAX, attachment=True, metadata=True),
    _Cut(violations_max=_VIOLATIONS_MAX, attachment=False, metadata=True),
    _Cut(violations_max=0, attachment=False, metadata=False),
)


def _fitting(error: ParleyErrorLike, request_id: str) -> status_pb2.Status:
    for cut in _CUTS[:-1]:
        status = _status(error, request_id, cut)
        if _wire_bytes(status) <= _DETAILS_MAX_BYTES:
            return status
    return _status(error, request_id, _CUTS[-1])


def _wire_bytes(status: status_pb2.Status) -> int:
    # Binary metadata travels in base64, the message once more beside it.
    return status.ByteSize() * 4 // 3 + len(status.message.encode())


def _status(error: ParleyErrorLike, request_id: str, cut: _Cut) -> status_pb2.Status:
    status = status_pb2.Status(code=_REASONS[error.reason].code, message=_text(error.message, _MESSAGE_MAX_CHARS))
    for detail in _details(error, request_id, cut):
        status.details.add().Pack(detail)
    return status


def _details(error: ParleyErrorLike, request_id: str, cut: _Cut) -> Iterable[Message]:
    facts = {str(k): _text(v, _FACT_MAX_CHARS) for k, v in error.metadata.items()} if cut.metadata else {}
    violations = error.violations[: cut.violations_max]
    if len(violations) < len(error.violations):
        facts["violations_total"] = str(len(error.violations))
    attachment = error.attachment if isinstance(error.attachment, Message) else None
    if attachment is not None and not cut.attachment:
        facts["attachment_dropped"] = attachment.DESCRIPTOR.full_name
    yield error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=facts)
    if violations:
        yield _bad_request(violations)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        yield retry
    if attachment is not None and cut.attachment:
        yield attachment
    yield error_details_pb2.RequestInfo(request_id=request_id)


def _bad_request(violations: Sequence[ViolationLike]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(
            field=_text(violation.field, _FACT_MAX_CHARS), description=_text(violation.message, _FACT_MAX_CHARS)
        )
    return bad_request


def _text(value: object, chars_max: int) -> str:
    # A lone surrogate would make protobuf refuse the whole error.
    return str(value)[:chars_max].encode("utf-8", "replace").decode()


@dataclass(frozen=True, kw_only=True)
class WireError:
    """A failed call as its client sees it. `reason` is empty where no Parley server answered."""

    code: grpc.StatusCode
    reason: str
    message: str
    violations: tuple[FieldViolation, ...]
    metadata: Mapping[str, str]
    retry_after_s: float | None
    attachments: tuple[any_pb2.Any, ...]
    request_id: str
    # One sentence and the next step, for a person.
    sentence: str
    next_step: str

    def attachment(self, kind: type[_M]) -> _M | None:
        """The first attachment of this kind, such as the fresh Quote of QUOTE_STALE."""
        for packed in self.attachments:
            message = kind()
            if packed.Unpack(message):
                return message
        return None


# What to say where no Parley server answered: the failure happened on the way.
_TRANSPORT: Mapping[grpc.StatusCode, tuple[str, str]] = {
    grpc.StatusCode.UNAVAILABLE: ("The server can't be reached.", "Check its address, and that it is running."),
    grpc.StatusCode.DEADLINE_EXCEEDED: ("The server did not answer in time.", "Try again, or allow more time."),
    grpc.StatusCode.CANCELLED: ("The call was cancelled.", "Call again."),
    grpc.StatusCode.UNIMPLEMENTED: ("The server does not know this call.", "Use a newer server, or check the address."),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("A message is larger than 32 MiB.", "Send or ask for less at a time."),
}
_UNKNOWN = ("The call failed.", "See the message, and the server's log under the request id.")


def read_error(error: grpc.RpcError) -> WireError:
    """Reads everything off a failed call; an AioRpcError is a grpc.RpcError too."""
    call = cast("grpc.Call", error)
    metadata = dict(cast("Iterable[tuple[str, str | bytes]]", call.trailing_metadata() or ()))
    status = _read_status(metadata.get(STATUS_KEY))
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    known: tuple[Message, ...] = (info, bad_request, retry, request)
    # Unpack fills the first message of its kind and says whether it was one.
    rest = tuple(detail for detail in status.details if not any(detail.Unpack(message) for message in known))
    code = call.code()
    sentence, next_step = _words(info.reason, code)
    return WireError(
        code=code,
        reason=info.reason,
        message=status.message or call.details() or sentence,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        attachments=rest,
        request_id=request.request_id or str(metadata.get(REQUEST_ID_KEY, "")),
        sentence=sentence,
        next_step=next_step,
    )


def _read_status(packed: str | bytes | None) -> status_pb2.Status:
    if not isinstance(packed, bytes):
        return status_pb2.Status()
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        # A proxy's own details; the plain code and message still hold.
        return status_pb2.Status()


def _words(reason: str, code: grpc.StatusCode) -> tuple[str, str]:
    if reason in _REASONS:
        return _REASONS[reason].sentence, _REASONS[reason].next_step
    return _TRANSPORT.get(code, _UNKNOWN)
