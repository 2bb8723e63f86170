"""Settled calls reach the estimator once each, also past one that it will never take."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from engine_fixtures import SteppedClock
from estimator_fixtures import estimator
from parley.wire.channel import ChannelSettings, open_channel
from sqlalchemy import text
from storage_fixtures import Store, opened

from orchestrator_service.outbox import Outbox
from orchestrator_service.quotes import Away, Estimator
from orchestrator_service.storage.writer import Transaction

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sending(store: Store, address: str) -> AsyncGenerator[Outbox]:
    async with open_channel(ChannelSettings(target=address)) as channel:
        asked = Estimator(channel, address=address, database=store.database)
        yield Outbox(store.database, asked, SteppedClock())


async def made(store: Store, count: int) -> str:
    batch = await store.create({"template": count})
    for number in range(1, count + 1):
        await store.make(batch, number)
    return batch


async def waiting(store: Store) -> list[int]:
    return [call for (call,) in await store.ask("SELECT id FROM calls WHERE NOT observed ORDER BY id")]


async def send_all(outbox: Outbox) -> None:
    while await outbox.send_page():
        pass


async def test_every_settled_call_is_sent_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, estimator(tmp_path / "e.db") as served:
        await made(store, 3)
        async with sending(store, served.address) as outbox:
            await send_all(outbox)
            assert not await outbox.send_page()
        assert await waiting(store) == []
        assert recorded(tmp_path / "e.db") == 3


async def test_one_that_the_estimator_refuses_does_not_stand_in_the_way_of_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, estimator(tmp_path / "e.db") as served:
        await made(store, 5)
        await store.write(without_a_tier)
        async with sending(store, served.address) as outbox:
            await send_all(outbox)
        # The one at fault is logged and let go: it will never be another.
        assert await waiting(store) == []
        assert recorded(tmp_path / "e.db") == 4


async def test_while_the_estimator_is_away_calls_wait(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store, sending(store, f"unix:{tmp_path}/nobody.sock") as outbox:
        await made(store, 2)
        with pytest.raises(Away):
            await outbox.send_page()
        assert len(await waiting(store)) == 2


def recorded(path: Path) -> int:
    """Observations that the estimator has stored."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM observations").fetchone()[0]


def without_a_tier(tx: Transaction) -> None:
    tx.connection.execute(text("UPDATE calls SET tier = '' WHERE id = 3"))
