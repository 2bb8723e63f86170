"""Every RPC of the orchestrator as `async (request, caller, deadline) -> reply`; raises domain errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.wire.auth import Identity

from orchestrator_service.convert import tokens
from orchestrator_service.convert.batch import batch_message, daily_budget_message, spend_message
from orchestrator_service.convert.conversation import Full, call_message, conversation_message, which_of
from orchestrator_service.convert.dryrun import quote_reply
from orchestrator_service.convert.export import part_message
from orchestrator_service.convert.filters import filter_of, settings_of, spend_query_of
from orchestrator_service.convert.values import nanos
from orchestrator_service.creation import Creation, body_sha256, carried_through
from orchestrator_service.domain.budget import DailyBudgets
from orchestrator_service.domain.errors import InvalidRequest, ParleyError
from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.supervisor import Supervisor
from orchestrator_service.exports import dataset
from orchestrator_service.exports.dataset import Source, Split
from orchestrator_service.generation.planning import Planned
from orchestrator_service.preflight import check_provider
from orchestrator_service.storage import batches, budgets, conversations, ledger, verbs
from orchestrator_service.storage.batches import Snapshot
from orchestrator_service.storage.corrections import Correction, call_row, settle_by_person
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.verbs import At
from orchestrator_service.storage.writer import Fact
from orchestrator_service.watch import Watchers

PAGE = 50
# With texts, prompts and all their parameters a larger page might not fit a message, nor the memory.
FULL_PAGE_MAX = 100
FULL_PAGE_MAX_BYTES = 8 * 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Service:
    database: Database
    creation: Creation
    supervisor: Supervisor
    watchers: Watchers
    clock: Clock
    # Spec bytes, as stored, to a plan; the engine's, so that a batch is planned once for both.
    plan: Callable[[bytes], Planned]
    # Of a day, for an owner and for this server.
    daily: DailyBudgets

    async def quote_batch(
        self, request: orchestrator_pb2.QuoteBatchRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.QuoteBatchResponse:
        owner = _owner(request.owner, caller)
        planned = await self.creation.plan(request.spec)
        findings = await self.creation.findings(planned)
        quote = None
        if not any(finding.severity == "ERROR" for finding in findings):
            quote = await self.creation.quote(planned, owner=owner, deadline_s=deadline_s)
        announced = await self.creation.provider.announcement()
        provider = batch_pb2.ProviderInfo(
            base_url=self.creation.provider.base_url, sandbox=announced.sandbox, speed_up=announced.speed_up
        )
        # Coverage of many axes and tiers is a million cells.
        return await asyncio.to_thread(quote_reply, planned, findings, quote, provider, sample=request.sample_prompts)

    async def create_batch(
        self, request: orchestrator_pb2.CreateBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        if self.supervisor.stopping:
            raise ParleyError("SHUTTING_DOWN", "The server is shutting down.", retry_after_s=1.0)
        batch = await self.creation.create(
            request,
            owner=_owner(request.owner, caller),
            deadline_s=deadline_s,
            queued=self.supervisor.ensure_running,
        )
        return await self._batch(batch, caller)

    async def get_batch(
        self, request: orchestrator_pb2.GetBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        return await self._batch(_id(request.name), caller)

    async def get_batch_spec(
        self, request: orchestrator_pb2.GetBatchSpecRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.BatchSpec:
        snapshot = await self._snapshot(_id(request.name), caller)
        return batch_pb2.BatchSpec.FromString(await self._spec_bytes(snapshot))

    async def list_batches(
        self, request: orchestrator_pb2.ListBatchesRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.ListBatchesResponse:
        size = request.page_size or PAGE
        before = tokens.page_position(request.page_token, request)
        chosen = filter_of(request.filter, caller)
        found = await self.database.read(partial(batches.page, chosen=chosen, before=before, size=size + 1))
        reply = orchestrator_pb2.ListBatchesResponse(batches=[self._message(one) for one in found[:size]])
        if len(found) > size:
            reply.next_page_token = tokens.page_token(found[size - 1].row["position"], request)
        return reply

    async def watch_batch(
        self, request: orchestrator_pb2.WatchBatchRequest, caller: Identity, deadline_s: float
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchResponse]:
        batch = _id(request.name)
        await self._snapshot(batch, caller)
        settled = request.until == orchestrator_pb2.WATCH_UNTIL_SETTLED
        stream = self.watchers.watch(self.database, batch, token=request.resume_token, until_settled=settled)
        # Left to the garbage collector, a cut stream would keep its place among the watchers.
        async with aclosing(stream):
            async for message in stream:
                yield message

    async def watch_batches(
        self, request: orchestrator_pb2.WatchBatchesRequest, caller: Identity, deadline_s: float
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchesResponse]:
        async with aclosing(self.watchers.watch_all(self.database, filter_of(request.filter, caller))) as stream:
            async for message in stream:
                yield message

    async def pause_batch(
        self, request: orchestrator_pb2.PauseBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        fact = verbs.pause(_id(request.name), etag=request.etag, now_us=self.clock.now_us())
        return await self._verb(_id(request.name), fact, caller)

    async def resume_batch(
        self, request: orchestrator_pb2.ResumeBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        announced = await self.creation.provider.announcement()
        at = At(base_url=self.creation.provider.base_url, sandbox=announced.sandbox, speed_up=announced.speed_up)
        batch = _id(request.name)
        fact = verbs.resume(
            batch,
            etag=request.etag,
            at=at,
            priced=await self.creation.priced(await self._snapshot(batch, caller)),
            daily=self.daily,
            now_us=self.clock.now_us(),
        )
        return await self._verb(batch, fact, caller)

    async def cancel_batch(
        self, request: orchestrator_pb2.CancelBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        fact = verbs.cancel(_id(request.name), etag=request.etag, now_us=self.clock.now_us())
        return await self._verb(_id(request.name), fact, caller)

    async def retry_batch(
        self, request: orchestrator_pb2.RetryBatchRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.RetryBatchResponse:
        batch = _id(request.name)
        snapshot = await self._snapshot(batch, caller)
        key = Request(
            owner=snapshot.row["owner"],
            method="RetryBatch",
            request_id=request.request_id,
            body_sha256=body_sha256(request),
        )
        which = which_of(request.filter)
        priced = await self.creation.priced(snapshot)
        now_us = self.clock.now_us()
        fact = verbs.retry(batch, which, etag=request.etag, request=key, priced=priced, now_us=now_us)
        requeued = await self._commit(batch, fact)
        return orchestrator_pb2.RetryBatchResponse(batch=await self._batch(batch, caller), requeued=requeued)

    async def update_batch(
        self, request: orchestrator_pb2.UpdateBatchRequest, caller: Identity, deadline_s: float
    ) -> batch_pb2.Batch:
        settings = settings_of(request)
        most = self.creation.limits.max_concurrency
        if settings.concurrency > most:
            message = f"{settings.concurrency} calls at the same time are asked for; PARLEY_MAX_CONCURRENCY is {most}."
            raise InvalidRequest("batch.concurrency", message, reason="CONCURRENCY_OVER_MAXIMUM", max=str(most))
        if settings.budget_nanos is not None:
            _refuse_blind_budget(await self._snapshot(_id(request.batch.name), caller))
        fact = verbs.change(_id(request.batch.name), settings, etag=request.batch.etag, now_us=self.clock.now_us())
        return await self._verb(_id(request.batch.name), fact, caller)

    async def delete_batch(
        self, request: orchestrator_pb2.DeleteBatchRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.DeleteBatchResponse:
        batch = _id(request.name)
        await self._snapshot(batch, caller)
        await self.database.write(verbs.remove(batch, etag=request.etag, now_us=self.clock.now_us()))
        return orchestrator_pb2.DeleteBatchResponse()

    async def get_conversation(
        self, request: orchestrator_pb2.GetConversationRequest, caller: Identity, deadline_s: float
    ) -> conversation_pb2.Conversation:
        _, batch, _, number = request.name.split("/")
        snapshot = await self._snapshot(batch, caller)
        row = await self.database.read(partial(conversations.get, batch=batch, number=int(number)))
        if row is None:
            raise ParleyError(
                "CONVERSATION_NOT_FOUND", f"There is no {request.name}.", metadata={"conversation": request.name}
            )
        return (await self._conversations(snapshot, [row], full=True))[0]

    async def list_conversations(
        self, request: orchestrator_pb2.ListConversationsRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.ListConversationsResponse:
        batch, size = _id(request.parent), request.page_size or PAGE
        full = request.view == conversation_pb2.CONVERSATION_VIEW_FULL
        size = min(size, FULL_PAGE_MAX) if full else size
        after = tokens.page_position(request.page_token, request) or 0
        snapshot = await self._snapshot(batch, caller)
        which = which_of(request.filter)
        query = partial(conversations.page, batch=batch, which=which, after=after, size=size + 1)
        rows = list(await self.database.read(query))
        found = await self._conversations(snapshot, rows[:size], full=full)
        reply = orchestrator_pb2.ListConversationsResponse(conversations=found)
        if len(rows) > len(found):
            reply.next_page_token = tokens.page_token(found[-1].number, request)
        return reply

    async def list_calls(
        self, request: orchestrator_pb2.ListCallsRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.ListCallsResponse:
        batch, size = _id(request.parent), request.page_size or PAGE
        after = tokens.page_position(request.page_token, request) or 0
        await self._snapshot(batch, caller)
        rows = await self.database.read(partial(ledger.page, batch=batch, after=after, size=size + 1))
        reply = orchestrator_pb2.ListCallsResponse(calls=[call_message(row) for row in rows[:size]])
        if len(rows) > size:
            reply.next_page_token = tokens.page_token(rows[size - 1]["id"], request)
        return reply

    async def settle_call(
        self, request: orchestrator_pb2.SettleCallRequest, caller: Identity, deadline_s: float
    ) -> conversation_pb2.Call:
        _, batch, _, call = request.name.split("/")
        told = Correction(
            batch=batch,
            call=int(call),
            cost_nanos=nanos(request.cost),
            by=caller.name,
            note=request.note,
            now_us=self.clock.now_us(),
        )
        await self._snapshot(batch, caller)
        await self._commit(batch, settle_by_person(told))
        row = await self.database.read(partial(call_row, batch=batch, call=int(call)))
        return call_message(row)

    async def export_dataset(
        self, request: orchestrator_pb2.ExportDatasetRequest, caller: Identity, deadline_s: float
    ) -> AsyncGenerator[orchestrator_pb2.ExportDatasetResponse]:
        if request.format not in (
            orchestrator_pb2.DATASET_FORMAT_UNSPECIFIED,
            orchestrator_pb2.DATASET_FORMAT_MESSAGES,
        ):
            name = orchestrator_pb2.DatasetFormat.Name(request.format)
            message = f"{name} is not served yet; use DATASET_FORMAT_MESSAGES."
            raise InvalidRequest("format", message, reason="NOT_BUILT")
        sources = [await self._source(_id(name), caller) for name in request.names]
        split = None
        if request.HasField("split"):
            split = Split(request.split.validation, request.split.test, request.split.seed)
            if split.validation + split.test > 1:
                raise InvalidRequest("split", "validation and test must sum to at most 1")
        async for part in dataset.parts(self.database, sources, which_of(request.filter), split):
            yield part_message(part)

    async def get_spend(
        self, request: orchestrator_pb2.GetSpendRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.GetSpendResponse:
        query = spend_query_of(request, caller)
        rows = await self.database.read(partial(ledger.spend, query=query))
        whole = await self.database.read(partial(ledger.spend, query=query.total()))
        found = [
            orchestrator_pb2.SpendRow(
                keys=[_key_text(name, row[f"k{index}"]) for index, name in enumerate(query.keys)],
                spend=spend_message(row),
            )
            for row in rows
        ]
        return orchestrator_pb2.GetSpendResponse(
            rows=found, total=spend_message(whole[0]), daily_budgets=await self._daily_budgets(query.owner, caller)
        )

    async def check_provider(
        self, request: orchestrator_pb2.CheckProviderRequest, caller: Identity, deadline_s: float
    ) -> orchestrator_pb2.CheckProviderResponse:
        return await check_provider(self.creation, model=request.model)

    async def _daily_budgets(self, owner: str, caller: Identity) -> list[orchestrator_pb2.DailyBudget]:
        """Of the owner asked for and, for those who may see all of it, of the server."""
        now_us, found = self.clock.now_us(), list[orchestrator_pb2.DailyBudget]()
        if self.daily.owner_nanos is not None:
            whose = owner or caller.name
            amount = await self.database.read(partial(budgets.of_day, owner=whose, time_us=now_us))
            found.append(daily_budget_message(whose, self.daily.owner_nanos, amount, now_us=now_us))
        if self.daily.server_nanos is not None and caller.may_act_for_others:
            amount = await self.database.read(partial(budgets.of_day, owner=None, time_us=now_us))
            found.append(daily_budget_message("", self.daily.server_nanos, amount, now_us=now_us))
        return found

    async def _verb(self, batch: str, fact: Fact[None], caller: Identity) -> batch_pb2.Batch:
        """Commits what a person asks for, wakes the engine, and answers with the batch as it is then."""
        await self._snapshot(batch, caller)
        await self._commit(batch, fact)
        return await self._batch(batch, caller)

    async def _commit(self, batch: str, fact: Fact[T]) -> T:
        """Commits and wakes the engine. A caller who leaves takes back neither: a batch woken by nobody would hang."""

        async def commit() -> T:
            done = await self.database.write(fact)
            self.supervisor.ensure_running(batch)
            return done

        return await carried_through(commit())

    async def _batch(self, batch: str, caller: Identity) -> batch_pb2.Batch:
        return self._message(await self._snapshot(batch, caller))

    async def _snapshot(self, batch: str, caller: Identity) -> Snapshot:
        """Raises BATCH_NOT_FOUND also for another owner's: a caller must not learn that it is there."""
        snapshot = await self.database.read(partial(batches.get, batch=batch))
        if snapshot is None or (snapshot.row["owner"] != caller.name and not caller.may_act_for_others):
            raise batches.not_found(batch)
        return snapshot

    def _message(self, snapshot: Snapshot) -> batch_pb2.Batch:
        wait_s = self.supervisor.limit_wait_s(snapshot.row["id"])
        return batch_message(snapshot, limit_wait_s=wait_s, now_us=self.clock.now_us())

    async def _spec_bytes(self, snapshot: Snapshot) -> bytes:
        stored = await self.database.read(partial(batches.spec_bytes, batch=snapshot.row["id"]))
        if stored is None:
            raise batches.not_found(snapshot.row["id"])
        return stored

    async def _planned(self, snapshot: Snapshot) -> Planned:
        stored = await self._spec_bytes(snapshot)
        return await asyncio.to_thread(self.plan, stored)

    async def _conversations(
        self, snapshot: Snapshot, rows: Sequence[Mapping[Any, Any]], *, full: bool
    ) -> list[conversation_pb2.Conversation]:
        model, fingerprint = snapshot.row["model"], snapshot.row["fingerprint"]
        if not full:
            return [conversation_message(row, model=model, fingerprint=fingerprint) for row in rows]
        planned = await self._planned(snapshot)
        numbers = [row["number"] for row in rows]
        texts = await self.database.read(partial(conversations.turns, batch=snapshot.row["id"], numbers=numbers))

        def whole(row: Mapping[Any, Any]) -> conversation_pb2.Conversation:
            item = planned.item(row["number"])
            full = Full(texts.get(row["number"], []), item, planned.prompts.render(item))
            return conversation_message(row, model=model, fingerprint=fingerprint, full=full)

        # A page of a thousand prompts takes long enough for others to notice.
        return await asyncio.to_thread(_that_fit, map(whole, rows))

    async def _source(self, batch: str, caller: Identity) -> Source:
        snapshot = await self._snapshot(batch, caller)
        planned = await self._planned(snapshot)
        return Source(batch, snapshot.row["display_name"], planned.prompts.dataset_system())


def _that_fit(made: Iterable[conversation_pb2.Conversation]) -> list[conversation_pb2.Conversation]:
    """As many as a page holds, at least one."""
    page: list[conversation_pb2.Conversation] = []
    size = 0
    for one in made:
        size += one.ByteSize()
        if page and size > FULL_PAGE_MAX_BYTES:
            break
        page.append(one)
    return page


def _id(name: str) -> str:
    return name.removeprefix("batches/")


def _owner(asked: str, caller: Identity) -> str:
    if asked and asked != caller.name and not caller.may_act_for_others:
        raise ParleyError("OWNER_FORBIDDEN", f"{caller.name} may not act for {asked}.", metadata={"owner": asked})
    return asked or caller.name


def _refuse_blind_budget(snapshot: Snapshot) -> None:
    """Without a price every call counts as nothing, so a budget would hold nothing back."""
    if snapshot.row["rate"] is None:
        model = snapshot.row["model"]
        message = f"no price is known for {model}, so the budget can't be kept"
        raise InvalidRequest("batch.budget", message, reason="RATES_UNKNOWN", model=model)


def _key_text(name: str, value: Any) -> str:
    if name == "day":
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=value)).date().isoformat()
    return f"batches/{value}" if name == "batch" and value else str(value)
