"""The typed asyncio client of BatchOrchestrator.

async with BatchClient() as parley:
    quoted = await parley.quote(spec)
    batch = await parley.create(spec, quote=quoted.quote.name)
    async for message in parley.watch(batch.name):
        print(message.batch.counts.deliverable)

Names may be given as batches/x or as the bare x. Every error is a parley.exceptions.ParleyError.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from google.type import money_pb2
from grpc import aio

from parley import requests
from parley.connection import Connection
from parley.downloads import Download, ExportedFiles
from parley.exceptions import ParleyError, Unavailable, from_wire
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.watching import PATIENCE_S, BatchesWatch, BatchWatch, EventsMissing, GiveUp, Patience, Reconnect
from parley.wire import clock
from parley.wire.channel import ChannelSettings
from parley.wire.errors import WireError, read_error

TARGET_DEFAULT = "127.0.0.1:7460"
TIMEOUT_S = 30.0
# These plan and fill every prompt of a spec, or call the provider, before they answer.
TIMEOUT_SLOW_S = 300.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class BatchClient:
    """Talks to one orchestrator. What is not given comes from PARLEY_ORCHESTRATOR, PARLEY_TOKEN and PARLEY_TLS_CA."""

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        tls_ca_file: str | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        chance: random.Random | None = None,
        monotonic_s: Callable[[], float] = clock.monotonic_s,
        sleep_s: Callable[[float], Awaitable[None]] = clock.sleep_s,
    ) -> None:
        """`timeout_s` bounds a call, `patience_s` how long a watch tries to come back to a server that is gone."""
        settings = channel_settings(target, token=token, tls_ca_file=tls_ca_file)
        self._connection = Connection(settings, owner="BatchClient", timeout_s=timeout_s)
        self._patience_s = patience_s
        self._chance = chance or random.Random()
        self._monotonic_s = monotonic_s
        self._sleep_s = sleep_s

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

    async def quote(
        self, spec: batch_pb2.BatchSpec, *, sample_prompts: int = 0, owner: str = ""
    ) -> orchestrator_pb2.QuoteBatchResponse:
        """The dry run: price, coverage, findings and `sample_prompts` filled prompts. Nothing is started."""
        request = requests.quote_batch(spec, sample_prompts, owner)
        return await self._unary(self._stub.QuoteBatch, request, slow=True)

    async def create(
        self,
        spec: batch_pb2.BatchSpec,
        *,
        request_id: str | None = None,
        quote: str = "",
        allow_unquoted: bool = False,
        owner: str = "",
    ) -> batch_pb2.Batch:
        """Starts a batch. Give your own `request_id` to repeat this call safely from another process as well.

        Raises QuoteStale with the fresh quote where `quote` is out of date.
        """
        request = requests.create_batch(
            spec, request_id=request_id, quote=quote, allow_unquoted=allow_unquoted, owner=owner
        )
        return await self._unary(self._stub.CreateBatch, request, slow=True)

    async def get(self, name: str) -> batch_pb2.Batch:
        request = orchestrator_pb2.GetBatchRequest(name=requests.batch_name(name))
        return await self._unary(self._stub.GetBatch, request)

    async def get_spec(self, name: str) -> batch_pb2.BatchSpec:
        """The spec that the batch was started with."""
        request = orchestrator_pb2.GetBatchSpecRequest(name=requests.batch_name(name))
        return await self._unary(self._stub.GetBatchSpec, request)

    async def list_batches(
        self, filter: orchestrator_pb2.BatchFilter | None = None, *, page_size: int = requests.PAGE_SIZE
    ) -> AsyncIterator[batch_pb2.Batch]:
        """Newest first; pages are fetched as they are needed."""
        token = ""
        while True:
            page = await self._unary(self._stub.ListBatches, requests.list_batches(filter, token, page_size))
            for batch in page.batches:
                yield batch
            if not (token := page.next_page_token):
                return

    async def pause(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Lets calls in flight end and starts no other."""
        request = orchestrator_pb2.PauseBatchRequest(name=requests.batch_name(name), etag=etag)
        return await self._unary(self._stub.PauseBatch, request)

    async def resume(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Clears the holds whose cause is gone, and goes on. Raises WrongState (HOLD_STANDS) for one that stands."""
        request = orchestrator_pb2.ResumeBatchRequest(name=requests.batch_name(name), etag=etag)
        return await self._unary(self._stub.ResumeBatch, request)

    async def cancel(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Lets calls in flight end, keeps what was made, cancels the rest."""
        request = orchestrator_pb2.CancelBatchRequest(name=requests.batch_name(name), etag=etag)
        return await self._unary(self._stub.CancelBatch, request)

    async def retry(
        self,
        name: str,
        filter: conversation_pb2.ConversationFilter | None = None,
        *,
        request_id: str | None = None,
        etag: str = "",
    ) -> orchestrator_pb2.RetryBatchResponse:
        """Puts conversations back to be made again: all FAILED and CANCELLED ones without a filter."""
        request = requests.retry_batch(name, filter, request_id, etag)
        return await self._unary(self._stub.RetryBatch, request)

    async def update(self, name: str, *, etag: str = "", **fields: Unpack[requests.Settings]) -> batch_pb2.Batch:
        """Changes display_name, labels, budget, concurrency, hold_after or priority."""
        return await self._unary(self._stub.UpdateBatch, requests.update_batch(name, etag, fields))

    async def delete(self, name: str, *, etag: str = "") -> None:
        """Deletes prompts and texts of a batch that does not run; its spend stays in `spend`."""
        request = orchestrator_pb2.DeleteBatchRequest(name=requests.batch_name(name), etag=etag)
        await self._unary(self._stub.DeleteBatch, request)

    async def conversation(self, name: str, number: int) -> conversation_pb2.Conversation:
        """One conversation with turns and prompt."""
        request = orchestrator_pb2.GetConversationRequest(name=requests.conversation_name(name, number))
        return await self._unary(self._stub.GetConversation, request)

    async def conversations(
        self,
        name: str,
        filter: conversation_pb2.ConversationFilter | None = None,
        *,
        full: bool = False,
        page_size: int = requests.PAGE_SIZE,
    ) -> AsyncIterator[conversation_pb2.Conversation]:
        """By number; with turns and prompt where `full`."""
        token = ""
        while True:
            request = requests.list_conversations(name, filter, full=full, page_token=token, page_size=page_size)
            page = await self._unary(self._stub.ListConversations, request)
            for conversation in page.conversations:
                yield conversation
            if not (token := page.next_page_token):
                return

    async def calls(self, name: str, *, page_size: int = requests.PAGE_SIZE) -> AsyncIterator[conversation_pb2.Call]:
        """The ledger of a batch, oldest first."""
        token = ""
        while True:
            page = await self._unary(self._stub.ListCalls, requests.list_calls(name, token, page_size))
            for call in page.calls:
                yield call
            if not (token := page.next_page_token):
                return

    async def settle_call(
        self, name: str, cost: Decimal | money_pb2.Money | None = None, note: str = ""
    ) -> conversation_pb2.Call:
        """Says what a possibly spent call cost, as the provider's bill shows it; None where it was not billed.

        `name` is the call's own, batches/x/calls/7. Raises NotFound for a call that is not there and WrongState for
        one whose cost is known; the same cost twice is one.
        """
        return await self._unary(self._stub.SettleCall, requests.settle_call(name, cost, note))

    async def export(
        self,
        names: str | Sequence[str],
        folder: Path | str,
        *,
        format: orchestrator_pb2.DatasetFormat.ValueType = orchestrator_pb2.DATASET_FORMAT_MESSAGES,
        split: orchestrator_pb2.DatasetSplit | None = None,
        filter: conversation_pb2.ConversationFilter | None = None,
    ) -> ExportedFiles:
        """Writes the dataset files of one or several batches; all of them, each checked by its sha256, or none."""
        call = self._stub.ExportDataset(requests.export_dataset(names, format, split, filter))
        try:
            with Download(folder) as download:
                async for part in call:
                    download.take(part)
                return download.finish()
        except grpc.RpcError as error:
            raise from_wire(read_error(error)) from error
        finally:
            call.cancel()

    async def spend(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        group_by: Sequence[orchestrator_pb2.SpendKey.ValueType] = (),
        label_key: str = "",
        owner: str = "",
        batch: str = "",
    ) -> orchestrator_pb2.GetSpendResponse:
        """Sums of the ledger, deleted batches included; with them how far the daily budgets are used today."""
        request = requests.get_spend(
            start=start, end=end, group_by=group_by, label_key=label_key, owner=owner, batch=batch
        )
        return await self._unary(self._stub.GetSpend, request)

    async def check_provider(self, model: str = "") -> orchestrator_pb2.CheckProviderResponse:
        """Proves key, model and limits with one call of a few tokens."""
        request = orchestrator_pb2.CheckProviderRequest(model=model)
        return await self._unary(self._stub.CheckProvider, request, slow=True)

    async def watch(
        self, name: str, *, resume_token: str = "", until: requests.Until = "ended"
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchResponse, None]:
        """Every message of a batch until it ended, or also paused with until="settled".

        Comes back by itself to a server that was away, behind the last event: none comes twice, none is left out.
        Leaving it never stops the batch. To leave early and free the connection at once, wrap it in
        `contextlib.aclosing`.
        """
        watch = BatchWatch(name, resume_token=resume_token, until=until)
        messages = self._follow(
            lambda: self._stub.WatchBatch(watch.request()), lambda response: [watch.accept(response)]
        )
        async with aclosing(messages):
            async for message in messages:
                yield message
                if message.last:
                    return

    async def watch_batches(
        self, filter: orchestrator_pb2.BatchFilter | None = None
    ) -> AsyncGenerator[orchestrator_pb2.WatchBatchesResponse, None]:
        """The latest of every batch that matches, without end. Comes back by itself like `watch`."""
        watch = BatchesWatch()

        def connect() -> aio.UnaryStreamCall[
            orchestrator_pb2.WatchBatchesRequest, orchestrator_pb2.WatchBatchesResponse
        ]:
            watch.begin()
            return self._stub.WatchBatches(orchestrator_pb2.WatchBatchesRequest(filter=filter))

        messages = self._follow(connect, watch.accept)
        async with aclosing(messages):
            async for message in messages:
                yield message

    async def _follow(
        self,
        connect: Callable[[], aio.UnaryStreamCall[Request, Response]],
        accept: Callable[[Response], list[Response]],
    ) -> AsyncGenerator[Response, None]:
        patience = Patience(self._chance, self._patience_s)
        while True:
            broken: grpc.RpcError | None = None
            call = connect()
            try:
                async for response in call:
                    accepted = accept(response)
                    patience.heard()
                    for message in accepted:
                        yield message
            except EventsMissing:
                pass
            except grpc.RpcError as error:
                broken = error
            finally:
                # Leaving an `async for` never cancels the call; the server would go on streaming to nobody.
                call.cancel()
            await self._wait(patience, broken)

    async def _wait(self, patience: Patience, broken: grpc.RpcError | None) -> None:
        error = None if broken is None else read_error(broken)
        match patience.after(error, now_s=self._monotonic_s()):
            case Reconnect(delay_s):
                await self._sleep_s(delay_s)
            case GiveUp():
                raise gave_up(error) from broken

    async def _unary(
        self, method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, slow: bool = False
    ) -> Response:
        return await self._connection.unary(method, request, timeout_least_s=TIMEOUT_SLOW_S if slow else 0.0)

    @property
    def _stub(self) -> BatchOrchestratorStub:
        return BatchOrchestratorStub(self._connection.channel)


def channel_settings(
    target: str | None,
    *,
    token: str | None,
    tls_ca_file: str | Path | None,
    setting: str = "PARLEY_ORCHESTRATOR",
    default: str = TARGET_DEFAULT,
) -> ChannelSettings:
    """What was given, else what the environment says, else the loopback default."""
    ca_file = tls_ca_file or os.environ.get("PARLEY_TLS_CA")
    return ChannelSettings(
        target=target or os.environ.get(setting) or default,
        token=token or os.environ.get("PARLEY_TOKEN") or None,
        tls_ca_file=Path(ca_file) if ca_file else None,
        allow_insecure=os.environ.get("PARLEY_ALLOW_INSECURE", "").lower() in ("1", "true", "yes"),
        target_setting=setting,
    )


def gave_up(error: WireError | None) -> ParleyError:
    if error is None:
        return Unavailable("The stream ended again and again without its last message.", next_step="Watch again.")
    return from_wire(error)
