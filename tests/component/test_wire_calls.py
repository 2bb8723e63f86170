"""The way of a call through a server: its one log line, its request id, streams and cancellations."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from parley.v1 import estimator_pb2, orchestrator_pb2, quote_pb2
from structlog.testing import capture_logs
from wire_fixtures import ASK, WAIT_MAX_S, WATCH, DomainError, Served, failure_of, serving

pytestmark = pytest.mark.anyio

Line = MutableMapping[str, Any]


def calls(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["event"] == "call" and line["log_level"] == "info"]


async def count_to_three(
    request: orchestrator_pb2.WatchBatchRequest,
) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
    for number in (1, 2, 3):
        yield orchestrator_pb2.WatchBatchResponse(resume_token=str(number))


async def fail_after_one(
    request: orchestrator_pb2.WatchBatchRequest,
) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
    yield orchestrator_pb2.WatchBatchResponse(resume_token="1")
    raise DomainError("SHUTTING_DOWN", retry_after_s=2)


class Endless:
    """A watch that never ends by itself and says when it was let go."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def watch(self, request: object) -> AsyncIterator[orchestrator_pb2.WatchBatchResponse]:
        try:
            yield orchestrator_pb2.WatchBatchResponse(resume_token="1")
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_a_call_writes_one_line():
    with capture_logs() as lines:
        async with serving() as served:
            await served.estimator.GetQuote(ASK, metadata=(("x-request-id", "web-1"),))
    [line] = calls(lines)
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "call",
        "log_level": "info",
        "service": "parley.v1.BatchEstimator",
        "method": "GetQuote",
        "code": "OK",
        "reason": "",
        "caller": "local",
        "request_id": "web-1",
        "resource": "quotes/abcd",
    }


async def test_a_refused_call_writes_one_line_with_its_reason():
    async def refuse(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        raise DomainError("QUOTE_NOT_FOUND")

    with capture_logs() as lines:
        async with serving(refuse) as served:
            await failure_of(served.estimator.GetQuote(ASK))
    [line] = calls(lines)
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "QUOTE_NOT_FOUND")


async def test_a_stream_writes_one_line_with_its_messages():
    with capture_logs() as lines:
        async with serving(watch=count_to_three) as served:
            tokens = [message.resume_token async for message in served.orchestrator.WatchBatch(WATCH)]
    [line] = calls(lines)
    assert tokens == ["1", "2", "3"]
    assert (line["code"], line["messages"], line["resource"]) == ("OK", 3, "batches/abcd")


async def test_an_unknown_method_writes_one_line():
    with capture_logs() as lines:
        async with serving() as served:
            await failure_of(served.send("/parley.v1.BatchEstimator/Nothing", b""))
    [line] = calls(lines)
    assert (line["method"], line["code"]) == ("Nothing", "UNIMPLEMENTED")


async def test_probes_do_not_fill_the_log():
    with capture_logs() as lines:
        async with serving() as served:
            await served.health()
    assert calls(lines) == []


async def test_a_stream_that_fails_in_the_middle_keeps_what_came_and_says_why():
    async with serving(watch=fail_after_one) as served:
        call = served.orchestrator.WatchBatch(WATCH)
        assert (await read(call)).resume_token == "1"
        failure = await failure_of(call.read())
    assert (failure.reason, failure.retry_after_s) == ("SHUTTING_DOWN", 2.0)


async def test_leaving_a_stream_ends_its_handler_and_is_no_error():
    endless = Endless()
    with capture_logs() as lines:
        async with serving(watch=endless.watch) as served:
            call = served.orchestrator.WatchBatch(WATCH)
            await read(call)
            call.cancel()
            await asyncio.wait_for(endless.ended.wait(), WAIT_MAX_S)
    [line] = calls(lines)
    assert (line["code"], line["messages"]) == ("CANCELLED", 1)
    assert not [line for line in lines if line["log_level"] == "error"]


