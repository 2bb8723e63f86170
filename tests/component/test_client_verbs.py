"""The client's verbs against a real gRPC server: what they send, and what they raise."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest
from client_fixtures import NAME, Told, batch, call, conversation, exported, lost_call, parley, quoted, serving
from parley import money
from parley.client import BatchClient
from parley.exceptions import (
    Conflict,
    DownloadDamaged,
    InvalidRequest,
    LimitReached,
    NotBuilt,
    NotFound,
    ParleyError,
    QuoteStale,
    ServerError,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2
from parley.wire.errors import FieldViolation, Refusal, reason_infos

pytestmark = pytest.mark.anyio

SPEC = batch_pb2.BatchSpec(name="Plants", tiers=[batch_pb2.Tier(id="scenario", count=3)])


async def test_create_sends_an_id_so_that_it_may_be_sent_again() -> None:
    told = Told()
    async with serving(told) as target, BatchClient(target) as client:
        await client.create(SPEC)
        await client.create(SPEC, request_id="mine", quote="quotes/abcd", owner="nadia")
    made, given = told.asked(orchestrator_pb2.CreateBatchRequest)
    assert len(made.request_id) == 32
    assert (given.request_id, given.quote, given.owner) == ("mine", "quotes/abcd", "nadia")


async def test_a_bare_id_names_the_batch() -> None:
    told = Told(batches={NAME: batch()})
    async with serving(told) as target, BatchClient(target) as client:
        assert (await client.get("plants1")).name == (await client.get(NAME)).name == NAME


async def test_lists_go_on_over_all_pages() -> None:
    names = [f"batches/b{number:04}" for number in range(5)]
    told = Told(batches={name: batch(name=name) for name in names})
    async with serving(told) as target, BatchClient(target) as client:
        assert [batch.name async for batch in client.list_batches(page_size=2)] == names
    assert [request.page_token for request in told.requests] == ["", "2", "4"]


async def test_update_names_every_field_and_takes_limits_away() -> None:
    told = Told(batches={NAME: batch()})
    async with serving(told) as target, BatchClient(target) as client:
        await client.update(NAME, budget=None, hold_after=0, labels={"a": "b"}, etag="e1")
        await client.update(NAME, budget=Decimal("7.5"))
    first, second = told.asked(orchestrator_pb2.UpdateBatchRequest)
    assert list(first.update_mask.paths) == ["budget", "hold_after", "labels"]
    assert not first.batch.HasField("budget")
    assert first.batch.HasField("hold_after")
    assert (dict(first.batch.labels), first.batch.etag) == ({"a": "b"}, "e1")
    assert money.to_decimal(second.batch.budget) == Decimal("7.5")


async def test_retry_sends_its_own_id() -> None:
    told = Told(batches={NAME: batch()})
    async with serving(told) as target, BatchClient(target) as client:
        reply = await client.retry(NAME)
    assert reply.requeued == 4
    assert told.requests[0].request_id
    assert not told.requests[0].HasField("filter")


async def test_a_call_is_settled_at_what_the_bill_says() -> None:
    told = Told(calls=[lost_call(2), lost_call(3), lost_call(4)])
    async with serving(told) as target, BatchClient(target) as client:
        settled = await client.settle_call(f"{NAME}/calls/2", Decimal("0.0312"), "console, 23 Nov")
        await client.settle_call("plants1/calls/3", money.from_nanos(5))
        await client.settle_call("plants1/calls/4")
    billed, exact, not_billed = told.asked(orchestrator_pb2.SettleCallRequest)
    assert (settled.name, settled.note) == (f"{NAME}/calls/2", "console, 23 Nov")
    assert (money.to_decimal(billed.cost), billed.cost.currency_code) == (Decimal("0.0312"), "USD")
    assert (exact.name, money.to_nanos(exact.cost)) == (f"{NAME}/calls/3", 5)
    assert not not_billed.HasField("cost")


async def test_settling_what_can_not_be_settled_is_told_apart() -> None:
    async with serving(Told(calls=[call(1)])) as target, BatchClient(target) as client:
        with pytest.raises(WrongState) as known:
            await client.settle_call("plants1/calls/1")
        with pytest.raises(NotFound) as absent:
            await client.settle_call("plants1/calls/9")
    assert (known.value.reason, absent.value.reason) == ("STATE_FORBIDS", "CALL_NOT_FOUND")


async def test_the_ledger_goes_on_over_all_pages() -> None:
    told = Told(calls=[call(number) for number in range(1, 6)])
    async with serving(told) as target, BatchClient(target) as client:
        assert [one.name.rpartition("/")[2] async for one in client.calls(NAME)] == ["1", "2", "3", "4", "5"]


FAMILIES = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Unauthenticated,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": Conflict,
    "ABORTED": Conflict,
    "FAILED_PRECONDITION": WrongState,
    "UNIMPLEMENTED": NotBuilt,
    "UNAVAILABLE": Unavailable,
    "RESOURCE_EXHAUSTED": LimitReached,
    "INTERNAL": ServerError,
}


@pytest.mark.parametrize("reason", sorted(reason_infos()))
async def test_every_reason_of_the_contract_has_its_exception(reason: str) -> None:
    told = Told()
    told.refuse("GetBatch", Refusal(reason, "It can't be done.", metadata={"name": "x"}))
    async with serving(told) as target, BatchClient(target) as client:
        with pytest.raises(ParleyError) as caught:
            await client.get(NAME)
    error, info = caught.value, reason_infos()[reason]
    assert isinstance(error, FAMILIES[error.code.name])
    assert (error.reason, error.message, error.next_step) == (reason, "It can't be done.", info.next_step)
    assert error.metadata == {"name": "x"}
    assert error.request_id


async def test_fields_at_fault_are_named() -> None:
    told = Told()
    faults = [FieldViolation("spec.name", "is empty"), FieldViolation("spec.name", "is odd")]
    told.refuse("QuoteBatch", Refusal("INVALID_FIELD", "Two faults.", violations=faults))
    async with serving(told) as target, BatchClient(target) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.quote(SPEC)
    assert caught.value.fields == {"spec.name": "is empty; is odd"}
    assert str(caught.value) == "Two faults. (spec.name: is empty; is odd)"


async def test_a_stale_quote_brings_the_fresh_one() -> None:
    refusal = Refusal("QUOTE_STALE", "The quote is stale.")
    refusal.attachment = quote_pb2.Quote(name="quotes/fresh1")
    told = Told()
    told.refuse("CreateBatch", refusal)
    async with serving(told) as target, BatchClient(target) as client:
        with pytest.raises(QuoteStale) as caught:
            await client.create(SPEC, quote="quotes/abcd")
    assert caught.value.fresh_quote == quote_pb2.Quote(name="quotes/fresh1")


async def test_a_server_that_is_not_there_is_unavailable_in_plain_words() -> None:
    async with BatchClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable) as caught:
            await client.get(NAME)
    assert caught.value.message == "The server can't be reached."
    assert caught.value.metadata["transport"]


async def test_export_writes_the_file_and_checks_it(tmp_path: Path) -> None:
    told = Told(export=exported(b'{"a": 1}\n{"b": 2}\n'))
    async with serving(told) as target, BatchClient(target) as client:
        files = await client.export("plants1", tmp_path / "out")
    assert [(file.path.name, file.rows) for file in files.files] == [("train.jsonl", 2)]
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert (files.rows, files.left_out) == (2, {"QUARANTINED": 2})
    assert list(told.requests[0].names) == [NAME]


async def test_a_damaged_export_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("old")
    told = Told(export=exported(b"new\n", sha256="0" * 64))
    async with serving(told) as target, BatchClient(target) as client:
        with pytest.raises(DownloadDamaged):
            await client.export(NAME, tmp_path)
    assert os.listdir(tmp_path) == ["train.jsonl"]
    assert (tmp_path / "train.jsonl").read_text() == "old"


async def test_an_export_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    told = Told(export=exported(b"new\n")[:-1])
    async with serving(told) as target, BatchClient(target) as client:
        with pytest.raises(DownloadDamaged):
            await client.export(NAME, tmp_path)
    assert os.listdir(tmp_path) == []


async def test_the_rest_of_the_verbs_reach_their_methods() -> None:
    told = Told(batches={NAME: batch()}, conversations=[conversation()], calls=[call()])
    told.quotes.append(quoted())
    async with serving(told) as target, BatchClient(target) as client:
        assert (await client.quote(SPEC, sample_prompts=2)).model == "claude-sonnet-5"
        assert (await client.pause(NAME)).state == batch_pb2.BATCH_STATE_PAUSED
        assert (await client.resume(NAME)).name == NAME
        assert (await client.cancel(NAME)).state == batch_pb2.BATCH_STATE_CANCELLED
        assert (await client.conversation(NAME, 1)).number == 1
        assert [one.number async for one in client.conversations(NAME, full=True)] == [1]
        assert (await client.check_provider()).provider.sandbox
        assert (await client.spend(group_by=[orchestrator_pb2.SPEND_KEY_DAY])).total.calls_settled == 34
        assert (await client.get_spec(NAME)).name == "Questions about houseplants"
        assert [one.name async for one in client.calls(NAME)] == [f"{NAME}/calls/1"]
        await client.delete(NAME)
    assert told.batches == {}
    assert told.asked(orchestrator_pb2.QuoteBatchRequest)[0].sample_prompts == 2


async def test_the_client_says_how_it_is_used() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await BatchClient().get(NAME)


async def test_the_command_finds_a_server_by_the_environment() -> None:
    async with serving(Told(batches={NAME: batch()})) as target:
        done = await parley("list", target=target)
    assert done.code == 0, done.err
    assert "plants1" in done.out
