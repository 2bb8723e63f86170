"""What really happened: takes observations and outcomes in, and says how the quotes held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from functools import partial

from parley.v1 import estimator_pb2, quote_pb2
from parley.wire import rules
from parley.wire.auth import Identity

from estimator_service import convert, convert_record, convert_scores
from estimator_service.domain import accuracy, calibration, compare
from estimator_service.domain.accuracy import PastBatch
from estimator_service.domain.calibration import PastRange, calibrate
from estimator_service.domain.compare import Actual, CallsSeen
from estimator_service.domain.errors import EstimatorError, QuoteNotFound
from estimator_service.domain.summary import summarize_calls
from estimator_service.owners import owner_seen
from estimator_service.storage import calls, observations, outcomes, quotes
from estimator_service.storage.database import Database
from estimator_service.storage.outcomes import NewOutcome, StoredOutcome, Wanted

# The newest that are scored, and those of them that are told one by one.
SCORED_MAX = 10_000
TOLD_MAX = 1_000
# A quote may have a quarter of a megabyte.
CHUNK = 50
# Outcomes looked at for a calibration: some say nothing of the estimator.
LOOKED_AT_MAX = 2 * calibration.OUTCOMES_MAX
PROVIDERS_MAX = 1_000


class Record:
    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        # The factors of cost and time by provider, until the next outcome.
        self._factors: dict[str, tuple[float, float]] = {}
        self._outcomes_recorded = 0

    async def record_observations(
        self, request: estimator_pb2.RecordObservationsRequest, caller: Identity
    ) -> estimator_pb2.RecordObservationsResponse:
        rules.check(request)
        now = self._now()
        told = convert_record.observations(request.observations, now=now)
        fact = partial(observations.insert_observations, told=told, owner=owner_seen(caller), now=now)
        recorded = await self._database.write(fact)
        return estimator_pb2.RecordObservationsResponse(recorded=recorded, duplicates=len(told) - recorded)

    async def record_outcome(
        self, request: estimator_pb2.RecordOutcomeRequest, caller: Identity
    ) -> estimator_pb2.RecordOutcomeResponse:
        rules.check(request)
        now = self._now()
        quote = await self._quote(request.quote, caller, field="quote")
        new = NewOutcome(
            batch=request.batch.removeprefix("batches/"),
            quote=request.quote.removeprefix("quotes/"),
            provider=quote.workload.provider,
            actual=convert_record.outcome(request, quote, now=now),
        )
        recorded = await self._database.write(partial(outcomes.insert_outcome, new=new, now=now))
        if recorded:
            self._outcomes_recorded += 1
            self._factors.clear()
        return estimator_pb2.RecordOutcomeResponse(recorded=recorded)

    async def compare_quote(
        self, request: estimator_pb2.CompareQuoteRequest, caller: Identity
    ) -> estimator_pb2.CompareQuoteResponse:
        rules.check(request)
        quote = await self._quote(request.name, caller)
        if request.HasField("actuals"):
            return await _compared(quote, convert_record.actual(request.actuals, quote), batch="", seen=())
        ended = await self._newest_outcome(quote.name)
        batch, rates = f"batches/{ended.batch}", convert_scores.quoted_rates(quote)
        seen = await self._database.read(partial(calls.get_calls_of_batch, batch=batch, rates=rates))
        return await _compared(quote, ended.actual, batch=batch, seen=seen)

    async def summarize_accuracy(
        self, request: estimator_pb2.SummarizeAccuracyRequest, caller: Identity
    ) -> estimator_pb2.SummarizeAccuracyResponse:
        rules.check(request)
        wanted = Wanted(
            owner=owner_seen(caller),
            provider=request.provider or None,
            start_time=convert.time(request.start_time, "start_time") if request.HasField("start_time") else None,
            end_time=convert.time(request.end_time, "end_time") if request.HasField("end_time") else None,
        )
        past = [
            each
            async for page in self._pages(wanted, most=SCORED_MAX)
            for each in await asyncio.to_thread(_scored, page)
        ]
        slices = await asyncio.to_thread(accuracy.slices, past, by=list(request.group_by))
        return estimator_pb2.SummarizeAccuracyResponse(
            slices=[convert_scores.accuracy_slice(each) for each in slices],
            outcomes=[convert_scores.scored_outcome(each) for each in reversed(past[:TOLD_MAX])],
        )

    async def summarize_history(
        self, request: estimator_pb2.SummarizeHistoryRequest, _caller: Identity
    ) -> estimator_pb2.SummarizeHistoryResponse:
        rules.check(request)
        query = partial(calls.get_taken, models=list(request.models), provider=request.provider)
        taken = await self._database.read(query)
        summaries = await asyncio.to_thread(lambda: [summarize_calls(each) for each in taken])
        return estimator_pb2.SummarizeHistoryResponse(slices=[convert_scores.history_slice(each) for each in summaries])

    async def calibrations(self, provider: str) -> tuple[float, float]:
        """The factors by which a new quote's ranges of cost and of time are to be scaled; 1 leaves them as they are.

        From outcomes at this provider alone: a sandbox says nothing of what a paid one does.
        """
        known = self._factors.get(provider)
        if known:
            return known
        before = self._outcomes_recorded
        pages = self._pages(Wanted(provider=provider), most=LOOKED_AT_MAX)
        ranges = [each async for page in pages for each in await asyncio.to_thread(_ranges, page)]
        ranges.reverse()
        factors = calibrate([cost for cost, _ in ranges]), calibrate([time for _, time in ranges])
        if before == self._outcomes_recorded:
            if len(self._factors) >= PROVIDERS_MAX:
                self._factors.clear()
            self._factors[provider] = factors
        return factors

    async def _quote(self, name: str, caller: Identity, *, field: str = "") -> quote_pb2.Quote:
        """As it was promised."""
        stored = await self._database.read(partial(quotes.get_quote, id=name.removeprefix("quotes/")))
        if stored is None or owner_seen(caller) not in ("", stored.owner):
            raise QuoteNotFound(name, field=field)
        return quote_pb2.Quote.FromString(stored.body)

    async def _newest_outcome(self, quote: str) -> StoredOutcome:
        wanted = Wanted(quote=quote.removeprefix("quotes/"))
        found = await self._database.read(partial(outcomes.get_newest, wanted=wanted, size=1))
        if not found:
            sentence = f"No outcome of {quote} is known yet."
            raise EstimatorError("OUTCOME_NOT_FOUND", sentence, metadata={"quote": quote})
        return found[0]

    async def _pages(self, wanted: Wanted, *, most: int) -> AsyncGenerator[Sequence[StoredOutcome]]:
        """The newest first."""
        before = None
        for _ in range(0, most, CHUNK):
            page = await self._database.read(partial(outcomes.get_newest, wanted=wanted, before=before, size=CHUNK))
            if page:
                yield page
            if len(page) < CHUNK:
                return
            before = page[-1].position


async def _compared(
    quote: quote_pb2.Quote, actual: Actual, *, batch: str, seen: Sequence[CallsSeen]
) -> estimator_pb2.CompareQuoteResponse:
    def compared() -> estimator_pb2.CompareQuoteResponse:
        quoted = convert_scores.quoted(quote)
        groups, causes = compare.by_group(quoted, actual, seen), compare.by_cause(quoted, actual, seen)
        return convert_scores.comparison(quote, actual, batch=batch, groups=groups, causes=causes)

    # A thousand groups beside as many tiers take a while.
    return await asyncio.to_thread(compared)


def _scored(stored: Sequence[StoredOutcome]) -> list[PastBatch]:
    return [
        convert_scores.past_batch(quote, f"batches/{each.batch}", each.actual, each.end_time)
        for each, quote in _scorable(stored)
    ]


def _ranges(stored: Sequence[StoredOutcome]) -> list[tuple[PastRange, PastRange]]:
    """Of cost and of time."""
    return [
        (convert_scores.cost_range(quote, each.actual), convert_scores.time_range(quote, each.actual))
        for each, quote in _scorable(stored)
    ]


def _scorable(stored: Sequence[StoredOutcome]) -> list[tuple[StoredOutcome, quote_pb2.Quote]]:
    read = [(each, quote_pb2.Quote.FromString(each.body)) for each in stored]
    return [(each, quote) for each, quote in read if convert_scores.is_scorable(quote, each.actual)]
