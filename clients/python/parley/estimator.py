"""The typed asyncio client of BatchEstimator.

async with EstimatorClient() as estimator:
    record = await estimator.accuracy(group_by=["model"])
    print(record.slices[0].cost_coverage_80)

Names may be given as quotes/x and batches/x or as the bare x. Every error is a parley.exceptions.ParleyError.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Literal, Self, TypeVar

from google.protobuf import duration_pb2
from google.type import money_pb2

from parley import requests
from parley.client import TIMEOUT_S, channel_settings
from parley.connection import Connection
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorStub
from parley.wire.channel import ChannelSettings

TARGET_DEFAULT = "127.0.0.1:7461"

AccuracyKey = Literal["model", "tier", "month"]
Request = TypeVar("Request")
Response = TypeVar("Response")


class EstimatorClient:
    """Talks to one estimator.

    What is not given comes from PARLEY_ESTIMATOR, PARLEY_ESTIMATOR_TOKEN (else PARLEY_TOKEN) and PARLEY_TLS_CA.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        tls_ca_file: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`timeout_s` bounds a call."""
        settings = estimator_settings(target, token=token, tls_ca_file=tls_ca_file)
        self._connection = Connection(settings, owner="EstimatorClient", timeout_s=timeout_s)

    @property
    def target(self) -> str:
        return self._connection.target

    async def __aenter__(self) -> Self:
        self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def create_quote(
        self,
        workload: quote_pb2.Workload,
        *,
        request_id: str | None = None,
        seed: int = 0,
        spec_sha256: str = "",
        owner: str = "",
        batch: str = "",
    ) -> quote_pb2.Quote:
        """A new, stored quote: the same workload, history and seed give the same figures.

        `batch` names the batch of whose rest the workload is. Give your own `request_id` to repeat this call safely.
        """
        request = estimator_pb2.CreateQuoteRequest(
            workload=workload,
            request_id=request_id or requests.new_request_id(),
            seed=seed,
            spec_sha256=spec_sha256,
            owner=owner,
            batch=requests.batch_name(batch) if batch else "",
        )
        return await self._connection.unary(self._stub.CreateQuote, request)

    async def get_quote(self, name: str) -> quote_pb2.Quote:
        """A quote, with `stale` judged now."""
        return await self._connection.unary(
            self._stub.GetQuote, estimator_pb2.GetQuoteRequest(name=requests.quote_name(name))
        )

    async def list_quotes(
        self, *, owner: str = "", page_size: int = requests.PAGE_SIZE
    ) -> AsyncIterator[quote_pb2.Quote]:
        """Newest first, without their workloads; pages are fetched as they are needed."""
        token = ""
        while True:
            request = estimator_pb2.ListQuotesRequest(owner=owner, page_token=token, page_size=page_size)
            page = await self._connection.unary(self._stub.ListQuotes, request)
            for quote in page.quotes:
                yield quote
            if not (token := page.next_page_token):
                return

    async def forecast(
        self,
        remaining: quote_pb2.Workload,
        *,
        quote: str = "",
        batch: str = "",
        finished: Sequence[quote_pb2.Observation] = (),
        in_flight: Sequence[quote_pb2.InFlightCall] = (),
        spent: Decimal | money_pb2.Money | None = None,
        elapsed: timedelta | None = None,
        seed: int = 0,
    ) -> batch_pb2.Forecast:
        """Where a running batch is heading. `remaining` is what is left without what is in flight."""
        request = estimator_pb2.ForecastBatchRequest(
            quote=requests.quote_name(quote) if quote else "",
            batch=requests.batch_name(batch) if batch else "",
            remaining=remaining,
            finished=finished,
            in_flight=in_flight,
            spent=requests.amount(spent),
            elapsed=_duration(elapsed),
            seed=seed,
        )
        return await self._connection.unary(self._stub.ForecastBatch, request)

    async def record_observations(
        self, observations: Sequence[quote_pb2.Observation]
    ) -> estimator_pb2.RecordObservationsResponse:
        """Stores what calls took: all of at most 1,000 or none, each once. Raises Conflict for one that differs."""
        request = estimator_pb2.RecordObservationsRequest(observations=observations)
        return await self._connection.unary(self._stub.RecordObservations, request)

    async def record_outcome(
        self, quote: str, batch: str, actuals: quote_pb2.Actuals, *, ended: datetime | None = None
    ) -> bool:
        """Stores what became of a quoted batch; False where it was known. Raises Conflict where it differs."""
        request = estimator_pb2.RecordOutcomeRequest(
            quote=requests.quote_name(quote),
            batch=requests.batch_name(batch),
            actuals=actuals,
            end_time=requests.timestamp(ended),
        )
        return (await self._connection.unary(self._stub.RecordOutcome, request)).recorded

    async def compare(self, quote: str, actuals: quote_pb2.Actuals | None = None) -> estimator_pb2.CompareQuoteResponse:
        """A quote and what happened, by group and by cause. Raises NotFound while nothing is known of its batch."""
        request = estimator_pb2.CompareQuoteRequest(name=requests.quote_name(quote), actuals=actuals)
        return await self._connection.unary(self._stub.CompareQuote, request)

    async def accuracy(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        group_by: Sequence[AccuracyKey] = (),
        provider: str = "",
    ) -> estimator_pb2.SummarizeAccuracyResponse:
        """How good past quotes were: the whole first, then its slices, and the newest outcomes one by one."""
        request = estimator_pb2.SummarizeAccuracyRequest(
            start_time=requests.timestamp(start),
            end_time=requests.timestamp(end),
            group_by=group_by,
            provider=provider,
        )
        return await self._connection.unary(self._stub.SummarizeAccuracy, request)

    async def history(
        self, *, models: Sequence[str] = (), provider: str = ""
    ) -> estimator_pb2.SummarizeHistoryResponse:
        """What calls took so far, by tier and model."""
        request = estimator_pb2.SummarizeHistoryRequest(models=models, provider=provider)
        return await self._connection.unary(self._stub.SummarizeHistory, request)

    async def rates(self, models: Sequence[str] = (), *, at: datetime | None = None) -> quote_pb2.RateCard:
        """The prices in force, or those of another time."""
        request = estimator_pb2.ListRatesRequest(models=models, time=requests.timestamp(at))
        return (await self._connection.unary(self._stub.ListRates, request)).rate_card

    @property
    def _stub(self) -> BatchEstimatorStub:
        return BatchEstimatorStub(self._connection.channel)


def estimator_settings(target: str | None, *, token: str | None, tls_ca_file: str | None) -> ChannelSettings:
    """What was given, else what the environment says, else the loopback default."""
    return channel_settings(
        target,
        token=token or os.environ.get("PARLEY_ESTIMATOR_TOKEN"),
        tls_ca_file=tls_ca_file,
        setting="PARLEY_ESTIMATOR",
        default=TARGET_DEFAULT,
    )


def _duration(elapsed: timedelta | None) -> duration_pb2.Duration | None:
    if elapsed is None:
        return None
    made = duration_pb2.Duration()
    made.FromTimedelta(elapsed)
    return made