async def test_a_refused_call_leaves_nothing_of_its_request_behind():
    """gRPC keeps what a call was aborted with, in a circle that only a garbage collection opens."""

    class Held:
        """What the handler holds, as it does the request."""

    alive: list[weakref.ref[Held]] = []

    async def refuse(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        held = Held()
        alive.append(weakref.ref(held))
        raise DomainError("QUOTE_NOT_FOUND")

    gc.disable()
    try:
        async with serving(refuse) as served:
            for _ in range(5):
                await failure_of(served.estimator.GetQuote(ASK))
            kept = [one for one in alive[:4] if one() is not None]
    finally:
        gc.enable()
    assert len(alive) == 5
    assert kept == []


async def test_an_rpc_that_the_service_left_out_is_not_built():
    with capture_logs() as lines:
        async with serving() as served:
            failure = await failure_of(served.estimator.ListRates(estimator_pb2.ListRatesRequest()))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")
    assert failure.metadata == {"method": "ListRates"}
    assert [(line["code"], line["reason"]) for line in calls(lines)] == [("UNIMPLEMENTED", "NOT_BUILT")]


async def test_a_reply_that_no_message_holds_is_told_in_answer_and_line():
    async def too_much(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        return quote_pb2.Quote(stale_reason="x" * 40_000_000)

    with capture_logs() as lines, library_errors() as errors:
        async with serving(too_much) as served:
            failure = await failure_of(served.estimator.GetQuote(ASK))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Ask for less" in failure.message
    assert [line["code"] for line in calls(lines)] == ["RESOURCE_EXHAUSTED"]
    assert errors == []


async def test_leaving_a_call_cancels_its_handler():
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait_forever(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return quote_pb2.Quote()

    with capture_logs() as lines:
        async with serving(wait_forever) as served:
            call = served.estimator.GetQuote(ASK)
            await asyncio.wait_for(begun.wait(), WAIT_MAX_S)
            call.cancel()
            await asyncio.wait_for(cancelled.wait(), WAIT_MAX_S)
    assert [line["code"] for line in calls(lines)] == ["CANCELLED"]


async def test_a_deadline_that_passes_ends_the_handler():
    endless = Endless()
    with capture_logs() as lines:
        async with serving(watch=endless.watch) as served:
            call = served.orchestrator.WatchBatch(WATCH, timeout=0.2)
            await read(call)
            failure = await failure_of(call.read())
            await asyncio.wait_for(endless.ended.wait(), WAIT_MAX_S)
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure.sentence == "The server did not answer in time."
    assert [line["code"] for line in calls(lines)] == ["DEADLINE_EXCEEDED"]


async def test_the_request_id_of_the_caller_comes_back():
    assert await request_id_for("web-1.a_B") == "web-1.a_B"


@pytest.mark.parametrize("given", ["", "with space", "x" * 65, "a=b"])
async def test_a_request_id_that_could_forge_a_log_line_is_replaced(given: str):
    replaced = await request_id_for(given)
    assert replaced != given
    assert len(replaced) == 32


async def test_a_failed_call_names_its_request_id():
    async def refuse(request: estimator_pb2.GetQuoteRequest) -> quote_pb2.Quote:
        raise DomainError("QUOTE_NOT_FOUND")

    async with serving(refuse) as served:
        call = served.estimator.GetQuote(ASK, metadata=(("x-request-id", "web-1"),))
        assert (await failure_of(call)).request_id == "web-1"


async def test_concurrent_calls_keep_their_own_request_ids():
    async with serving() as served:
        names = [f"call-{number}" for number in range(20)]
        assert list(await asyncio.gather(*(trailing_id(served, name) for name in names))) == names


@contextmanager
def library_errors() -> Generator[list[logging.LogRecord]]:
    """What gRPC itself logs as an error of the server."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep, logger = Keep(logging.ERROR), logging.getLogger("grpc")
    logger.addHandler(keep)
    try:
        yield records
    finally:
        logger.removeHandler(keep)


async def read(
    call: "grpc.aio.UnaryStreamCall[orchestrator_pb2.WatchBatchRequest, orchestrator_pb2.WatchBatchResponse]",
) -> orchestrator_pb2.WatchBatchResponse:
    message = await asyncio.wait_for(call.read(), WAIT_MAX_S)
    assert isinstance(message, orchestrator_pb2.WatchBatchResponse)
    return message


async def request_id_for(given: str) -> str:
    async with serving() as served:
        return await trailing_id(served, given)


async def trailing_id(served: Served, given: str) -> str:
    call = served.estimator.GetQuote(ASK, metadata=(("x-request-id", given),))
    await call
    return str((await call.trailing_metadata())["x-request-id"])
