"""Where a batch is heading is asked of the estimator at a bounded rate; whatever it does, the batch goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from parley.v1 import batch_pb2, estimator_pb2
from parley.wire.errors import Refusal
from storage_fixtures import COST, RESERVE, Store, opened
from told_estimator import AWAY, QUOTE, Correspondence, Told, corresponding, forecast, start, telling

from orchestrator_service.convert.values import money, nanos
from orchestrator_service.forecasts import IN_FLIGHT_MAX, LATEST_S, PAUSE_FACTOR, ROUND_MAX, SOONEST_S, Forecasts
from orchestrator_service.storage.recovery import recover

pytestmark = pytest.mark.anyio
WAIT_MAX_S = 10.0
SECOND = 1_000_000


async def running(store: Store, count: int = 4, **values: Any) -> str:
    """With its first conversation under way."""
    batch = await start(store, {"template": count}, **values)
    await store.claimed(batch, 1)
    return batch


async def waits(told: Told, count: int) -> None:
    """Until so many forecasts are being asked for."""
    async with asyncio.timeout(WAIT_MAX_S):
        while told.waiting < count:
            told.asked.clear()
            await told.asked.wait()


async def test_a_running_batch_shows_what_the_estimator_says(tmp_path: Path) -> None:
    told = Told(forecast=forecast(5_000, probability_within_budget=0.75))
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await running(store)
        store.told.clear()
        await both.forecasts.refresh()
        # Those who watch it hear of it.
        assert {batch} in store.told
        shown = (await both.shown(batch)).forecast
    assert (shown.stale, shown.basis) == (False, "told by the test")
    assert nanos(shown.projected_cost) == 5_000
    assert [nanos(quantile.value) for quantile in shown.cost.quantiles] == [4_000, 6_000]
    assert shown.time_left.seconds == shown.time.mean.seconds == 30
    assert shown.probability_within_budget == 0.75
    # By our clock: nobody compares it with the estimator's.
    assert shown.create_time.ToMicroseconds() == both.clock.now_us()


async def test_it_is_asked_with_what_waits_what_runs_and_what_ended(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 3, "scenario": 2}, budget_nanos=9_000)
        store.now_us = 990 * SECOND
        first, _ = await store.claimed(batch, 1), await store.claimed(batch, 2)
        await store.settle(batch, first, 1)
        await both.forecasts.refresh()
        (asked,) = told.of(estimator_pb2.ForecastBatchRequest)
        assert (asked.quote, asked.batch, asked.seed) == (QUOTE, f"batches/{batch}", 7)
        assert [(group.id, group.count) for group in asked.remaining.groups] == [("template", 1), ("scenario", 2)]
        # The settings of now, and the limits of the quote.
        assert (asked.remaining.concurrency, nanos(asked.remaining.budget)) == (3, 9_000)
        assert asked.remaining.limits.requests_per_minute == 50
        assert [(call.group, round(call.age.ToSeconds())) for call in asked.in_flight] == [("template", 9)]
        assert nanos(asked.spent) == COST
        assert asked.elapsed.ToMicroseconds() == pytest.approx(10 * SECOND, abs=100)
        assert [observation.conversation for observation in asked.finished] == [1]
        # What was sent to the estimator is not told again.
        await both.outbox.send()
        await store.claimed(batch, 3)
        await store.make(batch, 4)
        await both.outbox.send()
        both.clock.step(SOONEST_S)
        await both.forecasts.refresh()
        assert not told.of(estimator_pb2.ForecastBatchRequest)[-1].finished


async def test_without_news_it_is_asked_seldom_and_never_more_often_than_every_two_seconds(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await running(store)
        await both.forecasts.refresh()
        await store.make(batch, 2)
        await after(both, SOONEST_S - 0.1)
        assert len(told.forecasts) == 1
        await after(both, 0.1)
        assert len(told.forecasts) == 2
        await after(both, LATEST_S - 0.1)
        assert len(told.forecasts) == 2
        await after(both, 0.1)
        assert len(told.forecasts) == 3
        # Another budget is another question.
        await store.change(batch, budget=1)
        await after(both, SOONEST_S)
        assert len(told.forecasts) == 4


async def test_an_estimator_that_takes_long_is_asked_less_often(tmp_path: Path) -> None:
    told = Told(gate=asyncio.Event())
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await running(store)
        asking = asyncio.create_task(both.forecasts.refresh())
        await waits(told, 1)
        both.clock.step(3.0)
        assert told.gate is not None
        told.gate.set()
        await asking
        await store.make(batch, 2)
        await after(both, 3.0 * PAUSE_FACTOR - 0.1)
        assert len(told.forecasts) == 1
        await after(both, 0.1)
        assert len(told.forecasts) == 2


async def test_many_batches_take_turns_and_few_are_asked_for_at_the_same_time(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        known = {await running(store) for _ in range(ROUND_MAX + 5)}
        await both.forecasts.refresh()
        assert len(told.forecasts) == ROUND_MAX
        for batch in known:
            await store.make(batch, 2)
        await after(both, SOONEST_S)
        # Those who came too late for the first round are among the first ones of the second, which are as many.
        assert len(told.forecasts) == 2 * ROUND_MAX
        assert set(told.forecasts) == known
        assert told.most_waiting <= IN_FLIGHT_MAX


async def test_while_the_estimator_is_away_the_last_forecast_stays_and_says_so(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/e.sock"
    async with opened(tmp_path / "o.db") as store:
        batch, other = await running(store), await running(store)
        async with telling(Told(), listen=address), corresponding(store, Told(), address) as both:
            await both.forecasts.refresh()
        async with corresponding(store, Told(), address) as both:
            store.told.clear()
            await both.forecasts.refresh()
            assert set().union(*store.told) == {batch, other}
            for each in (batch, other):
                shown = (await both.shown(each)).forecast
                assert (shown.stale, nanos(shown.projected_cost)) == (True, 5_000)
            await store.make(batch, 2)
        told = Told(forecast=forecast(7_000))
        async with telling(told, listen=address), corresponding(store, told, address) as both:
            await both.forecasts.refresh()
            shown = (await both.shown(batch)).forecast
            assert (shown.stale, nanos(shown.projected_cost)) == (False, 7_000)


async def test_of_a_batch_that_it_refuses_the_forecast_is_stale_and_the_others_get_theirs(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        refused, other = await running(store), await running(store)
        await both.forecasts.refresh()
        for reason in ("MODEL_UNKNOWN", "INTERNAL", "NOT_BUILT"):
            told.refuse, told.forecast = refusing(reason, refused), forecast(6_000)
            await after(both, LATEST_S)
            shown = [(await both.shown(batch)).forecast for batch in (refused, other)]
            assert [(each.stale, nanos(each.projected_cost)) for each in shown] == [(True, 5_000), (False, 6_000)]


BELOW = forecast(COST // 2)
NEGATIVE, EMPTY = batch_pb2.Forecast(projected_cost=money(-1)), batch_pb2.Forecast()
FOREIGN = forecast(5_000)
FOREIGN.projected_cost.currency_code = "EUR"
BACKWARDS = forecast(5_000)
BACKWARDS.time_left.CopyFrom(Duration(seconds=-3))
CERTAIN = forecast(5_000, probability_within_budget=1.5)
NAN = forecast(5_000, probability_within_budget=float("nan"))
UNSORTED = forecast(5_000)
UNSORTED.cost.quantiles.reverse()
ENDLESS = forecast(5_000)
ENDLESS.cost.quantiles.extend([ENDLESS.cost.quantiles[-1]] * 1_000)
HUGE = batch_pb2.Forecast(projected_cost=money(1 << 62))
HUGE.projected_cost.units = (1 << 63) - 1


@pytest.mark.parametrize(
    "garbage", [NEGATIVE, EMPTY, FOREIGN, BACKWARDS, CERTAIN, NAN, UNSORTED, ENDLESS, HUGE], ids=range(9)
)
async def test_an_answer_that_makes_no_sense_is_none(tmp_path: Path, garbage: batch_pb2.Forecast) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await running(store)
        await both.forecasts.refresh()
        told.forecast = garbage
        await after(both, LATEST_S)
        shown = (await both.shown(batch)).forecast
    assert (shown.stale, nanos(shown.projected_cost)) == (True, 5_000)


async def test_nobody_is_shown_a_projection_below_what_is_spent(tmp_path: Path) -> None:
    told = Told(forecast=BELOW)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await running(store)
        await store.make(batch, 2)
        await both.forecasts.refresh()
        shown = await both.shown(batch)
        assert nanos(shown.spend.confirmed) == COST
        assert nanos(shown.forecast.projected_cost) == nanos(shown.forecast.cost.mean) == COST
        assert [nanos(quantile.value) for quantile in shown.forecast.cost.quantiles] == [COST, COST]
        # Nor when a good one is overtaken by what was spent since.
        told.forecast = forecast(COST * 2)
        await after(both, LATEST_S)
        await store.make(batch, 3)
        await store.write(recover(now_us=store.tick()))
        shown = await both.shown(batch)
        assert nanos(shown.spend.possibly_spent) == RESERVE
        assert nanos(shown.forecast.projected_cost) == 2 * COST + RESERVE


@pytest.mark.parametrize("is_retried", [False, True])
async def test_an_answer_that_comes_after_the_end_is_nobodys(tmp_path: Path, is_retried: bool) -> None:
    told = Told(gate=asyncio.Event())
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 2})
        call = await store.claimed(batch, 1)
        asking = asyncio.create_task(both.forecasts.refresh())
        await waits(told, 1)
        await store.settle(batch, call, 1)
        await store.cancel(batch)
        if is_retried:
            await store.retry(batch)
        store.told.clear()
        assert told.gate is not None
        told.gate.set()
        await asking
        # Nobody is told of anything.
        assert set().union(*store.told) == set()
        shown = await both.shown(batch)
        assert shown.forecast.basis == ("1 made, without the estimator" if is_retried else "")
        assert shown.HasField("forecast") == is_retried


async def test_the_forecast_of_a_run_is_not_shown_for_the_next_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told()) as both:
        batch = await start(store, {"template": 2})
        await store.make(batch, 1)
        await both.forecasts.refresh()
        await store.cancel(batch)
        await store.retry(batch)
        assert (await both.shown(batch)).forecast.basis == "1 made, without the estimator"


async def test_before_there_ever_was_one_our_own_projection_stands_in_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told(), f"unix:{tmp_path}/no.sock") as both:
        batch = await running(store, quoted_cost_nanos=800, quoted_duration_s=40.0)
        # Nobody was asked yet.
        assert not (await both.shown(batch)).forecast.stale
        await both.forecasts.refresh()
        shown = (await both.shown(batch)).forecast
    assert (shown.stale, shown.basis) == (True, "the quote, without the estimator")
    assert nanos(shown.projected_cost) == 800
    assert not shown.HasField("cost")


async def test_the_next_process_still_shows_the_last_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told()) as both:
        batch = await running(store)
        await both.forecasts.refresh()
    async with opened(tmp_path / "o.db") as store, corresponding(store, Told()) as both:
        assert nanos((await both.shown(batch)).forecast.projected_cost) == 5_000


async def test_a_batch_that_is_held_is_asked_for_once_more_and_then_no_more(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store)
        call = await store.claimed(batch, 1)
        await both.forecasts.refresh()
        await store.pause(batch)
        await store.settle(batch, call, 1)
        await after(both, SOONEST_S)
        assert len(told.forecasts) == 2
        await after(both, 10 * LATEST_S)
        assert len(told.forecasts) == 2
        shown = (await both.shown(batch)).forecast
        # What is left takes as long once it is resumed.
        assert not shown.stale and shown.HasField("time_left")


async def test_a_quote_that_the_estimator_lost_is_left_out_of_the_question(tmp_path: Path) -> None:
    def refuse(request: Any) -> Exception | None:
        unknown = request.quote or any(observation.quote for observation in request.finished)
        return Refusal("QUOTE_NOT_FOUND", "There is no such quote.") if unknown else None

    async with opened(tmp_path / "o.db") as store, corresponding(store, Told(refuse=refuse)) as both:
        batch = await running(store)
        await store.make(batch, 2)
        await both.forecasts.refresh()
        assert not (await both.shown(batch)).forecast.stale


async def test_an_estimator_that_says_it_is_going_down_is_away(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        known = [await running(store) for _ in range(5)]
        await both.forecasts.refresh()
        told.refuse = lambda request: AWAY
        await after(both, LATEST_S)
        # Those that were being asked for; nobody is there to ask for the others.
        assert len(told.forecasts) - len(known) <= IN_FLIGHT_MAX
        assert all([(await both.shown(batch)).forecast.stale for batch in known])


def refusing(reason: str, batch: str) -> Callable[[Any], Exception | None]:
    def refuse(request: Any) -> Exception | None:
        return Refusal(reason, "It is refused.") if request.batch == f"batches/{batch}" else None

    return refuse


async def after(both: Correspondence, seconds: float) -> None:
    both.clock.step(seconds)
    await both.forecasts.refresh()


async def test_a_batch_that_has_only_just_begun_is_left_to_its_quote(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        patient = Forecasts(store.database, both.estimator, both.clock, first_after_s=5.0)
        await running(store)
        await patient.refresh()
        both.clock.step(4.9)
        await patient.refresh()
        assert not told.forecasts
        both.clock.step(0.2)
        await patient.refresh()
        assert len(told.forecasts) == 1
