"""How a quoted batch ended reaches the estimator once: its first run, when all that it took is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parley.v1 import estimator_pb2
from parley.wire.errors import Refusal
from sqlalchemy import event
from storage_fixtures import COST, GIVEN_UP, Store, opened
from told_estimator import AWAY, QUOTE, Told, corresponding, start

from orchestrator_service.convert.values import nanos
from orchestrator_service.quotes import Away
from orchestrator_service.storage import events, outcomes
from orchestrator_service.storage.ledger import mark_observed
from orchestrator_service.storage.outcomes import NotYet, Outcome
from orchestrator_service.storage.rates import PricedAt
from orchestrator_service.storage.recovery import recover

pytestmark = pytest.mark.anyio
# By the desk's rate 20 tokens of output cost this.
AT_QUOTED_PRICE = 200
SECOND = 1_000_000


async def make_all(store: Store, batch: str, count: int) -> None:
    for number in range(1, count + 1):
        await store.make(batch, number)


async def outcome(store: Store, batch: str) -> str:
    ((state,),) = await store.ask("SELECT outcome FROM batch_estimates WHERE batch = :batch", batch=batch)
    return state


def refusing(reason: str, batch: str) -> Callable[[Any], Exception | None]:
    def refuse(request: Any) -> Exception | None:
        is_it = isinstance(request, estimator_pb2.RecordOutcomeRequest) and request.batch == f"batches/{batch}"
        return Refusal(reason, "It is refused.") if is_it else None

    return refuse


async def test_the_end_of_a_quoted_batch_is_told_with_what_it_took(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 2, "scenario": 1})
        await store.make(batch, 1)
        await store.make(batch, 2, GIVEN_UP)
        await both.outbox.send()
        assert not told.concluded
        await store.make(batch, 3)
        await both.outbox.send()
        assert await outcome(store, batch) == "SENT"
        ended_us = (await store.get(batch)).row["ended_us"]
    (request,) = told.concluded.values()
    assert (request.quote, request.batch) == (QUOTE, f"batches/{batch}")
    actuals = request.actuals
    assert nanos(actuals.cost) == 3 * COST
    assert {tier: nanos(cost) for tier, cost in actuals.cost_by_group.items()} == {
        "template": 2 * COST,
        "scenario": COST,
    }
    assert actuals.conversations == 2
    assert not actuals.HasField("cost_at_quoted_prices")
    assert request.end_time.ToMicroseconds() == ended_us


async def test_its_observations_come_first(tmp_path: Path) -> None:
    def refuse(request: Any) -> Exception | None:
        # Of the two calls of the batch one is not taken yet.
        return AWAY if isinstance(request, estimator_pb2.RecordObservationsRequest) else None

    told = Told(refuse=refuse)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 1})
        await store.make(batch, 1)
        with pytest.raises(Away):
            await both.outbox.send()
        assert not told.concluded
        told.refuse = lambda request: None
        await both.outbox.send()
        assert list(told.concluded) == [f"batches/{batch}"]


async def test_what_was_settled_behind_the_last_page_is_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await start(store, {"template": 1})
        await store.make(batch, 1)
        assert isinstance(await store.database.read(partial(outcomes.read, batch=batch)), NotYet)
        await store.write(mark_observed([1]))
        assert isinstance(await store.database.read(partial(outcomes.read, batch=batch)), Outcome)


async def test_holds_and_the_time_that_the_server_was_down_are_not_in_its_duration(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 4})
        store.now_us = 100 * SECOND
        first = await store.claimed(batch, 1)
        store.now_us = 110 * SECOND
        await store.settle(batch, first, 1)
        await store.pause(batch)
        store.now_us = 500 * SECOND
        await store.resume(batch)
        second = await store.claimed(batch, 2)
        store.now_us = 507 * SECOND
        await store.settle(batch, second, 2)
        await store.claimed(batch, 3)
        # It goes down with that call in flight, and comes back much later.
        store.now_us = 900 * SECOND
        await store.write(recover(now_us=store.tick()))
        third = await store.claimed(batch, 3, epoch=1)
        store.now_us = 903 * SECOND
        await store.settle(batch, third, 3)
        await store.make(batch, 4, epoch=1)
        await both.outbox.send()
    (request,) = told.concluded.values()
    assert request.actuals.duration.ToMicroseconds() == pytest.approx((10 + 7 + 3) * SECOND, abs=100)


async def test_it_is_told_once_also_by_the_next_process(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 1})
        await store.make(batch, 1)
        await both.outbox.send()
        await both.outbox.send()
    # The estimator of the test takes no batch twice.
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await both.outbox.send()
    assert len(told.of(estimator_pb2.RecordOutcomeRequest)) == 1


async def test_one_that_was_not_taken_is_told_by_the_next_process(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told, f"unix:{tmp_path}/no.sock") as both:
        batch = await start(store, {"template": 1})
        await store.make(batch, 1)
        with pytest.raises(Away):
            await both.outbox.send()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await both.outbox.send()
    assert list(told.concluded) == [f"batches/{batch}"]


async def test_a_batch_that_was_cancelled_or_made_nothing_or_had_no_quote_is_not_told(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        cancelled, failed = await start(store, {"template": 2}), await start(store, {"template": 1})
        unquoted = await start(store, {"template": 1}, quote_name="")
        await store.make(cancelled, 1)
        await store.cancel(cancelled)
        await store.make(failed, 1, GIVEN_UP)
        await store.make(unquoted, 1)
        await both.outbox.send()
        assert [await outcome(store, batch) for batch in (cancelled, failed, unquoted)] == ["NONE"] * 3
        # Nor is what a later run made of it.
        await store.retry(cancelled)
        await store.make(cancelled, 2)
        await both.outbox.send()
    assert not told.concluded


async def test_what_a_second_run_took_is_not_in_the_outcome(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 2})
        await store.make(batch, 1)
        await store.make(batch, 2, GIVEN_UP)
        # Before the outcome was told.
        await store.retry(batch)
        await store.make(batch, 2)
        await both.outbox.send()
    (request,) = told.concluded.values()
    assert (nanos(request.actuals.cost), request.actuals.conversations) == (2 * COST, 1)


@pytest.mark.parametrize("reason", ["QUOTE_NOT_FOUND", "DUPLICATE_DIFFERS", "INVALID_FIELD"])
async def test_one_that_is_refused_is_told_no_more_and_the_others_get_through(tmp_path: Path, reason: str) -> None:
    async with opened(tmp_path / "o.db") as store:
        refused, taken = await start(store, {"template": 1}), await start(store, {"template": 1})
        await store.make(refused, 1)
        await store.make(taken, 1)
        told = Told(refuse=refusing(reason, refused))
        async with corresponding(store, told) as both:
            await both.outbox.send()
            await both.outbox.send()
        assert (await outcome(store, refused), await outcome(store, taken)) == ("REFUSED", "SENT")
    assert len(told.of(estimator_pb2.RecordOutcomeRequest)) == 2


async def test_one_that_the_estimator_stumbles_over_waits_and_the_others_get_through(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        waits, taken = await start(store, {"template": 1}), await start(store, {"template": 1})
        await store.make(waits, 1)
        await store.make(taken, 1)
        told = Told(refuse=refusing("INTERNAL", waits))
        async with corresponding(store, told) as both:
            await both.outbox.send()
            assert (await outcome(store, waits), await outcome(store, taken)) == ("WAITING", "SENT")
            told.refuse = lambda request: None
            await both.outbox.send()
        assert await outcome(store, waits) == "SENT"


async def test_where_prices_changed_it_says_what_it_had_cost_at_those_of_the_quote(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 3}, rate='{"price": 1}', rate_version="v1")
        await store.make(batch, 1)
        await store.pause(batch)
        await store.resume(batch, priced=PricedAt(version="v2", rate='{"price": 2}'))
        await store.make(batch, 2)
        await store.make(batch, 3)
        await both.outbox.send()
    (request,) = told.concluded.values()
    assert nanos(request.actuals.cost) == 3 * COST
    assert nanos(request.actuals.cost_at_quoted_prices) == COST + 2 * AT_QUOTED_PRICE


async def test_of_a_deleted_batch_nothing_is_told_and_nothing_stays(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 1})
        await store.make(batch, 1)
        await store.remove(batch)
        await both.outbox.send()
        assert await store.ask("SELECT count(*) FROM batch_estimates") == [(0,)]
    # What its call took is worth as much.
    assert len(told.observed) == 1
    assert not told.concluded


async def test_how_long_it_ran_is_read_without_a_look_at_every_event(tmp_path: Path) -> None:
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    async with opened(tmp_path / "o.db") as store:
        event.listen(store.database.reading, "before_cursor_execute", note)
        await store.database.read(partial(events.of_states, batch="b"))
        event.remove(store.database.reading, "before_cursor_execute", note)
        plan = await store.ask("EXPLAIN QUERY PLAN " + asked[-1].replace("?", ":batch"), batch="b")
    assert "USING INDEX events_of_states" in str(plan)
