"""This service's view of the estimator: quotes, rates and observations, and what holds while it is away."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import structlog
from google.protobuf import json_format
from parley.v1 import estimator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import BatchEstimatorStub
from parley.wire.errors import read_error

from orchestrator_service.convert.rate import rate_card_of
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import RateCard
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.rates import keep_rate_card, kept_rate_card

DEADLINE_S = 20.0
# Longer than a channel waits by itself: a person decides sooner than the estimator comes back.
RETRY_S = 10.0
# Refusals that are about what the caller asked for.
PASSED_ON = ("QUOTE_NOT_FOUND", "OWNER_FORBIDDEN")
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


log = structlog.get_logger()


class Away(Exception):
    """The estimator took nothing; later it may."""


class Unfit(Exception):
    """The estimator refuses an observation for what it is."""


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
        try:
            await self._stub.RecordObservations(request, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            unfit = error.code() is grpc.StatusCode.INVALID_ARGUMENT
            raise (Unfit if unfit else Away)(error.details() or error.code().name) from error

    def _refusal(self, error: grpc.aio.AioRpcError) -> ParleyError:
        if error.code() in AWAY:
            return ParleyError(
                "ESTIMATOR_UNAVAILABLE",
                f"The estimator at {self._address} can't be reached, so there is no quote.",
                metadata={"estimator": self._address},
                retry_after_s=RETRY_S,
            )
        told = read_error(error)
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
