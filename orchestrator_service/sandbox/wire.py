"""The shapes that leave by HTTP: the message as JSON, and the same message as a stream of events."""

import json
from dataclasses import dataclass
from typing import Any

from orchestrator_service.sandbox.cache import InputUsage

# A real delta holds a few tokens; fewer and larger ones spare both sides their CPU.
DELTA_CHARS = 96


@dataclass(frozen=True, slots=True)
class Reply:
    message_id: str
    model: str
    text: str
    stop_reason: str
    output_tokens: int
    input_usage: InputUsage


def message_body(reply: Reply) -> bytes:
    return json.dumps(_message(reply, empty=False), ensure_ascii=False).encode()


def opening_events(reply: Reply) -> bytes:
    """Everything up to where the text begins."""
    started = _event("message_start", {"message": _message(reply, empty=True)})
    if not reply.text:
        return started
    return started + _event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}) + PING


def delta_event(text: str) -> bytes:
    return _event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})


def closing_events(reply: Reply) -> bytes:
    delta = {
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "stop_details": _stop_details(reply),
        "container": None,
    }
    ended = _event("message_delta", {"delta": delta, "usage": _usage(reply, output_tokens=reply.output_tokens)})
    block_ended = _event("content_block_stop", {"index": 0}) if reply.text else b""
    return block_ended + ended + _event("message_stop", {})


def error_event(body: bytes) -> bytes:
    return b"event: error\ndata: " + body + b"\n\n"


def deltas(text: str) -> list[str]:
    return [text[at : at + DELTA_CHARS] for at in range(0, len(text), DELTA_CHARS)]


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields}, ensure_ascii=False)}\n\n".encode()


PING = _event("ping", {})
# A stream whose events cannot be read: the SSE twin of a page of HTML in place of JSON.
GARBAGE_EVENT = b"event: content_block_delta\ndata: <html>502 Bad Gateway</html>\n\n"
GARBAGE_BODY = b"<html><body>502 Bad Gateway</body></html>"


def _message(reply: Reply, *, empty: bool) -> dict[str, Any]:
    """`empty` is how a stream starts: no content, no stop reason and one token so far."""
    return {
        "model": reply.model,
        "id": reply.message_id,
        "type": "message",
        "role": "assistant",
        "content": [] if empty or not reply.text else [{"type": "text", "text": reply.text}],
        "container": None,
        "stop_reason": None if empty else reply.stop_reason,
        "stop_sequence": None,
        "stop_details": None if empty else _stop_details(reply),
        "usage": _usage(reply, output_tokens=min(1, reply.output_tokens) if empty else reply.output_tokens),
    }


def _stop_details(reply: Reply) -> dict[str, Any] | None:
    if reply.stop_reason != "refusal":
        return None
    return {"type": "refusal", "category": None, "explanation": None}


def _usage(reply: Reply, *, output_tokens: int) -> dict[str, Any]:
    spent = reply.input_usage
    written = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    written[f"ephemeral_{spent.ttl}_input_tokens"] = spent.written_tokens
    return {
        "input_tokens": spent.plain_tokens,
        "cache_creation_input_tokens": spent.written_tokens,
        "cache_read_input_tokens": spent.read_tokens,
        "cache_creation": written,
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": "not_available",
        "speed": "standard",
    }
