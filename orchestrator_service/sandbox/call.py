"""One call as it arrived: the checked request, what it is known by and what it weighs."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from orchestrator_service.sandbox.cache import LIFETIMES_S, Prefix
from orchestrator_service.sandbox.errors import ApiError
from orchestrator_service.sandbox.models import MODELS

CHARS_PER_TOKEN = 4
# What the real API adds for the roles and turns around the text; the true figure differs by model.
TOKENS_AROUND_PROMPT = 8
MESSAGES_MAX = 100_000
ROLES = ("user", "assistant", "system")
SAMPLING = ("temperature", "top_p", "top_k")
FIELDS = frozenset(
    (
        "max_tokens",
        "messages",
        "model",
        "cache_control",
        "container",
        "diagnostics",
        "inference_geo",
        "metadata",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "thinking",
        "tool_choice",
        "tools",
        "user_profile_id",
        "workspace_id",
    )
)
ASKS_FOR_JSON = re.compile(r"\bJSON\b", re.IGNORECASE)

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    model: str
    prompt: str
    prompt_sha256: str
    input_tokens: int
    max_tokens: int
    stream: bool
    wants_conversation: bool
    # Empty unless the request has a cache_control somewhere.
    prefixes: tuple[Prefix, ...]


def read_call(raw: bytes) -> Call:
    """The call that these bytes ask for, or the 400 or 404 of the real API."""
    fields = _fields(raw)
    max_tokens = _max_tokens(fields)
    if not isinstance(fields.get("stream", False), bool):
        raise _invalid("stream: Input should be a valid boolean")
    call_input = _CallInput(fields)
    schema = call_input.schema
    model = MODELS[call_input.model]
    if max_tokens > model.max_output_tokens:
        raise _invalid(
            f"max_tokens: {max_tokens} > {model.max_output_tokens}, which is the maximum allowed number of"
            f" output tokens for {model.id}"
        )
    if call_input.tokens > model.max_input_tokens:
        raise _invalid(f"prompt is too long: {call_input.tokens} tokens > {model.max_input_tokens} maximum")
    return Call(
        model=model.id,
        prompt=call_input.prompt,
        prompt_sha256=call_input.sha256(prewarms=max_tokens == 0),
        input_tokens=call_input.tokens,
        max_tokens=max_tokens,
        stream=fields.get("stream", False),
        wants_conversation=schema is not None or ASKS_FOR_JSON.search(call_input.prompt) is not None,
        prefixes=_prefixes(fields) if b'"cache_control"' in raw else (),
    )


def count_input_tokens(raw: bytes) -> int:
    """The number that a call with the same fields reports as its whole input."""
    return _CallInput(_fields(raw)).tokens


class _CallInput:
    """Everything of a request that the model would read."""

    def __init__(self, fields: Fields) -> None:
        self.model = _model(fields)
        self.schema = _schema(fields)
        self._system = _system(fields)
        self._messages = _messages(fields)
        contents: list[object] = [self._system, *(message["content"] for message in self._messages)]
        texts = [text for content in contents for text in _texts(content)]
        self.prompt = "\n".join(texts)
        chars = len(self.prompt)
        for extra in (self.schema, fields.get("tools")):
            if extra:
                chars += len(json.dumps(extra))
        self.tokens = -(-chars // CHARS_PER_TOKEN) + TOKENS_AROUND_PROMPT

    def sha256(self, *, prewarms: bool) -> str:
        known_by: list[object] = [self.model, self._system, self._messages]
        if prewarms:
            # Warming the cache is no attempt at the prompt, so it must not count as one.
            known_by.append("prewarm")
        return hashlib.sha256(json.dumps(known_by).encode()).hexdigest()


def _fields(raw: bytes) -> Fields:
    try:
        fields = cast(object, json.loads(raw))
    except ValueError:
        raise _invalid("The request body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise _invalid("The request body should be a JSON object")
    named = cast(Fields, fields)
    for name in SAMPLING:
        if name in named:
            raise _invalid(f"{name}: not supported by this model; leave it out")
    for name in named:
        if name not in FIELDS:
            raise _invalid(f"{name}: Extra inputs are not permitted")
    return named


def _max_tokens(fields: Fields) -> int:
    if "max_tokens" not in fields:
        raise _invalid("max_tokens: Field required")
    value: object = fields["max_tokens"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid("max_tokens: Input should be a valid integer")
    # Zero warms the cache and answers nothing, so without a cache_control it asks for nothing at all.
    least = 0 if value == 0 and "cache_control" in json.dumps(fields) else 1
    if value < least:
        raise _invalid(f"max_tokens: Input should be greater than or equal to {least}")
    return value


def _model(fields: Fields) -> str:
    model: object = fields.get("model")
    if model is None:
        raise _invalid("model: Field required")
    if not isinstance(model, str) or not model:
        raise _invalid("model: Input should be a valid string")
    if model not in MODELS:
        raise ApiError(404, f"model: {model}")
    return model


def _system(fields: Fields) -> object:
    system: object = fields.get("system")
    if system is not None and not isinstance(system, str | list):
        raise _invalid("system: Input should be a valid string or list")
    return cast(object, system)


def _messages(fields: Fields) -> list[Fields]:
    if "messages" not in fields:
        raise _invalid("messages: Field required")
    listed = cast(object, fields["messages"])
    if not isinstance(listed, list):
        raise _invalid("messages: Input should be a valid list")
    messages = cast(list[object], listed)
    if not 1 <= len(messages) <= MESSAGES_MAX:
        raise _invalid("messages: at least one message is required, and at most 100,000 are taken")
    for at, message in enumerate(messages):
        _check_message(f"messages.{at}", message)
    checked = cast(list[Fields], messages)
    if checked[-1]["role"] == "assistant":
        raise _invalid("messages: assistant prefill is not supported; the last message must be the user's")
    return checked


def _check_message(where: str, message: object) -> None:
    if not isinstance(message, dict):
        raise _invalid(f"{where}: Input should be an object")
    named = cast(Fields, message)
    if named.get("role") not in ROLES:
        raise _invalid(f"{where}.role: Input should be 'user', 'assistant' or 'system'")
    content: object = named.get("content")
    if not isinstance(content, str | list):
        raise _invalid(f"{where}.content: Input should be a valid string or list")
    if not content:
        raise _invalid(f"{where}.content: text content must not be empty")


def _schema(fields: Fields) -> Fields | None:
    config: object = fields.get("output_config")
    if config is None:
        return None
    if not isinstance(config, dict):
        raise _invalid("output_config: Input should be an object")
    wanted = cast(Fields, config).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or cast(Fields, wanted).get("type") != "json_schema":
        raise _invalid("output_config.format.type: Input should be 'json_schema'")
    schema: object = cast(Fields, wanted).get("schema")
    if not isinstance(schema, dict):
        raise _invalid("output_config.format.schema: Field required")
    return cast(Fields, schema)


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in cast(list[object], content):
            text = cast(Fields, block).get("text") if isinstance(block, dict) else None
            yield text if isinstance(text, str) else json.dumps(block)


def _prefixes(fields: Fields) -> tuple[Prefix, ...]:
    """Every block in the order of the real cache (tools, system, messages), each with all before it."""
    digest, chars = hashlib.blake2b(cast(str, fields["model"]).encode(), digest_size=16), 0
    prefixes: list[Prefix] = []
    for block in _blocks(fields):
        plain = {name: value for name, value in block.items() if name != "cache_control"}
        digest.update(json.dumps(plain).encode())
        chars += sum(map(len, _texts([plain["block"]])))
        ttl = _ttl(cast(object, block.get("cache_control")))
        prefixes.append(Prefix(digest.digest(), chars // CHARS_PER_TOKEN, ttl))
    whole = _ttl(cast(object, fields.get("cache_control")))
    if whole:
        prefixes[-1] = Prefix(prefixes[-1].digest, prefixes[-1].tokens, whole)
    return tuple(prefixes)


def _blocks(fields: Fields) -> Iterator[Fields]:
    contents: list[tuple[str, Any]] = [
        ("tools", fields.get("tools") or []),
        ("system", fields.get("system") or []),
    ]
    contents += [(message["role"], message["content"]) for message in fields["messages"]]
    for place, content in contents:
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if isinstance(block, dict):
                named = cast(Fields, block)
                plain = {name: value for name, value in named.items() if name != "cache_control"}
                yield {"place": place, "block": plain, "cache_control": named.get("cache_control")}


def _ttl(control: object) -> str | None:
    if control is None:
        return None
    ttl: object = cast(Fields, control).get("ttl", "5m") if isinstance(control, dict) else None
    if not isinstance(ttl, str) or ttl not in LIFETIMES_S:
        raise _invalid("cache_control.ttl: Input should be '5m' or '1h'")
    return ttl


def _invalid(message: str) -> ApiError:
    return ApiError(400, message)
