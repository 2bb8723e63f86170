"""Corrections: a person says what a possibly spent call cost, and every sum follows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from storage_fixtures import COST, RESERVE, Store, checked, opened

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import recovery
from orchestrator_service.storage.claims import NotClaimable
from orchestrator_service.storage.corrections import Correction, settle_by_person

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("corrections") / "o.db") as store:
        yield store


async def lost(store: Store, **values: Any) -> tuple[str, int]:
    """A batch whose first call was in flight when the process died."""
    batch = await store.create(**values)
    call = await store.claimed(batch)
    await store.write(checked(recovery.recover_batch(batch, now_us=store.tick()), batch))
    return batch, call.call


async def correct(store: Store, batch: str, call: int, cost_nanos: int) -> None:
    told = Correction(batch=batch, call=call, cost_nanos=cost_nanos, by="ann", note="bill of May", now_us=store.tick())
    await store.write(checked(settle_by_person(told), batch))


async def test_what_it_cost_replaces_the_reserve_everywhere(store: Store) -> None:
    batch, call = await lost(store)
    await correct(store, batch, call, COST)
    snapshot = await store.get(batch)
    row = snapshot.row
    assert (row["confirmed_nanos"], row["possibly_spent_nanos"]) == (COST, 0)
    assert (row["calls_settled"], row["calls_possibly_spent"]) == (1, 0)
    assert [tier["cost_nanos"] for tier in snapshot.tiers] == [COST]
    written = await store.ask(
        "SELECT state, cost_nanos, settled_by, note, observed, outcome FROM calls WHERE id = :c", c=call
    )
    assert written == [("SETTLED", COST, "ann", "bill of May", 1, "INTERRUPTED")]
    last = (await store.events(batch))[-1]
    assert (last.kind, last.detail) == (
        "call_settled",
        {"call": f"batches/{batch}/calls/{call}", "cost_nanos": COST, "by": "ann", "note": "bill of May"},
    )


async def test_one_that_was_not_billed_costs_nothing(store: Store) -> None:
    batch, call = await lost(store)
    await correct(store, batch, call, 0)
    row = (await store.get(batch)).row
    assert (row["confirmed_nanos"], row["possibly_spent_nanos"], row["calls_settled"]) == (0, 0, 1)


async def test_the_same_word_twice_is_one_and_another_is_refused(store: Store) -> None:
    batch, call = await lost(store)
    await correct(store, batch, call, COST)
    events = await store.kinds(batch)
    await correct(store, batch, call, COST)
    assert await store.kinds(batch) == events
    with pytest.raises(ParleyError, match="is SETTLED") as refused:
        await correct(store, batch, call, COST + 1)
    assert refused.value.reason == "STATE_FORBIDS"


async def test_calls_in_flight_and_answered_ones_are_not_settled_by_people(store: Store) -> None:
    batch = await store.create()
    call = await store.claimed(batch)
    with pytest.raises(ParleyError, match="is RESERVED"):
        await correct(store, batch, call.call, 0)
    await store.settle(batch, call)
    with pytest.raises(ParleyError, match="is SETTLED"):
        await correct(store, batch, call.call, COST)


async def test_a_call_of_another_batch_is_not_found(store: Store) -> None:
    batch, _ = await lost(store)
    _, other = await lost(store)
    with pytest.raises(ParleyError) as refused:
        await correct(store, batch, other, 0)
    assert refused.value.reason == "CALL_NOT_FOUND"


async def test_money_that_turns_out_unspent_lifts_the_hold_of_the_budget(store: Store) -> None:
    batch, call = await lost(store, budget_nanos=RESERVE + COST)
    assert await store.claim(batch, 1, epoch=1) == NotClaimable()
    assert await store.state(batch) == "PAUSED"
    await correct(store, batch, call, 0)
    assert (await store.state(batch), await store.holds(batch)) == ("QUEUED", set())
    await store.claimed(batch, 1, epoch=1)


async def test_a_bill_above_the_reserve_keeps_the_hold_and_asks_for_more(store: Store) -> None:
    batch, call = await lost(store, budget_nanos=RESERVE + COST)
    await store.claim(batch, 1, epoch=1)
    await correct(store, batch, call, RESERVE + 5)
    (hold,) = (await store.get(batch)).holds
    assert hold["needs_nanos"] == 2 * RESERVE + 5
