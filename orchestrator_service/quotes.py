"""This service's view of the estimator: what it is asked and told, and what holds while it is away."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc
import structlog
from google.protobuf import json_format
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorStub
from parley.wire.errors import WireError, read_error

from orchestrator_service.convert.rate import rate_card_of
from orchestrator_service.domain.errors import FieldViolation, ParleyError
from orchestrator_service.domain.ledger import RateCard
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.rates import keep_rate_card, kept_rate_card

DEADLINE_S = 20.0
# A forecast that takes longer is late before it comes.
FORECAST_DEADLINE_S = 5.0
# Longer than a channel waits by itself: a person decides sooner than the estimator comes back.
RETRY_S = 10.0
# Refusals that are about what the caller asked for.
PASSED_ON = ("QUOTE_NOT_FOUND", "OWNER_FORBIDDEN")
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# It would say the same again, whenever it is asked.
FOR_GOOD = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.OUT_OF_RANGE,
)
# A quote that it had and has no more, after its database was lost or restored; or that is somebody else's there.
QUOTE_GONE = ("QUOTE_NOT_FOUND", "OWNER_FORBIDDEN")

T = TypeVar("T")
log = structlog.get_logger()


class Away(Exception):
    """The estimator took nothing; later it may."""

    def __init__(self, message: str, *, is_reachable: bool) -> None:
        super().__init__(message)
        # It answered, and this one question is at fault, or it is.
        self.is_reachable = is_reachable


class Unfit(Exception):
    """The estimator refuses what it was told or asked for what it is."""


class QuoteGone(Unfit):
    """It does not know the quote that it was told of; empty where it does not say which."""

    def __init__(self, message: str, quote: str) -> None:
        super().__init__(message)
        self.quote = quote


class Estimator:
    def __init__(self, channel: grpc.aio.Channel, *, address: str, database: Database) -> None:
        self._stub = BatchEstimatorStub(channel)
        self._address = address
        self._database = database

    async def quote(
        self, workload: quote_pb2.Workload, *, spec_sha256: str, seed: int, owner: str, deadline_s: float
    ) -> quote_pb2.Quote:
        """A new quote, stored by the estimator. Raises ESTIMATOR_UNAVAILABLE."""
        request = estimator_pb2.CreateQuoteRequest(workload=workload, spec_sha256=spec_sha256, seed=seed, owner=owner)
        try:
            return await self._stub.CreateQuote(request, timeout=min(deadline_s, DEADLINE_S))
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error) from error

    async def get(self, name: str, *, deadline_s: float) -> quote_pb2.Quote:
        """A quote, with `stale` judged by the estimator. Raises QUOTE_NOT_FOUND."""
        request = estimator_pb2.GetQuoteRequest(name=name)
        try:
            return await self._stub.GetQuote(request, timeout=min(deadline_s, DEADLINE_S))
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error) from error

    async def rates(self, *, deadline_s: float = DEADLINE_S) -> RateCard | None:
        """The rates in force, or the last known ones while the estimator is away; None where there never were any."""
        try:
            reply = await self._stub.ListRates(estimator_pb2.ListRatesRequest(), timeout=min(deadline_s, DEADLINE_S))
        except grpc.aio.AioRpcError:
            kept = await self._database.read(kept_rate_card)
            return None if kept is None else rate_card_of(json_format.Parse(kept, quote_pb2.RateCard()))
        await self._database.write(keep_rate_card(json_format.MessageToJson(reply.rate_card, indent=None)))
        return rate_card_of(reply.rate_card)

    async def observe(self, observations: Sequence[quote_pb2.Observation]) -> None:
        """Raises Away where the estimator can't be asked, Unfit where it will never take these as they are."""
        request = estimator_pb2.RecordObservationsRequest(observations=observations)
        await _answered(self._stub.RecordObservations(request, timeout=DEADLINE_S))

    async def conclude(self, request: estimator_pb2.RecordOutcomeRequest) -> None:
        """Tells how a batch ended. Raises Away and Unfit."""
        await _answered(self._stub.RecordOutcome(request, timeout=DEADLINE_S))

    async def refine(self, request: estimator_pb2.CreateQuoteRequest) -> quote_pb2.Quote:
        """The quote of a batch's rest; the same request gives the same one. Raises Away and Unfit."""
        return await _answered(self._stub.CreateQuote(request, timeout=DEADLINE_S))

    async def forecast(self, request: estimator_pb2.ForecastBatchRequest) -> batch_pb2.Forecast:
        """Where a batch is heading; without its quote where that is gone. Raises Away and Unfit."""
        try:
            return await _answered(self._stub.ForecastBatch(request, timeout=FORECAST_DEADLINE_S))
        except QuoteGone:
            if not request.quote:
                raise
        unquoted = estimator_pb2.ForecastBatchRequest()
        unquoted.CopyFrom(request)
        unquoted.quote = ""
        for observation in unquoted.finished:
            observation.quote = ""
        return await _answered(self._stub.ForecastBatch(unquoted, timeout=FORECAST_DEADLINE_S))

    def _refusal(self, error: grpc.aio.AioRpcError) -> ParleyError:
        if error.code() in AWAY:
            return ParleyError(
                "ESTIMATOR_UNAVAILABLE",
                f"The estimator at {self._address} can't be reached, so there is no quote.",
                metadata={"estimator": self._address},
                retry_after_s=RETRY_S,
            )
        told = read_error(error)
        if told.reason == "MODEL_UNKNOWN":
            return _model_unknown(told)
        if told.reason in PASSED_ON:
            return ParleyError(told.reason, told.message, metadata=told.metadata)
        # What the estimator dislikes of our own request is no fault of the caller's.
        log.error("estimator refused", reason=told.reason, message=told.message, violations=told.violations)
        return ParleyError(
            "ESTIMATOR_UNAVAILABLE",
            f"The estimator at {self._address} refuses this server ({told.reason or error.code().name}); "
            "its log and ours say why. PARLEY_ESTIMATOR_TOKEN is what we show it.",
            metadata={"estimator": self._address, "reason": told.reason},
            retry_after_s=RETRY_S,
        )


def _model_unknown(told: WireError) -> ParleyError:
    """In the estimator's own words, and by our caller's field: they have a spec, and no workload."""
    message = told.message
    for violation in told.violations:
        message = message.removeprefix(f"{violation.field}: ")
    at_fault = [FieldViolation("spec.model", message)]
    return ParleyError(told.reason, message, violations=at_fault, metadata={**told.metadata, "field": "spec.model"})


async def _answered(call: Awaitable[T]) -> T:
    """Raises Away and Unfit."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        told = read_error(error)
        message = told.message or error.code().name
        if told.reason in QUOTE_GONE:
            raise QuoteGone(message, told.metadata.get("quote", "")) from error
        if told.code in FOR_GOOD:
            raise Unfit(message) from error
        raise Away(message, is_reachable=told.code not in AWAY) from error
