"""Small questions about large batches, and large ones: answers fit a message, and nobody else waits long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc
import pytest
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import read_error
from servers import Server, running_pair, running_sandbox
from vitals import vitals_of

pytestmark = pytest.mark.anyio

WAIT_MAX_S = 60.0
MEBIBYTE = 1024 * 1024
PAGE_MAX_BYTES = 10 * MEBIBYTE


@dataclass(frozen=True)
class Stage:
    client: BatchClient
    stub: BatchOrchestratorStub
    server: Server

    def memory_bytes(self) -> int:
        assert self.server.process is not None
        return vitals_of(self.server.process.pid).memory_bytes


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("large")
    async with (
        running_sandbox(folder) as sandbox,
        running_pair(folder, sandbox) as pair,
        pair.client() as client,
        open_channel(ChannelSettings(target=pair.address)) as channel,
    ):
        yield Stage(client, BatchOrchestratorStub(channel), pair.orchestrator)


def long_prompts(count: int) -> batch_pb2.BatchSpec:
    """Each conversation's prompt has 200 kB, and so has the parameter that it comes from."""
    tier = batch_pb2.Tier(id="t", count=count, prompt=batch_pb2.Prompt(text="{{ number_of_it }} {{ long }}"))
    values = [batch_pb2.AxisValue(id=f"v{number}") for number in range(1_000)]
    axes = [batch_pb2.Axis(id="number_of_it", values=values)]
    spec = batch_pb2.BatchSpec(name="Long", tiers=[tier], axes=axes, hold_after=0)
    spec.shared_parameters.update({"long": "x" * 200_000})
    return spec


async def test_full_pages_of_long_prompts_fit_and_leave_none_out(stage: Stage) -> None:
    """A page of a hundred once took the server 40 s and 5 GB, and was then too large for a message."""
    batch = await stage.client.create(long_prompts(60))
    asked = orchestrator_pb2.ListConversationsRequest(
        parent=batch.name, page_size=1_000, view=conversation_pb2.CONVERSATION_VIEW_FULL
    )
    numbers: list[int] = []
    while not numbers or asked.page_token:
        page = await stage.stub.ListConversations(asked, timeout=WAIT_MAX_S)
        assert page.ByteSize() <= PAGE_MAX_BYTES
        assert all(len(one.prompt) > 200_000 for one in page.conversations)
        numbers += [one.number for one in page.conversations]
        asked.page_token = page.next_page_token
    assert numbers == list(range(1, 61))


async def test_the_dry_run_shows_as_many_long_prompts_as_fit(stage: Stage) -> None:
    spec = long_prompts(200)
    spec.shared_prompt.text = "{{ long }}"
    asked = orchestrator_pb2.QuoteBatchRequest(spec=spec, sample_prompts=100)
    reply = await stage.stub.QuoteBatch(asked, timeout=WAIT_MAX_S)
    assert reply.HasField("quote")
    assert 1 < len(reply.prompts) < 100
    assert reply.ByteSize() <= PAGE_MAX_BYTES


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (b"\x22\x00" * 1_000_000, "spec.tiers"),
        (b"\x4a\x00" * 1_000_000, "spec.conversations"),
        (b"\x2a\x00" * 1_000_000, "spec.axes"),
    ],
    ids=["tiers", "conversations", "axes"],
)
async def test_a_million_empty_parts_are_refused_at_once(stage: Stage, spec: bytes, field: str) -> None:
    """Two megabytes once blocked the server for 45 s and took 1.6 GB: every fault was named."""
    before = stage.memory_bytes()
    asked = orchestrator_pb2.QuoteBatchRequest(spec=batch_pb2.BatchSpec.FromString(b"\x0a\x01x" + spec))
    assert await refused_while_others_are_answered(stage, asked) == ("INVALID_FIELD", [field])
    assert stage.memory_bytes() - before < 500 * MEBIBYTE


async def test_a_million_values_are_refused_at_once(stage: Stage) -> None:
    asked = orchestrator_pb2.QuoteBatchRequest(spec=batch_pb2.BatchSpec(name="x"))
    asked.spec.shared_parameters.update({"numbers": [1.0] * 1_000_000})
    told = await refused_while_others_are_answered(stage, asked)
    assert told == ("INVALID_FIELD", ["spec.shared_parameters"])


async def refused_while_others_are_answered(
    stage: Stage, asked: orchestrator_pb2.QuoteBatchRequest
) -> tuple[str, list[str]]:
    """The reason and the fields; meanwhile another caller waits for no more than a few seconds."""
    call = asyncio.ensure_future(refusal(stage, asked))
    while not call.done():
        await stage.stub.ListBatches(orchestrator_pb2.ListBatchesRequest(page_size=1), timeout=10)
    return await call


async def refusal(stage: Stage, asked: orchestrator_pb2.QuoteBatchRequest) -> tuple[str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.QuoteBatch(asked, timeout=WAIT_MAX_S)
    error = read_error(refused.value)
    return error.reason, [violation.field for violation in error.violations]


async def test_a_caller_who_leaves_takes_the_filling_of_prompts_along(stage: Stage) -> None:
    """A hundred thousand prompts of twenty loops are half an hour of work, in one of a few threads."""
    loops = "{% for word in words %}{{ word }}{% endfor %}" * 20
    tiers = [batch_pb2.Tier(id="t", count=100_000, prompt=batch_pb2.Prompt(text=loops))]
    asked = orchestrator_pb2.QuoteBatchRequest(spec=batch_pb2.BatchSpec(name="Loops", tiers=tiers))
    asked.spec.shared_parameters.update({"words": ["ab"] * 1_000})
    leaving = [stage.stub.QuoteBatch(asked, timeout=0.5) for _ in range(40)]
    for call in leaving:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # More than there are threads were asked for: the next one gets one only if those are free.
    quick = orchestrator_pb2.QuoteBatchRequest(spec=long_prompts(1))
    assert (await stage.stub.QuoteBatch(quick, timeout=20)).HasField("quote")
