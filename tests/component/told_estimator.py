"""An estimator that answers what the test says: late, wrong, refusing or gone; and batches that it knows of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from engine_fixtures import RATE, News, SteppedClock
from google.protobuf.duration_pb2 import Duration
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorServicer, add_BatchEstimatorServicer_to_server
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import Refusal
from parley.wire.server import Server, ServerSettings
from storage_fixtures import Store, new_batch, rows_of

from orchestrator_service.convert.batch import batch_message
from orchestrator_service.convert.values import money
from orchestrator_service.engine.bell import Bell
from orchestrator_service.forecasts import Forecasts
from orchestrator_service.outbox import Outbox
from orchestrator_service.quotes import Estimator
from orchestrator_service.storage import batches
from orchestrator_service.storage.requests import Request

QUOTE = "quotes/first"
SERVICE = "parley.v1.BatchEstimator"
# It is there, and takes nothing.
AWAY = Refusal("SHUTTING_DOWN", "The server is shutting down.")
NOT_ASKED = Refusal("NOT_BUILT", "The orchestrator asks for nothing of the kind.")
T = TypeVar("T")


@dataclass
class Told:
    """What it answers, what it was asked, and what it has: each call by its name, as often as it was sent."""

    forecast: batch_pb2.Forecast = field(default_factory=lambda: forecast(5_000))
    quote: quote_pb2.Quote = field(default_factory=lambda: quoted("quotes/rest"))
    requests: list[Any] = field(default_factory=list[Any])
    observed: list[quote_pb2.Observation] = field(default_factory=list[quote_pb2.Observation])
    concluded: dict[str, estimator_pb2.RecordOutcomeRequest] = field(
        default_factory=dict[str, estimator_pb2.RecordOutcomeRequest]
    )
    # Looked at before each answer; what it gives is raised.
    refuse: Callable[[Any], Exception | None] = lambda request: None
    # Raised once each, behind what was stored: the answer was lost on its way.
    lost_answers: deque[Exception] = field(default_factory=deque[Exception])
    # Where it is given, a forecast waits for it.
    gate: asyncio.Event | None = None
    waiting: int = 0
    most_waiting: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, kind: type[T]) -> list[T]:
        return [request for request in self.requests if isinstance(request, kind)]

    @property
    def forecasts(self) -> list[str]:
        """The batches that a forecast was asked for, in order."""
        return [asked.batch.removeprefix("batches/") for asked in self.of(estimator_pb2.ForecastBatchRequest)]

    def note(self, request: Any) -> None:
        self.requests.append(request)
        self.asked.set()
        if (error := self.refuse(request)) is not None:
            raise error


class ToldEstimator(BatchEstimatorServicer):
    def __init__(self, told: Told) -> None:
        self._told = told

    async def RecordObservations(self, request: Any, context: Any) -> estimator_pb2.RecordObservationsResponse:
        self._told.note(request)
        self._told.observed.extend(request.observations)
        if self._told.lost_answers:
            raise self._told.lost_answers.popleft()
        return estimator_pb2.RecordObservationsResponse(recorded=len(request.observations))

    async def RecordOutcome(self, request: Any, context: Any) -> estimator_pb2.RecordOutcomeResponse:
        self._told.note(request)
        assert request.batch not in self._told.concluded
        self._told.concluded[request.batch] = request
        return estimator_pb2.RecordOutcomeResponse(recorded=True)

    async def ForecastBatch(self, request: Any, context: Any) -> batch_pb2.Forecast:
        self._told.waiting += 1
        self._told.most_waiting = max(self._told.most_waiting, self._told.waiting)
        try:
            self._told.note(request)
            if self._told.gate is not None:
                await self._told.gate.wait()
            return self._told.forecast
        finally:
            self._told.waiting -= 1

    async def GetQuote(self, request: Any, context: Any) -> quote_pb2.Quote:
        self._told.note(request)
        return self._told.quote

    async def ListRates(self, request: Any, context: Any) -> estimator_pb2.ListRatesResponse:
        return estimator_pb2.ListRatesResponse()

    async def CreateQuote(self, request: Any, context: Any) -> quote_pb2.Quote:
        self._told.note(request)
        return self._told.quote

    async def ListQuotes(self, request: Any, context: Any) -> estimator_pb2.ListQuotesResponse:
        raise NOT_ASKED

    async def CompareQuote(self, request: Any, context: Any) -> estimator_pb2.CompareQuoteResponse:
        raise NOT_ASKED

    async def SummarizeAccuracy(self, request: Any, context: Any) -> estimator_pb2.SummarizeAccuracyResponse:
        raise NOT_ASKED

    async def SummarizeHistory(self, request: Any, context: Any) -> estimator_pb2.SummarizeHistoryResponse:
        raise NOT_ASKED


@asynccontextmanager
async def telling(told: Told, *, listen: str = "127.0.0.1:0") -> AsyncGenerator[str]:
    """Its address."""
    server = Server(ServerSettings(listen=listen), service_names=(SERVICE,))
    add_BatchEstimatorServicer_to_server(ToldEstimator(told), server.aio)
    await server.start()
    await server.serving()
    try:
        yield server.address
    finally:
        await server.stop()


@dataclass
class Correspondence:
    """The orchestrator's side: a database, and what it has to ask and to tell."""

    store: Store
    told: Told
    news: News
    clock: SteppedClock
    rested: Bell
    estimator: Estimator
    outbox: Outbox
    forecasts: Forecasts

    async def shown(self, batch: str) -> batch_pb2.Batch:
        return batch_message(await self.store.get(batch), now_us=self.clock.now_us())


