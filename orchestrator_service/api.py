"""The gRPC adapter: each RPC hands request, caller and deadline to service.py, checked by the contract's rules."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2_grpc
from parley.v1 import orchestrator_pb2 as pb
from parley.wire import auth, rules
from parley.wire.auth import Identity
from parley.wire.channel import deadline_s

from orchestrator_service.service import Service

SERVICE = "parley.v1.BatchOrchestrator"
DEADLINE_CAP_S = 300.0
# What is kept back of a caller's time, to answer in.
DEADLINE_MARGIN_S = 0.5

Asked = TypeVar("Asked", bound=Message)
Reply = TypeVar("Reply")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Api(orchestrator_pb2_grpc.BatchOrchestratorServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def QuoteBatch(self, request: pb.QuoteBatchRequest, context: Context) -> pb.QuoteBatchResponse:
        return await _answer(self._service.quote_batch, request, context)

    async def CreateBatch(self, request: pb.CreateBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.create_batch, request, context)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.get_batch, request, context)

    async def GetBatchSpec(self, request: pb.GetBatchSpecRequest, context: Context) -> batch_pb2.BatchSpec:
        return await _answer(self._service.get_batch_spec, request, context)

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> pb.ListBatchesResponse:
        return await _answer(self._service.list_batches, request, context)

    def WatchBatch(self, request: pb.WatchBatchRequest, context: Context) -> AsyncIterator[pb.WatchBatchResponse]:
        return _stream(self._service.watch_batch, request, context)

    def WatchBatches(self, request: pb.WatchBatchesRequest, context: Context) -> AsyncIterator[pb.WatchBatchesResponse]:
        return _stream(self._service.watch_batches, request, context)

    async def PauseBatch(self, request: pb.PauseBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.pause_batch, request, context)

    async def ResumeBatch(self, request: pb.ResumeBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.resume_batch, request, context)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.cancel_batch, request, context)

    async def RetryBatch(self, request: pb.RetryBatchRequest, context: Context) -> pb.RetryBatchResponse:
        return await _answer(self._service.retry_batch, request, context)

    async def UpdateBatch(self, request: pb.UpdateBatchRequest, context: Context) -> batch_pb2.Batch:
        return await _answer(self._service.update_batch, request, context)

    async def DeleteBatch(self, request: pb.DeleteBatchRequest, context: Context) -> pb.DeleteBatchResponse:
        return await _answer(self._service.delete_batch, request, context)

    async def GetConversation(
        self, request: pb.GetConversationRequest, context: Context
    ) -> conversation_pb2.Conversation:
        return await _answer(self._service.get_conversation, request, context)

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: Context
    ) -> pb.ListConversationsResponse:
        return await _answer(self._service.list_conversations, request, context)

    async def ListCalls(self, request: pb.ListCallsRequest, context: Context) -> pb.ListCallsResponse:
        return await _answer(self._service.list_calls, request, context)

    async def SettleCall(self, request: pb.SettleCallRequest, context: Context) -> conversation_pb2.Call:
        return await _answer(self._service.settle_call, request, context)

    def ExportDataset(
        self, request: pb.ExportDatasetRequest, context: Context
    ) -> AsyncIterator[pb.ExportDatasetResponse]:
        return _stream(self._service.export_dataset, request, context)

    async def GetSpend(self, request: pb.GetSpendRequest, context: Context) -> pb.GetSpendResponse:
        return await _answer(self._service.get_spend, request, context)

    async def CheckProvider(self, request: pb.CheckProviderRequest, context: Context) -> pb.CheckProviderResponse:
        return await _answer(self._service.check_provider, request, context)


async def _answer(rpc: Callable[[Asked, Identity, float], Awaitable[Reply]], request: Asked, context: Context) -> Reply:
    rules.check(request)
    return await rpc(request, auth.caller(), _time_left_s(context))


async def _stream(
    rpc: Callable[[Asked, Identity, float], AsyncGenerator[Reply]], request: Asked, context: Context
) -> AsyncIterator[Reply]:
    rules.check(request)
    async with aclosing(rpc(request, auth.caller(), _time_left_s(context))) as replies:
        async for reply in replies:
            yield reply


def _time_left_s(context: Context) -> float:
    return deadline_s(context.time_remaining(), cap_s=DEADLINE_CAP_S, margin_s=DEADLINE_MARGIN_S)
