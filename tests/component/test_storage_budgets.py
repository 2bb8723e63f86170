"""Budgets in the database: of a day, for an owner and for the server; the mark; what lifts a hold; prices renewed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from functools import partial
from typing import Any

import pytest
from storage_fixtures import (
    AGAIN,
    COST,
    GIVEN_UP,
    MADE,
    QUARANTINED,
    RESERVE,
    Store,
    checked,
    held,
    opened,
)

from orchestrator_service.domain.batch import HoldReason
from orchestrator_service.domain.breaker import Breaker
from orchestrator_service.domain.budget import DAY_US, Amount, BudgetScope, DailyBudgets, WaitForSettlement
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage import budgets, recovery
from orchestrator_service.storage.claims import NotClaimable
from orchestrator_service.storage.corrections import Correction, settle_by_person
from orchestrator_service.storage.rates import PricedAt
from orchestrator_service.storage.settlements import GivenUp, Made

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", name="opened_store")
async def open_store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("budgets") / "o.db") as store:
        yield store


@pytest.fixture
def store(opened_store: Store) -> Generator[Store]:
    """Each story has a day of its own."""
    opened_store.now_us = (opened_store.now_us // DAY_US + 1) * DAY_US
    opened_store.daily = DailyBudgets()
    yield opened_store


async def spent_today(store: Store, owner: str | None) -> Amount:
    return await store.database.read(partial(budgets.of_day, owner=owner, time_us=store.now_us))


async def comes_due(store: Store, batch: str) -> bool:
    """Whether a hold of the batch cleared by itself."""
    clear = budgets.clear_due(daily=store.daily, now_us=store.tick())
    return batch in await store.write(clear)


async def over_day(store: Store, **values: Any) -> str:
    """A batch that is held because its owner has spent COST of a day's budget that the next call does not fit."""
    store.daily = DailyBudgets(owner_nanos=RESERVE)
    batch = await store.create(**values)
    await store.make(batch, 1)
    assert await store.claim(batch, 2) == NotClaimable()
    return batch


async def test_a_day_sums_what_its_calls_cost_whenever_they_are_settled(store: Store) -> None:
    batch = await store.create(owner="bea")
    first, second = await store.claimed(batch, 1), await store.claimed(batch, 2)
    assert await spent_today(store, "bea") == Amount(committed_nanos=0, reserved_nanos=2 * RESERVE)
    await store.settle(batch, first)
    day, store.now_us = store.now_us, store.now_us + DAY_US
    await store.settle(batch, second, 2, AGAIN, usage=None, cost_nanos=0, possibly_spent=True)
    assert await spent_today(store, "bea") == Amount(committed_nanos=0, reserved_nanos=0)
    store.now_us = day
    assert await spent_today(store, "bea") == Amount(committed_nanos=COST + RESERVE, reserved_nanos=0)
    assert await spent_today(store, "cid") == Amount(committed_nanos=0, reserved_nanos=0)
    await store.check(batch)


