"""What can't be right is refused by name, before anything is stored or spent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from evidence import everything, last_seen
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.type.money_pb2 import Money
from parley.client import BatchClient
from parley.exceptions import QuoteStale, Unavailable
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.v1.orchestrator_pb2_grpc import BatchOrchestratorStub
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import WireError, read_error, reason_infos
from servers import Pair, Sandbox, running_pair, running_sandbox, spec

from estimator_service.config import PRICES_FILE

pytestmark = pytest.mark.anyio

WAIT_MAX_S = 30.0
MEGABYTE = 1_000_000
Spec = batch_pb2.BatchSpec


@dataclass(frozen=True)
class Stage:
    """Both services, and a batch that waits for approval, so that nothing moves by itself."""

    client: BatchClient
    stub: BatchOrchestratorStub
    sandbox: Sandbox
    pair: Pair
    held: batch_pb2.Batch


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("bad")
    async with (
        running_sandbox(folder) as sandbox,
        running_pair(folder, sandbox) as pair,
        pair.client() as client,
        open_channel(ChannelSettings(target=pair.address)) as channel,
    ):
        created = await client.create(spec(4, hold_after=0), request_id="held")
        held = await client.pause(created.name)
        yield Stage(client, BatchOrchestratorStub(channel), sandbox, pair, held)


async def refused(stage: Stage, rpc: str, request: Message) -> WireError:
    """The error of a call that stores nothing, starts nothing and sends nothing to the provider."""
    async with nothing_stored(stage):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await finished(getattr(stage.stub, rpc)(request, timeout=WAIT_MAX_S))
    error = read_error(raised.value)
    assert error.code.value[0] == reason_infos()[error.reason].code
    assert error.request_id
    return error


async def finished(call: Awaitable[Message] | AsyncIterable[Message]) -> None:
    if isinstance(call, AsyncIterable):
        async for _ in call:
            pass
    else:
        await call


@asynccontextmanager
async def nothing_stored(stage: Stage) -> AsyncGenerator[None]:
    listed = [batch.name async for batch in stage.client.list_batches()]
    before = everything(stage.pair.database)
    yield
    assert everything(stage.pair.database) == before
    assert [batch.name async for batch in stage.client.list_batches()] == listed
    assert (await stage.sandbox.stats())["calls_started"] == 0


@dataclass(frozen=True)
class Bad:
    """A way to spoil a spec that works, and what is said of it."""

    spoil: Callable[[Spec], object]
    reason: str
    at: str
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    # A part of the message that helps.
    says: str = ""


def text(template: str) -> Callable[[Spec], object]:
    return lambda spec: setattr(spec.tiers[0].prompt, "text", template)


def an_empty_tier(spec: Spec) -> None:
    spec.tiers.add(id="scenario", prompt=spec.tiers[0].prompt)


def a_tier_without_text(spec: Spec) -> None:
    spec.tiers[0].id = "dialogue"
    spec.tiers[0].ClearField("prompt")


def a_tier_with_an_empty_text(spec: Spec) -> None:
    spec.tiers[0].id = "dialogue"
    spec.tiers[0].prompt.text = " \n"


def a_parameter_that_one_lacks(spec: Spec) -> None:
    """One conversation of several lacks what the others have."""
    spec.tiers[0].prompt.text += " {{ age }}"
    for age in (31, 32):
        spec.conversations.add(tier="template").parameters.update({"age": age})
    spec.tiers[0].count = 0
    spec.conversations.add(tier="template")


def a_prompt_that_grows(spec: Spec) -> None:
    spec.shared_parameters.update({"long": "x" * 200_000})
    spec.tiers[0].prompt.text = "{{ topic }} {{ mood }} {{ long }} {{ long }}"


TIER = {"tier": "template"}
PROMPT = "spec.tiers[0].prompt.text"
BAD_SPECS = {
    "an empty spec": Bad(lambda spec: spec.ClearField("tiers"), "SPEC_EMPTY", "spec.tiers"),
    "no name": Bad(lambda spec: spec.ClearField("name"), "INVALID_FIELD", "spec.name"),
    "concurrency 0": Bad(lambda spec: setattr(spec, "concurrency", 0), "INVALID_FIELD", "spec.concurrency"),
    "concurrency over the server's": Bad(
        lambda spec: setattr(spec, "concurrency", 11),
        "CONCURRENCY_OVER_MAXIMUM",
        "spec.concurrency",
        says="PARLEY_MAX_CONCURRENCY of this server is 10",
    ),
    "a negative budget": Bad(
        lambda spec: spec.budget.CopyFrom(Money(currency_code="USD", units=-1)),
        "INVALID_FIELD",
        "spec.budget",
        says="must not be negative",
    ),
    "a budget in euros": Bad(
        lambda spec: spec.budget.CopyFrom(Money(currency_code="EUR", units=5)), "INVALID_FIELD", "spec.budget"
    ),
    "an unknown model": Bad(
        lambda spec: setattr(spec, "model", "gpt-nonsense"), "MODEL_UNKNOWN", "spec.model", says="Known are: "
    ),
    "a megabyte of prompt": Bad(text("x" * MEGABYTE), "INVALID_FIELD", PROMPT),
    "a prompt that is too large once filled": Bad(a_prompt_that_grows, "PROMPT_TOO_LARGE", PROMPT, TIER),
    "a missing placeholder": Bad(
        text("{{ topic }} {{ mood }} for {{ client_name }}"),
        "PLACEHOLDER_UNRESOLVED",
        PROMPT,
        {**TIER, "conversation": "1"},
        says="client_name",
    ),
    "a placeholder that one conversation lacks": Bad(
        a_parameter_that_one_lacks, "PLACEHOLDER_UNRESOLVED", PROMPT, {**TIER, "conversation": "3"}, says="age"
    ),
    "a template that loops": Bad(
        text("{% for i in range(1000000000) %}x{% endfor %}"), "TEMPLATE_REFUSED", PROMPT, TIER
    ),
    "a template that multiplies": Bad(text("{{ 'x' * 1000000000 }}"), "TEMPLATE_REFUSED", PROMPT, TIER),
    "a template that ends too soon": Bad(text("{% if topic %}"), "TEMPLATE_REFUSED", PROMPT, TIER, says="Line 1"),
    "an empty tier": Bad(an_empty_tier, "TIER_EMPTY", "spec.tiers[1].count", {"tier": "scenario"}),
    "the same tier twice": Bad(
        lambda spec: spec.tiers.append(spec.tiers[0]), "INVALID_FIELD", "spec.tiers[1].id", says="template"
    ),
    "an unknown axis": Bad(
        lambda spec: spec.tiers[0].axes.append("weather"), "AXIS_UNKNOWN", "spec.tiers[0].axes[0]", TIER, "weather"
    ),
    "a template without text": Bad(a_tier_without_text, "TEMPLATE_MISSING", PROMPT, {"tier": "dialogue"}),
    "a template with an empty text": Bad(a_tier_with_an_empty_text, "TEMPLATE_MISSING", PROMPT, {"tier": "dialogue"}),
    "a listed conversation of an unknown tier": Bad(
        lambda spec: spec.conversations.add(tier="dialogue"), "TIER_UNKNOWN", "spec.conversations[0].tier"
    ),
    "too many conversations": Bad(
        lambda spec: setattr(spec.tiers[0], "count", 100_001), "BATCH_TOO_LARGE", "spec.tiers", {"max": "100000"}
    ),
    "bulk execution": Bad(
        lambda spec: setattr(spec, "execution", batch_pb2.EXECUTION_BULK), "NOT_BUILT", "spec.execution"
    ),
    "turn by turn": Bad(
        lambda spec: setattr(spec, "generation_mode", batch_pb2.GENERATION_MODE_TURNS),
        "NOT_BUILT",
        "spec.generation_mode",
    ),
}


@pytest.mark.parametrize("bad", BAD_SPECS.values(), ids=BAD_SPECS)
async def test_a_spec_that_cannot_be_made_is_refused_by_field_and_reason(stage: Stage, bad: Bad) -> None:
    spoilt = spec(4)
    bad.spoil(spoilt)
    error = await refused(stage, "CreateBatch", orchestrator_pb2.CreateBatchRequest(spec=spoilt))
    assert error.reason == bad.reason
    assert [violation.field for violation in error.violations] == [bad.at]
    assert error.violations[0].message
    assert error.metadata.items() >= bad.metadata.items()
    assert bad.says in error.message


# No spec of this server, so there is no plan in which to find anything.
UNREADABLE = (
    "no name",
    "concurrency 0",
    "a negative budget",
    "a budget in euros",
    "a megabyte of prompt",
    "too many conversations",
    "bulk execution",
    "turn by turn",
)


@pytest.mark.parametrize("name", [name for name in BAD_SPECS if name not in UNREADABLE])
async def test_the_dry_run_finds_the_same_and_gives_no_quote(stage: Stage, name: str) -> None:
    bad, spoilt = BAD_SPECS[name], spec(4)
    bad.spoil(spoilt)
    async with nothing_stored(stage):
        reply = await stage.stub.QuoteBatch(orchestrator_pb2.QuoteBatchRequest(spec=spoilt), timeout=WAIT_MAX_S)
    assert not reply.HasField("quote")
    errors = [one for one in reply.findings if one.severity == orchestrator_pb2.SEVERITY_ERROR]
    assert [(one.reason, f"spec.{one.field}") for one in errors] == [(bad.reason, bad.at)]


@pytest.mark.parametrize("name", UNREADABLE)
async def test_the_dry_run_refuses_what_is_no_spec(stage: Stage, name: str) -> None:
    spoilt = spec(4)
    BAD_SPECS[name].spoil(spoilt)
    error = await refused(stage, "QuoteBatch", orchestrator_pb2.QuoteBatchRequest(spec=spoilt))
    assert (error.reason, error.violations[0].field) == (BAD_SPECS[name].reason, BAD_SPECS[name].at)


async def test_every_fault_of_a_spec_is_named_at_once(stage: Stage) -> None:
    spoilt = spec(4, concurrency=11)
    text("{{ client_name }}")(spoilt)
    an_empty_tier(spoilt)
    error = await refused(stage, "CreateBatch", orchestrator_pb2.CreateBatchRequest(spec=spoilt))
    assert [violation.field for violation in error.violations] == ["spec.concurrency", "spec.tiers[1].count"]
    # Prompts are filled once the spec's shape allows it.
    del spoilt.tiers[1]
    error = await refused(stage, "CreateBatch", orchestrator_pb2.CreateBatchRequest(spec=spoilt))
    assert [violation.field for violation in error.violations] == ["spec.concurrency", PROMPT]


async def test_a_repeated_request_id_is_the_same_batch_or_refused(stage: Stage) -> None:
    request = orchestrator_pb2.CreateBatchRequest(spec=spec(4, hold_after=0), request_id="held")
    async with nothing_stored(stage):
        same = await stage.stub.CreateBatch(request, timeout=WAIT_MAX_S)
    assert same.name == stage.held.name
    request.spec.tiers[0].count = 5
    error = await refused(stage, "CreateBatch", request)
    assert error.reason == "REQUEST_ID_REUSED"
    assert error.metadata == {"request_id": "held", "batch": stage.held.name}


BY_NAME: dict[str, type[Message]] = {
    "GetBatch": orchestrator_pb2.GetBatchRequest,
    "GetBatchSpec": orchestrator_pb2.GetBatchSpecRequest,
    "WatchBatch": orchestrator_pb2.WatchBatchRequest,
    "PauseBatch": orchestrator_pb2.PauseBatchRequest,
    "ResumeBatch": orchestrator_pb2.ResumeBatchRequest,
    "CancelBatch": orchestrator_pb2.CancelBatchRequest,
    "RetryBatch": orchestrator_pb2.RetryBatchRequest,
    "DeleteBatch": orchestrator_pb2.DeleteBatchRequest,
}
BY_PARENT: dict[str, type[Message]] = {
    "ListConversations": orchestrator_pb2.ListConversationsRequest,
    "ListCalls": orchestrator_pb2.ListCallsRequest,
}


def of_batch(rpc: str, name: str) -> Message:
    if rpc in BY_PARENT:
        return BY_PARENT[rpc](parent=name)
    if rpc == "UpdateBatch":
        return update("display_name", name=name)
    if rpc == "ExportDataset":
        return orchestrator_pb2.ExportDatasetRequest(names=[name])
    if rpc == "GetConversation":
        return orchestrator_pb2.GetConversationRequest(name=f"{name}/conversations/1")
    return BY_NAME[rpc](name=name)


def update(*paths: str, **values: Any) -> orchestrator_pb2.UpdateBatchRequest:
    return orchestrator_pb2.UpdateBatchRequest(batch=batch_pb2.Batch(**values), update_mask=FieldMask(paths=paths))


OF_BATCH = [*BY_NAME, *BY_PARENT, "UpdateBatch", "ExportDataset", "GetConversation"]


@pytest.mark.parametrize("rpc", OF_BATCH)
async def test_an_unknown_batch_is_not_found(stage: Stage, rpc: str) -> None:
    error = await refused(stage, rpc, of_batch(rpc, "batches/nosuchbatch"))
    assert error.reason == "BATCH_NOT_FOUND"
    assert error.metadata == {"batch": "batches/nosuchbatch"}


@pytest.mark.parametrize("rpc", OF_BATCH)
async def test_a_name_that_is_none_is_refused_by_field(stage: Stage, rpc: str) -> None:
    error = await refused(stage, rpc, of_batch(rpc, "No/Name"))
    assert error.reason == "INVALID_FIELD"
    expected = {"UpdateBatch": "batch.name", "ExportDataset": "names[0]"}.get(
        rpc, "parent" if "List" in rpc else "name"
    )
    assert [violation.field for violation in error.violations] == [expected]


@pytest.mark.parametrize(
    "rpc", ["PauseBatch", "ResumeBatch", "CancelBatch", "RetryBatch", "DeleteBatch", "UpdateBatch"]
)
async def test_a_wrong_etag_is_refused(stage: Stage, rpc: str) -> None:
    held = stage.held
    if rpc == "PauseBatch":
        # A repeated verb succeeds before the etag is compared: this one needs a batch that is not paused by hand.
        created = await stage.client.create(spec(4, hold_after=0))
        held = await last_seen(stage.client, created.name, until="settled")
    request: Any = of_batch(rpc, held.name)
    target = request.batch if rpc == "UpdateBatch" else request
    target.etag = "0123456789abcdef"
    error = await refused(stage, rpc, request)
    assert error.reason == "ETAG_MISMATCH"
    assert error.metadata == {"etag": held.etag}


async def test_a_page_token_is_for_its_own_request_only(stage: Stage) -> None:
    calls = orchestrator_pb2.ListConversationsRequest(parent=stage.held.name, page_size=1)
    page = await stage.stub.ListConversations(calls)
    assert page.next_page_token
    another = conversation_pb2.ConversationFilter(tiers=["scenario"])
    for rpc, request in {
        "ListConversations": orchestrator_pb2.ListConversationsRequest(
            parent=stage.held.name, page_token=page.next_page_token, filter=another
        ),
        "ListCalls": orchestrator_pb2.ListCallsRequest(parent=stage.held.name, page_token=page.next_page_token),
        "ListBatches": orchestrator_pb2.ListBatchesRequest(page_token="bm9uc2Vuc2U"),
    }.items():
        error = await refused(stage, rpc, request)
        assert error.reason == "TOKEN_STALE"
        assert [violation.field for violation in error.violations] == ["page_token"]


@dataclass(frozen=True)
class BadUpdate:
    request: orchestrator_pb2.UpdateBatchRequest
    reason: str
    at: str


BAD_UPDATES = {
    "a field that is not to be changed": BadUpdate(update("state"), "FIELD_MASK_INVALID", "update_mask"),
    "an unknown field": BadUpdate(update("budget", "colour"), "FIELD_MASK_INVALID", "update_mask"),
    "no field": BadUpdate(update(), "FIELD_MASK_INVALID", "update_mask"),
    "concurrency 0": BadUpdate(update("concurrency"), "INVALID_FIELD", "batch.concurrency"),
    "concurrency over the server's": BadUpdate(
        update("concurrency", concurrency=11), "CONCURRENCY_OVER_MAXIMUM", "batch.concurrency"
    ),
    "a negative budget": BadUpdate(
        update("budget", budget=Money(currency_code="USD", nanos=-1)), "INVALID_FIELD", "batch.budget"
    ),
}


@pytest.mark.parametrize("bad", BAD_UPDATES.values(), ids=BAD_UPDATES)
async def test_an_update_that_makes_no_sense_changes_nothing(stage: Stage, bad: BadUpdate) -> None:
    request = orchestrator_pb2.UpdateBatchRequest()
    request.CopyFrom(bad.request)
    request.batch.name = stage.held.name
    error = await refused(stage, "UpdateBatch", request)
    assert error.reason == bad.reason
    assert [violation.field for violation in error.violations] == [bad.at]


UNBUILT = [
    value for value in orchestrator_pb2.DatasetFormat.values() if value > orchestrator_pb2.DATASET_FORMAT_MESSAGES
]


@pytest.mark.parametrize("value", UNBUILT, ids=orchestrator_pb2.DatasetFormat.Name)
async def test_a_format_that_is_not_built_says_so(stage: Stage, value: Any) -> None:
    request = orchestrator_pb2.ExportDatasetRequest(names=[stage.held.name], format=value)
    error = await refused(stage, "ExportDataset", request)
    assert error.reason == "NOT_BUILT"
    assert [violation.field for violation in error.violations] == ["format"]


async def test_shares_of_a_split_over_the_whole_are_refused(stage: Stage) -> None:
    split = orchestrator_pb2.DatasetSplit(validation=0.6, test=0.6)
    request = orchestrator_pb2.ExportDatasetRequest(names=[stage.held.name], split=split)
    error = await refused(stage, "ExportDataset", request)
    assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "split")


async def test_an_unknown_conversation_is_not_found(stage: Stage) -> None:
    name = f"{stage.held.name}/conversations/5"
    error = await refused(stage, "GetConversation", orchestrator_pb2.GetConversationRequest(name=name))
    assert (error.reason, error.metadata) == ("CONVERSATION_NOT_FOUND", {"conversation": name})


async def test_a_quote_of_another_spec_or_none_is_refused(stage: Stage) -> None:
    quoted = await stage.client.quote(spec(5))
    request = orchestrator_pb2.CreateBatchRequest(spec=spec(4), quote=quoted.quote.name)
    error = await refused(stage, "CreateBatch", request)
    assert (error.reason, error.metadata) == ("QUOTE_MISMATCH", {"quote": quoted.quote.name})
    request.quote = "quotes/nosuchquote"
    assert (await refused(stage, "CreateBatch", request)).reason == "QUOTE_NOT_FOUND"


async def test_a_stale_quote_comes_back_with_a_fresh_one(stage: Stage, tmp_path: Path) -> None:
    wanted = spec(4, hold_after=0)
    quoted = await stage.client.quote(wanted)
    prices = json.loads(PRICES_FILE.read_text())
    prices["models"][quoted.model]["out"] *= 2
    dearer = tmp_path / "prices.json"
    dearer.write_text(json.dumps(prices))
    async with estimator_stopped(stage, PARLEY_RATES_FILE=str(dearer)):
        pass
    async with nothing_stored(stage):
        with pytest.raises(QuoteStale) as stale:
            await stage.client.create(wanted, quote=quoted.quote.name)
    assert "prices changed" in stale.value.message
    fresh = stale.value.fresh_quote
    assert fresh is not None
    assert fresh.name == stale.value.metadata["fresh"]
    assert fresh.cost.mean.nanos > quoted.quote.cost.mean.nanos
    started = await stage.client.create(wanted, quote=fresh.name)
    assert started.quote == fresh.name


async def test_without_an_estimator_only_an_unquoted_batch_starts(stage: Stage) -> None:
    async with estimator_stopped(stage):
        request = orchestrator_pb2.CreateBatchRequest(spec=spec(4, hold_after=0))
        error = await refused(stage, "CreateBatch", request)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ESTIMATOR_UNAVAILABLE")
        assert error.retry_after_s is not None
        assert error.retry_after_s > 0
        assert "allow_unquoted" in error.next_step
        unquoted = await stage.client.create(spec(4, hold_after=0), allow_unquoted=True)
        assert unquoted.quote == ""
        assert not unquoted.HasField("quoted_cost")


@asynccontextmanager
async def estimator_stopped(stage: Stage, **settings: str) -> AsyncGenerator[None]:
    """It comes back afterwards, with other settings where some are given."""
    estimator = stage.pair.estimator
    assert await estimator.stop() == 0
    try:
        yield
    finally:
        estimator.environment = {**estimator.environment, **settings}
        await estimator.start()
        async with asyncio.timeout(WAIT_MAX_S):
            while not await quotes(stage.client):
                pass


async def quotes(client: BatchClient) -> bool:
    """Whether the orchestrator has found its way back to the estimator."""
    try:
        reply = await client.quote(spec(1))
    except Unavailable:
        return False
    return reply.HasField("quote")
