"""The gRPC adapter: each RPC hands its request and the caller to the service."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeAlias, TypeVar

from grpc import aio
from parley.v1 import batch_pb2, estimator_pb2, estimator_pb2_grpc, quote_pb2
from parley.wire.auth import caller

from estimator_service.service import Estimator

Request = TypeVar("Request")
Reply = TypeVar("Reply")
_Context: TypeAlias = "aio.ServicerContext[Request, Awaitable[Reply]]"


class EstimatorApi(estimator_pb2_grpc.BatchEstimatorServicer):
    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    async def CreateQuote(
        self,
        request: estimator_pb2.CreateQuoteRequest,
        context: _Context[estimator_pb2.CreateQuoteRequest, quote_pb2.Quote],
    ) -> quote_pb2.Quote:
        return await self._estimator.create_quote(request, caller())

    async def GetQuote(
        self,
        request: estimator_pb2.GetQuoteRequest,
        context: _Context[estimator_pb2.GetQuoteRequest, quote_pb2.Quote],
    ) -> quote_pb2.Quote:
        return await self._estimator.get_quote(request, caller())

    async def ListQuotes(
        self,
        request: estimator_pb2.ListQuotesRequest,
        context: _Context[estimator_pb2.ListQuotesRequest, estimator_pb2.ListQuotesResponse],
    ) -> estimator_pb2.ListQuotesResponse:
        return await self._estimator.list_quotes(request, caller())

    async def ForecastBatch(
        self,
        request: estimator_pb2.ForecastBatchRequest,
        context: _Context[estimator_pb2.ForecastBatchRequest, batch_pb2.Forecast],
    ) -> batch_pb2.Forecast:
        return await self._estimator.forecast_batch(request, caller())

    async def RecordObservations(
        self,
        request: estimator_pb2.RecordObservationsRequest,
        context: _Context[estimator_pb2.RecordObservationsRequest, estimator_pb2.RecordObservationsResponse],
    ) -> estimator_pb2.RecordObservationsResponse:
        return await self._estimator.record_observations(request, caller())

    async def CompareQuote(
        self,
        request: estimator_pb2.CompareQuoteRequest,
        context: _Context[estimator_pb2.CompareQuoteRequest, estimator_pb2.CompareQuoteResponse],
    ) -> estimator_pb2.CompareQuoteResponse:
        return await self._estimator.compare_quote(request, caller())

    async def SummarizeAccuracy(
        self,
        request: estimator_pb2.SummarizeAccuracyRequest,
        context: _Context[estimator_pb2.SummarizeAccuracyRequest, estimator_pb2.SummarizeAccuracyResponse],
    ) -> estimator_pb2.SummarizeAccuracyResponse:
        return await self._estimator.summarize_accuracy(request, caller())

    async def RecordOutcome(
        self,
        request: estimator_pb2.RecordOutcomeRequest,
        context: _Context[estimator_pb2.RecordOutcomeRequest, estimator_pb2.RecordOutcomeResponse],
    ) -> estimator_pb2.RecordOutcomeResponse:
        return await self._estimator.record_outcome(request, caller())

    async def SummarizeHistory(
        self,
        request: estimator_pb2.SummarizeHistoryRequest,
        context: _Context[estimator_pb2.SummarizeHistoryRequest, estimator_pb2.SummarizeHistoryResponse],
    ) -> estimator_pb2.SummarizeHistoryResponse:
        return await self._estimator.summarize_history(request, caller())

    async def ListRates(
        self,
        request: estimator_pb2.ListRatesRequest,
        context: _Context[estimator_pb2.ListRatesRequest, estimator_pb2.ListRatesResponse],
    ) -> estimator_pb2.ListRatesResponse:
        return await self._estimator.list_rates(request, caller())
