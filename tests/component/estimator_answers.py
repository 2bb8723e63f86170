"""An estimator that learns nothing, on a real gRPC server: it answers what a test tells it to and notes what came."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from parley import money
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorServicer, add_BatchEstimatorServicer_to_server
from parley.wire.errors import Refusal
from parley.wire.server import Server, ServerSettings

QUOTE = "quotes/quote1"
BATCH = "batches/plants1"
MODEL = "claude-sonnet-5-5"
DAY_S = 86_400
# 2026-10-20.
FIRST_END_S = 1_792_454_400
QUOTES_A_PAGE = 2


@dataclass
class Answers:
    """What the estimator answers, and what it was asked."""

    accuracy: estimator_pb2.SummarizeAccuracyResponse = field(default_factory=estimator_pb2.SummarizeAccuracyResponse)
    history: estimator_pb2.SummarizeHistoryResponse = field(default_factory=estimator_pb2.SummarizeHistoryResponse)
    comparisons: dict[str, estimator_pb2.CompareQuoteResponse] = field(
        default_factory=dict[str, estimator_pb2.CompareQuoteResponse]
    )
    quotes: list[quote_pb2.Quote] = field(default_factory=list[quote_pb2.Quote])
    # Raised by the next call of a method, in turn.
    refusals: dict[str, deque[Refusal]] = field(default_factory=dict[str, "deque[Refusal]"])
    requests: list[Any] = field(default_factory=list[Any])

    def asked(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def refuse(self, method: str, *refusals: Refusal) -> None:
        self.refusals[method] = deque(refusals)


class Estimator(BatchEstimatorServicer):
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def _note(self, method: str, request: Any) -> None:
        self._answers.requests.append(request)
        if waiting := self._answers.refusals.get(method):
            raise waiting.popleft()

    def _quote(self, name: str) -> quote_pb2.Quote:
        for known in self._answers.quotes:
            if known.name == name:
                return known
        raise Refusal("QUOTE_NOT_FOUND", f"There is no quote {name}.", metadata={"name": name})

    async def CreateQuote(self, request: Any, context: Any) -> quote_pb2.Quote:
        self._note("CreateQuote", request)
        return quote_pb2.Quote(name=QUOTE, seed=request.seed, batch=request.batch, workload=request.workload)

    async def GetQuote(self, request: Any, context: Any) -> quote_pb2.Quote:
        self._note("GetQuote", request)
        return self._quote(request.name)

    async def ListQuotes(self, request: Any, context: Any) -> estimator_pb2.ListQuotesResponse:
        self._note("ListQuotes", request)
        start, listed = int(request.page_token or 0), self._answers.quotes
        end = start + min(request.page_size, QUOTES_A_PAGE)
        token = str(end) if end < len(listed) else ""
        return estimator_pb2.ListQuotesResponse(quotes=listed[start:end], next_page_token=token)

    async def ForecastBatch(self, request: Any, context: Any) -> batch_pb2.Forecast:
        self._note("ForecastBatch", request)
        return batch_pb2.Forecast(projected_cost=request.spent, time_left=request.elapsed)

    async def RecordObservations(self, request: Any, context: Any) -> estimator_pb2.RecordObservationsResponse:
        self._note("RecordObservations", request)
        return estimator_pb2.RecordObservationsResponse(recorded=len(request.observations))

    async def RecordOutcome(self, request: Any, context: Any) -> estimator_pb2.RecordOutcomeResponse:
        self._note("RecordOutcome", request)
        known = len(self._answers.asked(estimator_pb2.RecordOutcomeRequest)) > 1
        return estimator_pb2.RecordOutcomeResponse(recorded=not known)

    async def CompareQuote(self, request: Any, context: Any) -> estimator_pb2.CompareQuoteResponse:
        self._note("CompareQuote", request)
        if request.name not in self._answers.comparisons:
            raise Refusal("QUOTE_NOT_FOUND", f"There is no quote {request.name}.", metadata={"name": request.name})
        return self._answers.comparisons[request.name]

    async def SummarizeAccuracy(self, request: Any, context: Any) -> estimator_pb2.SummarizeAccuracyResponse:
        self._note("SummarizeAccuracy", request)
        return self._answers.accuracy

    async def SummarizeHistory(self, request: Any, context: Any) -> estimator_pb2.SummarizeHistoryResponse:
        self._note("SummarizeHistory", request)
        return self._answers.history

    async def ListRates(self, request: Any, context: Any) -> estimator_pb2.ListRatesResponse:
        self._note("ListRates", request)
        rates = [quote_pb2.ModelRate(model=model) for model in request.models]
        return estimator_pb2.ListRatesResponse(rate_card=quote_pb2.RateCard(version="v1", rates=rates))


@asynccontextmanager
async def answering(answers: Answers, *, listen: str = "127.0.0.1:0") -> AsyncGenerator[str]:
    """The address of an estimator that answers what it was told."""
    server = Server(ServerSettings(listen=listen), service_names=("parley.v1.BatchEstimator",))
    add_BatchEstimatorServicer_to_server(Estimator(answers), server.aio)
    await server.start()
    await server.serving()
    try:
        yield server.address
    finally:
        await server.stop()


def accuracy_slice(name: str = "all", *, count: int = 12) -> quote_pb2.AccuracySlice:
    return quote_pb2.AccuracySlice(
        slice=name,
        count=count,
        cost_bias=0.0121,
        cost_mape=0.0434,
        cost_within_10_percent=11 / 12,
        cost_coverage_80=10 / 12,
        cost_coverage_80_low=0.516,
        cost_coverage_80_high=0.979,
        cost_coverage_95=1.0,
        cost_pinball_loss=0.0212,
        cost_interval_score=0.3112,
        time_bias=-0.0302,
        time_mape=0.0911,
        time_within_20_percent=0.75,
        time_coverage_80=0.75,
        time_coverage_80_low=0.428,
        time_coverage_80_high=0.945,
        time_coverage_95=11 / 12,
        time_pinball_loss=12.4,
        time_interval_score=163,
    )


def outcome(
    number: int, ratio: float, *, low: float = 0.9, high: float = 1.12, time_ratio: float = 1.0
) -> quote_pb2.ScoredOutcome:
    return quote_pb2.ScoredOutcome(
        quote=f"quotes/quote{number}",
        batch=f"batches/plants{number}",
        end_time=timestamp_pb2.Timestamp(seconds=FIRST_END_S + number * DAY_S),
        cost_ratio=ratio,
        time_ratio=time_ratio,
        cost_held=low <= ratio <= high,
        time_held=0.8 <= time_ratio <= 1.25,
        cost_low_ratio=low,
        cost_high_ratio=high,
    )


def spread(mean: float, sd: float, *rest: float) -> quote_pb2.Distribution:
    p10, p50, p90, p99 = rest
    return quote_pb2.Distribution(mean=mean, sd=sd, p10=p10, p50=p50, p90=p90, p99=p99)


def history_slice(tier: str = "template", *, streamed: bool = False) -> quote_pb2.HistorySlice:
    return quote_pb2.HistorySlice(
        tier=tier,
        model=MODEL,
        calls=210,
        batches=6,
        failed_calls=3,
        input_tokens=spread(2312, 441, 1801, 2178, 3026, 3038),
        output_tokens=spread(2292, 865, 1210, 2304, 3676, 4213),
        thinking_tokens=spread(410, 120, 260, 400, 580, 760) if streamed else None,
        seconds=spread(62.1, 22.4, 35.5, 61.7, 93.2, 114),
        first_token_seconds=spread(0.82, 0.31, 0.5, 0.8, 1.2, 2.2) if streamed else None,
        tokens_per_second=spread(36.2, 1.9, 33.8, 36.1, 38.7, 41.3),
        drift_log_sd=0.031,
    )


def quote(*, tiers: Sequence[str] = ("template", "scenario"), name: str = QUOTE) -> quote_pb2.Quote:
    """$3.28 and 33 min, from $2.90 to $3.70 and from 30 to 36 min; its tiers share it alike."""

    def cost(nanos: int) -> quote_pb2.CostRange:
        ends = ((0.1, 0.884), (0.5, 0.99), (0.9, 1.128))
        quantiles = [quote_pb2.CostRange.Quantile(p=p, value=money.from_nanos(round(nanos * of))) for p, of in ends]
        return quote_pb2.CostRange(mean=money.from_nanos(nanos), quantiles=quantiles)

    time = quote_pb2.TimeRange(
        mean=duration_pb2.Duration(seconds=1980),
        quantiles=[
            quote_pb2.TimeRange.Quantile(p=p, value=duration_pb2.Duration(seconds=seconds))
            for p, seconds in ((0.1, 1800), (0.9, 2160))
        ],
    )
    return quote_pb2.Quote(
        name=name,
        cost=cost(3_280_000_000),
        time=time,
        groups=[quote_pb2.GroupQuote(group=tier, count=45, cost=cost(3_280_000_000 // len(tiers))) for tier in tiers],
        workload=quote_pb2.Workload(groups=[quote_pb2.WorkloadGroup(id=tier, tier=tier) for tier in tiers]),
    )


def compared() -> estimator_pb2.CompareQuoteResponse:
    """$0.13 dearer and two minutes faster than quoted."""
    variance = quote_pb2.Variance
    return estimator_pb2.CompareQuoteResponse(
        quote=quote(),
        batch=BATCH,
        actuals=quote_pb2.Actuals(
            cost=money.from_nanos(3_410_000_000),
            duration=duration_pb2.Duration(seconds=1860),
            conversations=90,
            cost_by_group={
                "template": money.from_nanos(1_590_000_000),
                "scenario": money.from_nanos(1_820_000_000),
            },
        ),
        by_group=[
            variance(cause="template", cost=money.from_nanos(-50_000_000)),
            variance(cause="scenario", cost=money.from_nanos(180_000_000)),
        ],
        by_cause=[
            variance(cause="tokens", cost=money.from_nanos(160_000_000), seconds=70),
            variance(cause="price"),
            variance(cause="failures", cost=money.from_nanos(-30_000_000), seconds=-15),
            variance(cause="speed", seconds=-175),
            variance(cause="waiting"),
        ],
    )
