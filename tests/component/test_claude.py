"""Every way in which a call can end, over real HTTP: the sandbox's faults, and servers that misbehave in other ways."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from sandbox_fixtures import MODEL, sandbox

from orchestrator_service.domain.ledger import Usage
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.generation.checks import Parsed, parse
from orchestrator_service.generation.claude import Claude, Reply, Request

pytestmark = pytest.mark.anyio

PROMPT = "Tier: template\nTopic: debt\nLength: 4 to 5 exchanges"
STREAMED = 30_000


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "model": MODEL,
        "system": "Answer in JSON.",
        "user": PROMPT,
        "max_tokens": 8_000,
        "deadline_s": 5.0,
    }
    return Request(**given | changes)


@asynccontextmanager
async def claude(url: str, *, api_key: str | None = None) -> AsyncGenerator[Claude]:
    made = Claude(base_url=url, api_key=api_key, monotonic_s=time.perf_counter)
    try:
        yield made
    finally:
        await made.aclose()


async def reply_with(changes: Mapping[str, Any] | None = None, *, api_key: str | None = None, **settings: Any) -> Reply:
    async with sandbox(**settings) as served, claude(served.url, api_key=api_key) as made:
        return await made.send(request(**changes or {}))


@asynccontextmanager
async def server(handler: Any) -> AsyncGenerator[str]:
    """A server of another make."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def reply_of(response: Any, **changes: Any) -> Reply:
    """What becomes of one canned response."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return response

    async with server(answer) as url, claude(url) as made:
        return await made.send(request(**changes))


async def no_such_path(_: web.Request) -> web.Response:
    return error(404, "not_found_error")


def message(**fields: Any) -> dict[str, Any]:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    return {"type": "message", "content": content, "stop_reason": "end_turn"} | fields


def error(status: int, type: str = "api_error", code: str | None = None, **headers: str) -> web.Response:
    details = {"details": {"error_code": code}} if code else {}
    body = {"type": "error", "error": {"type": type, "message": "Said so.", **details}}
    return web.json_response(body, status=status, headers={"request-id": "req_1"} | headers)


async def test_a_whole_answer_comes_with_usage_limits_and_times() -> None:
    reply = await reply_with()
    assert reply.failure is None
    assert isinstance(parse(reply.text), Parsed)
    assert reply.usage and reply.usage.input_tokens > 10 and reply.usage.output_tokens > 100
    assert (reply.stop_reason, reply.http_status, reply.first_token_s) == ("end_turn", 200, None)
    assert reply.request_id.startswith("req_") and reply.duration_s > 0
    assert reply.limits and reply.limits.requests and reply.limits.output_tokens_remaining
    assert json.loads(reply.raw)["usage"]["output_tokens"] == reply.usage.output_tokens


async def test_a_long_answer_is_streamed_and_comes_to_the_same() -> None:
    async with sandbox() as served, claude(served.url) as made:
        whole = await made.send(request())
        served.world.reset_stats()
        streamed = await made.send(request(max_tokens=STREAMED))
    assert (streamed.text, streamed.usage, streamed.stop_reason) == (whole.text, whole.usage, whole.stop_reason)
    assert streamed.failure is None
    assert streamed.first_token_s is not None and 0 < streamed.first_token_s <= streamed.duration_s
    assert json.loads(streamed.raw)["content"] == [{"type": "text", "text": whole.text}]


FAULTS: list[tuple[str, FailureKind, bool]] = [
    ("rate_limit", FailureKind.RATE_LIMITED, False),
    ("rate_limit_bare", FailureKind.RATE_LIMITED, False),
    ("overloaded", FailureKind.OVERLOADED, False),
    ("spend_limit", FailureKind.PROVIDER_LIMIT, False),
    ("permission", FailureKind.CREDENTIALS, False),
    ("server_error", FailureKind.SERVER_ERROR, False),
    ("refusal", FailureKind.REFUSED, False),
    ("reset", FailureKind.CONNECTION_LOST, True),
    ("bad_body", FailureKind.UNREADABLE, True),
    ("truncated", FailureKind.CUT, False),
    ("unknown_stop_reason", FailureKind.UNKNOWN_STOP, False),
]


@pytest.mark.parametrize("max_tokens", [8_000, STREAMED])
@pytest.mark.parametrize(("fault", "kind", "possibly_paid"), FAULTS)
async def test_every_fault_has_its_kind(fault: str, kind: FailureKind, possibly_paid: bool, max_tokens: int) -> None:
    reply = await reply_with({"max_tokens": max_tokens}, faults={fault: 1.0})
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (kind, possibly_paid), reply.failure


async def test_an_error_in_the_middle_of_a_stream_counts_as_an_attempt_for_it_may_be_billed() -> None:
    reply = await reply_with({"max_tokens": STREAMED}, faults={"stream_error": 1.0})
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (FailureKind.SERVER_ERROR, True)
    assert "overloaded_error" in reply.failure.message


@pytest.mark.parametrize("max_tokens", [8_000, STREAMED])
async def test_an_answer_that_stalls_meets_the_deadline(max_tokens: int) -> None:
    reply = await reply_with({"max_tokens": max_tokens, "deadline_s": 0.3}, faults={"stall": 1.0})
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (FailureKind.TIMEOUT, True)
    assert reply.duration_s >= 0.3


async def test_an_answer_that_trickles_meets_the_deadline_too() -> None:
    never = asyncio.Event()

    async def trickle(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked)
        while asked.transport is not None and not asked.transport.is_closing():
            await response.write(b" ")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await never.wait()
        return response

    async with server(trickle) as url, claude(url) as made:
        reply = await made.send(request(deadline_s=0.3))
    assert reply.failure and reply.failure.kind is FailureKind.TIMEOUT


async def test_an_answer_that_was_cut_or_refused_is_priced_by_its_usage() -> None:
    for fault in ("truncated", "refusal", "unknown_stop_reason"):
        reply = await reply_with(faults={fault: 1.0})
        assert reply.usage and reply.usage.input_tokens > 0 and reply.raw


async def test_the_servers_own_delay_is_told() -> None:
    limited = await reply_with(faults={"rate_limit": 1.0}, speed_up=40.0)
    bare = await reply_with(faults={"rate_limit_bare": 1.0})
    assert limited.failure and limited.failure.server_delay_s and limited.limits and limited.http_status == 429
    assert bare.failure and bare.failure.server_delay_s is None


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-3"}, 0.0),
    ],
)
async def test_a_delay_is_read_in_seconds_and_milliseconds_and_never_as_a_date(
    headers: dict[str, str], delay_s: float | None
) -> None:
    reply = await reply_of(error(429, "rate_limit_error", **headers))
    assert reply.failure and reply.failure.server_delay_s == delay_s


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (error(400, "invalid_request_error"), FailureKind.REQUEST_REFUSED),
        (error(400, "invalid_request_error", "prompt_too_long"), FailureKind.TOO_LONG),
        (error(400, "billing_error"), FailureKind.PROVIDER_LIMIT),
        (error(401, "authentication_error"), FailureKind.CREDENTIALS),
        (error(402, "billing_error"), FailureKind.PROVIDER_LIMIT),
        (error(403, "permission_error"), FailureKind.CREDENTIALS),
        (error(403, "permission_error", "organization_on_hold"), FailureKind.CREDENTIALS),
        (error(404, "not_found_error"), FailureKind.CREDENTIALS),
        (error(408), FailureKind.TIMEOUT),
        (error(409), FailureKind.SERVER_ERROR),
        (error(413, "request_too_large"), FailureKind.REQUEST_REFUSED),
        (error(429, "rate_limit_error"), FailureKind.RATE_LIMITED),
        (error(429, "billing_error"), FailureKind.PROVIDER_LIMIT),
        (error(429, "rate_limit_error", "ramp_limit_exceeded"), FailureKind.PROVIDER_LIMIT),
        (error(429, "rate_limit_error", "contract_spend_limit_reached"), FailureKind.PROVIDER_LIMIT),
        (error(500), FailureKind.SERVER_ERROR),
        (error(500, "overloaded_error"), FailureKind.OVERLOADED),
        (web.Response(status=502, text="<html>Bad Gateway</html>"), FailureKind.SERVER_ERROR),
        (web.Response(status=529, text="busy"), FailureKind.OVERLOADED),
    ],
)
async def test_a_refusal_is_told_by_code_status_and_type(response: web.Response, kind: FailureKind) -> None:
    reply = await reply_of(response)
    assert reply.failure and reply.failure.kind is kind
    assert reply.http_status == response.status and str(response.status) in reply.failure.message
    assert not reply.failure.possibly_paid


@pytest.mark.parametrize("body", ["", "<html>", "[1]", '"text"', '{"error": 1}', '{"content": "x"}', "[" * 100_000])
async def test_a_body_that_is_no_message_is_malformed_and_possibly_paid(body: str) -> None:
    reply = await reply_of(web.Response(text=body, content_type="application/json"))
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (FailureKind.UNREADABLE, True)


async def test_text_is_picked_by_type_and_what_a_local_server_leaves_out_is_zero() -> None:
    reply = await reply_of(web.json_response(message(usage={"input_tokens": 3, "output_tokens": 4})))
    assert (reply.text, reply.usage, reply.limits) == ("AB", Usage(input_tokens=3, output_tokens=4), None)
    assert (await reply_of(web.json_response(message()))).usage is None


async def test_every_class_of_tokens_is_read() -> None:
    usage = {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "output_tokens_details": {"thinking_tokens": 1},
    }
    reply = await reply_of(web.json_response(message(usage=usage)))
    assert reply.usage == Usage(
        input_tokens=1,
        output_tokens=2,
        cache_write_5m_tokens=3,
        cache_write_1h_tokens=4,
        cache_read_tokens=5,
        thinking_tokens=1,
    )


@pytest.mark.parametrize("ttl", ["5m", "1h"])
async def test_cache_writes_without_a_split_are_of_the_lifetime_that_was_asked_for(ttl: str) -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 7}
    reply = await reply_of(web.json_response(message(usage=usage)), prompt_cache=ttl)
    assert reply.usage
    assert {"5m": reply.usage.cache_write_5m_tokens, "1h": reply.usage.cache_write_1h_tokens}[ttl] == 7


@pytest.mark.parametrize(
    ("stop_reason", "kind"),
    [
        ("model_context_window_exceeded", FailureKind.TOO_LONG),
        ("pause_turn", FailureKind.UNKNOWN_STOP),
        (None, FailureKind.UNKNOWN_STOP),
    ],
)
async def test_a_stop_reason_has_its_kind(stop_reason: str | None, kind: FailureKind) -> None:
    reply = await reply_of(web.json_response(message(stop_reason=stop_reason)))
    assert reply.failure and reply.failure.kind is kind


async def test_half_a_character_in_a_stream_is_kept_in_a_form_that_can_be_stored() -> None:
    events = [
        {"type": "message_start", "message": message(content=[])},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a\ud83d"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    reply = await reply_of(web.Response(text=body), max_tokens=STREAMED)
    assert (reply.failure, reply.text, reply.usage) == (None, "a\ud83d", Usage(output_tokens=3))
    assert reply.raw.isascii()


@pytest.mark.parametrize("speed_up", ["nan", "inf", "-1", "fast"])
async def test_a_speed_up_that_is_none_counts_as_real_time(speed_up: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, headers={"parley-sandbox-speed-up": speed_up})

    async with server(answer) as url, claude(url) as made:
        announced = await made.announcement()
    assert (announced.sandbox, announced.speed_up) == (True, 1.0)


async def test_a_stream_that_ends_early_is_a_lost_connection() -> None:
    reply = await reply_of(web.Response(body=b'event: ping\ndata: {"type": "ping"}\n\n'), max_tokens=STREAMED)
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (FailureKind.CONNECTION_LOST, True)


async def test_a_server_that_is_not_there_cost_nothing() -> None:
    async with server(no_such_path) as url:
        pass
    async with claude(url) as made:
        reply = await made.send(request())
        counted = await made.count_tokens(request(system="", user="Hello"))
        announced = await made.announcement()
        probe = await made.probe(MODEL)
    assert reply.failure
    assert (reply.failure.kind, reply.failure.possibly_paid) == (FailureKind.CONNECTION_LOST, False)
    assert counted is None
    assert announced.failure and announced.failure.kind is FailureKind.CONNECTION_LOST and not announced.sandbox
    assert not probe.ok and probe.failure


async def test_what_is_asked_for_is_what_is_sent() -> None:
    bodies: list[dict[str, Any]] = []
    keys: list[str | None] = []

    async def answer(asked: web.Request) -> web.Response:
        bodies.append(await asked.json())
        keys.append(asked.headers.get("authorization"))
        return web.json_response(message())

    async with server(answer) as url, claude(url) as made:
        await made.send(request(system="S", user="U", schema=False))
        await made.send(request(system="S", user="U", effort="low", prompt_cache="1h", stricter=True))
        await made.send(request(system="", user="U", schema=False))
    plain, full, bare = bodies
    assert plain == {"model": MODEL, "max_tokens": 8_000, "system": "S", "messages": [{"role": "user", "content": "U"}]}
    control = {"type": "ephemeral", "ttl": "1h"}
    assert full["system"] == [{"type": "text", "text": "S", "cache_control": control}]
    assert full["output_config"]["effort"] == "low" and full["output_config"]["format"]["type"] == "json_schema"
    assert full["messages"][0]["content"].startswith("U\n\n") and "JSON" in full["messages"][0]["content"]
    assert "system" not in bare and "stream" not in bare
    assert keys == ["Bearer none"] * 3


async def test_the_system_part_is_read_from_the_cache_the_second_time() -> None:
    async with sandbox() as served, claude(served.url) as made:
        first = await made.send(request(system="Long. " * 2_000, prompt_cache="5m"))
        second = await made.send(request(system="Long. " * 2_000, prompt_cache="5m", user=PROMPT + "!"))
    assert first.usage and first.usage.cache_write_5m_tokens > 2_000 and first.usage.cache_read_tokens == 0
    assert second.usage and second.usage.cache_read_tokens == first.usage.cache_write_5m_tokens


async def test_warming_the_cache_with_no_output_is_no_failure() -> None:
    async with sandbox() as served, claude(served.url) as made:
        reply = await made.send(request(system="Long. " * 2_000, prompt_cache="5m", max_tokens=0))
    assert reply.failure is None
    assert reply.usage and reply.usage.cache_write_5m_tokens > 2_000


async def test_tokens_are_counted_as_they_are_billed() -> None:
    async with sandbox() as served, claude(served.url) as made:
        counted = await made.count_tokens(request(schema=False))
        reply = await made.send(request(schema=False))
    assert reply.usage and counted == reply.usage.input_tokens


async def test_a_server_that_cannot_count_tokens_says_none() -> None:
    async with server(no_such_path) as url, claude(url) as made:
        assert await made.count_tokens(request(system="", user="Hello")) is None

    async def answer(_: web.Request) -> web.Response:
        return web.json_response([])

    async with server(answer) as url, claude(url) as made:
        assert await made.count_tokens(request(system="", user="Hello")) is None


async def test_a_sandbox_announces_itself_and_others_do_not() -> None:
    async with sandbox(speed_up=40.0) as served, claude(served.url) as made:
        announced = await made.announcement()
    assert announced.sandbox and announced.limits and announced.failure is None
    assert announced.speed_up >= 40.0 and MODEL in announced.models

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    async with server(answer) as url, claude(url) as made:
        other = await made.announcement()
    assert (other.sandbox, other.speed_up, other.limits, other.models) == (False, 1.0, None, ())


async def test_a_probe_proves_key_and_model() -> None:
    async with sandbox(api_key="right") as served:
        async with claude(served.url, api_key="right") as made:
            good, no_model = await made.probe(MODEL), await made.probe("claude-nobody")
        async with claude(served.url, api_key="wrong") as made:
            no_key = await made.probe(MODEL)
    assert good.ok and good.sandbox and good.limits and good.usage and MODEL in good.models
    for refused in (no_model, no_key):
        assert not refused.ok and refused.failure and refused.failure.kind is FailureKind.CREDENTIALS


async def test_a_call_can_be_cancelled() -> None:
    async with sandbox(paused=True) as served, claude(served.url) as made:
        call = asyncio.create_task(made.send(request()))
        await served.stats_when("in_flight", 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_many_calls_share_one_client_made_once() -> None:
    async with sandbox() as served, claude(served.url) as made:
        replies = await asyncio.gather(*(made.send(request(user=f"{PROMPT} {at}")) for at in range(200)))
    assert [reply.failure for reply in replies] == [None] * 200
