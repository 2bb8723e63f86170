"""The blocking client: the verbs of parley.client for programs without an event loop.

with Client() as parley:
    batch = parley.create(spec, quote=parley.quote(spec).quote.name)
    print(parley.wait(batch.name).counts.deliverable)
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast

import grpc
from google.type import money_pb2
from grpc import aio

from parley import requests
from parley.client import TIMEOUT_S, TIMEOUT_SLOW_S, channel_settings, gave_up
from parley.downloads import Download, ExportedFiles
from parley.exceptions import from_wire
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.watching import PATIENCE_S, BatchesWatch, BatchWatch, EventsMissing, GiveUp, Patience, Reconnect
from parley.wire import clock
from parley.wire.channel import open_blocking_channel
from parley.wire.errors import read_error

Request = TypeVar("Request")
Response = TypeVar("Response")


def sleep_s(seconds: float) -> None:
    # An event that nobody sets: waits like sleep, and Ctrl-C ends it.
    threading.Event().wait(seconds)


class Client:
    """Talks to one orchestrator and blocks meanwhile. May be shared among threads.

    With a `channel` of your own the address, token and TLS settings are those of the channel, and it stays open.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        tls_ca_file: str | Path | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        channel: grpc.Channel | None = None,
        chance: random.Random | None = None,
        monotonic_s: Callable[[], float] = clock.monotonic_s,
        sleep_s: Callable[[float], None] = sleep_s,
    ) -> None:
        settings = channel_settings(target, token=token, tls_ca_file=tls_ca_file)
        self._owned = None if channel else open_blocking_channel(settings)
        # The generated stub is typed for asyncio; at run time it takes either kind of channel.
        self._stub = BatchOrchestratorStub(cast("aio.Channel", channel or self._owned))
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._chance = chance or random.Random()
        self._monotonic_s = monotonic_s
        self._sleep_s = sleep_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()

    def quote(
        self, spec: batch_pb2.BatchSpec, *, sample_prompts: int = 0, owner: str = ""
    ) -> orchestrator_pb2.QuoteBatchResponse:
        """The dry run: price, coverage, findings and `sample_prompts` filled prompts. Nothing is started."""
        return self._unary(self._stub.QuoteBatch, requests.quote_batch(spec, sample_prompts, owner), slow=True)

    def create(
        self,
        spec: batch_pb2.BatchSpec,
        *,
        request_id: str | None = None,
        quote: str = "",
        allow_unquoted: bool = False,
        owner: str = "",
    ) -> batch_pb2.Batch:
        """Starts a batch. Raises QuoteStale with the fresh quote where `quote` is out of date."""
        request = requests.create_batch(
            spec, request_id=request_id, quote=quote, allow_unquoted=allow_unquoted, owner=owner
        )
        return self._unary(self._stub.CreateBatch, request, slow=True)

    def get(self, name: str) -> batch_pb2.Batch:
        return self._unary(self._stub.GetBatch, orchestrator_pb2.GetBatchRequest(name=requests.batch_name(name)))

    def get_spec(self, name: str) -> batch_pb2.BatchSpec:
        """The spec that the batch was started with."""
        request = orchestrator_pb2.GetBatchSpecRequest(name=requests.batch_name(name))
        return self._unary(self._stub.GetBatchSpec, request)

    def list_batches(
        self, filter: orchestrator_pb2.BatchFilter | None = None, *, page_size: int = requests.PAGE_SIZE
    ) -> Iterator[batch_pb2.Batch]:
        """Newest first; pages are fetched as they are needed."""
        token = ""
        while True:
            page = self._unary(self._stub.ListBatches, requests.list_batches(filter, token, page_size))
            yield from page.batches
            if not (token := page.next_page_token):
                return

    def pause(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Lets calls in flight end and starts no other."""
        request = orchestrator_pb2.PauseBatchRequest(name=requests.batch_name(name), etag=etag)
        return self._unary(self._stub.PauseBatch, request)

    def resume(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Clears the holds whose cause is gone, and goes on. Raises WrongState (HOLD_STANDS) for one that stands."""
        request = orchestrator_pb2.ResumeBatchRequest(name=requests.batch_name(name), etag=etag)
        return self._unary(self._stub.ResumeBatch, request)

    def cancel(self, name: str, *, etag: str = "") -> batch_pb2.Batch:
        """Lets calls in flight end, keeps what was made, cancels the rest."""
        request = orchestrator_pb2.CancelBatchRequest(name=requests.batch_name(name), etag=etag)
        return self._unary(self._stub.CancelBatch, request)

    def retry(
        self,
        name: str,
        filter: conversation_pb2.ConversationFilter | None = None,
        *,
        request_id: str | None = None,
        etag: str = "",
    ) -> orchestrator_pb2.RetryBatchResponse:
        """Puts conversations back to be made again: all FAILED and CANCELLED ones without a filter."""
        return self._unary(self._stub.RetryBatch, requests.retry_batch(name, filter, request_id, etag))

    def update(self, name: str, *, etag: str = "", **fields: Unpack[requests.Settings]) -> batch_pb2.Batch:
        """Changes display_name, labels, budget, concurrency, hold_after or priority."""
        return self._unary(self._stub.UpdateBatch, requests.update_batch(name, etag, fields))

    def delete(self, name: str, *, etag: str = "") -> None:
        """Deletes prompts and texts of a batch that does not run; its spend stays in `spend`."""
        request = orchestrator_pb2.DeleteBatchRequest(name=requests.batch_name(name), etag=etag)
        self._unary(self._stub.DeleteBatch, request)

    def conversation(self, name: str, number: int) -> conversation_pb2.Conversation:
        """One conversation with turns and prompt."""
        request = orchestrator_pb2.GetConversationRequest(name=requests.conversation_name(name, number))
        return self._unary(self._stub.GetConversation, request)

    def conversations(
        self,
        name: str,
        filter: conversation_pb2.ConversationFilter | None = None,
        *,
        full: bool = False,
        page_size: int = requests.PAGE_SIZE,
    ) -> Iterator[conversation_pb2.Conversation]:
        """By number; with turns and prompt where `full`."""
        token = ""
        while True:
            request = requests.list_conversations(name, filter, full=full, page_token=token, page_size=page_size)
            page = self._unary(self._stub.ListConversations, request)
            yield from page.conversations
            if not (token := page.next_page_token):
                return

    def calls(self, name: str, *, page_size: int = requests.PAGE_SIZE) -> Iterator[conversation_pb2.Call]:
        """The ledger of a batch, oldest first."""
        token = ""
        while True:
            page = self._unary(self._stub.ListCalls, requests.list_calls(name, token, page_size))
            yield from page.calls
            if not (token := page.next_page_token):
                return

    def settle_call(
        self, name: str, cost: Decimal | money_pb2.Money | None = None, note: str = ""
    ) -> conversation_pb2.Call:
        """Says what a possibly spent call cost; None where it was not billed. The same cost twice is one."""
        return self._unary(self._stub.SettleCall, requests.settle_call(name, cost, note))

    def export(
        self,
        names: str | Sequence[str],
        folder: Path | str,
        *,
        format: orchestrator_pb2.DatasetFormat.ValueType = orchestrator_pb2.DATASET_FORMAT_MESSAGES,
        split: orchestrator_pb2.DatasetSplit | None = None,
        filter: conversation_pb2.ConversationFilter | None = None,
    ) -> ExportedFiles:
        """Writes the dataset files of one or several batches; all of them, each checked by its sha256, or none."""
        call = self._stream(self._stub.ExportDataset, requests.export_dataset(names, format, split, filter))
        try:
            with Download(folder) as download:
                for part in call:
                    download.take(part)
                return download.finish()
        except grpc.RpcError as error:
            raise from_wire(read_error(error)) from error
        finally:
            call.cancel()

    def spend(
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
        return self._unary(self._stub.GetSpend, request)

    def check_provider(self, model: str = "") -> orchestrator_pb2.CheckProviderResponse:
        """Proves key, model and limits with one call of a few tokens."""
        request = orchestrator_pb2.CheckProviderRequest(model=model)
        return self._unary(self._stub.CheckProvider, request, slow=True)

    def watch(
        self, name: str, *, resume_token: str = "", until: requests.Until = "ended"
    ) -> Iterator[orchestrator_pb2.WatchBatchResponse]:
        """Every message of a batch until it ended, or also paused with until="settled".

        Comes back by itself to a server that was away, behind the last event. Leaving it never stops the batch.
        """
        watch = BatchWatch(name, resume_token=resume_token, until=until)
        messages = self._follow(
            lambda: self._stream(self._stub.WatchBatch, watch.request()), lambda response: [watch.accept(response)]
        )
        for message in messages:
            yield message
            if message.last:
                messages.close()
                return

    def wait(self, name: str, *, until: requests.Until = "settled") -> batch_pb2.Batch:
        """Blocks until the batch ended or, unless until="ended", is paused; returns what it is then."""
        batch = batch_pb2.Batch()
        for message in self.watch(name, until=until):
            batch = message.batch
        return batch

    def watch_batches(
        self, filter: orchestrator_pb2.BatchFilter | None = None
    ) -> Iterator[orchestrator_pb2.WatchBatchesResponse]:
        """The latest of every batch that matches, without end. Comes back by itself like `watch`."""
        watch = BatchesWatch()

        def connect() -> BlockingStream[orchestrator_pb2.WatchBatchesResponse]:
            watch.begin()
            return self._stream(self._stub.WatchBatches, orchestrator_pb2.WatchBatchesRequest(filter=filter))

        return self._follow(connect, watch.accept)

    def _follow(
        self,
        connect: Callable[[], BlockingStream[Response]],
        accept: Callable[[Response], list[Response]],
    ) -> Generator[Response, None, None]:
        patience = Patience(self._chance, self._patience_s)
        while True:
            broken: grpc.RpcError | None = None
            call = connect()
            try:
                for response in call:
                    accepted = accept(response)
                    patience.heard()
                    yield from accepted
            except EventsMissing:
                pass
            except grpc.RpcError as error:
                broken = error
            finally:
                call.cancel()
            self._wait(patience, broken)

    def _wait(self, patience: Patience, broken: grpc.RpcError | None) -> None:
        error = None if broken is None else read_error(broken)
        match patience.after(error, now_s=self._monotonic_s()):
            case Reconnect(delay_s):
                self._sleep_s(delay_s)
            case GiveUp():
                raise gave_up(error) from broken

    def _unary(
        self, method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, slow: bool = False
    ) -> Response:
        blocking = cast("grpc.UnaryUnaryMultiCallable[Request, Response]", method)
        try:
            return blocking(request, timeout=max(self._timeout_s, TIMEOUT_SLOW_S) if slow else self._timeout_s)
        except grpc.RpcError as error:
            raise from_wire(read_error(error)) from error

    def _stream(
        self, method: aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> BlockingStream[Response]:
        return cast("Callable[[Request], BlockingStream[Response]]", method)(request)


class BlockingStream(Iterator[Response]):
    """What a blocking channel really answers to a streaming call; gRPC's own stub has no name for it."""

    def cancel(self) -> bool: ...
