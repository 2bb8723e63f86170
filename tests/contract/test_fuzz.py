"""Whatever is sent to a server: it answers in time and with a reason, keeps what it runs, and does not grow.

PARLEY_FUZZ_REQUESTS   how many calls each server gets (1,200); 50,000 take ten minutes
PARLEY_FUZZ_SEED       another seed, other calls (1)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from corpus import Corpus
from evidence import damage, last_seen
from fuzzing import Fuzz
from google.protobuf.message import Message
from google.type.money_pb2 import Money
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2, estimator_pb2, orchestrator_pb2, quote_pb2
from parley.v1.estimator_pb2_grpc import (
    BatchEstimatorServicer,
    BatchEstimatorStub,
    add_BatchEstimatorServicer_to_server,
)
from parley.wire.server import Server as WireServer
from parley.wire.server import ServerSettings
from reflected import Metadata, served_methods
from servers import Pair, Server, running_pair, running_sandbox
from shots import CHANNEL_OPTIONS, Outcome, Shot, fault_of, fire
from vitals import Vitals, complaints, vitals_of

pytestmark = pytest.mark.anyio

REQUESTS = int(os.environ.get("PARLEY_FUZZ_REQUESTS", "1200"))
SEED = int(os.environ.get("PARLEY_FUZZ_SEED", "1"))
# In thirds: caches fill in the first (statements, pages of the database, plans), and the last shows what grew.
ROUNDS = 3 * max(2, REQUESTS // 3_000)
QUICK_MAX_S = 5.0
ANSWERED_MIN = 0.125
# From the least of the first rounds to the least of the last ones.
GROWTH_MAX = {"memory_bytes": 32 * 1024 * 1024, "open_files": 16, "threads": 12}
WATCHERS_MAX = 32
# What is freed goes back to the system, so that the resident memory shows what is held.
FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
FUZZER, OTHER = "token-of-the-fuzzer", "token-of-another"
TOKENS = f"{FUZZER} fuzzer act-for-others\n{OTHER} other\n"
HEALTH = Shot(path="/grpc.health.v1.Health/Check", streams=False, body=b"")


def authorization(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Course:
    """One server on its way through the rounds."""

    server: Server
    fuzz: Fuzz
    # A request that must work, whenever.
    usual: Callable[[], Awaitable[object]]
    vitals: list[Vitals] = field(default_factory=list[Vitals])

    async def round(self) -> None:
        await self.fuzz.run(REQUESTS // ROUNDS)
        async with asyncio.timeout(QUICK_MAX_S):
            health = await fire(self.fuzz.channel, HEALTH)
            await self.usual()
        # SERVING.
        assert health.replies == [b"\x08\x01"], health
        assert self.server.process is not None
        self.vitals.append(vitals_of(self.server.process.pid))

    def check(self) -> None:
        found = "\n".join([*self.fuzz.findings, *complaints(self.server.log)])
        assert not found, f"seed {SEED}:\n{found}"
        first, last = self.vitals[: ROUNDS // 3], self.vitals[-ROUNDS // 3 :]
        # Shown by pytest -s, and beside a failure.
        print([(one.memory_bytes >> 20, one.open_files, one.threads) for one in self.vitals])  # noqa: T201
        for name, most in GROWTH_MAX.items():
            grown = min(getattr(one, name) for one in last) - min(getattr(one, name) for one in first)
            assert grown <= most, f"{name} grew by {grown}: {self.vitals}"
        told = self.fuzz.told
        # Many must be answered, or nothing behind the rules was reached.
        answered = sum(count for key, count in told.items() if key.endswith(" OK"))
        assert answered >= told.total() * ANSWERED_MIN, told


@asynccontextmanager
async def course(
    server: Server,
    corpus: Corpus,
    usual: Callable[[], Awaitable[object]],
    metadata: Sequence[Metadata] = ((),),
) -> AsyncGenerator[Course]:
    address = server.announced["address"]
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        methods = await served_methods(channel, metadata[0])
        assert methods
        fuzz = Fuzz(channel, address, methods, Random(SEED), corpus, metadata)
        yield Course(server, fuzz, usual)


# The orchestrator


@pytest.fixture(name="pair", scope="module")
async def frugal_pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Pair]:
    """With tokens, small limits, and a provider that sometimes fails in ways that are tried again."""
    folder = tmp_path_factory.mktemp("fuzz")
    tokens = folder / "tokens"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    settings: dict[str, Any] = {
        "PARLEY_TOKENS_FILE": str(tokens),
        "PARLEY_MAX_CONVERSATIONS": "300",
        "PARLEY_MAX_WATCHERS": str(WATCHERS_MAX),
        # Any call that SettleCall names may be said to have cost a million.
        "PARLEY_DAILY_BUDGET": "1000000000",
        "PARLEY_OWNER_DAILY_BUDGET": "900000000",
        **FRUGAL,
    }
    provider = ("--speed-up", "1000", "--tokens-mean", "200", "--fault", "reset=0.1", "--fault", "overloaded=0.03")
    async with running_sandbox(folder, *provider) as sandbox, running_pair(folder, sandbox, **settings) as pair:
        yield pair


def small_spec(count: int, **fields: Any) -> batch_pb2.BatchSpec:
    """One that a mutation can reach every part of."""
    axis = batch_pb2.Axis(id="topic", values=[batch_pb2.AxisValue(id=f"v{n}", text=f"Topic {n}") for n in range(3)])
    tier = batch_pb2.Tier(id="template", count=count, prompt=batch_pb2.Prompt(text="{{ topic }} for {{ client.name }}"))
    made = batch_pb2.BatchSpec(name="Fuzz", tiers=[tier], axes=[axis], labels={"team": "fuzz"}, **fields)
    made.shared_parameters.update({"client": {"name": "Ann", "age": 31}, "words": ["one", 2]})
    return made


async def new_world(client: BatchClient, corpus: Corpus) -> None:
    """Batches in all the states that a request may find one in, and what the server says of them."""
    corpus.forget()
    wanted = (
        small_spec(4, hold_after=2),
        small_spec(4, hold_after=0),
        small_spec(2, hold_after=0),
        small_spec(20, seed=7, concurrency=5),
        batch_pb2.BatchSpec(name="Built-in", tiers=[batch_pb2.Tier(id="scenario", count=2)], hold_after=0),
        small_spec(100, concurrency=1),
        small_spec(3, budget=Money(currency_code="USD", nanos=1)),
    )
    made = await asyncio.gather(*[client.create(spec) for spec in wanted])
    pilot, waiting, gone, ended, dropped, running, _ = made
    await client.cancel(dropped.name)
    await last_seen(client, gone.name, until="settled")
    await client.delete(gone.name)
    await client.update(waiting.name, labels={"team": "other"}, priority=batch_pb2.PRIORITY_HIGH)
    for batch in made:
        corpus.hear(batch)
    for batch in (pilot, waiting, ended, dropped, running):
        corpus.hear(await client.get_spec(batch.name))
    await last_seen(client, ended.name)
    async for call in client.calls(ended.name):
        corpus.hear(call)
    async for conversation in client.conversations(ended.name):
        corpus.hear(conversation)
    quoted = await client.quote(small_spec(2))
    corpus.hear(quoted.quote)


async def test_the_orchestrator_endures_any_request(pair: Pair) -> None:
    async with BatchClient(pair.address, token=FUZZER) as client:
        canary = await client.create(small_spec(12, hold_after=2, concurrency=2))
        # Whoever fuzzes can't name it, so that its end is the server's doing alone.
        corpus = Corpus(Random(SEED), spared=canary.name.removeprefix("batches/"))
        callers = (authorization(FUZZER), authorization(FUZZER), authorization(OTHER))
        async with course(pair.orchestrator, corpus, lambda: client.get(canary.name), metadata=callers) as run:
            for number in range(ROUNDS):
                await new_world(client, corpus)
                if number == ROUNDS // 3:
                    await client.resume(canary.name)
                await run.round()
            run.check()
            ended = await last_seen(client, canary.name)
            await all_places_are_free(run.fuzz.channel, canary.name)
    assert (ended.state, ended.counts.deliverable) == (batch_pb2.BATCH_STATE_SUCCEEDED, 12)
    assert await pair.orchestrator.stop() == 0
    assert complaints(pair.orchestrator.log) == []
    assert damage(pair.database) == {}


async def all_places_are_free(channel: grpc.aio.Channel, name: str) -> None:
    """As many watchers as the server allows fit, and not one more: none of those who left still has a place."""
    path, body = "/parley.v1.BatchOrchestrator/WatchBatches", orchestrator_pb2.WatchBatchesRequest().SerializeToString()
    kind: Any = channel.unary_stream
    async with AsyncExitStack() as stack:
        for _ in range(WATCHERS_MAX):
            call: Any = kind(path)(body, metadata=authorization(FUZZER))
            stack.callback(call.cancel)
            async with asyncio.timeout(QUICK_MAX_S):
                assert await call.read() is not grpc.aio.EOF
        beyond = await fire(channel, Shot(path=path, streams=True, body=body, metadata=authorization(FUZZER)))
        assert beyond.reason == "TOO_MANY_WATCHERS"


# The estimator


@pytest.fixture(name="estimator")
async def frugal_estimator(tmp_path: Path) -> AsyncGenerator[Server]:
    environment = {
        "PARLEY_ESTIMATOR_LISTEN": f"unix:{tmp_path}/e.sock",
        "PARLEY_ESTIMATOR_DATABASE": str(tmp_path / "estimator.db"),
        **FRUGAL,
    }
    server = Server(("-m", "estimator_service"), environment, tmp_path / "estimator.log")
    await server.start()
    yield server
    await server.stop()


def workload(count: int, **fields: Any) -> quote_pb2.Workload:
    groups = [
        quote_pb2.WorkloadGroup(id=tier, tier=tier, model="claude-sonnet-5-5", count=count, max_output_tokens=8_000)
        for tier in ("template", "scenario")
    ]
    return quote_pb2.Workload(groups=groups, concurrency=3, **fields)


async def test_the_estimator_endures_any_request(estimator: Server) -> None:
    corpus = Corpus(Random(SEED), spared="nothing is spared")
    async with grpc.aio.insecure_channel(estimator.announced["address"]) as channel:
        stub = BatchEstimatorStub(channel)
        for count in (1, 30, 5_000):
            asked = estimator_pb2.CreateQuoteRequest(workload=workload(count), request_id=f"r{count}")
            corpus.hear(asked)
            corpus.hear(await stub.CreateQuote(asked))
        observed = quote_pb2.Observation(call="batches/abcd/calls/1", tier="template", model="claude-sonnet-5-5")
        observed.outcome = conversation_pb2.CALL_OUTCOME_ANSWERED
        observed.usage.output_tokens = 2_000
        observed.duration.seconds = 60
        corpus.hear(observed)
        usual = lambda: stub.ListRates(estimator_pb2.ListRatesRequest())  # noqa: E731  a stub's call is no coroutine
        async with course(estimator, corpus, usual) as run:
            for _ in range(ROUNDS):
                await run.round()
            run.check()
    assert await estimator.stop() == 0
    assert complaints(estimator.log) == []


# What they find


class Broken(BatchEstimatorServicer):
    """Breaks in the ways that the runs look for."""

    async def GetQuote(self, request: Message, context: Any) -> quote_pb2.Quote:
        raise RuntimeError("nobody thought of that")

    async def ListQuotes(self, request: Message, context: Any) -> estimator_pb2.ListQuotesResponse:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no reason is given")
        raise AssertionError

    async def ListRates(self, request: Message, context: Any) -> estimator_pb2.ListRatesResponse:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture(name="broken")
async def broken_server(tmp_path: Path) -> AsyncGenerator[str]:
    settings = ServerSettings(listen=f"unix:{tmp_path}/b.sock")
    server = WireServer(settings, service_names=["parley.v1.BatchEstimator"])
    add_BatchEstimatorServicer_to_server(Broken(), server.aio)  # pyright: ignore[reportAbstractUsage]
    await server.start()
    yield server.address
    await server.stop()


@pytest.mark.parametrize(("rpc", "fault"), [("GetQuote", "INTERNAL"), ("ListQuotes", "without a reason")])
async def test_an_answer_that_must_not_be_is_found(broken: str, rpc: str, fault: str) -> None:
    corpus = Corpus(Random(SEED), spared="nothing is spared")
    async with grpc.aio.insecure_channel(broken, options=CHANNEL_OPTIONS) as channel:
        methods = [method for method in await served_methods(channel) if method.name == rpc]
        fuzz = Fuzz(channel, broken, methods, Random(SEED), corpus)
        await fuzz.run(100)
    assert fuzz.findings
    assert all(fault in finding and f"BatchEstimator/{rpc}" in finding for finding in fuzz.findings)


async def test_a_call_that_does_not_end_is_found(broken: str) -> None:
    shot = Shot(path="/parley.v1.BatchEstimator/ListRates", streams=False, body=b"", timeout_s=None)
    async with grpc.aio.insecure_channel(broken, options=CHANNEL_OPTIONS) as channel:
        outcome = await fire(channel, shot, wait_max_s=0.1)
    assert outcome == Outcome(code=None, message="it did not end")
    assert fault_of(shot, outcome)


async def test_an_rpc_that_is_not_served_is_no_fault(broken: str) -> None:
    shot = Shot(path="/parley.v1.BatchEstimator/CompareQuote", streams=False, body=b"")
    async with grpc.aio.insecure_channel(broken, options=CHANNEL_OPTIONS) as channel:
        outcome = await fire(channel, shot)
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")
    assert fault_of(shot, outcome) == ""


def test_a_log_that_complains_is_found(tmp_path: Path) -> None:
    fine = '{"event": "call", "level": "info"}'
    bad = [
        "Traceback (most recent call last):",
        '{"event": "x", "level": "error"}',
        '{"exception": "...", "level": "info"}',
    ]
    log = tmp_path / "server.log"
    log.write_text("\n".join([fine, *bad, "", fine]))
    assert complaints(log) == bad
