"""The state table once more, on a real file: each cell by the facts that bring it about, with what follows from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from state_table import CELLS, STATES
from storage_fixtures import AGAIN, GIVEN_UP, MADE, QUARANTINED, Store, checked, held, opened

from orchestrator_service.domain.batch import HoldReason
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import claims, recovery, transitions
from orchestrator_service.storage.claims import Claimed, NotClaimable
from orchestrator_service.storage.conversations import Which

pytestmark = pytest.mark.anyio

ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED")


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("states") / "o.db") as store:
        yield store


async def _batch_in(store: Store, state: str) -> str:
    """Of four conversations; the first is what is in flight. In the states with a hold it is the hold USER."""
    batch = await store.create()
    match state:
        case "QUEUED":
            pass
        case "RUNNING":
            await store.claimed(batch)
        case "PAUSING":
            await store.claimed(batch)
            await store.pause(batch)
        case "PAUSED":
            await store.pause(batch)
        case "CANCELLING":
            await store.claimed(batch)
            await store.cancel(batch)
        case "CANCELLED":
            await store.cancel(batch)
        case _:
            results = {
                "SUCCEEDED": (MADE, MADE, MADE, MADE),
                "PARTIALLY_SUCCEEDED": (MADE, QUARANTINED, GIVEN_UP, MADE),
                "FAILED": (GIVEN_UP, QUARANTINED, GIVEN_UP, GIVEN_UP),
            }[state]
            for number, result in enumerate(results, start=1):
                await store.make(batch, number, result)
    assert await store.state(batch) == state
    return batch


async def _in_flight(store: Store, batch: str) -> Claimed:
    """The call that was made when the batch was arranged."""
    ((call,),) = await store.ask("SELECT id FROM calls WHERE batch = :b AND state = 'RESERVED'", b=batch)
    return Claimed(call, 1)


# The verbs.


async def _verb(store: Store, batch: str, event: str) -> None:
    match event:
        case "PAUSE":
            await store.pause(batch)
        case "RESUME":
            await store.resume(batch)
        case "CANCEL":
            await store.cancel(batch)
        case "LOWER_BUDGET":
            await store.change(batch, budget=0)
        case _:
            await store.change(batch, concurrency=9)


@pytest.mark.parametrize(
    ("event", "state"),
    [cell for cell in CELLS if cell[0] in ("PAUSE", "RESUME", "CANCEL", "LOWER_BUDGET", "CHANGE_CONCURRENCY")],
)
async def test_a_verb_does_what_its_cell_says(store: Store, event: str, state: str) -> None:
    batch = await _batch_in(store, state)
    before = (await store.get(batch)).row, await store.rows(batch), await store.holds(batch), await store.kinds(batch)
    match CELLS[event, state]:
        case "x":
            with pytest.raises(ParleyError, match=f"the batch is {state}") as refused:
                await _verb(store, batch, event)
            assert refused.value.reason == "STATE_FORBIDS"
            assert refused.value.metadata["state"] == state
            assert refused.value.metadata["next"] in str(refused.value)
            after = (await store.get(batch)).row, await store.rows(batch), await store.holds(batch)
            assert (*after, await store.kinds(batch)) == before
        case "=":
            await _verb(store, batch, event)
            assert await store.state(batch) == state
            assert (await store.rows(batch), await store.holds(batch)) == before[1:3]
        case new:
            await _verb(store, batch, event)
            assert await store.state(batch) == new
    await store.check(batch)


async def test_pause_adds_the_hold_and_logs_it_before_the_state(store: Store) -> None:
    batch = await _batch_in(store, "RUNNING")
    await store.pause(batch)
    assert (await store.kinds(batch))[-2:] == ["hold_added", "state_changed"]
    (hold,) = (await store.get(batch)).holds
    assert (hold["reason"], hold["message"]) == ("USER", "Somebody paused the batch.")


async def test_pause_adds_the_hold_also_where_another_one_stands(store: Store) -> None:
    for state in ("PAUSING", "PAUSED"):
        batch = await store.create(hold_after=int(state == "PAUSING"))
        await store.claim(batch, 1)
        await store.claim(batch, 2)
        assert (await store.state(batch), await store.holds(batch)) == (state, {"CHECKPOINT"})
        await store.pause(batch)
        assert (await store.state(batch), await store.holds(batch)) == (state, {"CHECKPOINT", "USER"})
        assert (await store.kinds(batch))[-1] == "hold_added"
        await store.check(batch)


async def test_a_batch_cancelled_while_it_paused_can_not_be_paused_again(store: Store) -> None:
    batch = await _batch_in(store, "PAUSING")
    await store.cancel(batch)
    with pytest.raises(ParleyError, match="the batch is CANCELLING"):
        await store.pause(batch)


async def test_resume_drops_every_hold(store: Store) -> None:
    batch = await _batch_in(store, "PAUSED")
    await store.write(lambda tx: transitions.hold(tx, batch, held(), now_us=store.tick()))
    await store.resume(batch)
    assert (await store.state(batch), await store.holds(batch)) == ("QUEUED", set())
    assert (await store.kinds(batch))[-3:] == ["hold_cleared", "hold_cleared", "state_changed"]


async def test_cancel_leaves_what_is_in_flight_and_takes_the_rest(store: Store) -> None:
    batch = await _batch_in(store, "PAUSING")
    await store.cancel(batch)
    assert await store.rows(batch) == {1: "RUNNING", 2: "PENDING", 3: "PENDING", 4: "PENDING"}
    await store.settle(batch, await _in_flight(store, batch))
    assert await store.state(batch) == "CANCELLED"
    assert await store.rows(batch) == {1: "PASSED", 2: "CANCELLED", 3: "CANCELLED", 4: "CANCELLED"}
    assert await store.holds(batch) == set()
    await store.check(batch)


# Retry: rows only, or a new run.


@pytest.mark.parametrize("state", STATES)
async def test_retry_does_what_its_cell_says(store: Store, state: str) -> None:
    batch = await store.create()
    await store.make(batch, 4, GIVEN_UP)
    if state in ENDED:
        for number in (1, 2, 3):
            await store.make(batch, number, GIVEN_UP if state == "FAILED" else MADE)
        if state == "SUCCEEDED":
            await _review(store, batch, 4)
    else:
        await _move_to(store, batch, state)
    assert await store.state(batch) == state
    cell, before = CELLS["RETRY", state], await store.get(batch)
    if cell == "x":
        with pytest.raises(ParleyError, match="the batch is CANCELLING"):
            await store.retry(batch)
        assert (await store.rows(batch))[4] == "FAILED"
        return
    # Whatever was cancelled or failed; of a batch that succeeded, what somebody rejected since.
    count = await (store.retry(batch, Which(reviews=("REJECTED",))) if state == "SUCCEEDED" else store.retry(batch))
    after = await store.get(batch)
    assert count == {"CANCELLED": 4, "FAILED": 4}.get(state, 1)
    assert after.state == (state if cell == "=" else cell)
    assert after.row["run"] == before.row["run"] + (cell != "=")
    assert after.row["confirmed_nanos"] == before.row["confirmed_nanos"]
    assert (await store.rows(batch))[4] == "PENDING"
    assert (await store.kinds(batch))[-1] == "conversations_requeued"
    assert (await store.events(batch))[-1].detail == {"count": count, "run": after.row["run"]}
    await store.check(batch)


async def _move_to(store: Store, batch: str, state: str) -> None:
    """From RUNNING with nothing in flight."""
    if state == "QUEUED":
        await store.write(recovery.recover_batch(batch, now_us=store.tick()))
    if state in ("PAUSING", "CANCELLING"):
        await store.claimed(batch)
    if state in ("PAUSING", "PAUSED"):
        await store.pause(batch)
    if state in ("CANCELLING", "CANCELLED"):
        await store.cancel(batch)


async def _review(store: Store, batch: str, number: int) -> None:
    """A batch whose conversation failed becomes one that succeeded and had it rejected afterwards."""
    await store.retry(batch)
    await store.make(batch, number)
    sql = "UPDATE conversations SET review = 'REJECTED' WHERE batch = '{}' AND number = {}"
    counter = "UPDATE batch_tiers SET deliverable = deliverable - 1 WHERE batch = '{}'"
    await store.write(lambda tx: tx.connection.exec_driver_sql(sql.format(batch, number)))
    await store.write(lambda tx: tx.connection.exec_driver_sql(counter.format(batch)))


@pytest.mark.parametrize("state", [state for state in STATES if CELLS["RETRY", state] != "x"])
async def test_a_retry_that_matches_nothing_changes_nothing(store: Store, state: str) -> None:
    batch = await _batch_in(store, state)
    kinds = await store.kinds(batch)
    assert await store.retry(batch, Which(tiers=("no such tier",))) == 0
    assert (await store.state(batch), await store.kinds(batch)) == (state, kinds)
    assert (await store.get(batch)).row["run"] == 1
    await store.check(batch)


# Raised limits.


@pytest.mark.parametrize("state", STATES)
async def test_a_raised_limit_does_what_its_cell_says(store: Store, state: str) -> None:
    for limit in ("hold_after", "budget"):
        batch = await _batch_behind(store, state, limit)
        cell = CELLS["RAISE_LIMIT", state]
        raised: dict[str, Any] = {limit: 1_000}
        if cell == "x":
            with pytest.raises(ParleyError, match="the batch is CANCELLING"):
                await store.change(batch, **raised)
        else:
            await store.change(batch, **raised)
            assert await store.state(batch) == (state if cell == "=" else cell)
            assert await store.holds(batch) == set()
        await store.check(batch)


async def _batch_behind(store: Store, state: str, limit: str) -> str:
    """In the states with a hold, it is the one of the limit."""
    if state == "PAUSED":
        batch = await (store.create(hold_after=0) if limit == "hold_after" else store.create(budget_nanos=50))
        assert isinstance(await store.claim(batch), NotClaimable)
    elif state == "PAUSING" and limit == "hold_after":
        batch = await store.create(hold_after=1)
        await store.claimed(batch)
        assert isinstance(await store.claim(batch, 2), NotClaimable)
    elif state == "PAUSING":
        # A call without a price reserves nothing, so it does not stand in the way of the hold.
        batch = await store.create(budget_nanos=50)
        await store.claimed(batch, reserve=0)
        assert isinstance(await store.claim(batch, 2), NotClaimable)
    else:
        return await _batch_in(store, state)
    assert (await store.state(batch), len(await store.holds(batch))) == (state, 1)
    return batch


@pytest.mark.parametrize("state", ["PAUSING", "PAUSED"])
async def test_a_raised_limit_drops_its_own_hold_and_no_other(store: Store, state: str) -> None:
    batch = await _batch_behind(store, state, "hold_after")
    await store.pause(batch)
    await store.change(batch, hold_after=3)
    assert (await store.state(batch), await store.holds(batch)) == (state, {"USER"})
    await store.resume(batch)
    assert await store.state(batch) == {"PAUSING": "RUNNING", "PAUSED": "QUEUED"}[state]


# What comes up by itself.


@pytest.mark.parametrize("state", STATES)
async def test_a_hold_that_arises_does_what_its_cell_says(store: Store, state: str) -> None:
    batch = await _batch_in(store, state)
    before = await store.holds(batch)
    hold = checked(lambda tx: transitions.hold(tx, batch, held(), now_us=store.tick()), batch)
    for _ in range(2):
        # The same reason twice is one hold.
        await store.write(hold)
    cell = CELLS["HOLD", state]
    assert await store.state(batch) == (state if cell in ("=", "-") else cell)
    added = set[str]() if cell == "-" or state == "CANCELLING" else {"CREDENTIALS"}
    assert await store.holds(batch) == before | added
    logged = (await store.kinds(batch)).count("hold_added") - len(before)
    # Where the batch is being cancelled it is logged only, each time.
    assert logged == (0 if cell == "-" else 2 if state == "CANCELLING" else 1)


@pytest.mark.parametrize("state", STATES)
async def test_a_claim_does_what_its_cell_says(store: Store, state: str) -> None:
    batch = await _batch_in(store, state)
    rows, kinds = await store.rows(batch), await store.kinds(batch)
    claimed = await store.write(checked(claims.claim(store.wanted(batch, 2)), batch))
    if CELLS["CLAIM", state] == "-":
        assert isinstance(claimed, NotClaimable)
        assert (await store.state(batch), await store.rows(batch), await store.kinds(batch)) == (state, rows, kinds)
    else:
        assert isinstance(claimed, Claimed)
        assert await store.state(batch) == "RUNNING"
        assert await store.rows(batch) == rows | {2: "RUNNING"}
        assert (await store.get(batch)).row["started_us"] is not None


@pytest.mark.parametrize("state", STATES)
async def test_the_last_call_in_flight_with_some_pending_does_what_its_cell_says(store: Store, state: str) -> None:
    batch = await _batch_in(store, state)
    if state in ("RUNNING", "PAUSING", "CANCELLING"):
        await store.settle(batch, await _in_flight(store, batch), result=AGAIN)
    else:
        await store.write(lambda tx: transitions.settle(tx, batch, now_us=store.tick()))
    cell = CELLS["IDLE", state]
    assert await store.state(batch) == (state if cell in ("=", "-") else cell)
    if state == "CANCELLING":
        assert set((await store.rows(batch)).values()) == {"CANCELLED"}
    await store.check(batch)


@pytest.mark.parametrize(
    ("result", "ends"), [(MADE, "SUCCEEDED"), (QUARANTINED, "PARTIALLY_SUCCEEDED"), (GIVEN_UP, "PARTIALLY_SUCCEEDED")]
)
@pytest.mark.parametrize("state", ["RUNNING", "PAUSING", "CANCELLING"])
async def test_the_last_call_of_all_ends_the_batch_by_the_verdict(
    store: Store, state: str, result: object, ends: str
) -> None:
    assert CELLS["DRAINED", state] == "verdict"
    batch = await store.create({"template": 1, "scenario": 1})
    await store.make(batch, 1)
    call = await store.claimed(batch, 2)
    if state == "PAUSING":
        await store.pause(batch)
    if state == "CANCELLING":
        await store.cancel(batch)
    assert await store.state(batch) == state
    assert isinstance(result, type(MADE) | type(GIVEN_UP))
    assert await store.settle(batch, call, 2, result) == ends
    assert (await store.kinds(batch))[-1] == "state_changed"
    await store.check(batch)


async def test_a_paused_batch_without_work_left_ends_by_the_verdict(store: Store) -> None:
    """No fact of today leads there, so the rows are set by hand."""
    batch = await store.create({"template": 1})
    await store.pause(batch)
    for sql in (
        "UPDATE conversations SET state = 'FAILED', failure_reason = 'REFUSAL' WHERE batch = '{}'",
        "UPDATE batch_tiers SET pending = 0, failed = 1 WHERE batch = '{}'",
    ):
        await store.write(lambda tx, sql=sql: tx.connection.exec_driver_sql(sql.format(batch)))
    await store.write(lambda tx: transitions.settle(tx, batch, now_us=store.tick()))
    assert (await store.state(batch), await store.holds(batch)) == ("FAILED", set())
    await store.check(batch)


@pytest.mark.parametrize("state", ["QUEUED", "CANCELLED", *ENDED])
async def test_nothing_ends_that_is_not_under_way(store: Store, state: str) -> None:
    assert CELLS["DRAINED", state] == "-"
    batch = await _batch_in(store, state)
    kinds = await store.kinds(batch)
    await store.write(lambda tx: transitions.happen(tx, batch, transitions.Event.DRAINED, now_us=store.tick()))
    assert (await store.state(batch), await store.kinds(batch)) == (state, kinds)


# A restart, footnote 4. Its database is its own, for it concerns every batch.


@pytest.mark.parametrize("state", STATES)
async def test_a_restart_does_what_its_cell_says(tmp_path: Path, state: str) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await _batch_in(store, state)
        before = await store.get(batch)
        in_flight = state in ("RUNNING", "PAUSING", "CANCELLING")
    async with opened(tmp_path / "o.db") as store:
        under_way = await store.write(checked(recovery.recover(now_us=9_000), batch))
        cell = CELLS["RESTART", state]
        after = await store.get(batch)
        assert after.state == (state if cell == "=" else cell)
        assert under_way == (0 if state in ("CANCELLED", *ENDED) else 1)
        assert after.row["epoch"] == before.row["epoch"] + under_way
        assert await store.holds(batch) == {row["reason"] for row in before.holds}
        if in_flight:
            assert await store.calls(batch) == ["POSSIBLY_SPENT"]
            assert (await store.rows(batch))[1] == ("CANCELLED" if state == "CANCELLING" else "PENDING")
            recovered = [event.detail for event in await store.events(batch) if event.kind == "recovered"]
            assert recovered == [{"calls_possibly_spent": 1, "conversations_requeued": 1}]
        else:
            assert await store.rows(batch) and "recovered" not in await store.kinds(batch)


# Footnote 1: straight to the settled state where nothing is in flight.


@pytest.mark.parametrize(
    ("event", "through", "settles"),
    [("PAUSE", "PAUSING", "PAUSED"), ("CANCEL", "CANCELLING", "CANCELLED"), ("HOLD", "PAUSING", "PAUSED")],
)
async def test_a_running_batch_with_nothing_in_flight_settles_at_once(
    store: Store, event: str, through: str, settles: str
) -> None:
    batch = await store.create()
    await store.make(batch, 1, AGAIN)
    assert await store.state(batch) == "RUNNING"
    if event == "HOLD":
        reason = HoldReason.PROVIDER_LIMIT
        await store.write(lambda tx: transitions.hold(tx, batch, held(reason), now_us=store.tick()))
    else:
        await _verb(store, batch, event)
    assert await store.state(batch) == settles
    moves = [event.detail["to"] for event in await store.events(batch) if event.kind == "state_changed"]
    assert moves[-2:] == [through, settles]
    await store.check(batch)
