"""A server in a process of its own, which says on stdout how it drains; its argument is `drains` or `hangs`."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2
from parley.v1 import orchestrator_pb2
from parley.wire import telemetry
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.server import Server, ServerSettings
from wire_fixtures import LOOPBACK, Served, new_server


def say(event: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


async def health_of(server: Server) -> str:
    async with open_channel(ChannelSettings(target=server.address)) as channel:
        return health_pb2.HealthCheckResponse.ServingStatus.Name(await Served(server, channel).health())


async def main(mode: str) -> None:
    telemetry.configure("drain-test")
    draining = asyncio.Event()

    async def watch(request: object) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
        yield orchestrator_pb2.WatchBatchResponse()
        await draining.wait()
        yield orchestrator_pb2.WatchBatchResponse(last=True)

    async def on_drain() -> None:
        say("draining", health=await health_of(server))
        if mode == "hangs":
            await asyncio.Event().wait()
        draining.set()

    server = new_server(ServerSettings(listen=LOOPBACK, drain_s=60), watch=watch)
    await server.start()
    await server.serving()
    server.announce("drain-test")
    await server.run_until_signal(on_drain)
    say("stopped")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
