"""ForecastBatch: what is stored of a batch, and what its caller says besides, to where it is heading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from parley.v1 import batch_pb2, estimator_pb2
from parley.wire import rules
from parley.wire.auth import Identity

from estimator_service import convert, convert_record
from estimator_service.domain.errors import InvalidRequest, QuoteNotFound
from estimator_service.domain.forecast import InFlight, forecast
from estimator_service.domain.history import History, call_seen
from estimator_service.domain.observation import Observation
from estimator_service.domain.rates import RateTable
from estimator_service.domain.workload import Workload
from estimator_service.owners import owner_seen
from estimator_service.storage import history, observations, quotes
from estimator_service.storage.database import Database
from estimator_service.workers import Workers

# The batch of calls whose caller names none.
UNNAMED = "this batch"


class Forecasts:
    def __init__(self, database: Database, table: RateTable, *, workers: Workers, now: Callable[[], datetime]) -> None:
        self._database = database
        self._table = table
        self._workers = workers
        self._now = now

    async def forecast_batch(self, request: estimator_pb2.ForecastBatchRequest, caller: Identity) -> batch_pb2.Forecast:
        rules.check(request)
        remaining = _remaining(request)
        in_flight = _in_flight(request)
        now = self._now()
        finished = convert_record.observations(request.finished, field="finished", now=now)
        self._table.require([group.model for group in remaining.groups], time=now, groups="remaining.groups")
        await self._refuse_unknown_quote(request.quote, caller)
        batch = request.batch or UNNAMED
        figures = await self._workers.run(
            partial(
                forecast,
                remaining,
                table=self._table,
                history=await self._history(remaining, finished, batch=batch),
                batch=batch,
                in_flight=in_flight,
                spent_nanos=convert.nanos(request.spent, "spent"),
                seed=request.seed,
                now=now,
            )
        )
        return convert.forecast(figures, in_flight=len(in_flight), now=now)

    async def _refuse_unknown_quote(self, name: str, caller: Identity) -> None:
        if not name:
            return
        id = name.removeprefix("quotes/")
        if id not in await self._database.read(partial(quotes.known_ids, ids={id}, owner=owner_seen(caller))):
            raise QuoteNotFound(name, field="quote")

    async def _history(self, remaining: Workload, finished: Sequence[Observation], *, batch: str) -> History:
        """A finished call that was recorded meanwhile counts once."""
        known = await self._database.read(partial(observations.known_calls, calls=[each.call for each in finished]))
        own = {each.call: each for each in finished if each.call not in known}
        told = [replace(seen, batch=batch) for seen in map(call_seen, own.values()) if seen is not None]
        query = partial(history.get_history, models=remaining.models, provider=remaining.provider, more=told)
        return await self._database.read(query)


def _remaining(request: estimator_pb2.ForecastBatchRequest) -> Workload:
    if not request.HasField("remaining"):
        raise InvalidRequest("remaining", "is required; a group with nothing left has the count 0")
    return convert.workload(request.remaining, field="remaining")


def _in_flight(request: estimator_pb2.ForecastBatchRequest) -> list[InFlight]:
    groups = {group.id for group in request.remaining.groups}
    for at, call in enumerate(request.in_flight):
        if call.group not in groups:
            raise InvalidRequest(f"in_flight[{at}].group", f"{call.group!r} is no group of what remains")
    return [
        InFlight(group=call.group, age_s=convert.seconds(call.age, f"in_flight[{at}].age"))
        for at, call in enumerate(request.in_flight)
    ]
