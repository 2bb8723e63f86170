"""At a checkpoint the rest of a batch is quoted anew from what its pilot took: once, whatever happens meanwhile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2
from parley.wire.errors import Refusal
from storage_fixtures import COST, GIVEN_UP, Store, opened
from told_estimator import AWAY, Told, corresponding, quoted, start

from orchestrator_service.convert.batch import event_message
from orchestrator_service.convert.values import nanos
from orchestrator_service.quotes import Away
from orchestrator_service.storage import estimates
from orchestrator_service.storage.claims import NotClaimable
from orchestrator_service.storage.ledger import mark_observed

pytestmark = pytest.mark.anyio


async def piloted(store: Store, count: int = 5, pilot: int = 2, **values: Any) -> str:
    """A batch that holds behind its pilot."""
    batch = await start(store, {"template": count}, hold_after=pilot, **values)
    for number in range(1, pilot + 1):
        await store.make(batch, number)
    await at_the_checkpoint(store, batch, pilot + 1)
    return batch


async def at_the_checkpoint(store: Store, batch: str, next_number: int) -> None:
    assert isinstance(await store.claim(batch, next_number), NotClaimable)
    assert (await store.state(batch), await store.holds(batch)) == ("PAUSED", {"CHECKPOINT"})


async def refined(store: Store, batch: str) -> list[batch_pb2.QuoteRefined]:
    found = [event_message(event) for event in await store.events(batch)]
    return [event.quote_refined for event in found if event.HasField("quote_refined")]


def quotes_asked(told: Told) -> list[estimator_pb2.CreateQuoteRequest]:
    return told.of(estimator_pb2.CreateQuoteRequest)


async def test_what_the_pilot_took_makes_a_new_quote_of_the_rest(tmp_path: Path) -> None:
    told = Told(quote=quoted("quotes/rest", 1_000))
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store, budget_nanos=10_000)
        store.told.clear()
        await both.outbox.send()
        assert {batch} in store.told
        assert (await both.shown(batch)).refined_quote == "quotes/rest"
        (event,) = await refined(store, batch)
        await store.check(batch)
    assert (event.quote, event.made, event.time_left.seconds) == ("quotes/rest", 2, 60)
    # Spent so far and the rest.
    assert nanos(event.projected_cost) == 2 * COST + 1_000
    assert (nanos(event.projected_cost_p10), nanos(event.projected_cost_p90)) == (2 * COST + 800, 2 * COST + 1_200)
    (asked,) = quotes_asked(told)
    assert (asked.batch, asked.owner, asked.seed, asked.spec_sha256) == (f"batches/{batch}", "ann", 7, "0" * 64)
    assert [group.count for group in asked.workload.groups] == [3]
    # What the rest may still cost.
    assert nanos(asked.workload.budget) == 10_000 - 2 * COST


async def test_it_is_asked_for_once_also_by_the_next_process(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store)
        await both.outbox.send()
        await both.outbox.send()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await both.outbox.send()
        assert len(await refined(store, batch)) == 1
    assert len(quotes_asked(told)) == 1


async def test_the_observations_of_the_pilot_are_there_before(tmp_path: Path) -> None:
    def refuse(request: Any) -> Exception | None:
        return AWAY if isinstance(request, estimator_pb2.RecordObservationsRequest) else None

    told = Told(refuse=refuse)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store)
        with pytest.raises(Away):
            await both.outbox.send()
        told.refuse = lambda request: None
        await both.outbox.send()
        assert len(await refined(store, batch)) == 1
    assert isinstance(told.requests[-2], estimator_pb2.RecordObservationsRequest)
    assert isinstance(told.requests[-1], estimator_pb2.CreateQuoteRequest)


async def test_what_the_pilot_settled_behind_the_last_page_is_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await piloted(store)
        assert await store.database.read(partial(estimates.at_checkpoint, limit=9)) == []
        await store.write(mark_observed([1, 2]))
        assert await store.database.read(partial(estimates.at_checkpoint, limit=9)) == [batch]


async def test_an_answer_that_was_lost_is_asked_for_by_the_same_name(tmp_path: Path) -> None:
    told = Told(refuse=lambda request: AWAY if isinstance(request, estimator_pb2.CreateQuoteRequest) else None)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store)
        with pytest.raises(Away):
            await both.outbox.send()
    told.refuse = lambda request: None
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await both.outbox.send()
        assert len(await refined(store, batch)) == 1
        # With other settings it is another question.
        await store.change(batch, concurrency=1, hold_after=4)
        await store.make(batch, 3)
        await store.make(batch, 4)
        await at_the_checkpoint(store, batch, 5)
        await both.outbox.send()
        # Each checkpoint has its own.
        assert len(await refined(store, batch)) == 2
    lost, again, later = quotes_asked(told)
    assert lost == again
    assert lost.request_id and later.request_id != lost.request_id


async def test_approval_before_the_start_has_nothing_to_refine(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store, pilot=0)
        await both.outbox.send()
        assert (await both.shown(batch)).refined_quote == ""
    assert not quotes_asked(told)


async def test_a_batch_that_a_person_paused_is_not_quoted_anew(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store)
        await store.make(batch, 1)
        await store.pause(batch)
        await both.outbox.send()
    assert not quotes_asked(told)


async def test_a_batch_that_is_resumed_meanwhile_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told(), f"unix:{tmp_path}/no.sock") as both:
        batch = await piloted(store)
        with pytest.raises(Away):
            await both.outbox.send()
        await store.resume(batch)
        await store.make(batch, 3)
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await both.outbox.send()
        assert await refined(store, batch) == []
    assert not quotes_asked(told)


NAMELESS, NEGATIVE = quoted(""), quoted("quotes/rest", -1_000)


@pytest.mark.parametrize("answer", [Refusal("MODEL_UNKNOWN", "It has no price."), NAMELESS, NEGATIVE], ids=range(3))
async def test_an_estimator_that_can_not_quote_the_rest_is_not_asked_again(
    tmp_path: Path, answer: Refusal | quote_pb2.Quote
) -> None:
    told = Told()
    if isinstance(answer, Refusal):
        told.refuse = lambda request: answer if isinstance(request, estimator_pb2.CreateQuoteRequest) else None
    else:
        told.quote = answer
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await piloted(store)
        await both.outbox.send()
        await both.outbox.send()
        assert await refined(store, batch) == []
        assert len(quotes_asked(told)) == 1
        # At the next checkpoint it is.
        await store.change(batch, hold_after=3)
        await store.make(batch, 3)
        await at_the_checkpoint(store, batch, 4)
        await both.outbox.send()
        assert len(quotes_asked(told)) == 2


async def test_one_that_the_estimator_stumbles_over_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        stumbles = {f"batches/{await piloted(store)}" for _ in range(6)}
        good = await piloted(store)

        def refuse(request: Any) -> Exception | None:
            is_one = isinstance(request, estimator_pb2.CreateQuoteRequest) and request.batch in stumbles
            return Refusal("INTERNAL", "Something went wrong.") if is_one else None

        async with corresponding(store, Told(refuse=refuse)) as both:
            await both.outbox.send()
            await both.outbox.send()
        assert len(await refined(store, good)) == 1


async def test_a_pilot_that_made_nothing_is_told_as_what_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told()) as both:
        batch = await start(store, {"template": 3}, hold_after=1)
        await store.make(batch, 1, GIVEN_UP)
        await at_the_checkpoint(store, batch, 2)
        await both.outbox.send()
        (event,) = await refined(store, batch)
    assert (event.made, nanos(event.projected_cost)) == (0, COST + 1_000)
