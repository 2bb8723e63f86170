"""Settlements, late answers, deletion, and the rules that the schema repeats."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy.exc import IntegrityError
from storage_fixtures import (
    AGAIN,
    COST,
    GIVEN_UP,
    Store,
    checked,
    held,
    opened,
)

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import batches, recovery, verbs
from orchestrator_service.storage.claims import Claimed, NotClaimable
from orchestrator_service.storage.settlements import Again

pytestmark = pytest.mark.anyio

# As SQLAlchemy and as the driver say it.
REFUSED = (IntegrityError, sqlite3.IntegrityError)


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("facts") / "o.db") as store:
        yield store


async def restarted(store: Store, batch: str) -> int:
    """As if the process had died; the new epoch."""
    await store.write(checked(recovery.recover_batch(batch, now_us=store.tick()), batch))
    return (await store.get(batch)).row["epoch"]


# Settlements.


async def test_a_settlement_keeps_answer_usage_cost_and_verdict(store: Store) -> None:
    batch = await store.create()
    call = await store.claimed(batch)
    # The clock of the writer's callback is told once for each commit.
    store.told.clear()
    await store.settle(batch, call, stop_reason="end_turn", provider_request_id="req_1", http_status=200)
    assert store.told == [{batch}]
    ((row, answer),) = await store.ask(
        """
        SELECT state || ' ' || outcome || ' ' || cost_nanos || ' ' || input_tokens || ' ' || output_tokens || ' '
            || stop_reason || ' ' || provider_request_id || ' ' || http_status, raw
        FROM calls JOIN answers ON answers.call = calls.id WHERE batch = :b
        """,
        b=batch,
    )
    assert (row, answer) == ("SETTLED ANSWERED 60 10 20 end_turn req_1 200", '{"answer": true}')
    last = (await store.events(batch))[-1]
    assert (last.kind, last.detail) == (
        "conversation_ended",
        {"number": 1, "tier": "template", "cost_nanos": COST, "state": "GENERATED", "review": "PASSED"},
    )


async def test_a_conversation_that_failed_says_why(store: Store) -> None:
    batch = await store.create()
    await store.make(batch, 1, GIVEN_UP)
    detail = (await store.events(batch))[-1].detail
    assert (detail["state"], detail["failure_reason"], detail["failure_message"]) == (
        "FAILED",
        "REFUSAL",
        "The model refused.",
    )


async def test_a_wait_uses_up_no_try(store: Store) -> None:
    batch = await store.create()
    tries: list[int] = []
    for counts in (True, False, False, True):
        call = await store.claimed(batch)
        tries.append(call.tries)
        await store.settle(batch, call, result=Again(counts=counts))
    assert tries == [1, 2, 2, 2]
    assert (await store.claimed(batch)).tries == 3
    await store.check(batch)


async def test_stop_on_error_holds_at_the_first_that_failed_for_good(store: Store) -> None:
    batch = await store.create(stop_on_error=True)
    first, second = await store.claimed(batch, 1), await store.claimed(batch, 2)
    assert await store.settle(batch, first, 1, AGAIN, stop_on_error=True) == "RUNNING"
    first = await store.claimed(batch, 1)
    assert await store.settle(batch, first, 1, GIVEN_UP, stop_on_error=True) == "PAUSING"
    (hold,) = (await store.get(batch)).holds
    assert (hold["reason"], hold["message"]) == ("STOP_ON_ERROR", "Conversation 1 failed: The model refused.")
    # What was in flight is kept; a second failure adds nothing.
    assert await store.settle(batch, second, 2, GIVEN_UP, stop_on_error=True) == "PAUSED"
    assert (await store.kinds(batch)).count("hold_added") == 1
    await store.resume(batch)
    await store.make(batch, 3)
    await store.check(batch)


async def test_a_hold_comes_with_its_settlement(store: Store) -> None:
    batch = await store.create()
    call = await store.claimed(batch)
    assert await store.settle(batch, call, result=Again(counts=False), hold=held()) == "PAUSED"
    assert await store.holds(batch) == {"CREDENTIALS"}
    assert await store.rows(batch) == {1: "PENDING", 2: "PENDING", 3: "PENDING", 4: "PENDING"}
    await store.check(batch)


async def test_a_settlement_that_is_told_twice_counts_once(store: Store) -> None:
    batch = await store.create()
    call = await store.claimed(batch)
    await store.settle(batch, call)
    before = await store.get(batch)
    assert await store.settle(batch, call) == "RUNNING"
    after = await store.get(batch)
    assert (after.row, after.tiers) == (before.row, before.tiers)
    await store.check(batch)


# Late answers: the epoch fences claims, never settlements.


async def test_a_late_answer_lands_in_the_ledger(store: Store) -> None:
    batch = await store.create()
    late = await store.claimed(batch)
    epoch = await restarted(store, batch)
    assert await store.calls(batch) == ["POSSIBLY_SPENT"]
    again = await store.claimed(batch, epoch=epoch)
    assert again.tries == late.tries
    # The old worker was only slow: its answer is paid, and its conversation is in other hands.
    await store.settle(batch, late)
    assert await store.calls(batch) == ["SETTLED", "RESERVED"]
    assert (await store.rows(batch))[1] == "RUNNING"
    row = (await store.get(batch)).row
    assert (row["confirmed_nanos"], row["possibly_spent_nanos"], row["calls_possibly_spent"]) == (COST, 0, 0)
    assert "conversation_ended" not in await store.kinds(batch)
    await store.settle(batch, again)
    assert (await store.rows(batch))[1] == "PASSED"
    assert (await store.get(batch)).row["confirmed_nanos"] == 2 * COST
    await store.check(batch)


async def test_a_late_answer_lands_in_the_ledger_also_after_the_batch_ended(store: Store) -> None:
    batch = await store.create()
    late = await store.claimed(batch)
    await store.cancel(batch)
    await restarted(store, batch)
    assert await store.settle(batch, late) == "CANCELLED"
    assert await store.ask("SELECT raw FROM answers WHERE call = :c", c=late.call) == [('{"answer": true}',)]
    await store.check(batch)


async def test_a_late_answer_lands_in_the_ledger_of_a_deleted_batch(store: Store) -> None:
    batch = await store.create()
    late = await store.claimed(batch)
    await store.cancel(batch)
    await restarted(store, batch)
    await store.remove(batch)
    await store.settle(batch, late, raw="")
    assert await store.calls(batch) == ["SETTLED"]


async def test_a_worker_of_an_older_epoch_claims_nothing(store: Store) -> None:
    batch = await store.create()
    epoch = await restarted(store, batch)
    assert isinstance(await store.claim(batch, epoch=epoch - 1), NotClaimable)
    assert isinstance(await store.claim(batch, epoch=epoch), Claimed)


async def test_a_conversation_is_claimed_by_one(store: Store) -> None:
    batch = await store.create()
    await store.claimed(batch, 1)
    assert isinstance(await store.claim(batch, 1), NotClaimable)
    await store.check(batch)


async def test_a_crash_costs_the_conversation_no_try(store: Store) -> None:
    batch = await store.create()
    await store.make(batch, 1, AGAIN)
    assert (await store.claimed(batch, 1)).tries == 2
    epoch = await restarted(store, batch)
    assert (await store.claimed(batch, 1, epoch=epoch)).tries == 2


async def test_a_recovery_without_anything_in_flight_says_nothing(store: Store) -> None:
    batch = await store.create()
    await store.make(batch, 1)
    kinds = await store.kinds(batch)
    await restarted(store, batch)
    # RUNNING became QUEUED: the first claim is still to come.
    assert await store.kinds(batch) == [*kinds, "state_changed"]


# Deletion.


@pytest.mark.parametrize("state", ["CANCELLED", "PAUSED"])
async def test_delete_takes_the_texts_and_keeps_the_ledger(store: Store, state: str) -> None:
    batch = await store.create()
    await store.make(batch, 1)
    await (store.cancel(batch) if state == "CANCELLED" else store.pause(batch))
    await store.remove(batch)
    for table in ("conversations", "conversation_texts", "batch_specs", "events", "holds"):
        assert await store.ask(f"SELECT count(*) FROM {table} WHERE batch = :b", b=batch) == [(0,)]  # noqa: S608  our own text
    ours = "SELECT count(*), sum(cost_nanos) FROM calls WHERE batch = :b"
    assert await store.ask(ours, b=batch) == [(1, COST)]
    assert await store.ask("SELECT count(*) FROM answers JOIN calls ON call = id WHERE batch = :b", b=batch) == [(0,)]
    assert await store.database.read(lambda connection: batches.get(connection, batch)) is None
    for verb in (store.pause, store.resume, store.cancel, store.retry, store.remove):
        with pytest.raises(ParleyError, match=f"There is no batch batches/{batch}"):
            await verb(batch)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "PAUSING", "CANCELLING"])
async def test_a_batch_under_way_is_not_deleted(store: Store, state: str) -> None:
    batch = await store.create()
    if state != "QUEUED":
        await store.claimed(batch)
    if state == "PAUSING":
        await store.pause(batch)
    if state == "CANCELLING":
        await store.cancel(batch)
    with pytest.raises(ParleyError, match=f"Delete is not possible: the batch is {state}. Cancel or pause it first."):
        await store.remove(batch)
    await store.check(batch)


async def test_a_deleted_batch_is_left_alone_by_a_recovery(store: Store) -> None:
    batch = await store.create()
    await store.pause(batch)
    await store.remove(batch)
    await store.write(recovery.recover(now_us=store.tick()))
    assert batch not in await store.database.read(batches.active)
    assert await store.ask("SELECT state FROM batches WHERE id = :b", b=batch) == [("PAUSED",)]


async def test_a_verb_on_an_unknown_batch_names_it(store: Store) -> None:
    with pytest.raises(ParleyError, match="There is no batch batches/nobody") as refused:
        await store.write(verbs.pause("nobody", etag="", now_us=1))
    assert (refused.value.reason, refused.value.metadata) == ("BATCH_NOT_FOUND", {"batch": "batches/nobody"})


# The schema repeats the rules.


@pytest.mark.parametrize(
    ("rule", "sql"),
    [
        ("state_known", "UPDATE batches SET state = 'DONE' WHERE id = '{}'"),
        ("concurrency_range", "UPDATE batches SET concurrency = 0 WHERE id = '{}'"),
        ("concurrency_range", "UPDATE batches SET concurrency = 1001 WHERE id = '{}'"),
        ("budget_not_negative", "UPDATE batches SET budget_nanos = -1 WHERE id = '{}'"),
        ("hold_after_not_negative", "UPDATE batches SET hold_after = -1 WHERE id = '{}'"),
        ("money_not_negative", "UPDATE batches SET reserved_nanos = -1 WHERE id = '{}'"),
        ("money_not_negative", "UPDATE batches SET confirmed_nanos = -1 WHERE id = '{}'"),
        ("counts_add_up", "UPDATE batch_tiers SET generated = generated + 1 WHERE batch = '{}'"),
        ("counts_positive", "UPDATE batch_tiers SET pending = pending + 9, running = running - 9 WHERE batch = '{}'"),
        ("reviews_fit", "UPDATE batch_tiers SET deliverable = 2 WHERE batch = '{}'"),
        ("state_known", "UPDATE conversations SET state = 'DONE' WHERE batch = '{}' AND number = 2"),
        ("review_known", "UPDATE conversations SET review = 'FINE' WHERE batch = '{}' AND number = 1"),
        ("review_when_generated", "UPDATE conversations SET review = 'PASSED' WHERE batch = '{}' AND number = 2"),
        ("review_when_generated", "UPDATE conversations SET review = NULL WHERE batch = '{}' AND number = 1"),
        ("failure_when_failed", "UPDATE conversations SET state = 'FAILED' WHERE batch = '{}' AND number = 2"),
        ("failure_when_failed", "UPDATE conversations SET failure_reason = 'X' WHERE batch = '{}' AND number = 2"),
        ("state_known", "UPDATE calls SET state = 'PAID', cost_nanos = NULL WHERE batch = '{}'"),
        ("outcome_known", "UPDATE calls SET outcome = 'FINE' WHERE batch = '{}'"),
        ("purpose_known", "UPDATE calls SET purpose = 'FUN' WHERE batch = '{}'"),
        ("cost_when_settled", "UPDATE calls SET cost_nanos = NULL WHERE batch = '{}'"),
        ("cost_when_settled", "UPDATE calls SET state = 'RESERVED' WHERE batch = '{}'"),
        ("reason_known", "INSERT INTO holds (batch, reason, message, created_us) VALUES ('{}', 'MOOD', '', 1)"),
        ("one_row", "INSERT INTO store (id, generation) VALUES (2, '{}')"),
    ],
)
async def test_the_schema_refuses_what_breaks_a_rule(store: Store, rule: str, sql: str) -> None:
    batch = await store.create()
    await store.make(batch, 1)
    with pytest.raises(REFUSED, match=f"CHECK constraint failed: {rule}"):
        await store.write(lambda tx: tx.connection.exec_driver_sql(sql.format(batch)))
    await store.check(batch)


async def test_the_schema_allows_one_call_in_flight_for_a_conversation(store: Store) -> None:
    batch = await store.create()
    await store.make(batch, 1, AGAIN)
    await store.claimed(batch, 1)
    sql = f"UPDATE calls SET state = 'RESERVED', cost_nanos = NULL WHERE batch = '{batch}'"  # noqa: S608  our own text
    with pytest.raises(REFUSED, match=r"UNIQUE constraint failed: calls\.batch, calls\.conversation"):
        await store.write(lambda tx: tx.connection.exec_driver_sql(sql))


async def test_nothing_points_to_a_batch_that_is_not_there(store: Store) -> None:
    sql = "INSERT INTO holds (batch, reason, message, created_us) VALUES ('nobody', 'USER', '', 1)"
    with pytest.raises(REFUSED, match="FOREIGN KEY constraint failed"):
        await store.write(lambda tx: tx.connection.exec_driver_sql(sql))