async def test_an_owner_has_a_budget_for_the_day_over_all_their_batches(store: Store) -> None:
    store.daily = DailyBudgets(owner_nanos=2 * RESERVE)
    first, second, others = await store.create(), await store.create(), await store.create(owner="bea")
    calls = [await store.claimed(first), await store.claimed(second)]
    assert await store.claim(second, 2) == WaitForSettlement(BudgetScope.OWNER_DAY)
    assert await store.state(second) == "RUNNING"
    await store.claimed(others)
    await store.settle(first, calls[0])
    await store.settle(second, calls[1])
    assert await store.claim(second, 2) == NotClaimable()
    (hold,) = (await store.get(second)).holds
    assert (hold["reason"], hold["scope"]) == ("BUDGET", "OWNER_DAY")
    assert "PARLEY_OWNER_DAILY_BUDGET" in hold["message"]
    assert hold["clears_us"] == (store.now_us // DAY_US + 1) * DAY_US


async def test_the_server_has_a_budget_for_the_day_over_all_owners(store: Store) -> None:
    store.daily = DailyBudgets(owner_nanos=10 * RESERVE, server_nanos=RESERVE + COST)
    await store.make(await store.create(owner="bea"))
    batch = await store.create(owner="cid")
    call = await store.claimed(batch)
    assert await store.claim(batch, 2) == WaitForSettlement(BudgetScope.SERVER_DAY)
    await store.settle(batch, call)
    assert await store.claim(batch, 2) == NotClaimable()
    (hold,) = (await store.get(batch)).holds
    assert hold["scope"] == "SERVER_DAY"


async def test_a_hold_of_the_day_is_over_at_midnight(store: Store) -> None:
    batch = await over_day(store)
    assert not await comes_due(store, batch)
    store.now_us = (store.now_us // DAY_US + 1) * DAY_US
    assert await comes_due(store, batch)
    assert (await store.state(batch), await store.holds(batch)) == ("QUEUED", set())
    await store.claimed(batch, 2)
    await store.check(batch)


async def test_a_hold_of_the_day_is_over_when_the_days_budget_is_raised(store: Store) -> None:
    batch = await over_day(store)
    store.daily = DailyBudgets(owner_nanos=RESERVE + COST)
    assert await comes_due(store, batch)
    await store.claimed(batch, 2)


async def test_a_person_cannot_resume_over_the_days_budget_and_can_after_midnight(store: Store) -> None:
    batch = await over_day(store)
    with pytest.raises(ParleyError, match="00:00 UTC") as refused:
        await store.resume(batch)
    assert (refused.value.reason, refused.value.metadata["scope"]) == ("HOLD_STANDS", "OWNER_DAY")
    store.now_us += DAY_US
    await store.resume(batch)
    assert await store.state(batch) == "QUEUED"


async def test_raising_the_batchs_budget_lifts_no_hold_of_the_day(store: Store) -> None:
    batch = await over_day(store, budget_nanos=10 * RESERVE)
    await store.change(batch, budget=20 * RESERVE)
    assert await store.holds(batch) == {"BUDGET"}


async def test_a_hold_of_the_day_is_over_when_a_person_settles_what_another_batch_possibly_spent(store: Store) -> None:
    store.daily = DailyBudgets(owner_nanos=RESERVE + COST)
    lost = await store.create()
    call = await store.claimed(lost)
    await store.write(checked(recovery.recover_batch(lost, now_us=store.tick()), lost))
    batch = await store.create()
    assert await store.claim(batch) == NotClaimable()
    assert not await comes_due(store, batch)
    told = Correction(batch=lost, call=call.call, cost_nanos=COST, by="ann", note="", now_us=store.tick())
    await store.write(checked(settle_by_person(told), lost))
    assert await comes_due(store, batch)
    await store.claimed(batch)


async def test_other_holds_stay_when_one_clears_by_itself(store: Store) -> None:
    batch = await over_day(store)
    await store.pause(batch)
    store.now_us += DAY_US
    assert await comes_due(store, batch)
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"USER"})


async def test_a_spend_limit_clears_at_the_time_that_the_provider_told(store: Store) -> None:
    batch = await store.create()
    hold = held(HoldReason.PROVIDER_LIMIT, clears_us=store.now_us + 1_000)
    call = await store.claimed(batch)
    await store.settle(batch, call, 1, AGAIN, hold=hold)
    assert not await comes_due(store, batch)
    store.now_us += 1_000
    assert await comes_due(store, batch)
    assert await store.state(batch) == "QUEUED"


async def test_a_cancelled_batchs_holds_do_not_come_due(store: Store) -> None:
    batch = await store.create()
    await store.claimed(batch, 1)
    call = await store.claimed(batch, 2)
    await store.settle(batch, call, 2, AGAIN, hold=held(HoldReason.PROVIDER_LIMIT, clears_us=store.now_us))
    await store.cancel(batch)
    assert await store.state(batch) == "CANCELLING"
    assert not await comes_due(store, batch)


async def test_the_mark_is_an_event_once_for_each_budget(store: Store) -> None:
    batch = await store.create(budget_nanos=5 * COST)
    for number in (1, 2, 3):
        await store.make(batch, number)
    assert "budget_mark" not in await store.kinds(batch)
    await store.make(batch, 4)
    (mark,) = [event.detail for event in await store.events(batch) if event.kind == "budget_mark"]
    assert mark == {"share": 0.8, "spent_nanos": 4 * COST, "budget_nanos": 5 * COST}


