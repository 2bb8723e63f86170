"""The Messages API as plain data: what a call asks for, what came back, and how to read one from the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from orchestrator_service.domain.ledger import Usage
from orchestrator_service.domain.retry import FailureKind

if TYPE_CHECKING:
    import httpx2

SPEED_UP_HEADER = "parley-sandbox-speed-up"
SPEED_UP_MAX = 1_000_000_000
MESSAGE_MAX_CHARS = 200
STOP_REASON_MAX_CHARS = 64
# More than any call has: a number beyond it is nonsense, and one beyond 64 bits could not be stored.
TOKENS_MAX = 1_000_000_000
STRICTER = (
    "Your last answer to this could not be read. Answer with the JSON object alone, escape every quote inside a"
    " content, and end it properly."
)
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "turns": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "role": {"type": "string", "enum": ["user", "assistant"]},
                    "content": {"type": "string"},
                },
                "required": ["role", "content"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["turns"],
    "additionalProperties": False,
}

# What a stop reason means; those that are not here are unknown to us.
KINDS_BY_STOP: Mapping[str, FailureKind | None] = {
    "end_turn": None,
    "stop_sequence": None,
    "max_tokens": FailureKind.CUT,
    "refusal": FailureKind.REFUSED,
    "model_context_window_exceeded": FailureKind.TOO_LONG,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    model: str
    system: str
    user: str
    max_tokens: int
    deadline_s: float
    # Whether the answer is bound to the JSON schema of a conversation.
    schema: bool = True
    effort: str = ""
    # "off", "5m" or "1h".
    prompt_cache: str = "off"
    # A repeat after an answer that could not be read.
    stricter: bool = False


@dataclass(frozen=True, kw_only=True)
class CallFailure:
    kind: FailureKind
    message: str
    server_delay_s: float | None = None
    # The provider may bill what never arrived whole.
    possibly_paid: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the provider allows a minute, and what is left of it; None where it does not say."""

    requests: int | None = None
    requests_remaining: int | None = None
    input_tokens: int | None = None
    input_tokens_remaining: int | None = None
    output_tokens: int | None = None
    output_tokens_remaining: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str = ""
    failure: CallFailure | None = None
    # None where the provider did not tell.
    usage: Usage | None = None
    stop_reason: str = ""
    request_id: str = ""
    # 0 where there was none.
    http_status: int = 0
    first_token_s: float | None = None
    duration_s: float = 0.0
    limits: Limits | None = None
    # The answer as it came, JSON; empty where none came.
    raw: str = ""


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What a server says about itself in a call that costs nothing."""

    sandbox: bool = False
    speed_up: float = 1.0
    limits: Limits | None = None
    models: tuple[str, ...] = ()
    failure: CallFailure | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether key and model work, proved by one small paid call."""

    ok: bool
    failure: CallFailure | None
    models: tuple[str, ...]
    limits: Limits | None
    sandbox: bool
    speed_up: float
    usage: Usage | None
    duration_s: float


class StreamedMessage:
    """A message put together from the events of a stream."""

    def __init__(self) -> None:
        self.ended = False
        self._message: dict[str, Any] = {}
        self._texts: list[str] = []

    def take(self, event: dict[str, Any]) -> bool:
        """Whether the event carried a part of the answer."""
        match event["type"]:
            case "message_start":
                self._message = dict(event["message"])
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                self._texts.append(event["delta"]["text"])
            case "content_block_delta":
                pass
            case "message_delta":
                self._message |= event["delta"]
                self._message["usage"] = (self._message.get("usage") or {}) | (event.get("usage") or {})
                return False
            case "message_stop":
                self.ended = True
                return False
            case _:
                return False
        return event["type"] == "content_block_delta"

    @property
    def fields(self) -> dict[str, Any]:
        return self._message | {"content": [{"type": "text", "text": "".join(self._texts)}]}


def request_body(request: Request) -> dict[str, object]:
    system: object = request.system
    if request.prompt_cache != "off":
        control = {"type": "ephemeral", "ttl": request.prompt_cache}
        system = [{"type": "text", "text": request.system, "cache_control": control}]
    user = f"{request.user}\n\n{STRICTER}" if request.stricter else request.user
    config: dict[str, object] = {}
    if request.schema:
        config["format"] = {"type": "json_schema", "schema": SCHEMA}
    if request.effort:
        config["effort"] = request.effort
    body: dict[str, object] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": "user", "content": user}],
    }
    if request.system:
        body["system"] = system
    if config:
        body["output_config"] = config
    return body


