"""The composition root: settings, database, provider, engine and server, put together and taken down in order."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
from contextlib import AsyncExitStack, suppress
from decimal import Decimal
from functools import lru_cache

from parley.v1.batch_pb2 import BatchSpec
from parley.v1.orchestrator_pb2_grpc import add_BatchOrchestratorServicer_to_server
from parley.wire import telemetry
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import BootError
from parley.wire.server import Server

from orchestrator_service import config
from orchestrator_service.api import SERVICE, Api
from orchestrator_service.config import Settings
from orchestrator_service.convert.rate import rate_from_json
from orchestrator_service.creation import Creation, Limits
from orchestrator_service.domain.budget import DailyBudgets
from orchestrator_service.engine.bell import Bell
from orchestrator_service.engine.clock import SystemClock
from orchestrator_service.engine.experience import Experience
from orchestrator_service.engine.holds import HoldSweep
from orchestrator_service.engine.limiter import Limiter
from orchestrator_service.engine.runner import Tools
from orchestrator_service.engine.supervisor import Supervisor
from orchestrator_service.forecasts import Forecasts
from orchestrator_service.generation import builtin
from orchestrator_service.generation.claude import Claude
from orchestrator_service.generation.planning import Planned
from orchestrator_service.outbox import Outbox
from orchestrator_service.provider import MINUTE_S, Provider
from orchestrator_service.quotes import Estimator
from orchestrator_service.service import Service
from orchestrator_service.storage.database import Database, DatabaseUnusable, open_database, unusable
from orchestrator_service.storage.writer import StorageFailed
from orchestrator_service.watch import Watchers

# Plans of batches that run or are read; a plan takes tens of milliseconds and no memory per conversation.
PLANS_KEPT = 16
# What is made in less time is done before its forecast.
FIRST_FORECAST_S = 2.0
# New objects between two collections of the young ones; Python's own is 700.
COLLECT_EVERY = 20_000


def main() -> int:
    telemetry.configure("orchestrator")
    _allow_open_files()
    try:
        asyncio.run(serve(config.load()))
    except (BootError, DatabaseUnusable) as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _allow_open_files() -> None:
    """A call in flight holds a connection, a watcher another: as many as the system lets a process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(settings: Settings) -> None:
    """Opens the database, binds, recovers, and only then serves."""
    server = Server(settings.server(), service_names=[SERVICE])
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        watchers = Watchers(
            clock=clock,
            watchers_max=settings.max_watchers,
            limit_wait_s=lambda batch: supervisor.limit_wait_s(batch),
        )
        database = await stack.enter_async_context(
            open_database(settings.orchestrator_database, committed=watchers.committed)
        )
        channel = await stack.enter_async_context(open_channel(_estimator_channel(settings)))
        estimator = Estimator(channel, address=settings.estimator, database=database)
        limiter = Limiter(requests_per_minute=settings.requests_per_minute, window_s=MINUTE_S, clock=clock)
        stack.push_async_callback(limiter.close)
        provider = _provider(settings, limiter, clock)
        stack.push_async_callback(provider.close)
        creation = _creation(settings, database, estimator, provider, clock)
        tools = _tools(creation, limiter, _daily(settings), clock)
        supervisor = Supervisor(tools)
        service = Service(
            database=database,
            creation=creation,
            supervisor=supervisor,
            watchers=watchers,
            clock=clock,
            plan=tools.plan,
            daily=tools.daily,
        )
        add_BatchOrchestratorServicer_to_server(Api(service), server.aio)
        await server.start()
        await _recover(supervisor, server, settings)
        aside = [
            asyncio.create_task(Outbox(database, estimator, clock, rested=tools.rested, rate=tools.rate).run()),
            asyncio.create_task(Forecasts(database, estimator, clock, first_after_s=FIRST_FORECAST_S).run()),
            asyncio.create_task(HoldSweep(database, supervisor, daily=tools.daily, clock=clock).run()),
            # The pace must be known before the first call; serving does not wait for the seconds that its import takes.
            asyncio.create_task(_warm_up(provider)),
        ]

        async def drain() -> None:
            watchers.close()
            await supervisor.stop(drain_s=settings.drain_s)

        await server.serving()
        server.announce("orchestrator")
        try:
            await server.run_until_signal(drain)
        finally:
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)
            await supervisor.stop(drain_s=0)


async def _recover(supervisor: Supervisor, server: Server, settings: Settings) -> None:
    """A file whose damage shows only now is as unusable as one that can't be opened."""
    try:
        await supervisor.start()
    except StorageFailed as error:
        await server.stop()
        raise unusable(settings.orchestrator_database, error) from error


async def _warm_up(provider: Provider) -> None:
    await provider.announcement()
    # What was imported lives as long as we do, and a conversation makes thousands of objects that die without help:
    # seldom collections save a tenth of its CPU.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 20)


def _daily(settings: Settings) -> DailyBudgets:
    def nanos(dollars: Decimal | None) -> int | None:
        return None if dollars is None else int(dollars * 1_000_000_000)

    return DailyBudgets(owner_nanos=nanos(settings.owner_daily_budget), server_nanos=nanos(settings.daily_budget))


def _estimator_channel(settings: Settings) -> ChannelSettings:
    token = settings.estimator_token
    return ChannelSettings(
        target=settings.estimator,
        tls_ca_file=settings.tls_ca,
        token=token.get_secret_value() if token else None,
        allow_insecure=settings.allow_insecure,
        target_setting="PARLEY_ESTIMATOR",
    )


def _provider(settings: Settings, limiter: Limiter, clock: SystemClock) -> Provider:
    key = settings.anthropic_api_key
    claude = Claude(
        base_url=settings.anthropic_base_url,
        api_key=key.get_secret_value() if key else None,
        monotonic_s=clock.monotonic_s,
    )
    return Provider(claude, base_url=settings.anthropic_base_url, limiter=limiter, clock=clock)


def _creation(
    settings: Settings, database: Database, estimator: Estimator, provider: Provider, clock: SystemClock
) -> Creation:
    return Creation(
        database=database,
        estimator=estimator,
        provider=provider,
        builtins=builtin.load(),
        clock=clock,
        limits=Limits(
            default_model=settings.model,
            max_concurrency=settings.max_concurrency,
            max_conversations=settings.max_conversations,
            requests_per_minute=settings.requests_per_minute,
        ),
    )


def _tools(creation: Creation, limiter: Limiter, daily: DailyBudgets, clock: SystemClock) -> Tools:
    def plan(stored: bytes) -> Planned:
        return creation.planned(BatchSpec.FromString(stored)).ready()

    return Tools(
        database=creation.database,
        provider=creation.provider,
        base_url=creation.provider.base_url,
        limiter=limiter,
        experience=Experience(),
        daily=daily,
        settled=Bell(),
        clock=clock,
        rng=random.Random().random,
        plan=lru_cache(maxsize=PLANS_KEPT)(plan),
        rate=lru_cache(maxsize=256)(rate_from_json),
    )


if __name__ == "__main__":
    sys.exit(main())
