"""Who may call."""

import asyncio
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from parley.v1 import estimator_pb2, estimator_pb2_grpc, quote_pb2
from parley.wire import auth
from parley.wire.channel import ChannelSettings, open_blocking_channel
from parley.wire.errors import BootError
from parley.wire.server import ServerSettings
from wire_fixtures import ASK, LOOPBACK, WAIT_MAX_S, WATCH, failure_of, serving, write_tokens

pytestmark = pytest.mark.anyio

ALICE = "alices-secret-token"
APP = "the-web-apps-secret"


async def name_the_caller(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
    caller = auth.caller()
    return quote_pb2.Quote(owner=caller.name, stale=caller.may_act_for_others)


def guarded(tmp_path: Path) -> ServerSettings:
    tokens = write_tokens(tmp_path, "# who may call", f"{ALICE} alice", "", f"{APP} app act-for-others # the web app")
    return ServerSettings(listen=LOOPBACK, tokens_file=tokens)


async def test_without_a_token_file_everyone_is_local_and_may_act_for_others():
    async with serving(name_the_caller) as served:
        reply = await served.estimator.GetQuote(ASK)
    assert (reply.owner, reply.stale) == ("local", True)


async def test_a_known_token_is_its_owner(tmp_path: Path):
    async with serving(name_the_caller, settings=guarded(tmp_path), token=ALICE) as served:
        reply = await served.estimator.GetQuote(ASK)
    assert (reply.owner, reply.stale) == ("alice", False)


async def test_a_token_may_be_let_act_for_others(tmp_path: Path):
    async with serving(name_the_caller, settings=guarded(tmp_path), token=APP) as served:
        reply = await served.estimator.GetQuote(ASK)
    assert (reply.owner, reply.stale) == ("app", True)


async def test_a_call_without_token_is_refused(tmp_path: Path):
    async with serving(settings=guarded(tmp_path)) as served:
        failure = await failure_of(served.estimator.GetQuote(ASK))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


@pytest.mark.parametrize("authorization", [f"Bearer {ALICE}x", "Bearer ", f"Basic {ALICE}", ALICE])
async def test_a_wrong_authorization_is_refused(tmp_path: Path, authorization: str):
    async with serving(settings=guarded(tmp_path)) as served:
        call = served.estimator.GetQuote(ASK, metadata=(("authorization", authorization),))
        failure = await failure_of(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_two_tokens_in_one_call_are_refused(tmp_path: Path):
    async with serving(settings=guarded(tmp_path), token=ALICE) as served:
        call = served.estimator.GetQuote(ASK, metadata=(("authorization", f"Bearer {APP}"),))
        assert (await failure_of(call)).reason == "TOKEN_INVALID"


async def test_a_request_is_not_read_before_its_caller_is_known(tmp_path: Path):
    async with serving(settings=guarded(tmp_path)) as served:
        failure = await failure_of(served.send("/parley.v1.BatchEstimator/GetQuote", b"\xff\xff"))
    assert failure.reason == "TOKEN_MISSING"


async def test_a_stream_needs_the_token_too(tmp_path: Path):
    async with serving(settings=guarded(tmp_path)) as served:
        assert (await failure_of(served.orchestrator.WatchBatch(WATCH).read())).reason == "TOKEN_MISSING"


async def test_a_stream_carries_the_token(tmp_path: Path):
    async with serving(settings=guarded(tmp_path), token=ALICE) as served:
        assert [message.last async for message in served.orchestrator.WatchBatch(WATCH)] == [True]


async def test_health_is_served_without_a_token(tmp_path: Path):
    async with serving(settings=guarded(tmp_path)) as served:
        assert await served.health() == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_needs_a_token(tmp_path: Path):
    async with serving(settings=guarded(tmp_path)) as served:
        assert (await failure_of(served.list_services())).reason == "TOKEN_MISSING"


async def test_a_blocking_channel_carries_the_token(tmp_path: Path):
    async with serving(name_the_caller, settings=guarded(tmp_path), token=ALICE) as served:
        settings = ChannelSettings(target=served.server.address, token=APP)

        def ask() -> str:
            with open_blocking_channel(settings) as channel:
                # The stubs are typed for asyncio only.
                stub = cast("Any", estimator_pb2_grpc.BatchEstimatorStub)(channel)
                return stub.GetQuote(ASK, timeout=WAIT_MAX_S).owner

        assert await asyncio.to_thread(ask) == "app"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("short alice", "Line 2 .* under 16 characters"),
        (ALICE, "Line 2 .* must be `TOKEN NAME`"),
        (f"{ALICE} alice everything", "Line 2 .* must be `TOKEN NAME`"),
        (f"{APP} {'a' * 201}", "Line 2 .* over 200 characters"),
        ("the-first-secret-token bob", "Line 2 .* repeats a token"),
    ],
)
def test_a_bad_line_of_the_token_file_is_named_without_its_token(tmp_path: Path, line: str, complaint: str):
    path = write_tokens(tmp_path, "the-first-secret-token first", line)
    with pytest.raises(BootError, match=complaint) as caught:
        auth.Tokens.load(path)
    assert ALICE not in caught.value.message


def test_a_token_file_that_everyone_can_read_is_refused(tmp_path: Path):
    path = write_tokens(tmp_path, f"{ALICE} alice")
    path.chmod(0o644)
    with pytest.raises(BootError, match=r"open to every user .* chmod o-rwx"):
        auth.Tokens.load(path)


@pytest.mark.parametrize("lines", [(), ("# nobody",)])
def test_a_token_file_without_tokens_is_refused(tmp_path: Path, lines: tuple[str, ...]):
    with pytest.raises(BootError, match="has 0 tokens"):
        auth.Tokens.load(write_tokens(tmp_path, *lines))


def test_a_missing_token_file_is_named(tmp_path: Path):
    with pytest.raises(BootError, match="absent can't be read"):
        auth.Tokens.load(tmp_path / "absent")


def test_tokens_do_not_stay_in_memory(tmp_path: Path):
    tokens = auth.Tokens.load(write_tokens(tmp_path, f"{ALICE} alice"))
    assert ALICE not in repr(vars(tokens))
