"""Every fault of the sandbox, as the real SDK raises or returns it, and whether it costs."""

import asyncio
import json
from typing import cast

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from sandbox_fixtures import WAIT_MAX_S, ask, ask_streaming, prompt, sandbox, turns_of

from orchestrator_service.sandbox.faults import FAULTS

pytestmark = pytest.mark.anyio

REFUSED: dict[str, tuple[type[anthropic.APIStatusError], str, str | None]] = {
    "rate_limit": (anthropic.RateLimitError, "rate_limit_error", None),
    "rate_limit_bare": (anthropic.RateLimitError, "rate_limit_error", None),
    "overloaded": (anthropic.OverloadedError, "overloaded_error", None),
    "spend_limit": (anthropic.EnforcedSpendLimitReachedError, "rate_limit_error", "enforced_spend_limit_reached"),
    "permission": (anthropic.PermissionDeniedError, "permission_error", None),
    "server_error": (anthropic.InternalServerError, "api_error", None),
    "stream_error": (anthropic.InternalServerError, "api_error", None),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusing_fault_is_the_real_exception_and_costs_nothing(name: str) -> None:
    error_class, error_type, error_code = REFUSED[name]
    async with sandbox(faults={name: 1.0}) as served:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask(served.client, prompt())
        stats = await served.stats()
    assert type(caught.value) is error_class
    assert (caught.value.type, caught.value.error_code) == (error_type, error_code)
    assert (caught.value.request_id or "").startswith("req_")
    assert ("retry-after" in caught.value.response.headers) == (name == "rate_limit")
    assert (stats["faults"], stats["paid_faults"], stats["calls_completed"]) == ({name: 1}, {}, 0)


# A stall lasts until the client's patience ends; all others come well before.
TIMEOUT_S = {"reset": WAIT_MAX_S, "stall": 0.3, "bad_body": WAIT_MAX_S}
BROKEN_JSON: dict[str, type[Exception]] = {
    "reset": anthropic.APIConnectionError,
    "stall": anthropic.APITimeoutError,
    "bad_body": json.JSONDecodeError,
}


@pytest.mark.parametrize("stock_transport", [True, False])
@pytest.mark.parametrize("name", BROKEN_JSON)
async def test_a_reply_that_breaks_on_its_way_is_paid(name: str, stock_transport: bool) -> None:
    async with sandbox(stock_transport=stock_transport, timeout_s=TIMEOUT_S[name], faults={name: 1.0}) as served:
        with pytest.raises(BROKEN_JSON[name]) as caught:
            await ask(served.client, prompt())
        # The handler of a stalled call ends when its client has gone.
        stats = await served.stats_when("in_flight", 0)
    assert type(caught.value) is BROKEN_JSON[name]
    assert (stats["calls_completed"], stats["paid_faults"]) == (1, {name: 1})


BROKEN_STREAM: dict[str, type[Exception]] = {
    "reset": httpx2.ReadError,
    "stall": httpx2.ReadTimeout,
    "bad_body": json.JSONDecodeError,
}


@pytest.mark.parametrize("name", BROKEN_STREAM)
async def test_a_stream_that_breaks_off_raises_no_anthropic_class_and_is_paid(name: str) -> None:
    async with sandbox(timeout_s=TIMEOUT_S[name], faults={name: 1.0}) as served:
        with pytest.raises(BROKEN_STREAM[name]):
            await ask_streaming(served.client, prompt())
        stats = await served.stats_when("in_flight", 0)
    assert stats["paid_faults"] == {name: 1}


async def test_a_stream_cut_off_is_a_protocol_error_on_the_stock_transport() -> None:
    async with sandbox(stock_transport=True, faults={"reset": 1.0}) as served:
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask_streaming(served.client, prompt())


async def test_an_error_in_mid_stream_has_status_200_and_the_type_of_its_event() -> None:
    async with sandbox(faults={"stream_error": 1.0}) as served:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask_streaming(served.client, prompt())
        stats = await served.stats_when("in_flight", 0)
    assert (caught.value.status_code, caught.value.type) == (200, "overloaded_error")
    assert stats["calls_completed"] == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_refusal_is_an_empty_message_that_costs_nothing(streams: bool) -> None:
    async with sandbox(faults={"refusal": 1.0}) as served:
        message = await (ask_streaming if streams else ask)(served.client, prompt())
        stats = await served.stats_when("in_flight", 0)
    assert (message.stop_reason, message.content, message.usage.output_tokens) == ("refusal", [], 0)
    assert stats["calls_completed"] == 0


async def ask_with_fault(name: str, text: str) -> Message:
    async with sandbox(faults={name: 1.0}) as served:
        message = await ask(served.client, text)
        stats = await served.stats()
    assert stats["paid_faults"] == {name: 1}
    assert stats["tokens_out"] == message.usage.output_tokens
    return message


async def test_a_malformed_answer_is_no_json_though_it_ended_well() -> None:
    message = await ask_with_fault("malformed", prompt())
    assert message.stop_reason == "end_turn"
    with pytest.raises(json.JSONDecodeError):
        turns_of(message)


async def test_a_truncated_answer_says_max_tokens() -> None:
    message = await ask_with_fault("truncated", prompt())
    assert message.stop_reason == "max_tokens"
    with pytest.raises(json.JSONDecodeError):
        turns_of(message)


@pytest.mark.parametrize("about", ["debt", "rent", "sleep", "work", "exams"])
async def test_wrong_roles_repeat_a_role_or_end_with_the_user(about: str) -> None:
    roles = [turn["role"] for turn in turns_of(await ask_with_fault("wrong_roles", prompt(about=about)))]
    assert roles[:2] == ["user", "user"] or roles[-1] == "user"


@pytest.mark.parametrize(("exchanges", "turns"), [("4 to 5 exchanges", 6), ("exactly 1 exchanges", 1)])
async def test_a_short_answer_has_fewer_turns_than_asked(exchanges: str, turns: int) -> None:
    assert len(turns_of(await ask_with_fault("short", prompt(exchanges=exchanges)))) == turns


async def test_a_placeholder_is_left_in_a_turn() -> None:
    turns = turns_of(await ask_with_fault("placeholder", prompt()))
    assert any("{{" in turn["content"] for turn in turns)


async def test_an_unknown_stop_reason_passes_through() -> None:
    message = await ask_with_fault("unknown_stop_reason", prompt())
    assert cast(str, message.stop_reason) == "sandbox_reason_nobody_knows"
    assert len(turns_of(message)) >= 6


async def test_faults_end_after_the_attempt_they_are_limited_to() -> None:
    async with sandbox(faults={"overloaded": 1.0}, fault_max_attempt=2) as served:
        for _ in range(2):
            with pytest.raises(anthropic.OverloadedError):
                await ask(served.client, prompt())
        assert turns_of(await ask(served.client, prompt()))


async def test_a_probability_hits_about_its_share_of_prompts() -> None:
    async with sandbox(faults={"overloaded": 0.3}) as served:
        replies = await asyncio.gather(
            *(ask(served.client, prompt(about=f"matter {n}")) for n in range(100)), return_exceptions=True
        )
    assert 15 <= sum(isinstance(reply, anthropic.OverloadedError) for reply in replies) <= 45


async def test_every_fault_is_one_that_a_test_here_knows() -> None:
    answered = {"refusal", "malformed", "truncated", "wrong_roles", "short", "placeholder", "unknown_stop_reason"}
    assert set(FAULTS) == {*REFUSED, *BROKEN_JSON, *answered}
