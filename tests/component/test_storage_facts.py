"""What people do to a batch, fact by fact: checkpoints, budgets, etags, retries."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from storage_fixtures import (
    AGAIN,
    COST,
    GIVEN_UP,
    QUARANTINED,
    RESERVE,
    Store,
    new_batch,
    opened,
    rows_of,
)

from orchestrator_service.convert.batch import batch_message
from orchestrator_service.convert.values import nanos
from orchestrator_service.domain.budget import WaitForSettlement
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import CallOutcome
from orchestrator_service.storage import batches, recovery
from orchestrator_service.storage.claims import NotClaimable
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import GivenUp, Made

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("facts") / "o.db") as store:
        yield store


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
        "scope": "BATCH",
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


async def test_a_forecast_after_a_retry_counts_what_was_paid_and_made_before(store: Store) -> None:
    batch = await store.create({"template": 4})
    for number in range(1, 5):
        await store.make(batch, number, QUARANTINED)
    assert await store.retry(batch, Which(reviews=("QUARANTINED",))) == 4
    forecast = batch_message(await store.get(batch)).forecast
    # Four were paid for, and four more will cost as much each.
    assert nanos(forecast.projected_cost) == 8 * COST
