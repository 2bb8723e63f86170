"""What a process says about itself: structured log lines on stderr, and exactly one for each call it served."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TextIO

import grpc
import structlog
from google.protobuf.message import Message
from structlog.typing import EventDict, Processor, WrappedLogger

from parley.wire import clock

_log = structlog.get_logger("parley.wire")
_RESOURCE_MAX_CHARS = 200


def configure(service: str, *, stream: TextIO | None = None) -> None:
    """Sends the log lines of this process to stderr: as JSON where nobody reads it live, in colour on a terminal."""
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_process(service),
    ]
    last = _last_processors(on_terminal=out.isatty())
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; their lines get the same shape.
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_no_gone_clients)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _no_gone_clients(record: logging.LogRecord) -> bool:
    """gRPC calls a write to a client who has just left an error of the server; the call's own line says CANCELLED."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def _last_processors(*, on_terminal: bool) -> list[Processor]:
    if on_terminal:
        # The renderer of choice would print local variables too: prompts and answers among them.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _name_process(service: str) -> Processor:
    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = service
        return event

    return name_process


@dataclass(kw_only=True)
class CallLine:
    """The one log line of a call, filled while it runs. Never holds prompts, replies or tokens."""

    service: str
    method: str
    request_id: str
    started_s: float
    # Probes come every few seconds and would drown the rest.
    quiet: bool
    caller: str = ""
    resource: str = ""
    # How many messages a stream has sent; None for a call with a single reply.
    messages: int | None = None

    def note_resource(self, request: object) -> None:
        """Takes the resource name out of the request, where it has one."""
        if not isinstance(request, Message):
            return
        for field in ("name", "parent"):
            value = getattr(request, field, None)
            if isinstance(value, str) and value:
                self.resource = value[:_RESOURCE_MAX_CHARS]
                return

    def write(self, *, code: str, reason: str) -> None:
        line: dict[str, object] = {
            "service": self.service,
            "method": self.method,
            "code": code,
            "reason": reason,
            "duration_ms": round((clock.monotonic_s() - self.started_s) * 1000, 1),
            "caller": self.caller,
            "request_id": self.request_id,
            "resource": self.resource,
        }
        if self.messages is not None:
            line["messages"] = self.messages
        (_log.debug if self.quiet else _log.info)("call", **line)
