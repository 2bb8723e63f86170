"""The blocking client on gRPC's own fake channel and fake clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from queue import Queue
from typing import Any, TypeVar

import grpc
import grpc_testing
import pytest
from google.rpc import error_details_pb2, status_pb2
from parley.exceptions import NotFound, Unavailable
from parley.sync import Client
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2

SERVICE: Any = orchestrator_pb2.DESCRIPTOR.services_by_name["BatchOrchestrator"]
# It comes without types.
TESTING: Any = grpc_testing
NAME = "batches/plants1"
WAIT_MAX_S = 5.0
T = TypeVar("T")


class World:
    """A client in a thread of its own, the channel that it calls, and the clock that it waits by."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.channel: Any = TESTING.channel([SERVICE], TESTING.strict_real_time())
        self.time: Any = TESTING.strict_fake_time(0)
        self.waits_s: list[float] = []
        self.client = Client(
            channel=self.channel,
            patience_s=30,
            chance=random.Random(1),
            monotonic_s=self.time.time,
            sleep_s=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.time.sleep_for(seconds)

    def calling(self, verb: Callable[[], T]) -> Future[T]:
        return self._pool.submit(verb)

    def take(self, method: str) -> tuple[Any, Any]:
        """The request of the next call, and the call to answer it by."""
        _, request, call = self.channel.take_unary_unary(SERVICE.methods_by_name[method])
        return request, call

    def take_stream(self, method: str) -> tuple[Any, Any]:
        _, request, call = self.channel.take_unary_stream(SERVICE.methods_by_name[method])
        call.send_initial_metadata(())
        return request, call


@pytest.fixture(name="world")
def one_world() -> Iterator[World]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield World(pool)


def batch(state: batch_pb2.BatchState.ValueType = batch_pb2.BATCH_STATE_RUNNING) -> batch_pb2.Batch:
    return batch_pb2.Batch(name=NAME, state=state)


def watched(number: int, *, last: bool = False) -> orchestrator_pb2.WatchBatchResponse:
    state = batch_pb2.BATCH_STATE_SUCCEEDED if last else batch_pb2.BATCH_STATE_RUNNING
    event = batch_pb2.BatchEvent(number=number)
    return orchestrator_pb2.WatchBatchResponse(
        batch=batch(state), events=[event], resume_token=f"token-{number}", last=last
    )


def refusal(reason: str, code: grpc.StatusCode) -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status(code=code.value[0], message="No.")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="parley.v1", reason=reason))
    return (("grpc-status-details-bin", status.SerializeToString()),)


@contextmanager
def answered(call: Any, reply: Any) -> Generator[None]:
    call.send_initial_metadata(())
    call.terminate(reply, (), grpc.StatusCode.OK, "")
    yield


def test_a_verb_answers_with_the_batch(world: World) -> None:
    called = world.calling(lambda: world.client.pause("plants1"))
    request, call = world.take("PauseBatch")
    with answered(call, batch(batch_pb2.BATCH_STATE_PAUSED)):
        assert called.result(WAIT_MAX_S).state == batch_pb2.BATCH_STATE_PAUSED
    assert request.name == NAME


def test_create_sends_an_id_so_that_it_may_be_sent_again(world: World) -> None:
    called = world.calling(lambda: world.client.create(batch_pb2.BatchSpec(name="x")))
    request, call = world.take("CreateBatch")
    with answered(call, batch()):
        assert called.result(WAIT_MAX_S).name == NAME
    assert request.request_id


def test_a_call_is_settled_at_what_the_bill_says(world: World) -> None:
    called = world.calling(lambda: world.client.settle_call("plants1/calls/7", Decimal("0.05"), "console"))
    request, call = world.take("SettleCall")
    with answered(call, conversation_pb2.Call(name=f"{NAME}/calls/7")):
        assert called.result(WAIT_MAX_S).name == f"{NAME}/calls/7"
    assert (request.name, request.note) == (f"{NAME}/calls/7", "console")
    assert (request.cost.currency_code, request.cost.nanos) == ("USD", 50_000_000)


def test_lists_go_on_over_all_pages(world: World) -> None:
    called = world.calling(lambda: [one.name for one in world.client.list_batches(page_size=1)])
    page = orchestrator_pb2.ListBatchesResponse
    _, call = world.take("ListBatches")
    with answered(call, page(batches=[batch()], next_page_token="more")):
        request, call = world.take("ListBatches")
    with answered(call, page(batches=[batch()])):
        assert called.result(WAIT_MAX_S) == [NAME, NAME]
    assert request.page_token == "more"


def test_a_refusal_becomes_its_exception(world: World) -> None:
    called = world.calling(lambda: world.client.get("nothere1"))
    _, call = world.take("GetBatch")
    call.send_initial_metadata(())
    call.terminate(None, refusal("BATCH_NOT_FOUND", grpc.StatusCode.NOT_FOUND), grpc.StatusCode.NOT_FOUND, "No.")
    error = called.exception(WAIT_MAX_S)
    assert isinstance(error, NotFound)
    assert (error.reason, error.message) == ("BATCH_NOT_FOUND", "No.")


def test_watch_waits_and_goes_on_behind_the_last_event(world: World) -> None:
    seen: Queue[int] = Queue()

    def look() -> None:
        for message in world.client.watch(NAME):
            for event in message.events:
                seen.put(event.number)

    called = world.calling(look)
    first, stream = world.take_stream("WatchBatch")
    stream.send_response(watched(1))
    # The fake channel drops what was not read when the call ends.
    assert seen.get(timeout=WAIT_MAX_S) == 1
    stream.terminate((), grpc.StatusCode.UNAVAILABLE, "Socket closed")
    second, stream = world.take_stream("WatchBatch")
    stream.send_response(watched(1))
    stream.send_response(watched(2, last=True))
    called.result(WAIT_MAX_S)
    assert list(seen.queue) == [2]
    assert [first.resume_token, second.resume_token] == ["", "token-1"]
    assert world.waits_s == [world.time.time()]


def test_watch_gives_up_when_its_patience_ends(world: World) -> None:
    called = world.calling(lambda: list(world.client.watch(NAME)))
    while not called.done():
        _, stream = world.take_stream("WatchBatch")
        stream.terminate((), grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if sum(world.waits_s) > 30:
            break
    error = called.exception(WAIT_MAX_S)
    assert isinstance(error, Unavailable)
    assert sum(world.waits_s) > 30
    # Each wait is longer than those before, up to its ceiling.
    assert world.waits_s[0] < 0.25
    assert max(world.waits_s) <= 8


def test_wait_answers_with_what_the_batch_is_in_the_end(world: World) -> None:
    called = world.calling(lambda: world.client.wait("plants1"))
    request, stream = world.take_stream("WatchBatch")
    stream.send_response(watched(1))
    stream.send_response(watched(2, last=True))
    assert called.result(WAIT_MAX_S).state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert request.until == orchestrator_pb2.WATCH_UNTIL_SETTLED


def test_leaving_a_watch_cancels_its_call(world: World) -> None:
    def look_once() -> int:
        messages = world.client.watch(NAME)
        return next(messages).events[0].number

    called = world.calling(look_once)
    _, stream = world.take_stream("WatchBatch")
    stream.send_response(watched(1))
    assert called.result(WAIT_MAX_S) == 1
    stream.cancelled()