async def test_what_a_crash_hides_counts_towards_the_mark(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE + 10)
    await store.claimed(batch)
    await store.write(checked(recovery.recover_batch(batch, now_us=store.tick()), batch))
    assert "budget_mark" in await store.kinds(batch)
    assert await spent_today(store, "ann") == Amount(committed_nanos=RESERVE, reserved_nanos=0)


async def test_a_late_settlement_below_its_reserve_lifts_the_hold_of_the_budget(store: Store) -> None:
    batch = await store.create(budget_nanos=RESERVE + COST)
    call = await store.claimed(batch)
    await store.write(checked(recovery.recover_batch(batch, now_us=store.tick()), batch))
    assert await store.claim(batch, 2, epoch=1) == NotClaimable()
    assert await store.holds(batch) == {"BUDGET"}
    await store.settle(batch, call)
    assert (await store.state(batch), await store.holds(batch)) == ("QUEUED", set())
    await store.check(batch)


# The circuit breaker.


@pytest.mark.parametrize("result", [GIVEN_UP, QUARANTINED])
async def test_so_many_failures_in_a_row_hold_the_batch(store: Store, result: Made | GivenUp) -> None:
    batch = await store.create({"template": 8})
    for number, kind in enumerate([result, MADE, result, result], 1):
        call = await store.claimed(batch, number)
        await store.settle(batch, call, number, kind, breaker=Breaker(failures_in_a_row=3))
    assert await store.state(batch) == "RUNNING"
    call = await store.claimed(batch, 5)
    await store.settle(batch, call, 5, result, breaker=Breaker(failures_in_a_row=3))
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"TOO_MANY_FAILURES"})
    await store.resume(batch)
    call = await store.claimed(batch, 6)
    await store.settle(batch, call, 6, result, breaker=Breaker(failures_in_a_row=3))
    # Counted anew.
    assert await store.state(batch) == "RUNNING"
    await store.check(batch)


async def test_the_database_remembers_the_last_twenty_ends_as_the_domain_does(store: Store) -> None:
    batch = await store.create({"template": 30})
    off = Breaker(failures_in_a_row=0, failure_share=1.0)
    failed = [number % 3 == 0 or number > 24 for number in range(1, 31)]
    for number, is_failure in enumerate(failed, 1):
        call = await store.claimed(batch, number)
        await store.settle(batch, call, number, AGAIN, breaker=off)
        call = await store.claimed(batch, number)
        await store.settle(batch, call, number, GIVEN_UP if is_failure else MADE, breaker=off)
    ends = (await store.get(batch)).row["recent_ends"]
    assert f"{ends:b}" == "1" + "".join(str(int(bit)) for bit in failed[-20:])


# Prices.


async def test_a_resume_takes_up_new_prices_with_an_event(store: Store) -> None:
    batch = await store.create(rate='{"old": 1}', rate_version="v1")
    await store.pause(batch)
    await store.resume(batch, priced=PricedAt(version="v9", rate='{"old": 1}'))
    assert "rates_changed" not in await store.kinds(batch)
    await store.pause(batch)
    await store.resume(batch, priced=PricedAt(version="v2", rate='{"new": 2}'))
    row = (await store.get(batch)).row
    assert (row["rate"], row["rate_version"]) == ('{"new": 2}', "v2")
    last = [event.detail for event in await store.events(batch) if event.kind == "rates_changed"]
    assert last == [{"rate_version": "v2"}]
    kept = await store.ask("SELECT version, rate FROM rates WHERE model = 'm' ORDER BY version")
    assert ("v1", '{"old": 1}') in kept and ("v2", '{"new": 2}') in kept


async def test_a_running_batch_keeps_its_prices(store: Store) -> None:
    batch = await store.create(rate='{"old": 1}', rate_version="v1")
    await store.resume(batch, priced=PricedAt(version="v2", rate='{"new": 2}'))
    assert (await store.get(batch)).row["rate_version"] == "v1"
