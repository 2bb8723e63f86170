"""A sandbox in this process for one test, and the real SDK to talk to it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import anthropic
from aiohttp import web
from anthropic.types import Message

from orchestrator_service.sandbox.app import new_app
from orchestrator_service.sandbox.clock import Clock
from orchestrator_service.sandbox.settings import Settings, changed
from orchestrator_service.sandbox.world import World

MODEL = "claude-sonnet-5"
SCHEMA: dict[str, Any] = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
CHECK: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Reply with OK"}]}
WAIT_MAX_S = 5.0


@dataclass(frozen=True)
class Served:
    url: str
    world: World
    client: anthropic.AsyncAnthropic
    session: aiohttp.ClientSession

    def with_key(self, key: str) -> anthropic.AsyncAnthropic:
        return self.client.with_options(api_key=key)

    async def stats(self, query: str = "") -> dict[str, Any]:
        async with self.session.get(f"{self.url}/stats{query}") as response:
            return await response.json()

    async def stats_when(self, field: str, value: int) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_MAX_S):
            while (stats := await self.stats())[field] != value:
                pass
        return stats

    async def change(self, **settings: object) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/settings", json=settings) as response:
            return {"status": response.status, **await response.json()}

    async def post(self, body: Mapping[str, object]) -> tuple[int, dict[str, Any]]:
        url, headers = f"{self.url}/v1/messages", {"x-api-key": "any"}
        async with self.session.post(url, json=body, headers=headers) as response:
            return response.status, (await response.json())["error"]


@asynccontextmanager
async def sandbox(
    *, stock_transport: bool = False, timeout_s: float = WAIT_MAX_S, **given: object
) -> AsyncGenerator[Served]:
    """A sandbox that answers at once with short texts unless told otherwise, and a client that never retries."""
    settings = changed(Settings(), {"zero_latency": True, "speed_up": 1_000_000.0, "tokens_mean": 300, **given})
    world = World(settings, Clock())
    runner = web.AppRunner(new_app(world), access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    transport = None if stock_transport else anthropic.DefaultAioHttpClient(timeout=timeout_s)
    try:
        async with (
            anthropic.AsyncAnthropic(
                base_url=url, api_key="any", max_retries=0, timeout=timeout_s, http_client=transport
            ) as client,
            aiohttp.ClientSession() as session,
        ):
            yield Served(url, world, client, session)
    finally:
        await runner.cleanup()


def prompt(*lines: str, about: str = "debt", exchanges: str = "3 to 4 exchanges") -> str:
    return "\n".join(
        (f"Write {exchanges} as JSON.", "- **Persona:** Maya Okafor, 34, nurse", f"Topic: {about}", *lines)
    )


async def call(client: anthropic.AsyncAnthropic, **changes: Any) -> Message:
    """A check call with these changes to it."""
    return cast(Message, await client.messages.create(**{**CHECK, **changes}))


async def ask(client: anthropic.AsyncAnthropic, text: str, *, max_tokens: int = 8_000) -> Message:
    messages = [{"role": "user", "content": text}]
    return await call(client, max_tokens=max_tokens, output_config=SCHEMA, messages=messages)


async def ask_streaming(client: anthropic.AsyncAnthropic, text: str) -> Message:
    messages: Any = [{"role": "user", "content": text}]
    async with client.messages.stream(
        model=MODEL, max_tokens=8_000, output_config=cast(Any, SCHEMA), messages=messages
    ) as stream:
        return await stream.get_final_message()


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def turns_of(message: Message) -> list[dict[str, str]]:
    return json.loads(text_of(message))["turns"]
