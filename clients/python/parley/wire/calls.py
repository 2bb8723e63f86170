"""The way of a call through a server: request id, caller, handler, error to status, one log line."""

from __future__ import annotations

import asyncio
import inspect
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
import structlog

from parley.wire import clock
from parley.wire.auth import LOCAL, Identity, Tokens, set_caller
from parley.wire.errors import REQUEST_ID_KEY, Refusal, reason_of, status_of, trailing_metadata
from parley.wire.options import MESSAGE_MAX_BYTES
from parley.wire.telemetry import CallLine

_HEALTH = "grpc.health.v1.Health"
# A client's own timer may fire a little before ours.
_DEADLINE_SLACK_S = 0.05
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour = Callable[[Any, _Context], Any]


class Calls(grpc.aio.ServerInterceptor):
    """The server's only interceptor. Works for all four kinds of call."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        handler = await continuation(handler_call_details)
        metadata = _Metadata(handler_call_details)
        line = _open_line(handler_call_details.method, metadata.request_id())
        if handler is None:
            line.write(code=grpc.StatusCode.UNIMPLEMENTED.name, reason="")
            return None
        structlog.contextvars.bind_contextvars(request_id=line.request_id)
        return _wrap(handler, line, lambda: self._identify(line.service, metadata))

    def _identify(self, service: str, metadata: _Metadata) -> Identity:
        # Probes have no token, and learn nothing but that the server lives.
        return LOCAL if service == _HEALTH else self._tokens.identify(metadata.authorizations())


class _Metadata:
    """The two entries that the wire reads."""

    def __init__(self, details: grpc.HandlerCallDetails) -> None:
        self._pairs: list[tuple[str, Any]] = [(pair[0], pair[1]) for pair in details.invocation_metadata or ()]

    def authorizations(self) -> list[str]:
        return [str(value) for key, value in self._pairs if key == "authorization"]

    def request_id(self) -> str:
        given = next((str(value) for key, value in self._pairs if key == REQUEST_ID_KEY), "")
        # Anything else could forge a log line or fill the disk.
        return given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _open_line(path: str, request_id: str) -> CallLine:
    service, _, method = path.removeprefix("/").partition("/")
    return CallLine(
        service=service, method=method, request_id=request_id, started_s=clock.monotonic_s(), quiet=service == _HEALTH
    )


def _wrap(handler: _Handler, line: CallLine, identify: Callable[[], Identity]) -> _Handler:
    behaviour, rebuild = _parts(handler)
    read = handler.request_deserializer
    serialize = handler.response_serializer

    def enter(first: Any, context: _Context) -> Any:
        context.set_trailing_metadata(((REQUEST_ID_KEY, line.request_id),))
        identity = identify()
        line.caller = identity.name
        set_caller(identity)
        # A single request is read here, after its caller is known, so that what can't be read is answered as any error.
        request = first if handler.request_streaming or read is None else read(first)
        line.note_resource(request)
        return request

    async def reply_once(first: Any, context: _Context) -> Any:
        async with _answering(line, context):
            reply = await behaviour(enter(first, context), context)
            return reply if serialize is None else await _fitting(serialize(reply), context)

    async def reply_often(first: Any, context: _Context) -> None:
        async with _answering(line, context):
            line.messages = 0
            await _stream(behaviour(enter(first, context), context), line, context)

    # gRPC reads the messages of a stream itself, and writes them by the handler's serializer.
    request_deserializer = read if handler.request_streaming else None
    if handler.response_streaming:
        return rebuild(_light(reply_often), request_deserializer, serialize)
    return rebuild(_light(reply_once), request_deserializer, None)


async def _fitting(packed: bytes, context: _Context) -> bytes:
    if len(packed) > MESSAGE_MAX_BYTES:
        # gRPC refuses it too, after the call's line was written, and with a traceback.
        message = f"The reply has {len(packed):,} bytes; a message has at most {MESSAGE_MAX_BYTES:,}. Ask for less."
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    return packed


def _light(reply: _Behaviour) -> _Behaviour:
    """What is left of a call that did not end well: nothing of its request."""

    async def lightened(first: Any, context: _Context) -> Any:
        try:
            return await reply(first, context)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps the error and so its frames, in a circle, until a garbage collection, and those are seldom:
            # a request of megabytes must not stay that long.
            del first
            aborted.__context__ = None
            raise aborted.with_traceback(None) from None

    return lightened


def _parts(handler: _Handler) -> tuple[_Behaviour, Callable[[Any, Any, Any], _Handler]]:
    parts: dict[tuple[bool, bool], tuple[Any, Callable[[Any, Any, Any], _Handler]]] = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    return parts[bool(handler.request_streaming), bool(handler.response_streaming)]


async def _stream(replies: Any, line: CallLine, context: _Context) -> None:
    if inspect.isawaitable(replies):
        # A handler that writes by itself, such as the health service's Watch.
        await replies
        return
    try:
        async for reply in replies:
            await context.write(reply)
            line.messages = (line.messages or 0) + 1
    finally:
        # Left to the garbage collector, the handler's own `finally` would run late or never.
        close = getattr(replies, "aclose", None)
        if close is not None:
            await close()


@asynccontextmanager
async def _answering(line: CallLine, context: _Context) -> AsyncGenerator[None]:
    """Turns whatever a handler raises into a status, and writes the call's line just before the answer leaves."""
    code, reason, failure = grpc.StatusCode.OK.name, "", None
    try:
        yield
        code = _code_name(context, default=code)
    except asyncio.CancelledError:
        # The client went away or its time is over: its right, and no error of ours.
        code = _cancelled_name(context)
        raise
    except (grpc.aio.AbortError, grpc.aio.InternalError):
        # The handler aborted by itself, or the connection is gone; gRPC knows what to do with both.
        code = _code_name(context, default=grpc.StatusCode.CANCELLED.name)
        raise
    except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a status
        # The error has no name here: this frame is in its traceback, so that a name would tie a circle.
        failure = status_of(_not_built(line) if _is_unserved(error, context) else error, line.request_id)
        code, reason = _STATUS_CODES[failure.code].name, reason_of(failure)
    finally:
        line.write(code=code, reason=reason)
    if failure is not None:
        await context.abort(_STATUS_CODES[failure.code], failure.message, trailing_metadata(failure, line.request_id))


def _is_unserved(error: Exception, context: _Context) -> bool:
    """The generated class has a method for every RPC, which says so and raises this."""
    unimplemented = grpc.StatusCode.UNIMPLEMENTED.name
    return isinstance(error, NotImplementedError) and _code_name(context, default="") == unimplemented


def _not_built(line: CallLine) -> Refusal:
    return Refusal("NOT_BUILT", f"{line.method} is not served yet.", metadata={"method": line.method})


def _cancelled_name(context: _Context) -> str:
    # The stub knows no None, which the library returns without a deadline.
    remaining_s = cast("float | None", context.time_remaining())
    over = remaining_s is not None and remaining_s < _DEADLINE_SLACK_S
    return (grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED).name


_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _code_name(context: _Context, *, default: str) -> str:
    code: Any = context.code()
    if isinstance(code, int):
        code = _STATUS_CODES.get(code)
    return code.name if isinstance(code, grpc.StatusCode) else default
