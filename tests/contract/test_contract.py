"""The contract itself: every RPC is served, every request field has a rule, everything has its comment."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from parley.v1 import estimator_pb2, orchestrator_pb2, reasons_pb2
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import read_error, reason_infos
from servers import Pair, running_pair, running_sandbox

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
ORCHESTRATOR = "parley.v1.BatchOrchestrator"
ESTIMATOR = "parley.v1.BatchEstimator"
SERVICES = (
    orchestrator_pb2.DESCRIPTOR.services_by_name["BatchOrchestrator"],
    estimator_pb2.DESCRIPTOR.services_by_name["BatchEstimator"],
)
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
WAIT_MAX_S = 20.0
WELL_KNOWN = "google."
# UpdateBatch takes a whole Batch. What the server tells in it is never read from a request.
OUTPUT = {f"parley.v1.Batch.{name}" for name in ("holds", "counts", "tiers", "spend", "forecast", "provider")}


def method_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


@pytest.fixture(name="pair", scope="module")
async def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Pair]:
    """On TCP, as other languages and tools reach it."""
    folder = tmp_path_factory.mktemp("contract")
    listen = {"PARLEY_ORCHESTRATOR_LISTEN": "127.0.0.1:0"}
    async with running_sandbox(folder) as sandbox, running_pair(folder, sandbox, **listen) as pair:
        yield pair


def address_of(pair: Pair, service: str) -> str:
    server = pair.estimator if service == ESTIMATOR else pair.orchestrator
    return server.announced["address"]


# Every RPC is served


async def call(pair: Pair, method: MethodDescriptor, request: Any) -> grpc.StatusCode | str:
    """OK, or the reason of the refusal; the status where no Parley server answered."""
    service = method.containing_service.full_name
    async with open_channel(ChannelSettings(target=address_of(pair, service))) as channel:
        kind: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        rpc = kind(
            f"/{service}/{method.name}",
            request_serializer=Message.SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = rpc(request, timeout=WAIT_MAX_S)
        try:
            if method.server_streaming:
                await anext(aiter(answer))
            else:
                await answer
        except grpc.aio.AioRpcError as error:
            return read_error(error).reason or error.code()
        finally:
            answer.cancel()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=method_name)
async def test_every_rpc_is_served(pair: Pair, method: MethodDescriptor) -> None:
    """An empty request is answered or refused with a reason: a server that does not know the call has none."""
    request = message_factory.GetMessageClass(method.input_type)()
    told = await call(pair, method, request)
    served = told is grpc.StatusCode.OK or told in reason_infos()
    assert served, told
    assert told != "INTERNAL"


async def test_an_rpc_that_nobody_knows_has_no_reason(pair: Pair) -> None:
    """What the test before it would see of an RPC that is not served."""
    async with open_channel(ChannelSettings(target=address_of(pair, ORCHESTRATOR))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{ORCHESTRATOR}/BuyBatch")(b"", timeout=WAIT_MAX_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert read_error(refused.value).reason == ""


# Every request field has a rule


def request_fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    """Every field that a caller can set, through all messages of ours."""
    if message.full_name in seen or message.full_name.startswith(WELL_KNOWN):
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None and field.full_name not in OUTPUT:
            yield from request_fields(field.message_type, seen)


def all_request_fields() -> list[FieldDescriptor]:
    seen: set[str] = set()
    return [
        field
        for method in METHODS
        for field in request_fields(method.input_type, seen)
        if not is_map_entry(field.containing_type)
    ]


def is_map_entry(message: Descriptor | None) -> bool:
    return message is not None and bool(message.GetOptions().map_entry)


def has_rule(field: FieldDescriptor) -> bool:
    return field.GetOptions().HasExtension(validate_pb2.field)


def is_limited_by_itself(field: FieldDescriptor) -> bool:
    """A bool has two values; a message of ours has rules in its own fields, a list of them needs a length."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    return field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated


@pytest.mark.parametrize("field", all_request_fields(), ids=lambda field: field.full_name)
def test_every_request_field_has_a_rule(field: FieldDescriptor) -> None:
    assert has_rule(field) or is_limited_by_itself(field), f"{field.full_name} takes anything"


def test_texts_and_lists_have_an_upper_bound() -> None:
    """A rule that only says "required" bounds nothing."""
    unbounded = [field.full_name for field in all_request_fields() if has_rule(field) and not is_bounded(field)]
    assert unbounded == []


def is_bounded(field: FieldDescriptor) -> bool:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if is_map_entry(field.message_type):
        return rules.map.HasField("max_pairs")
    if field.is_repeated:
        return rules.repeated.HasField("max_items")
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return any(rules.string.HasField(name) for name in ("max_len", "max_bytes", "len", "pattern"))
    return True


