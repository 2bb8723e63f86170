"""An orchestrator without an engine, on a real gRPC server: it answers what a test tells it to and notes what came."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from parley import money
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2, quote_pb2
from parley.v1.orchestrator_pb2_grpc import (
    BatchOrchestratorServicer,
    add_BatchOrchestratorServicer_to_server,
)
from parley.wire.errors import Refusal
from parley.wire.server import Server, ServerSettings

NAME = "batches/plants1"
QUOTE = "quotes/quote1"
# Few, so that whoever reads one page only is found out.
CALLS_A_PAGE = 2


@dataclass
class Break:
    """Ends a scripted stream by a refusal, or without its last message where there is none."""

    refusal: Refusal | None = None


Script = Sequence[orchestrator_pb2.WatchBatchResponse | Break]


@dataclass
class Told:
    """What the orchestrator answers, and what it was asked."""

    batches: dict[str, batch_pb2.Batch] = field(default_factory=dict[str, batch_pb2.Batch])
    conversations: list[conversation_pb2.Conversation] = field(default_factory=list[conversation_pb2.Conversation])
    calls: list[conversation_pb2.Call] = field(default_factory=list[conversation_pb2.Call])
    daily_budgets: list[orchestrator_pb2.DailyBudget] = field(default_factory=list[orchestrator_pb2.DailyBudget])
    quotes: deque[orchestrator_pb2.QuoteBatchResponse] = field(
        default_factory=deque[orchestrator_pb2.QuoteBatchResponse]
    )
    # One script for each connection of a watch; the last one stays.
    watches: deque[Script] = field(default_factory=deque[Script])
    sweeps: deque[Sequence[orchestrator_pb2.WatchBatchesResponse]] = field(
        default_factory=deque[Sequence[orchestrator_pb2.WatchBatchesResponse]]
    )
    export: list[orchestrator_pb2.ExportDatasetResponse] = field(
        default_factory=list[orchestrator_pb2.ExportDatasetResponse]
    )
    # Raised by the next call of a method, in turn.
    refusals: dict[str, deque[Refusal]] = field(default_factory=dict[str, "deque[Refusal]"])
    requests: list[Any] = field(default_factory=list[Any])
    # Set when a watcher's stream was cancelled by it.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def asked(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def refuse(self, method: str, *refusals: Refusal) -> None:
        self.refusals[method] = deque(refusals)


class Orchestrator(BatchOrchestratorServicer):
    def __init__(self, told: Told) -> None:
        self._told = told

    def _note(self, method: str, request: Any) -> None:
        self._told.requests.append(request)
        if waiting := self._told.refusals.get(method):
            raise waiting.popleft()

    def _batch(self, name: str) -> batch_pb2.Batch:
        if name not in self._told.batches:
            raise Refusal("BATCH_NOT_FOUND", f"There is no batch {name}.", metadata={"name": name})
        return self._told.batches[name]

    async def QuoteBatch(self, request: Any, context: Any) -> orchestrator_pb2.QuoteBatchResponse:
        self._note("QuoteBatch", request)
        return self._told.quotes.popleft() if len(self._told.quotes) > 1 else self._told.quotes[0]

    async def CreateBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("CreateBatch", request)
        return self._told.batches.setdefault(NAME, batch())

    async def GetBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("GetBatch", request)
        return self._batch(request.name)

    async def GetBatchSpec(self, request: Any, context: Any) -> batch_pb2.BatchSpec:
        self._note("GetBatchSpec", request)
        return batch_pb2.BatchSpec(name=self._batch(request.name).display_name)

    async def DeleteBatch(self, request: Any, context: Any) -> orchestrator_pb2.DeleteBatchResponse:
        self._note("DeleteBatch", request)
        del self._told.batches[request.name]
        return orchestrator_pb2.DeleteBatchResponse()

    async def ListCalls(self, request: Any, context: Any) -> orchestrator_pb2.ListCallsResponse:
        self._note("ListCalls", request)
        start, listed = int(request.page_token or 0), [call for call in self._told.calls if request.parent in call.name]
        end = start + min(request.page_size, CALLS_A_PAGE)
        token = str(end) if end < len(listed) else ""
        return orchestrator_pb2.ListCallsResponse(calls=listed[start:end], next_page_token=token)

    async def SettleCall(self, request: Any, context: Any) -> conversation_pb2.Call:
        self._note("SettleCall", request)
        found = next((call for call in self._told.calls if call.name == request.name), None)
        if found is None:
            raise Refusal("CALL_NOT_FOUND", f"There is no call {request.name}.", metadata={"call": request.name})
        if found.state != conversation_pb2.CALL_STATE_POSSIBLY_SPENT:
            state = conversation_pb2.CallState.Name(found.state).removeprefix("CALL_STATE_")
            raise Refusal("STATE_FORBIDS", f"The call is {state}.", metadata={"state": state})
        found.state, found.settled_by, found.note = conversation_pb2.CALL_STATE_SETTLED, "local", request.note
        found.cost.CopyFrom(request.cost)
        return found

    async def ListBatches(self, request: Any, context: Any) -> orchestrator_pb2.ListBatchesResponse:
        self._note("ListBatches", request)
        listed = list(self._told.batches.values())
        start, size = int(request.page_token or 0), request.page_size
        token = str(start + size) if start + size < len(listed) else ""
        return orchestrator_pb2.ListBatchesResponse(batches=listed[start : start + size], next_page_token=token)

    async def PauseBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("PauseBatch", request)
        self._batch(request.name).state = batch_pb2.BATCH_STATE_PAUSED
        return self._batch(request.name)

    async def ResumeBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("ResumeBatch", request)
        return self._batch(request.name)

    async def CancelBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("CancelBatch", request)
        self._batch(request.name).state = batch_pb2.BATCH_STATE_CANCELLED
        return self._batch(request.name)

    async def RetryBatch(self, request: Any, context: Any) -> orchestrator_pb2.RetryBatchResponse:
        self._note("RetryBatch", request)
        return orchestrator_pb2.RetryBatchResponse(batch=self._batch(request.name), requeued=4)

    async def UpdateBatch(self, request: Any, context: Any) -> batch_pb2.Batch:
        self._note("UpdateBatch", request)
        return self._batch(request.batch.name)

    async def GetConversation(self, request: Any, context: Any) -> conversation_pb2.Conversation:
        self._note("GetConversation", request)
        for conversation in self._told.conversations:
            if request.name == conversation.name:
                return conversation
        raise Refusal("CONVERSATION_NOT_FOUND", "There is no such conversation.")

    async def ListConversations(self, request: Any, context: Any) -> orchestrator_pb2.ListConversationsResponse:
        self._note("ListConversations", request)
        states, reviews = set(request.filter.states), set(request.filter.reviews)
        found = [
            conversation
            for conversation in self._told.conversations
            if (not states or conversation.state in states) and (not reviews or conversation.review in reviews)
        ]
        return orchestrator_pb2.ListConversationsResponse(conversations=found)

    async def CheckProvider(self, request: Any, context: Any) -> orchestrator_pb2.CheckProviderResponse:
        self._note("CheckProvider", request)
        provider = batch_pb2.ProviderInfo(base_url="http://127.0.0.1:7462", sandbox=True, speed_up=40)
        limits = quote_pb2.RateLimits(requests_per_minute=4000, output_tokens_per_minute=400_000)
        return orchestrator_pb2.CheckProviderResponse(
            provider=provider, model="claude-sonnet-5", cost=money.from_nanos(21_000), limits=limits
        )

    async def GetSpend(self, request: Any, context: Any) -> orchestrator_pb2.GetSpendResponse:
        self._note("GetSpend", request)
        spend = batch_pb2.Spend(confirmed=money.from_nanos(1_240_000_000), calls_settled=34)
        row = orchestrator_pb2.SpendRow(keys=["2026-11-23"], spend=spend)
        return orchestrator_pb2.GetSpendResponse(rows=[row], total=spend, daily_budgets=self._told.daily_budgets)

    async def ExportDataset(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.ExportDatasetResponse]:
        self._note("ExportDataset", request)
        for part in self._told.export:
            yield part

    async def WatchBatch(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
        self._note("WatchBatch", request)
        script = self._told.watches.popleft() if len(self._told.watches) > 1 else self._told.watches[0]
        for step in script:
            if isinstance(step, Break):
                if step.refusal is not None:
                    raise step.refusal
                return
            yield step
            if step.last:
                return
        await self._until_left()

    async def WatchBatches(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.WatchBatchesResponse]:
        self._note("WatchBatches", request)
        for message in self._told.sweeps.popleft():
            yield message
        if self._told.sweeps:
            raise Refusal("SHUTTING_DOWN", "The server is shutting down.")
        await self._until_left()

    async def _until_left(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self._told.left.set()


@asynccontextmanager
async def serving(told: Told, *, listen: str = "127.0.0.1:0") -> AsyncGenerator[str]:
    """The address of an orchestrator that answers what it was told."""
    server = Server(ServerSettings(listen=listen), service_names=("parley.v1.BatchOrchestrator",))
    add_BatchOrchestratorServicer_to_server(Orchestrator(told), server.aio)
    await server.start()
    await server.serving()
    try:
        yield server.address
    finally:
        await server.stop()


def batch(
    state: batch_pb2.BatchState.ValueType = batch_pb2.BATCH_STATE_RUNNING,
    *,
    name: str = NAME,
    done: int = 34,
    failed: int = 0,
    total: int = 90,
    holds: Sequence[batch_pb2.Hold] = (),
) -> batch_pb2.Batch:
    running = state == batch_pb2.BATCH_STATE_RUNNING
    counts = batch_pb2.Counts(
        total=total,
        pending=total - done - 3 * running,
        running=3 * running,
        generated=done - failed,
        failed=failed,
        deliverable=done - failed,
        in_flight=3 * running,
    )
    return batch_pb2.Batch(
        name=name,
        display_name="Questions about houseplants",
        state=state,
        holds=holds,
        counts=counts,
        tiers=[batch_pb2.TierProgress(tier="scenario", counts=counts, cost=money.from_nanos(1_240_000_000))],
        spend=batch_pb2.Spend(confirmed=money.from_nanos(1_240_000_000), calls_settled=done),
        forecast=batch_pb2.Forecast(
            projected_cost=money.from_nanos(3_280_000_000), time_left=duration_pb2.Duration(seconds=31)
        )
        if running
        else None,
        budget=money.from_nanos(5_000_000_000),
        quoted_cost=money.from_nanos(3_200_000_000),
        concurrency=3,
        model="claude-sonnet-5",
        owner="local",
        labels={"team": "plants"},
        create_time=timestamp_pb2.Timestamp(seconds=1_795_000_000),
        provider=batch_pb2.ProviderInfo(base_url="http://127.0.0.1:7462", sandbox=True, speed_up=40),
    )


def watched(
    batch: batch_pb2.Batch, *numbers: int, last: bool = False, reset: bool = False
) -> orchestrator_pb2.WatchBatchResponse:
    """A message of a watch with the events of these numbers."""
    events = [
        batch_pb2.BatchEvent(
            number=number,
            conversation_ended=batch_pb2.ConversationEnded(
                number=number,
                tier="scenario",
                state=conversation_pb2.CONVERSATION_STATE_GENERATED,
                review=conversation_pb2.REVIEW_PASSED,
                cost=money.from_nanos(36_000_000),
            ),
        )
        for number in numbers
    ]
    token = f"token-{numbers[-1]}" if numbers else ""
    return orchestrator_pb2.WatchBatchResponse(batch=batch, events=events, resume_token=token, last=last, reset=reset)


def quoted(*, sandbox: bool = True) -> orchestrator_pb2.QuoteBatchResponse:
    quote = quote_pb2.Quote(
        name=QUOTE,
        cost=quote_pb2.CostRange(
            mean=money.from_nanos(3_280_000_000),
            quantiles=[
                quote_pb2.CostRange.Quantile(p=p, value=money.from_nanos(nanos))
                for p, nanos in ((0.1, 2_900_000_000), (0.5, 3_250_000_000), (0.9, 3_700_000_000))
            ],
        ),
        time=quote_pb2.TimeRange(
            mean=duration_pb2.Duration(seconds=50),
            quantiles=[
                quote_pb2.TimeRange.Quantile(p=p, value=duration_pb2.Duration(seconds=seconds))
                for p, seconds in ((0.1, 44), (0.9, 61))
            ],
        ),
        groups=[
            quote_pb2.GroupQuote(group="g1", count=90, cost=quote_pb2.CostRange(mean=money.from_nanos(3_280_000_000)))
        ],
        workload=quote_pb2.Workload(
            groups=[quote_pb2.WorkloadGroup(id="g1", tier="scenario", count=90)], budget=money.from_nanos(5_000_000_000)
        ),
        basis=quote_pb2.Basis(text="the built-in prior of 47 real calls"),
        probability_cost_within_10_percent=0.62,
        probability_time_within_20_percent=0.999,
        warnings=[quote_pb2.QuoteWarning(message="The rate limit binds at 7 calls at a time.")],
        probability_within_budget=0.97,
        real_time_mean=duration_pb2.Duration(seconds=1980) if sandbox else None,
    )
    return orchestrator_pb2.QuoteBatchResponse(
        quote=quote,
        coverage=orchestrator_pb2.Coverage(
            cells=[orchestrator_pb2.CoverageCell(tier="scenario", axis="persona", value="nadia", count=30)],
            repeats={"scenario": 2},
        ),
        tiers=[batch_pb2.TierProgress(tier="scenario", counts=batch_pb2.Counts(total=90))],
        provider=batch_pb2.ProviderInfo(
            base_url="http://127.0.0.1:7462" if sandbox else "https://api.anthropic.com",
            sandbox=sandbox,
            speed_up=40 if sandbox else 1,
        ),
        model="claude-sonnet-5",
        concurrency=3,
    )


def conversation(number: int = 1, *, failed: bool = False) -> conversation_pb2.Conversation:
    return conversation_pb2.Conversation(
        name=f"{NAME}/conversations/{number}",
        number=number,
        tier="scenario",
        state=conversation_pb2.CONVERSATION_STATE_FAILED if failed else conversation_pb2.CONVERSATION_STATE_GENERATED,
        review=conversation_pb2.REVIEW_UNSPECIFIED if failed else conversation_pb2.REVIEW_PASSED,
        axis_values={"persona": "nadia"},
        turns=[
            conversation_pb2.Turn(role=conversation_pb2.ROLE_USER, content="my pothos is yellow again lol"),
            conversation_pb2.Turn(role=conversation_pb2.ROLE_ASSISTANT, content="Again? Where does it stand now?"),
        ],
        failure=conversation_pb2.Failure(reason=conversation_pb2.FAILURE_REASON_REFUSAL, message="The model refused.")
        if failed
        else None,
        attempts=1,
        cost=money.from_nanos(36_000_000),
    )


def call(number: int = 1, *, conversation: int = 1) -> conversation_pb2.Call:
    """An answered call."""
    return conversation_pb2.Call(
        name=f"{NAME}/calls/{number}",
        conversation=conversation,
        attempt=1,
        purpose=conversation_pb2.CALL_PURPOSE_GENERATE,
        state=conversation_pb2.CALL_STATE_SETTLED,
        outcome=conversation_pb2.CALL_OUTCOME_ANSWERED,
        usage=conversation_pb2.Usage(input_tokens=1_000, cache_read_tokens=234, output_tokens=2_345),
        cost=money.from_nanos(36_000_000),
        reserved_cost=money.from_nanos(84_000_000),
        duration=duration_pb2.Duration(seconds=62, nanos=140_000_000),
    )


def lost_call(number: int = 2, *, conversation: int = 2) -> conversation_pb2.Call:
    """A call whose outcome a crash hid."""
    return conversation_pb2.Call(
        name=f"{NAME}/calls/{number}",
        conversation=conversation,
        attempt=1,
        purpose=conversation_pb2.CALL_PURPOSE_GENERATE,
        state=conversation_pb2.CALL_STATE_POSSIBLY_SPENT,
        outcome=conversation_pb2.CALL_OUTCOME_INTERRUPTED,
        reserved_cost=money.from_nanos(84_100_000),
        error="The orchestrator ended before the answer came.",
    )


def exported(
    content: bytes, *, name: str = "train.jsonl", sha256: str = ""
) -> list[orchestrator_pb2.ExportDatasetResponse]:
    part = orchestrator_pb2.ExportDatasetResponse
    footer = orchestrator_pb2.ExportFileFooter(
        sha256=sha256 or hashlib.sha256(content).hexdigest(), size_bytes=len(content), rows=content.count(b"\n")
    )
    return [
        part(header=orchestrator_pb2.ExportFileHeader(file_name=name, media_type="application/jsonl")),
        part(data=content[:5]),
        part(data=content[5:]),
        part(footer=footer),
        part(summary=orchestrator_pb2.ExportSummary(rows=footer.rows, left_out={"QUARANTINED": 2})),
    ]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


async def parley(*arguments: str, target: str = "127.0.0.1:1", **environment: str) -> Done:
    """Runs the real command in a process of its own, without a terminal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "parley.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=plain_environment(PARLEY_ORCHESTRATOR=target, **environment),
    )
    out, err = await process.communicate()
    return Done(process.returncode or 0, out.decode(), err.decode())


def plain_environment(**more: str) -> dict[str, str]:
    """Without what this machine's user has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "ANTHROPIC_"))}
    return {**kept, "TERM": "xterm-256color", **more}


def unavailable() -> Refusal:
    return Refusal("SHUTTING_DOWN", "The server is shutting down.")
