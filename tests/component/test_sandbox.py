"""The sandbox as the real SDK meets it: answers, refusals, limits, cache and counts, on a loopback port."""

import asyncio
import json
from typing import Any, cast

import anthropic
import pytest
from sandbox_fixtures import (
    CHECK,
    MODEL,
    SCHEMA,
    ask,
    ask_streaming,
    call,
    prompt,
    sandbox,
    text_of,
    turns_of,
)

pytestmark = pytest.mark.anyio


async def test_a_conversation_alternates_and_speaks_of_what_the_prompt_asked() -> None:
    async with sandbox() as served:
        message = await ask(served.client, prompt("**Emotional arc:** shame -> hope", about="Debt after divorce"))
    turns = turns_of(message)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert len(turns) // 2 in (3, 4)
    assert turns[1]["content"].startswith("[sandbox] Maya, ")
    assert "debt after divorce" in turns[0]["content"]
    assert "shame" in turns[0]["content"]
    assert "hope" in turns[-1]["content"]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == -(-len(text_of(message)) // 4)


async def test_exactly_n_exchanges_are_n_exchanges() -> None:
    async with sandbox() as served:
        message = await ask(served.client, prompt(exchanges="exactly 6 exchanges"))
    assert len(turns_of(message)) == 12


async def test_a_check_call_is_answered_ok() -> None:
    async with sandbox() as served:
        assert text_of(await call(served.client)) == "OK"


async def test_a_stream_tells_the_same_as_the_json_reply_to_the_same_attempt() -> None:
    async with sandbox() as served:
        plain = await ask(served.client, prompt())
        served.world.reset_stats()
        streamed = await ask_streaming(served.client, prompt())
    assert text_of(streamed) == text_of(plain)
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert streamed.usage.input_tokens == plain.usage.input_tokens
    assert streamed.id == plain.id


async def test_a_second_attempt_at_a_prompt_gets_another_text() -> None:
    async with sandbox() as served:
        assert text_of(await ask(served.client, prompt())) != text_of(await ask(served.client, prompt()))


async def test_an_answer_over_max_tokens_is_cut_there() -> None:
    async with sandbox() as served:
        message = await ask(served.client, prompt(), max_tokens=50)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 50
    assert len(text_of(message)) == 200


async def test_more_max_tokens_do_not_make_it_another_prompt() -> None:
    async with sandbox() as served:
        cut = await ask(served.client, prompt(), max_tokens=50)
        served.world.reset_stats()
        whole = await ask(served.client, prompt())
    assert text_of(whole).startswith(text_of(cut))


async def test_counted_tokens_are_the_tokens_of_the_call() -> None:
    async with sandbox() as served:
        counted = await served.client.messages.count_tokens(
            model=MODEL, output_config=cast(Any, SCHEMA), messages=[{"role": "user", "content": prompt()}]
        )
        message = await ask(served.client, prompt())
    assert counted.input_tokens == message.usage.input_tokens > 20


async def test_the_models_are_listed_and_each_is_found() -> None:
    async with sandbox() as served:
        listed = [model.id async for model in served.client.models.list()]
        found = await served.client.models.retrieve("claude-sonnet-4-5")
        with pytest.raises(anthropic.NotFoundError):
            await served.client.models.retrieve("claude-none")
    assert len(listed) == 10
    assert (found.line, found.max_input_tokens, found.max_tokens) == ("sonnet", 200_000, 64_000)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"max_tokens": -1}, 400, "max_tokens: "),
        ({"max_tokens": 128_001}, 400, "max_tokens: 128001 > 128000"),
        ({"messages": []}, 400, "messages: at least one"),
        ({"messages": None}, 400, "messages: Field required"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "{"}]}, 400, "messages: assistant prefill"),
        ({"temperature": 1.0}, 400, "temperature: "),
        ({"invented": 1}, 400, "invented: Extra inputs"),
        ({"output_config": {"format": {"type": "json_schema"}}}, 400, "output_config.format.schema"),
        ({"cache_control": {"type": "ephemeral", "ttl": "2d"}}, 400, "cache_control.ttl"),
        ({"model": "claude-2"}, 404, "model: claude-2"),
    ],
)
async def test_a_bad_request_is_told_which_field_is_wrong(change: dict[str, Any], status: int, said: str) -> None:
    body = {name: value for name, value in {**CHECK, **change}.items() if value is not None}
    async with sandbox() as served:
        got, error = await served.post(body)
        stats = await served.stats()
    assert got == status
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["message"].startswith(said)
    assert stats["calls_started"] == 0


