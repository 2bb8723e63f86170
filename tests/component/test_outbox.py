"""Settled calls reach the estimator once each, also past one that it will never take and a quote that it lost."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from estimator_fixtures import estimator
from parley.v1 import estimator_pb2, quote_pb2
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import Refusal
from sqlalchemy import text
from storage_fixtures import Store, opened
from told_estimator import AWAY, QUOTE, Told, corresponding, start, telling

from orchestrator_service.outbox.observations import Observations
from orchestrator_service.quotes import Away, Estimator
from orchestrator_service.storage.writer import Transaction

pytestmark = pytest.mark.anyio
WAIT_MAX_S = 10.0
# An estimator believes no time that can't be: 2026-11-23 11:00.
NOW_US = 1_795_431_600_000_000


@asynccontextmanager
async def sending(store: Store, address: str) -> AsyncGenerator[Observations]:
    async with open_channel(ChannelSettings(target=address)) as channel:
        yield Observations(store.database, Estimator(channel, address=address, database=store.database))


async def made(store: Store, count: int) -> str:
    store.now_us = NOW_US
    batch = await store.create({"template": count})
    for number in range(1, count + 1):
        await store.make(batch, number)
    return batch


async def quoted(store: Store, count: int, **values: Any) -> str:
    batch = await start(store, {"template": count}, **values)
    for number in range(1, count + 1):
        await store.make(batch, number)
    return batch


async def waiting(store: Store) -> list[int]:
    return [call for (call,) in await store.ask("SELECT id FROM calls WHERE NOT observed ORDER BY id")]


async def test_every_settled_call_is_sent_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, estimator(tmp_path / "e.db") as served:
        await made(store, 3)
        async with sending(store, served.address) as observations:
            await observations.send()
            assert not await observations.send_page()
        assert await waiting(store) == []
        assert recorded(tmp_path / "e.db") == 3


async def test_one_that_the_estimator_refuses_does_not_stand_in_the_way_of_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, estimator(tmp_path / "e.db") as served:
        await made(store, 5)
        await store.write(without_a_tier)
        async with sending(store, served.address) as observations:
            await observations.send()
        # The one at fault is logged and let go: it will never be another.
        assert await waiting(store) == []
        assert recorded(tmp_path / "e.db") == 4


async def test_while_the_estimator_is_away_calls_wait(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, sending(store, f"unix:{tmp_path}/nobody.sock") as observations:
        await made(store, 2)
        with pytest.raises(Away):
            await observations.send_page()
        assert len(await waiting(store)) == 2


async def test_an_observation_tells_what_to_learn_by(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await quoted(store, 1, effort="high")
        await both.outbox.send()
    (observation,) = told.observed
    assert (observation.effort, observation.quote, observation.conversation) == ("high", QUOTE, 1)
    assert observation.prompt_fingerprint == f"{'template':x<64}"
    assert observation.call == f"batches/{batch}/calls/1"


async def test_of_a_quote_that_the_estimator_lost_the_calls_are_sent_without_it(tmp_path: Path) -> None:
    told = Told(refuse=gone("quotes/lost", is_named=True))
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await quoted(store, 2, quote_name="quotes/lost")
        await quoted(store, 1)
        await both.outbox.send()
        assert await waiting(store) == []
    assert [observation.quote for observation in told.observed] == ["", "", QUOTE]


async def test_where_it_does_not_say_which_quote_it_lost_none_is_sent(tmp_path: Path) -> None:
    told = Told(refuse=gone("quotes/lost", is_named=False))
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await quoted(store, 1, quote_name="quotes/lost")
        await quoted(store, 1)
        await both.outbox.send()
        assert await waiting(store) == []
    assert [observation.quote for observation in told.observed] == ["", ""]


async def test_an_estimator_that_finds_every_quote_unknown_does_not_keep_the_calls_waiting(tmp_path: Path) -> None:
    told = Told(refuse=lambda request: Refusal("QUOTE_NOT_FOUND", "There is no such quote."))
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await quoted(store, 2)
        await both.outbox.send()
        assert await waiting(store) == []


async def test_a_call_that_was_told_otherwise_before_is_let_go_and_the_others_get_through(tmp_path: Path) -> None:
    def refuse(request: Any) -> Exception | None:
        if any(each.call.endswith("/calls/2") for each in getattr(request, "observations", ())):
            return Refusal("DUPLICATE_DIFFERS", "Call 2 was recorded with other figures.")
        return None

    told = Told(refuse=refuse)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await quoted(store, 4)
        await both.outbox.send()
        assert await waiting(store) == []
    assert [observation.conversation for observation in told.observed] == [1, 3, 4]


async def test_what_was_taken_while_the_answer_was_lost_is_sent_again_as_it_was(tmp_path: Path) -> None:
    told = Told()
    told.lost_answers.append(AWAY)
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        await quoted(store, 2)
        with pytest.raises(Away):
            await both.outbox.send()
        await both.outbox.send()
        assert await waiting(store) == []
    # The estimator knows a call by its name and compares the rest, so that it must be the same.
    assert told.observed[:2] == told.observed[2:]
    assert len(told.observed) == 4


async def test_an_estimator_that_comes_back_has_every_call_once(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/e.sock"
    async with opened(tmp_path / "o.db") as store:
        batch = await start(store, {"template": 4})
        before, after = Told(), Told()
        async with telling(before, listen=address), corresponding(store, before, address) as both:
            await store.make(batch, 1)
            await both.outbox.send()
        async with corresponding(store, before, address) as both:
            await store.make(batch, 2)
            with pytest.raises(Away):
                await both.outbox.send()
        async with telling(after, listen=address), corresponding(store, after, address) as both:
            await store.make(batch, 3)
            await both.outbox.send()
    assert [observation.conversation for observation in before.observed] == [1]
    assert [observation.conversation for observation in after.observed] == [2, 3]


async def test_what_is_left_of_a_batch_that_rests_is_sent_without_waiting(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "o.db") as store, corresponding(store, told) as both:
        batch = await start(store, {"template": 1})
        running = asyncio.create_task(both.outbox.run())
        await both.news.until(lambda: bool(both.clock.sleepers))
        await store.make(batch, 1)
        # No time goes by.
        both.rested.ring()
        async with asyncio.timeout(WAIT_MAX_S):
            while not told.concluded:
                told.asked.clear()
                await told.asked.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [type(request) for request in told.requests] == [
        estimator_pb2.RecordObservationsRequest,
        estimator_pb2.RecordOutcomeRequest,
    ]


def gone(quote: str, *, is_named: bool) -> Callable[[Any], Exception | None]:
    """It knows every quote but this one."""

    def refuse(request: Any) -> Exception | None:
        observations: list[quote_pb2.Observation] = list(getattr(request, "observations", ()))
        if quote not in {each.quote for each in observations} | {getattr(request, "quote", "")}:
            return None
        return Refusal("QUOTE_NOT_FOUND", f"There is no {quote}.", metadata={"quote": quote} if is_named else {})

    return refuse


def recorded(path: Path) -> int:
    """Observations that the estimator has stored."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM observations").fetchone()[0]


def without_a_tier(tx: Transaction) -> None:
    tx.connection.execute(text("UPDATE calls SET tier = '' WHERE id = 3"))
