"""The plain script that a user would write: the SDK as it comes, a semaphore, each answer appended to a file."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from anthropic import AsyncAnthropic


async def main(work_path: str, out_path: str) -> None:
    with open(work_path) as file:
        work: dict[str, Any] = json.load(file)
    client = AsyncAnthropic(base_url=work["base_url"], api_key="sandbox")
    semaphore = asyncio.Semaphore(work["concurrency"])

    with open(out_path, "a") as out:

        async def generate(request: dict[str, Any]) -> None:
            async with semaphore:
                message = await client.messages.create(**request)
                text = "".join(block.text for block in message.content if block.type == "text")
                out.write(text + "\n")
                out.flush()

        began_s, began_cpu_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(generate(request) for request in work["requests"]))
        elapsed_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    print(json.dumps({"elapsed_s": elapsed_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
