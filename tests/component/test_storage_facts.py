"""What people and the engine do to a batch, fact by fact: money, holds, etags, retries, deletion, late answers."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from storage_fixtures import (
    AGAIN,
    COST,
    GIVEN_UP,
    QUARANTINED,
    RESERVE,
    Store,
    checked,
    held,
    new_batch,
    opened,
    rows_of,
)

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import CallOutcome
from orchestrator_service.storage import batches, recovery, verbs
from orchestrator_service.storage.claims import Claimed, NotClaimable, WaitForSettlement
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import Again, GivenUp, Made

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


# Creation.


async def test_a_batch_that_is_being_stored_is_known_to_nobody(store: Store) -> None:
    await store.write(batches.prepare(new_batch("unborn", {"template": 1})))
    assert await store.database.read(lambda connection: batches.get(connection, "unborn")) is None
    with pytest.raises(ParleyError, match="There is no batch batches/unborn"):
        await store.pause("unborn")
    await store.write(recovery.recover(now_us=store.tick()))
    assert await store.ask("SELECT id FROM batches WHERE id = 'unborn'") == []
    assert await store.ask("SELECT batch FROM batch_tiers WHERE batch = 'unborn'") == []


async def test_a_repeated_creation_gets_the_first_batch(store: Store) -> None:
    key = Request(owner="ann", method="CreateBatch", request_id="r1", body_sha256="same")
    names: list[str] = []
    for name in ("first", "second"):
        new = new_batch(name, {"template": 1})
        await store.write(batches.prepare(new))
        await store.write(batches.add_rows(rows_of(new)))
        names.append(await store.write(batches.queue(name, key, now_us=store.tick())))
    assert names == ["first", "first"]
    assert await store.ask("SELECT count(*) FROM conversations WHERE batch = 'second'") == [(0,)]


# hold_after.


async def test_hold_after_zero_waits_for_approval(store: Store) -> None:
    batch = await store.create(hold_after=0)
    assert isinstance(await store.claim(batch), NotClaimable)
    snapshot = await store.get(batch)
    assert (snapshot.state, [hold["reason"] for hold in snapshot.holds]) == ("PAUSED", ["CHECKPOINT"])
    assert snapshot.holds[0]["message"] == "Waits for approval before the first conversation."
    await store.resume(batch)
    assert await store.state(batch) == "QUEUED"
    for number in (1, 2, 3, 4):
        await store.make(batch, number)
    assert await store.state(batch) == "SUCCEEDED"


async def test_a_pilot_ends_before_the_batch_is_paused(store: Store) -> None:
    batch = await store.create(hold_after=2)
    first, second = await store.claimed(batch, 1), await store.claimed(batch, 2)
    assert isinstance(await store.claim(batch, 3), NotClaimable)
    assert await store.state(batch) == "PAUSING"
    await store.settle(batch, first, 1)
    assert await store.state(batch) == "PAUSING"
    await store.settle(batch, second, 2)
    assert await store.state(batch) == "PAUSED"
    assert await store.rows(batch) == {1: "PASSED", 2: "PASSED", 3: "PENDING", 4: "PENDING"}
    await store.check(batch)


async def test_a_second_attempt_of_the_pilot_waits_for_no_approval(store: Store) -> None:
    batch = await store.create(hold_after=1)
    await store.make(batch, 1, AGAIN)
    await store.make(batch, 1)
    assert (await store.state(batch), await store.holds(batch)) == ("RUNNING", set())


async def test_a_raised_hold_after_goes_on_with_so_many_more(store: Store) -> None:
    batch = await store.create(hold_after=1)
    await store.make(batch, 1)
    assert isinstance(await store.claim(batch, 2), NotClaimable)
    # Not higher than what was started: the hold stands.
    await store.change(batch, hold_after=1)
    assert await store.holds(batch) == {"CHECKPOINT"}
    await store.change(batch, hold_after=3)
    assert await store.state(batch) == "QUEUED"
    await store.make(batch, 2)
    await store.make(batch, 3)
    assert isinstance(await store.claim(batch, 4), NotClaimable)
    (hold,) = (await store.get(batch)).holds
    assert hold["message"] == "3 conversations were started, as hold_after asks."
    await store.check(batch)


async def test_a_checkpoint_that_all_have_passed_holds_nothing(store: Store) -> None:
    batch = await store.create({"template": 2}, hold_after=2)
    await store.make(batch, 1)
    await store.make(batch, 2)
    assert await store.state(batch) == "SUCCEEDED"


# Budget.


async def test_a_claim_over_the_budget_waits_for_what_is_in_flight(store: Store) -> None:
    batch = await store.create(budget_nanos=2 * RESERVE - 1)
    call = await store.claimed(batch, 1)
    assert isinstance(await store.claim(batch, 2), WaitForSettlement)
    assert (await store.state(batch), await store.holds(batch)) == ("RUNNING", set())
    # 60 of the 100 reserved were needed: now there is room.
    await store.settle(batch, call, 1)
    await store.make(batch, 2)
    await store.check(batch)


async def test_a_budget_that_is_used_up_holds_and_names_what_it_needs(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE)
    await store.make(batch, 1)
    assert isinstance(await store.claim(batch, 2), NotClaimable)
    (hold,) = (await store.get(batch)).holds
    assert (hold["reason"], hold["needs_nanos"]) == ("BUDGET", COST + RESERVE)
    assert hold["message"].startswith("The budget is $0.00; $0.0000 is spent or may be")
    assert await store.state(batch) == "PAUSED"


async def test_a_budget_takes_a_call_that_fits_exactly(store: Store) -> None:
    batch = await store.create(budget_nanos=COST + RESERVE)
    await store.make(batch, 1)
    await store.make(batch, 2)
    assert (await store.get(batch)).row["confirmed_nanos"] == 2 * COST


async def test_what_may_be_spent_counts_against_the_budget(store: Store) -> None:
    batch = await store.create(budget_nanos=2 * RESERVE - 1)
    call = await store.claimed(batch, 1)
    lost = {"usage": None, "cost_nanos": 0, "possibly_spent": True, "outcome": CallOutcome.TIMEOUT, "raw": ""}
    await store.settle(batch, call, 1, AGAIN, **lost)
    row = (await store.get(batch)).row
    assert (row["possibly_spent_nanos"], row["calls_possibly_spent"]) == (RESERVE, 1)
    assert isinstance(await store.claim(batch, 1), NotClaimable)
    assert await store.holds(batch) == {"BUDGET"}
    await store.check(batch)


async def test_resume_is_refused_while_the_budget_stands(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE)
    await store.make(batch, 1)
    await store.claim(batch, 2)
    await store.pause(batch)
    kinds = await store.kinds(batch)
    with pytest.raises(ParleyError, match=r"The hold BUDGET stands: .* Raise the budget\.") as refused:
        await store.resume(batch)
    assert refused.value.reason == "HOLD_STANDS"
    assert refused.value.metadata == {
        "hold": "BUDGET",
        "needs_nanos": str(COST + RESERVE),
        "budget_nanos": str(RESERVE),
    }
    # The hold USER stays too: all or nothing.
    assert (await store.holds(batch), await store.kinds(batch)) == ({"BUDGET", "USER"}, kinds)
    await store.change(batch, budget=COST + RESERVE)
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"USER"})
    await store.resume(batch)
    assert await store.state(batch) == "QUEUED"


async def test_a_budget_that_is_raised_too_little_lifts_nothing(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE)
    await store.make(batch, 1)
    await store.claim(batch, 2)
    await store.change(batch, budget=COST + RESERVE - 1)
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"BUDGET"})
    await store.change(batch, budget=None)
    assert (await store.state(batch), await store.holds(batch)) == ("QUEUED", set())
    assert (await store.get(batch)).row["budget_nanos"] is None


async def test_a_budget_below_what_is_spent_is_kept_and_holds_at_the_next_claim(store: Store) -> None:
    batch = await store.create(budget_nanos=10 * RESERVE)
    await store.make(batch, 1)
    await store.change(batch, budget=1)
    assert (await store.state(batch), (await store.get(batch)).row["budget_nanos"]) == ("RUNNING", 1)
    assert isinstance(await store.claim(batch, 2), NotClaimable)
    assert await store.holds(batch) == {"BUDGET"}


async def test_another_setting_lifts_no_hold(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE - 1)
    await store.claim(batch, 1)
    await store.change(batch, display_name="Another", labels={"a": "b"}, priority=3, concurrency=7)
    snapshot = await store.get(batch)
    assert (snapshot.state, await store.holds(batch)) == ("PAUSED", {"BUDGET"})
    assert (snapshot.row["display_name"], snapshot.row["priority"], snapshot.row["concurrency"]) == ("Another", 3, 7)
    assert snapshot.labels == {"a": "b"}
    detail = (await store.events(batch))[-1].detail
    assert detail == {"fields": ["display_name", "labels", "priority", "concurrency"]}


async def test_a_change_that_is_refused_in_part_is_refused_in_whole(store: Store) -> None:
    batch = await store.create()
    await store.claimed(batch)
    await store.cancel(batch)
    before = await store.get(batch)
    with pytest.raises(ParleyError, match="Update"):
        await store.change(batch, display_name="Another", budget=5)
    assert (await store.get(batch)).row == before.row
    await store.change(batch, display_name="Another")
    assert (await store.get(batch)).row["display_name"] == "Another"


# Etags.


async def test_progress_never_changes_the_etag(store: Store) -> None:
    batch = await store.create()
    call = await store.claimed(batch)
    etag = await store.etag(batch)
    await store.settle(batch, call)
    await store.make(batch, 2, GIVEN_UP)
    assert await store.etag(batch) == etag
    await store.pause(batch, etag=etag)
    assert await store.etag(batch) != etag


async def test_each_setting_changes_the_etag(store: Store) -> None:
    batch = await store.create()
    seen = {await store.etag(batch)}
    changes: list[dict[str, Any]] = [
        {"display_name": "x"},
        {"labels": {}},
        {"budget": 9},
        {"concurrency": 2},
        {"hold_after": 9},
    ]
    for change in changes:
        await store.change(batch, etag=await store.etag(batch), **change)
        seen.add(await store.etag(batch))
    assert len(seen) == 1 + len(changes)


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retry", "change", "remove"])
async def test_an_old_etag_is_refused_and_changes_nothing(store: Store, verb: str) -> None:
    batch = await store.create()
    old = await store.etag(batch)
    await store.change(batch, display_name="Changed by another")
    if verb in ("resume", "remove"):
        await store.pause(batch)
    before = await store.get(batch)
    settings = {"concurrency": 1} if verb == "change" else {}
    with pytest.raises(ParleyError, match="was changed since you read it") as refused:
        await getattr(store, verb)(batch, etag=old, **settings)
    assert refused.value.reason == "ETAG_MISMATCH"
    assert refused.value.metadata == {"etag": await store.etag(batch)}
    assert (await store.get(batch)).row == before.row


async def test_repeated_verbs_succeed_before_the_etag_is_compared(store: Store) -> None:
    batch = await store.create()
    etag = await store.etag(batch)
    await store.pause(batch, etag=etag)
    await store.pause(batch, etag=etag)
    paused = await store.etag(batch)
    await store.resume(batch, etag=paused)
    await store.resume(batch, etag=paused)
    queued = await store.etag(batch)
    await store.cancel(batch, etag=queued)
    await store.cancel(batch, etag=queued)
    assert await store.state(batch) == "CANCELLED"
    assert (await store.kinds(batch)).count("hold_added") == 1


# Retry.


async def mixed(store: Store) -> str:
    """Ended, with one conversation of each kind: passed, quarantined, refused, malformed, cancelled."""
    batch = await store.create({"template": 3, "scenario": 2})
    await store.make(batch, 1)
    await store.make(batch, 2, QUARANTINED)
    await store.make(batch, 3, GIVEN_UP)
    await store.make(batch, 4, GivenUp("MALFORMED", "Not JSON."))
    await store.cancel(batch)
    assert await store.rows(batch) == {1: "PASSED", 2: "QUARANTINED", 3: "FAILED", 4: "FAILED", 5: "CANCELLED"}
    return batch


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        (Which(), [3, 4, 5]),
        (Which(states=("FAILED",)), [3, 4]),
        (Which(states=("CANCELLED",)), [5]),
        (Which(tiers=("template",)), [3]),
        (Which(tiers=("scenario",), states=("FAILED",)), [4]),
        (Which(failure_reasons=("MALFORMED",)), [4]),
        (Which(reviews=("QUARANTINED",)), [2]),
        (Which(states=("GENERATED",)), [2]),
        (Which(reviews=("PASSED",)), list[int]()),
        (Which(states=("PENDING",)), list[int]()),
    ],
)
async def test_retry_puts_back_what_the_filter_names(store: Store, which: Which, numbers: list[int]) -> None:
    batch = await mixed(store)
    assert await store.retry(batch, which) == len(numbers)
    rows = await store.rows(batch)
    assert [number for number, state in rows.items() if state == "PENDING"] == numbers
    assert (await store.state(batch), (await store.get(batch)).row["run"]) == (
        ("QUEUED", 2) if numbers else ("CANCELLED", 1)
    )
    await store.check(batch)


async def test_a_quarantined_conversation_gives_way_to_its_second_try(store: Store) -> None:
    batch = await store.create({"template": 1})
    await store.make(batch, 1, QUARANTINED)
    assert await store.state(batch) == "FAILED"
    assert await store.retry(batch, Which(reviews=("QUARANTINED",))) == 1
    better = Made(turns=[("user", "Hi."), ("assistant", "Better.")], checks=[], passed=True)
    await store.make(batch, 1, better)
    snapshot = await store.get(batch)
    assert (snapshot.state, snapshot.row["run"]) == ("SUCCEEDED", 2)
    # Spend carries over; the tries of the run began anew.
    assert snapshot.row["confirmed_nanos"] == 2 * COST
    assert await store.ask("SELECT attempts, tries FROM conversations WHERE batch = :b", b=batch) == [(2, 1)]
    assert await store.ask("SELECT turns FROM conversation_texts WHERE batch = :b", b=batch) == [
        ('[["user", "Hi."], ["assistant", "Better."]]',)
    ]
    await store.check(batch)


async def test_a_repeated_retry_gets_the_same_answer_and_changes_nothing(store: Store) -> None:
    batch = await mixed(store)
    key = Request(owner="ann", method="RetryBatch", request_id=f"retry {batch}", body_sha256="one")
    assert await store.retry(batch, request=key) == 3
    await store.make(batch, 3, GIVEN_UP)
    before = await store.get(batch)
    assert await store.retry(batch, request=key, etag="old") == 3
    assert (await store.get(batch)).row == before.row
    another = Request(owner="ann", method="RetryBatch", request_id=f"retry {batch}", body_sha256="two")
    with pytest.raises(ParleyError, match="was used before for a different request") as refused:
        await store.retry(batch, request=another)
    assert refused.value.reason == "REQUEST_ID_REUSED"
    assert refused.value.metadata["batch"] == f"batches/{batch}"
    # Somebody else's id is another one.
    theirs = Request(owner="bob", method="RetryBatch", request_id=f"retry {batch}", body_sha256="two")
    assert await store.retry(batch, request=theirs) == 1


async def test_the_budget_carries_over_into_a_new_run(store: Store) -> None:
    batch = await store.create({"template": 1}, budget_nanos=COST + RESERVE - 1)
    await store.make(batch, 1, GIVEN_UP)
    await store.retry(batch)
    assert isinstance(await store.claim(batch, 1), NotClaimable)
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"BUDGET"})


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
        assert await store.ask(f"SELECT count(*) FROM {table} WHERE batch = :b", b=batch) == [(0,)]  # noqa: S608
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
    sql = f"UPDATE calls SET state = 'RESERVED', cost_nanos = NULL WHERE batch = '{batch}'"  # noqa: S608
    with pytest.raises(REFUSED, match=r"UNIQUE constraint failed: calls\.batch, calls\.conversation"):
        await store.write(lambda tx: tx.connection.exec_driver_sql(sql))


async def test_nothing_points_to_a_batch_that_is_not_there(store: Store) -> None:
    sql = "INSERT INTO holds (batch, reason, message, created_us) VALUES ('nobody', 'USER', '', 1)"
    with pytest.raises(REFUSED, match="FOREIGN KEY constraint failed"):
        await store.write(lambda tx: tx.connection.exec_driver_sql(sql))
