"""Calls to Claude, or to any server that speaks the Messages API: the only importer of the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.generation.calls import (
    STOP_REASON_MAX_CHARS,
    Announcement,
    CallFailure,
    Limits,
    Probe,
    Reply,
    Request,
    StreamedMessage,
    announcement_of,
    answer_text,
    limits_of,
    plain_headers,
    request_body,
    server_delay_s,
    stop_failure,
    storable,
    stream_failure,
    unreadable,
    usage_of,
)

if TYPE_CHECKING:
    import anthropic
    import httpx2

__all__ = ["Claude", "Request", "Reply", "CallFailure", "Limits", "Announcement", "Probe"]

ANTHROPIC_URL = "https://api.anthropic.com"
# Above this a call may take so long that idle connections are cut on the way: stream, although it costs more CPU.
MAX_TOKENS_UNSTREAMED = 21_333
# Ten batches of a thousand calls in flight each, and what is asked beside them.
CONNECTIONS_MAX = 10_100
KEEPALIVE_S = 30.0
PROBE_MAX_TOKENS = 16
ASIDE_DEADLINE_S = 30.0
PROBE_DEADLINE_S = 60.0

# By the provider's own code first, then by status, then by type: never by text, which may change.
KINDS_BY_CODE: Mapping[str, FailureKind] = {
    "enforced_spend_limit_reached": FailureKind.PROVIDER_LIMIT,
    "contract_spend_limit_reached": FailureKind.PROVIDER_LIMIT,
    "linked_organization_spend_limit_reached": FailureKind.PROVIDER_LIMIT,
    "linked_organization_billing_unavailable": FailureKind.PROVIDER_LIMIT,
    "ramp_limit_exceeded": FailureKind.PROVIDER_LIMIT,
    "organization_on_hold": FailureKind.CREDENTIALS,
    "prompt_too_long": FailureKind.TOO_LONG,
    "model_context_window_exceeded": FailureKind.TOO_LONG,
}
KINDS_BY_STATUS: Mapping[int, FailureKind] = {
    401: FailureKind.CREDENTIALS,
    402: FailureKind.PROVIDER_LIMIT,
    403: FailureKind.CREDENTIALS,
    404: FailureKind.CREDENTIALS,
    408: FailureKind.TIMEOUT,
    409: FailureKind.SERVER_ERROR,
    429: FailureKind.RATE_LIMITED,
    529: FailureKind.OVERLOADED,
}
KINDS_BY_TYPE: Mapping[str, FailureKind] = {
    "authentication_error": FailureKind.CREDENTIALS,
    "billing_error": FailureKind.PROVIDER_LIMIT,
    "permission_error": FailureKind.CREDENTIALS,
    "overloaded_error": FailureKind.OVERLOADED,
    "rate_limit_error": FailureKind.RATE_LIMITED,
}


class Claude:
    def __init__(self, *, base_url: str, api_key: str | None, monotonic_s: Callable[[], float]) -> None:
        self._base_url = base_url or ANTHROPIC_URL
        self._api_key = api_key
        self._monotonic_s = monotonic_s
        self._sdk: _Sdk | None = None
        self._connecting = asyncio.Lock()

    async def send(self, request: Request) -> Reply:
        """One paid call. Whatever goes wrong comes back in `failure`; only cancelling raises."""
        sdk = await self._connected()
        exchange = _Exchange(request, self._monotonic_s)
        try:
            # The SDK's own time-out counts from byte to byte; a trickle would never end.
            async with asyncio.timeout(request.deadline_s):
                if request.max_tokens > MAX_TOKENS_UNSTREAMED:
                    return await self._send_streamed(sdk, request, exchange)
                return await self._send_whole(sdk, request, exchange)
        except sdk.errors as error:
            return exchange.failed(_failure_of(error), response=_response_of(error))

    async def count_tokens(self, request: Request) -> int | None:
        """How many input tokens a call has, at no cost; None where the server can't tell."""
        body = request_body(request)
        del body["max_tokens"]
        sdk = await self._connected()
        try:
            response = await sdk.post("/v1/messages/count_tokens", body, timeout_s=ASIDE_DEADLINE_S)
            count = response.json()["input_tokens"]
        except (*sdk.errors, ValueError, KeyError, TypeError):
            return None
        return count if isinstance(count, int) else None

    async def announcement(self) -> Announcement:
        sdk = await self._connected()
        try:
            response = await sdk.get("/v1/models?limit=1000", timeout_s=ASIDE_DEADLINE_S)
        except sdk.errors as error:
            refused = _response_of(error)
            return announcement_of(refused.headers if refused else {}, failure=_failure_of(error))
        return announcement_of(response.headers, models=_model_ids(response))

    async def probe(self, model: str) -> Probe:
        request = Request(
            model=model,
            system="",
            user="Answer with the word OK.",
            max_tokens=PROBE_MAX_TOKENS,
            schema=False,
            deadline_s=PROBE_DEADLINE_S,
        )
        reply = await self.send(request)
        announced = await self.announcement()
        # So few tokens may all go into thinking; the key and the model work nevertheless.
        ok = reply.failure is None or reply.failure.kind is FailureKind.CUT
        return Probe(
            ok=ok,
            failure=None if ok else reply.failure,
            models=announced.models,
            limits=reply.limits or announced.limits,
            sandbox=announced.sandbox,
            speed_up=announced.speed_up,
            usage=reply.usage,
            duration_s=reply.duration_s,
        )

    async def aclose(self) -> None:
        if self._sdk is not None:
            await self._sdk.client.close()

    async def _connected(self) -> _Sdk:
        if self._sdk is None:
            async with self._connecting:
                if self._sdk is None:
                    # Importing the SDK takes seconds; the loop goes on meanwhile.
                    self._sdk = await asyncio.to_thread(_connect, self._base_url, self._api_key)
        return self._sdk

    async def _send_whole(self, sdk: _Sdk, request: Request, exchange: _Exchange) -> Reply:
        response = await sdk.post("/v1/messages", request_body(request), timeout_s=request.deadline_s)
        exchange.opened(response)
        try:
            return exchange.answered(response.json(), raw=response.text)
        except (ValueError, RecursionError):
            return exchange.failed(unreadable(), raw=response.text)

    async def _send_streamed(self, sdk: _Sdk, request: Request, exchange: _Exchange) -> Reply:
        body = request_body(request) | {"stream": True}
        response = await sdk.post("/v1/messages", body, timeout_s=request.deadline_s, stream=True)
        exchange.opened(response)
        message = StreamedMessage()
        try:
            async for event in sdk.events(response):
                if event.event == "error":
                    return exchange.failed(stream_failure(event.data))
                if event.data and message.take(json.loads(event.data)):
                    exchange.first_token()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return exchange.failed(unreadable())
        finally:
            await response.aclose()
        if not message.ended:
            lost = FailureKind.CONNECTION_LOST
            return exchange.failed(CallFailure(kind=lost, message="The stream ended early.", possibly_paid=True))
        # Escaped, so that half a character, cut by the model, can be stored too.
        return exchange.answered(message.fields, raw=json.dumps(message.fields))