async def test_only_the_key_it_was_given_is_accepted() -> None:
    async with sandbox(api_key="right") as served:
        assert text_of(await call(served.with_key("right")))
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await call(served.with_key("wrong"))
    assert caught.value.type == "authentication_error"


async def test_a_path_that_does_not_exist_is_not_found() -> None:
    async with sandbox() as served, served.session.get(f"{served.url}/v2") as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "not_found_error"


async def test_every_reply_announces_limits_at_the_sandbox_pace() -> None:
    async with sandbox(speed_up=40, zero_latency=False) as served:
        raw = await served.client.models.with_raw_response.retrieve(MODEL)
    told = raw.headers
    assert told["parley-sandbox-speed-up"] == "40"
    assert told["anthropic-ratelimit-requests-limit"] == str(4_000 * 40)
    assert told["anthropic-ratelimit-input-tokens-limit"] == str(2_000_000 * 40)
    assert told["anthropic-ratelimit-output-tokens-limit"] == str(400_000 * 40)
    assert told["anthropic-ratelimit-requests-remaining"] == "4000"
    assert told["anthropic-ratelimit-tokens-reset"].endswith("Z")


async def test_requests_over_the_limit_are_refused_and_are_no_attempts() -> None:
    async with sandbox(speed_up=1, requests_per_minute=2) as served:
        await ask(served.client, prompt(about="rent"))
        await ask(served.client, prompt(about="work"))
        with pytest.raises(anthropic.RateLimitError) as caught:
            await ask(served.client, prompt())
        stats = await served.stats()
    headers = caught.value.response.headers
    assert 29 <= float(headers["retry-after"]) <= 30
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert (stats["calls_started"], stats["calls_limited"], stats["prompts_distinct"]) == (2, 1, 2)


async def test_a_smooth_limit_lets_no_burst_through() -> None:
    async with sandbox(speed_up=1, requests_per_minute=60, burst_s=2) as served:
        for about in ("rent", "work"):
            await ask(served.client, prompt(about=about))
        with pytest.raises(anthropic.RateLimitError) as caught:
            await ask(served.client, prompt())
    headers = caught.value.response.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert float(headers["retry-after"]) == 1


async def test_one_request_fits_however_short_the_burst_is() -> None:
    async with sandbox(speed_up=1, requests_per_minute=6) as served:
        assert (await served.change(burst_s=0))["burst_s"] == 0
        assert turns_of(await ask(served.client, prompt(about="rent")))
        with pytest.raises(anthropic.RateLimitError):
            await ask(served.client, prompt())


async def test_output_is_charged_at_the_end_and_then_refused_until_it_has_refilled() -> None:
    async with sandbox(speed_up=1, output_tokens_per_minute=100) as served:
        await ask(served.client, prompt())
        told = (await served.client.models.with_raw_response.retrieve(MODEL)).headers
        assert told["anthropic-ratelimit-output-tokens-remaining"] == "0"
        assert told["anthropic-ratelimit-tokens-limit"] == "100"
        with pytest.raises(anthropic.RateLimitError, match="output tokens"):
            await ask(served.client, prompt())


async def test_retry_after_runs_at_the_pace_of_the_sandbox() -> None:
    async with sandbox(faults={"rate_limit": 1.0}, zero_latency=False, speed_up=40) as served:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await ask(served.client, prompt())
    assert float(caught.value.response.headers["retry-after"]) == 5 / 40


async def test_a_prefix_is_written_once_and_then_read() -> None:
    shared: Any = [{"type": "text", "text": "All about it. " * 400, "cache_control": {"type": "ephemeral"}}]
    async with sandbox() as served:
        first, second = [(await call(served.client, system=shared)).usage for _ in range(2)]
        bare = (await call(served.client)).usage
    assert first.cache_creation_input_tokens == second.cache_read_input_tokens == 1_400
    assert first.cache_read_input_tokens == second.cache_creation_input_tokens == 0
    assert first.input_tokens == second.input_tokens < 20
    assert (bare.cache_read_input_tokens, bare.cache_creation_input_tokens) == (0, 0)


