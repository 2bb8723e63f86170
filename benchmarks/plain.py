"""The plain script that a user would write: the SDK as it comes, a semaphore, each answer appended to a file."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO, cast

from anthropic import AsyncAnthropic
from anthropic.types import Message


async def generate_all(client: AsyncAnthropic, work: dict[str, Any], out: TextIO) -> None:
    semaphore = asyncio.Semaphore(work["concurrency"])
    create: Callable[..., Awaitable[Message]] = cast(Any, client.messages.create)

    async def generate(request: dict[str, Any]) -> None:
        async with semaphore:
            message = await create(**request)
            text = "".join(block.text for block in message.content if block.type == "text")
            out.write(text + "\n")
            out.flush()

    await asyncio.gather(*(generate(request) for request in work["requests"]))


async def measure(work: dict[str, Any], out: TextIO) -> None:
    client = AsyncAnthropic(base_url=work["base_url"], api_key="sandbox")
    # Start-up, what the SDK imports for its first call included, is not measured on either side.
    hello: Any = [{"role": "user", "content": "Answer with the word OK."}]
    await client.messages.create(model=work["requests"][0]["model"], max_tokens=10, messages=hello)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    await generate_all(client, work, out)
    print(json.dumps({"elapsed_s": time.monotonic() - began_s, "cpu_s": time.process_time() - began_cpu_s}))


def main(work_file: Path, out_file: Path) -> None:
    work = json.loads(work_file.read_text())
    with out_file.open("a") as out:
        asyncio.run(measure(work, out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