class _Sdk:
    """The imported SDK with one client and one pool of connections."""

    def __init__(self, client: anthropic.AsyncAnthropic, errors: tuple[type[Exception], ...]) -> None:
        import httpx2
        from anthropic import AsyncStream

        self.client = client
        # Everything that a call raises when the world is at fault.
        self.errors = errors
        self.events = AsyncStream[object].raw_events
        self._base_url = str(client.base_url).rstrip("/")
        self._response = httpx2.Response

    async def post(
        self, path: str, body: Mapping[str, object], *, timeout_s: float, stream: bool = False
    ) -> httpx2.Response:
        # The plain response: building the SDK's models, only to take them apart, is half of a call's CPU time.
        # Bytes and a whole URL: a body of dicts would be copied leaf by leaf, a path joined and parsed at every call.
        content = json.dumps(body, ensure_ascii=False).encode()
        options: Any = {"timeout": timeout_s}
        return await self.client.post(
            self._base_url + path, cast_to=self._response, content=content, options=options, stream=stream
        )

    async def get(self, path: str, *, timeout_s: float) -> httpx2.Response:
        options: Any = {"timeout": timeout_s}
        return await self.client.get(path, cast_to=self._response, options=options)


class _Exchange:
    """One call on its way: gathers what is known of it whatever happens next."""

    def __init__(self, request: Request, monotonic_s: Callable[[], float]) -> None:
        self._request = request
        self._monotonic_s = monotonic_s
        self._began_s = monotonic_s()
        self._first_token_s: float | None = None
        self._response: httpx2.Response | None = None

    def opened(self, response: httpx2.Response) -> None:
        self._response = response

    def first_token(self) -> None:
        if self._first_token_s is None:
            self._first_token_s = self._monotonic_s() - self._began_s

    def answered(self, fields: object, *, raw: str) -> Reply:
        """The message that came, judged by its stop reason."""
        if not isinstance(fields, dict):
            return self.failed(unreadable(), raw=raw)
        message = cast("dict[str, Any]", fields)
        text, stop_reason = answer_text(message.get("content")), message.get("stop_reason")
        if text is None:
            return self.failed(unreadable(), raw=raw)
        usage = usage_of(message.get("usage"), prompt_cache=self._request.prompt_cache)
        return self._reply(
            text=text,
            failure=stop_failure(stop_reason, max_tokens=self._request.max_tokens),
            usage=usage,
            stop_reason=storable(stop_reason, chars_max=STOP_REASON_MAX_CHARS) if isinstance(stop_reason, str) else "",
            raw=raw,
        )

    def failed(self, failure: CallFailure, *, response: httpx2.Response | None = None, raw: str = "") -> Reply:
        self._response = response or self._response
        return self._reply(failure=failure, raw=raw)

    def _reply(self, **fields: Any) -> Reply:
        headers = plain_headers(self._response) if self._response is not None else {}
        return Reply(
            **fields,
            request_id=headers.get("request-id", ""),
            http_status=self._response.status_code if self._response is not None else 0,
            first_token_s=self._first_token_s,
            duration_s=self._monotonic_s() - self._began_s,
            limits=limits_of(headers),
        )