async def test_cold_calls_in_parallel_read_nothing_from_the_cache() -> None:
    wanted: dict[str, Any] = {"system": "All about it. " * 400, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    async with sandbox(paused=True) as served:
        calls = [asyncio.ensure_future(call(served.client, **wanted)) for _ in range(3)]
        await served.stats_when("in_flight", 3)
        await served.change(paused=False)
        replies = await asyncio.gather(*calls)
    assert [reply.usage.cache_read_input_tokens for reply in replies] == [0, 0, 0]


async def test_no_tokens_warm_the_cache_and_are_no_attempt_at_the_prompt() -> None:
    wanted: dict[str, Any] = {"system": "All about it. " * 400, "cache_control": {"type": "ephemeral"}}
    async with sandbox() as served:
        warmed = await call(served.client, max_tokens=0, **wanted)
        read = await call(served.client, **wanted)
        stats = await served.stats()
    assert (warmed.content, warmed.usage.output_tokens) == ([], 0)
    assert (read.usage.cache_read_input_tokens or 0) > 1_024
    assert stats["paid_by_prompt_max"] == 1


async def test_a_call_whose_client_went_away_completes_and_is_paid() -> None:
    async with sandbox(paused=True) as served:
        asked = asyncio.ensure_future(ask(served.client, prompt()))
        await served.stats_when("in_flight", 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await served.change(paused=False)
        stats = await served.stats_when("in_flight", 0)
    assert (stats["calls_completed"], stats["paid_by_prompt_max"]) == (1, 1)


async def test_counts_are_exact_among_many_calls_at_once() -> None:
    async with sandbox() as served:
        replies = await asyncio.gather(*(ask(served.client, prompt(about=f"matter {n % 20}")) for n in range(60)))
        stats = await served.stats("?prompts=all")
    assert (stats["calls_started"], stats["calls_completed"], stats["in_flight"]) == (60, 60, 0)
    assert stats["tokens_out"] == sum(reply.usage.output_tokens for reply in replies)
    assert stats["tokens_in"] == sum(reply.usage.input_tokens for reply in replies)
    assert (stats["prompts_distinct"], stats["paid_by_prompt_max"]) == (20, 3)
    assert len(stats["prompts_paid_more_than_once"]) == 20
    assert {(count["started"], count["paid"]) for count in stats["prompts"]} == {(3, 3)}


async def test_reset_counts_start_at_nothing() -> None:
    async with sandbox() as served:
        await ask(served.client, prompt())
        async with served.session.post(f"{served.url}/stats/reset") as response:
            stats = await response.json()
    assert (stats["calls_started"], stats["calls_completed"], stats["prompts_distinct"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"faults": {"gremlins": 0.5}}, "no fault is called 'gremlins'"),
        ({"faults": {"reset": 0.7, "stall": 0.7}}, "add up to 1.4"),
        ({"faults": {"reset": 2}}, "not a probability"),
        ({"speed": 3}, "no such setting"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"burst_s": -1}, "burst_s"),
        ({"tokens_per_s": 0}, "tokens_per_s: 0 is not a number from 0.001 to 100000"),
        ({"tokens_per_s": True}, "tokens_per_s"),
        ({"first_token_s": 601}, "first_token_s: 601 is not a number from 0 to 600"),
        ({"paused": "yes"}, "not true or false"),
    ],
)
async def test_a_bad_setting_is_refused_by_name_and_changes_nothing(change: dict[str, Any], said: str) -> None:
    async with sandbox() as served:
        before = served.world.settings
        told = await served.change(tokens_mean=999, **change)
        assert served.world.settings == before
    assert told["status"] == 400
    assert said in told["error"]["message"]


async def test_settings_change_while_it_runs_and_never_show_the_key() -> None:
    async with sandbox() as served:
        told = await served.change(faults={"overloaded": 1.0}, api_key="secret", fault_max_attempt=None)
        with pytest.raises(anthropic.OverloadedError):
            await ask(served.with_key("secret"), prompt())
    assert told["faults"] == {"overloaded": 1.0}
    assert told["api_key_set"] is True
    assert "secret" not in json.dumps(told)


async def test_speed_and_first_token_change_while_it_runs() -> None:
    async with sandbox() as served:
        told = await served.change(tokens_per_s=80, first_token_s=0.5)
        settings = served.world.settings
    assert (told["tokens_per_s"], told["first_token_s"]) == (80.0, 0.5)
    assert (settings.tokens_per_s, settings.first_token_s) == (80.0, 0.5)


async def test_a_pause_while_it_runs_holds_the_next_call_until_it_ends() -> None:
    async with sandbox() as served:
        await served.change(paused=True)
        asked = asyncio.ensure_future(ask(served.client, prompt()))
        held = await served.stats_when("calls_started", 1)
        await served.change(paused=False)
        assert turns_of(await asked)
    assert (held["in_flight"], held["calls_completed"]) == (1, 0)