@asynccontextmanager
async def corresponding(store: Store, told: Told, address: str | None = None) -> AsyncGenerator[Correspondence]:
    """With an estimator of its own, unless an address is given."""
    if address is None:
        async with telling(told) as address, corresponding(store, told, address) as both:
            yield both
        return
    news, rested = News(), Bell()
    clock = SteppedClock(news)
    async with open_channel(ChannelSettings(target=address)) as channel:
        estimator = Estimator(channel, address=address, database=store.database)
        outbox = Outbox(store.database, estimator, clock, rested=rested, rate=lambda stored: RATE if stored else None)
        forecasts = Forecasts(store.database, estimator, clock)
        yield Correspondence(store, told, news, clock, rested, estimator, outbox, forecasts)


async def start(store: Store, tiers: Mapping[str, int] | None = None, **values: Any) -> str:
    """A QUEUED batch with a quote and a workload."""
    store.made += 1
    wanted = tiers or {"template": 4}
    new = new_batch(f"batch{store.made}", wanted, {"quote_name": QUOTE, **values})
    new = replace(
        new,
        workload=workload(wanted).SerializeToString(),
        seed=7,
        fingerprints={tier: f"{tier:x<64}" for tier in wanted},
    )
    await store.write(batches.prepare(new))
    await store.write(batches.add_rows(rows_of(new)))
    key = Request(owner="ann", method="CreateBatch", request_id="", body_sha256="")
    return await store.write(batches.queue(new.id, key, now_us=store.tick()))


def workload(tiers: Mapping[str, int]) -> quote_pb2.Workload:
    groups = [quote_pb2.WorkloadGroup(id=tier, tier=tier, model="m", count=count) for tier, count in tiers.items()]
    limits = quote_pb2.RateLimits(requests_per_minute=50)
    return quote_pb2.Workload(groups=groups, concurrency=9, limits=limits, speed_up=4.0, budget=money(1))


def forecast(mean: int, **more: Any) -> batch_pb2.Forecast:
    """Of nano-dollars, from 20 % less to 20 % more."""
    return batch_pb2.Forecast(
        projected_cost=money(mean),
        time_left=Duration(seconds=30),
        basis="told by the test",
        cost=costs(mean),
        time=times(30),
        **more,
    )


def quoted(name: str, mean: int = 1_000) -> quote_pb2.Quote:
    return quote_pb2.Quote(name=name, cost=costs(mean), time=times(60))


def costs(mean: int) -> quote_pb2.CostRange:
    quantiles = [
        quote_pb2.CostRange.Quantile(p=p, value=money(mean * share // 10)) for p, share in ((0.1, 8), (0.9, 12))
    ]
    return quote_pb2.CostRange(mean=money(mean), quantiles=quantiles)


def times(mean_s: int) -> quote_pb2.TimeRange:
    quantiles = [
        quote_pb2.TimeRange.Quantile(p=p, value=Duration(seconds=mean_s * share // 10))
        for p, share in ((0.1, 8), (0.9, 12))
    ]
    return quote_pb2.TimeRange(mean=Duration(seconds=mean_s), quantiles=quantiles)