# Everything is commented


@pytest.fixture(name="image", scope="module")
def contract_image(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorSet:
    path = tmp_path_factory.mktemp("image") / "contract.binpb"
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", "--image", path], check=True, timeout=60)
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def uncommented(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """Paths of everything declared in a file that has no comment of its own."""
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    for path, name in declared(file):
        if not comments.get(path):
            yield f"{file.name}: {name}"


def declared(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    for at, message in enumerate(file.message_type):
        yield from declared_in_message((4, at), message)
    for at, enum in enumerate(file.enum_type):
        yield (5, at), enum.name
        for place, value in enumerate(enum.value):
            yield (5, at, 2, place), value.name
    for at, service in enumerate(file.service):
        yield (6, at), service.name
        for place, method in enumerate(service.method):
            yield (6, at, 2, place), f"{service.name}.{method.name}"


def declared_in_message(
    path: tuple[int, ...], message: descriptor_pb2.DescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, message.name
    for place, field in enumerate(message.field):
        yield (*path, 2, place), f"{message.name}.{field.name}"
    for place, oneof in enumerate(message.oneof_decl):
        # proto3's optional makes a oneof that nobody wrote.
        if not oneof.name.startswith("_"):
            yield (*path, 8, place), f"{message.name}.{oneof.name}"
    for place, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from declared_in_message((*path, 3, place), nested)


def test_every_message_field_value_and_rpc_has_a_comment(image: descriptor_pb2.FileDescriptorSet) -> None:
    ours = [file for file in image.file if file.package == "parley.v1"]
    assert len(ours) >= 6
    assert [name for file in ours for name in uncommented(file)] == []


def test_a_comment_that_is_missing_is_found(image: descriptor_pb2.FileDescriptorSet) -> None:
    file = next(file for file in image.file if file.name == "parley/v1/orchestrator.proto")
    bare = descriptor_pb2.FileDescriptorProto()
    bare.CopyFrom(file)
    for place in bare.source_code_info.location:
        if list(place.path) == [6, 0, 2, 1]:
            place.leading_comments = ""
    assert list(uncommented(bare)) == ["parley/v1/orchestrator.proto: BatchOrchestrator.CreateBatch"]


# Every reason can be shown


def test_every_reason_has_a_status_a_sentence_and_a_next_step() -> None:
    names = [value.name for value in reasons_pb2.Reason.DESCRIPTOR.values if value.number]
    assert [f"REASON_{name}" for name in reason_infos()] == names
    for name, info in reason_infos().items():
        assert info.code in code_pb2.Code.values(), name
        assert info.code != code_pb2.OK, name
        for told in (info.sentence, info.next_step):
            assert told[:1].isupper(), name
            assert told.endswith("."), name


def test_reasons_named_in_comments_exist(image: descriptor_pb2.FileDescriptorSet) -> None:
    """The comment of an RPC lists its reasons behind "Errors:"."""
    listed: set[str] = set()
    for file in image.file:
        for place in file.source_code_info.location:
            _, _, errors = place.leading_comments.partition("Errors:")
            words = {word.strip(".,()") for word in errors.split()} if file.package == "parley.v1" else set[str]()
            listed |= {word for word in words if word.isupper() and len(word) > 3}
    assert "BATCH_NOT_FOUND" in listed
    assert listed <= reason_infos().keys()


# The tools of other languages find their way


async def run(*command: str | Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(WAIT_MAX_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    ("service", "rpc", "answer"),
    [
        (ORCHESTRATOR, f"{ORCHESTRATOR}/ListBatches", {}),
        (ESTIMATOR, f"{ESTIMATOR}/ListQuotes", {}),
        (ORCHESTRATOR, "grpc.health.v1.Health/Check", {"status": "SERVING"}),
        (ESTIMATOR, "grpc.health.v1.Health/Check", {"status": "SERVING"}),
    ],
)
async def test_buf_curl_calls_by_reflection(pair: Pair, service: str, rpc: str, answer: dict[str, str]) -> None:
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not installed")
    address = address_of(pair, service)
    way = ["--unix-socket", address.removeprefix("unix:")] if address.startswith("unix:") else []
    host = "localhost" if way else address
    code, output = await run(buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *way, f"http://{host}/{rpc}")
    assert code == 0, output
    assert json.loads(output) == answer


@pytest.mark.parametrize("service", [ORCHESTRATOR, ESTIMATOR])
async def test_health_is_told_for_the_server_and_its_service(pair: Pair, service: str) -> None:
    async with open_channel(ChannelSettings(target=address_of(pair, service))) as channel:
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", service):
            reply = await check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_MAX_S)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