def _connect(base_url: str, api_key: str | None) -> _Sdk:
    import aiohttp
    import anthropic
    import httpx2

    limits = httpx2.Limits(
        max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=KEEPALIVE_S
    )
    is_anthropic = httpx2.URL(base_url).host.endswith("anthropic.com")
    client = anthropic.AsyncAnthropic(
        base_url=base_url,
        # Local servers want some key; at Anthropic's door a missing one is refused like any wrong one.
        api_key=api_key or "none",
        default_headers={} if is_anthropic else {"x-api-key": api_key or "none"},
        # The retries are ours: the SDK's have no idempotency key and would pay a call twice.
        max_retries=0,
        http_client=anthropic.DefaultAioHttpClient(limits=limits),
        open_telemetry=False,
    )
    # A dropped connection may surface as the class of any of the layers below.
    return _Sdk(client, (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError))


def _failure_of(error: Exception) -> CallFailure:
    import aiohttp
    import anthropic
    import httpx2

    causes = _causes(error)
    # Where no connection came about, nothing can have been billed.
    unsent = any(isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError) for cause in causes)
    match error:
        case anthropic.APIStatusError():
            return _status_failure(error)
        case TimeoutError() | anthropic.APITimeoutError() | httpx2.TimeoutException():
            message = "No answer came within the deadline."
            return CallFailure(kind=FailureKind.TIMEOUT, message=message, possibly_paid=not unsent)
        case _:
            message = f"The connection to the provider failed: {type(causes[-1]).__name__}."
            return CallFailure(kind=FailureKind.CONNECTION_LOST, message=message, possibly_paid=not unsent)


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def _status_failure(error: anthropic.APIStatusError) -> CallFailure:
    status = error.status_code
    kind = KINDS_BY_CODE.get(error.error_code or "") or KINDS_BY_STATUS.get(status)
    if kind is None or (kind is FailureKind.RATE_LIMITED and error.type == "billing_error"):
        otherwise = FailureKind.REQUEST_REFUSED if 400 <= status < 500 else FailureKind.SERVER_ERROR
        kind = KINDS_BY_TYPE.get(error.type or "", otherwise)
    message = f"The provider answered {status} {storable(error.error_code or error.type or '')}".rstrip()
    message += f": {storable(error.api_message or '')}"
    return CallFailure(kind=kind, message=message.rstrip(": "), server_delay_s=server_delay_s(error.response.headers))


def _response_of(error: Exception) -> httpx2.Response | None:
    import anthropic

    return error.response if isinstance(error, anthropic.APIStatusError) else None


def _model_ids(response: httpx2.Response) -> tuple[str, ...]:
    try:
        return tuple(str(model["id"]) for model in response.json()["data"])
    except (ValueError, KeyError, TypeError):
        return ()