def answer_text(content: object) -> str | None:
    """The text blocks, one after another; thinking and whatever else there is left out."""
    if not isinstance(content, list):
        return None
    blocks = [cast("dict[str, object]", block) for block in cast("list[object]", content) if isinstance(block, dict)]
    return "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")


def usage_of(told: object, *, prompt_cache: str) -> Usage | None:
    """Local servers leave out what they do not have."""
    if not isinstance(told, dict):
        return None
    usage = cast("dict[str, object]", told)
    written = _fields(usage, "cache_creation")
    written_5m, written_1h = _count(written, "ephemeral_5m_input_tokens"), _count(written, "ephemeral_1h_input_tokens")
    unsplit = max(0, _count(usage, "cache_creation_input_tokens") - written_5m - written_1h)
    return Usage(
        input_tokens=_count(usage, "input_tokens"),
        output_tokens=_count(usage, "output_tokens"),
        cache_write_5m_tokens=written_5m + (0 if prompt_cache == "1h" else unsplit),
        cache_write_1h_tokens=written_1h + (unsplit if prompt_cache == "1h" else 0),
        cache_read_tokens=_count(usage, "cache_read_input_tokens"),
        thinking_tokens=_count(_fields(usage, "output_tokens_details"), "thinking_tokens"),
    )


def _fields(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return min(max(0, value), TOKENS_MAX) if isinstance(value, int) else 0


def storable(text: object, *, chars_max: int = MESSAGE_MAX_CHARS) -> str:
    """A provider's words, short and storable: a lone surrogate or a NUL would make the database refuse the answer."""
    return str(text)[:chars_max].encode("utf-8", "replace").decode().replace("\0", "?")


def stop_failure(stop_reason: object, *, max_tokens: int) -> CallFailure | None:
    # Whoever asks for no output, to warm the cache, is not cut short.
    if stop_reason == "max_tokens" and max_tokens == 0:
        return None
    kind = KINDS_BY_STOP.get(str(stop_reason), FailureKind.UNKNOWN_STOP)
    if kind is None:
        return None
    return CallFailure(kind=kind, message=f"The answer ended with the stop reason {storable(stop_reason)}.")


def unreadable() -> CallFailure:
    return CallFailure(
        kind=FailureKind.UNREADABLE, message="The provider's answer could not be read.", possibly_paid=True
    )


def stream_failure(data: str) -> CallFailure:
    """An error after the answer began: it may be billed, so it uses up an attempt, also where the cause is overload."""
    try:
        type_ = str(json.loads(data)["error"]["type"])
    except (ValueError, KeyError, TypeError):
        type_ = "error"
    message = f"The provider broke off the answer: {storable(type_)}."
    return CallFailure(kind=FailureKind.SERVER_ERROR, message=message, possibly_paid=True)


def server_delay_s(headers: Mapping[str, str]) -> float | None:
    # As a date it would be of another clock than ours; then the back-off decides.
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, "")) * unit_s)
        except ValueError:
            continue
    return None


def plain_headers(response: httpx2.Response) -> dict[str, str]:
    """By lower-case name. The library's own mapping walks all of them at every look-up: a tenth of a call's time."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


def limits_of(headers: Mapping[str, str]) -> Limits | None:
    told: dict[str, int] = {}
    for field, name in (("requests", "requests"), ("input_tokens", "input-tokens"), ("output_tokens", "output-tokens")):
        for suffix, part in (("", "limit"), ("_remaining", "remaining")):
            value = headers.get(f"anthropic-ratelimit-{name}-{part}", "")
            if value.isdecimal():
                told[field + suffix] = int(value)
    return Limits(**told) if told else None


def announcement_of(
    headers: Mapping[str, str], *, models: tuple[str, ...] = (), failure: CallFailure | None = None
) -> Announcement:
    told = headers.get(SPEED_UP_HEADER)
    try:
        speed_up = float(told or 1.0)
    except ValueError:
        speed_up = 1.0
    return Announcement(
        sandbox=told is not None,
        speed_up=speed_up if 0 < speed_up <= SPEED_UP_MAX else 1.0,
        limits=limits_of(headers),
        models=models,
        failure=failure,
    )
