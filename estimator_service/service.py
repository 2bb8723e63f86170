"""Every RPC as an async function of request and caller; expected failures are raised as domain errors."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import string
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from parley import money
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.wire import rules
from parley.wire.auth import Identity

from estimator_service import convert, pages
from estimator_service.domain.errors import EstimatorError, QuoteNotFound
from estimator_service.domain.history import History
from estimator_service.domain.quote import AS_DRAWN, Calibration, quote, stale_reason
from estimator_service.domain.rates import RateTable
from estimator_service.domain.workload import Workload
from estimator_service.forecasting import Forecasts
from estimator_service.owners import owner_of, owner_seen
from estimator_service.record import Record
from estimator_service.storage import history, quotes
from estimator_service.storage.database import Database
from estimator_service.storage.quotes import NewQuote, StoredQuote
from estimator_service.workers import Workers

ID_LENGTH = 10
ID_CHARACTERS = string.ascii_lowercase + string.digits
PAGE_SIZE = 50


class Estimator:
    def __init__(self, database: Database, table: RateTable, *, workers: Workers, now: Callable[[], datetime]) -> None:
        self._database = database
        self._table = table
        self._workers = workers
        self._now = now
        self._record = Record(database, now=now)
        self._forecasts = Forecasts(database, table, workers=workers, now=now)

    async def create_quote(self, request: estimator_pb2.CreateQuoteRequest, caller: Identity) -> quote_pb2.Quote:
        rules.check(request)
        workload = convert.workload(request.workload)
        owner = owner_of(request.owner, caller)
        earlier = await self._quote_of_request(request, caller)
        if earlier:
            return await self._judged(earlier)
        made = await self._new_quote(workload, request, owner)
        new = NewQuote(
            id=made.name.removeprefix("quotes/"),
            owner=owner,
            caller=caller.name,
            request_id=request.request_id,
            request_sha256=_fingerprint(request),
            create_time=made.create_time.ToDatetime(UTC),
            body=made.SerializeToString(),
        )
        if await self._database.write(partial(quotes.insert_quote, new=new)):
            return made
        # The same request came twice at once, and the other was first.
        first = await self._quote_of_request(request, caller)
        assert first is not None, "only the request_id of a stored quote can be in the way"
        return await self._judged(first)

    async def get_quote(self, request: estimator_pb2.GetQuoteRequest, caller: Identity) -> quote_pb2.Quote:
        rules.check(request)
        stored = await self._database.read(partial(quotes.get_quote, id=request.name.removeprefix("quotes/")))
        if stored is None or owner_seen(caller) not in ("", stored.owner):
            raise QuoteNotFound(request.name)
        return await self._judged(stored)

    async def list_quotes(
        self, request: estimator_pb2.ListQuotesRequest, caller: Identity
    ) -> estimator_pb2.ListQuotesResponse:
        rules.check(request)
        # Who may act for others sees all where no owner is named; everyone else sees their own.
        owner = request.owner if caller.may_act_for_others else owner_of(request.owner, caller)
        before = pages.read_token(request.page_token, owner=owner) if request.page_token else None
        page = await self._database.read(
            partial(quotes.get_page, owner=owner, before=before, size=request.page_size or PAGE_SIZE)
        )
        found = [quote_pb2.Quote.FromString(stored.body) for stored in page.quotes]
        await self._judge(found)
        for each in found:
            each.ClearField("workload")
        token = pages.new_token(page.quotes[-1].position, owner=owner) if page.more else ""
        return estimator_pb2.ListQuotesResponse(quotes=found, next_page_token=token)

    async def record_observations(
        self, request: estimator_pb2.RecordObservationsRequest, caller: Identity
    ) -> estimator_pb2.RecordObservationsResponse:
        return await self._record.record_observations(request, caller)

    async def list_rates(
        self, request: estimator_pb2.ListRatesRequest, _caller: Identity
    ) -> estimator_pb2.ListRatesResponse:
        rules.check(request)
        time = convert.time(request.time, "time") if request.HasField("time") else self._now()
        models = [model for model in self._table.models if not request.models or model in request.models]
        # A model whose prices have ended has none in force.
        rates = [rate for rate in self._table.rates(models, time=time) if rate.known]
        card = convert.rate_card(rates, as_of=self._table.as_of)
        return estimator_pb2.ListRatesResponse(rate_card=card)

    async def forecast_batch(self, request: estimator_pb2.ForecastBatchRequest, caller: Identity) -> batch_pb2.Forecast:
        return await self._forecasts.forecast_batch(request, caller)

    async def compare_quote(
        self, request: estimator_pb2.CompareQuoteRequest, caller: Identity
    ) -> estimator_pb2.CompareQuoteResponse:
        return await self._record.compare_quote(request, caller)

    async def summarize_accuracy(
        self, request: estimator_pb2.SummarizeAccuracyRequest, caller: Identity
    ) -> estimator_pb2.SummarizeAccuracyResponse:
        return await self._record.summarize_accuracy(request, caller)

    async def record_outcome(
        self, request: estimator_pb2.RecordOutcomeRequest, caller: Identity
    ) -> estimator_pb2.RecordOutcomeResponse:
        return await self._record.record_outcome(request, caller)

    async def summarize_history(
        self, request: estimator_pb2.SummarizeHistoryRequest, caller: Identity
    ) -> estimator_pb2.SummarizeHistoryResponse:
        return await self._record.summarize_history(request, caller)

    async def _new_quote(
        self, workload: Workload, request: estimator_pb2.CreateQuoteRequest, owner: str
    ) -> quote_pb2.Quote:
        now = self._now()
        self._table.require([group.model for group in workload.groups], time=now)
        history = await self._history(workload.models, workload.provider)
        made = partial(
            quote,
            workload,
            table=self._table,
            history=history,
            seed=request.seed,
            now=now,
            batch=request.batch,
            calibration=await self._calibration(workload, request.batch),
        )
        figures = await self._workers.run(made)
        id = "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH))
        return convert.quote(
            figures, name=f"quotes/{id}", request=request, owner=owner, now=now, as_of=self._table.as_of
        )

    async def _calibration(self, workload: Workload, batch: str) -> Calibration:
        """Learned from quotes of whole batches, and used for them."""
        if batch:
            return AS_DRAWN
        cost, time = await self._record.calibrations(workload.provider)
        return Calibration(cost=cost, time=time)

    async def _history(self, models: Sequence[str], provider: str) -> History:
        return await self._database.read(partial(history.get_history, models=models, provider=provider))

    async def _quote_of_request(
        self, request: estimator_pb2.CreateQuoteRequest, caller: Identity
    ) -> StoredQuote | None:
        if not request.request_id:
            return None
        query = partial(quotes.get_by_request, caller=caller.name, request_id=request.request_id)
        stored = await self._database.read(query)
        if stored and stored.request_sha256 != _fingerprint(request):
            raise EstimatorError(
                "REQUEST_ID_REUSED",
                f"The request_id {request.request_id!r} was used before for a different quote.",
                metadata={"request_id": request.request_id},
            )
        return stored

    async def _judged(self, stored: StoredQuote) -> quote_pb2.Quote:
        found = quote_pb2.Quote.FromString(stored.body)
        await self._judge([found])
        return found

    async def _judge(self, found: Sequence[quote_pb2.Quote]) -> None:
        """Sets `stale` and its reason as of now."""
        # Quotes of one provider share what was seen there.
        histories: dict[str, History] = {}
        for provider in {each.workload.provider for each in found}:
            models = {
                group.model for each in found if each.workload.provider == provider for group in each.workload.groups
            }
            histories[provider] = await self._history(sorted(models), provider)
        now = self._now()
        # Many quotes are of one spec, asked for again and again.
        expected_nanos: dict[Workload, int] = {}
        reasons = await asyncio.to_thread(
            lambda: [self._stale_reason(each, histories[each.workload.provider], now, expected_nanos) for each in found]
        )
        for each, reason in zip(found, reasons, strict=True):
            each.stale, each.stale_reason = bool(reason), reason

    def _stale_reason(
        self, each: quote_pb2.Quote, history: History, now: datetime, expected_nanos: dict[Workload, int]
    ) -> str:
        return stale_reason(
            age=now - each.create_time.ToDatetime(UTC),
            workload=convert.workload(each.workload),
            version=each.rate_card.version,
            cost_mean_nanos=money.to_nanos(each.cost.mean),
            table=self._table,
            history=history,
            now=now,
            expected_nanos=expected_nanos,
        )


def _fingerprint(request: estimator_pb2.CreateQuoteRequest) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
