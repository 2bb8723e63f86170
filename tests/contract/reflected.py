"""The services as their servers describe them: what is served is what is tested, a new RPC from its first day."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_database import DescriptorDatabase
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

OURS = "parley."
WAIT_MAX_S = 20.0
Metadata = tuple[tuple[str, str | bytes], ...]


async def served_methods(channel: grpc.aio.Channel, metadata: Metadata = ()) -> list[MethodDescriptor]:
    """Every RPC of ours, out of the descriptors that the server itself sends; no generated code takes part."""
    listed = await _ask(channel, pb.ServerReflectionRequest(list_services="*"), metadata)
    names = [one.name for one in listed.list_services_response.service if one.name.startswith(OURS)]
    files: dict[str, FileDescriptorProto] = {}
    for name in names:
        told = await _ask(channel, pb.ServerReflectionRequest(file_containing_symbol=name), metadata)
        for packed in told.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(packed)
            files[file.name] = file
    # A pool of its own would want the files in the order of their imports; over a database it finds them itself.
    database: Any = DescriptorDatabase()
    for file in files.values():
        database.Add(file)
    pool = DescriptorPool(database)
    return [method for name in names for method in pool.FindServiceByName(name).methods]


async def _ask(
    channel: grpc.aio.Channel, request: pb.ServerReflectionRequest, metadata: Metadata
) -> pb.ServerReflectionResponse:
    kind: Any = channel.stream_stream
    rpc = kind(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )

    async def once() -> AsyncIterator[pb.ServerReflectionRequest]:
        yield request

    call = rpc(once(), timeout=WAIT_MAX_S, metadata=metadata)
    try:
        return await anext(aiter(call))
    finally:
        call.cancel()
