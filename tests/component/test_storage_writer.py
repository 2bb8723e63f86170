"""The one writer: facts in order, committed together, each failing alone; a refusing database loses nothing later."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from storage_fixtures import Store, opened

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage.writer import GROUP_MAX, QUEUE_MAX, Fact, StorageFailed, Transaction

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[Store]:
    async with opened(tmp_path / "o.db") as store:
        await store.write(lambda tx: tx.connection.exec_driver_sql("CREATE TABLE notes (text TEXT CHECK (text <> ''))"))
        store.told.clear()
        yield store


def note(said: str) -> Fact[str]:
    def fact(tx: Transaction) -> str:
        tx.connection.exec_driver_sql("INSERT INTO notes VALUES (?)", (said,))
        tx.touch(said)
        return said

    return fact


def refused(tx: Transaction) -> None:
    note("of a fact that was refused")(tx)
    raise ParleyError("STATE_FORBIDS", "Not now.")


def mistaken(tx: Transaction) -> None:
    note("of a fact with a mistake")(tx)
    raise ZeroDivisionError


async def notes(store: Store) -> list[str]:
    return [said for (said,) in await store.ask("SELECT text FROM notes ORDER BY rowid")]


class Gate:
    """A fact that holds the writer, so that others gather behind it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = threading.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, tx: Transaction) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def gathered(store: Store, facts: list[Fact[str] | Fact[None]]) -> list[object]:
    """The answers of facts that were waiting together."""
    gate = Gate()
    first = asyncio.ensure_future(store.write(gate))
    await gate.reached.wait()
    waiting = asyncio.gather(*[store.write(fact) for fact in facts], return_exceptions=True)
    await asyncio.wait([waiting], timeout=0)
    gate.open()
    await first
    return list(await waiting)


async def test_facts_that_wait_together_are_committed_together_in_order(store: Store) -> None:
    texts = [f"{number:03}" for number in range(GROUP_MAX)]
    assert await gathered(store, [note(text) for text in texts]) == texts
    assert await notes(store) == texts
    # One commit, so one call of the callback, for all of them.
    assert store.told == [set(texts)]


async def test_nobody_sees_a_part_of_a_group(store: Store) -> None:
    def seen_by_others(tx: Transaction) -> str:
        other = sqlite3.connect(store.path)
        ((count,),) = other.execute("SELECT count(*) FROM notes").fetchall()
        other.close()
        return f"{count} seen"

    assert await gathered(store, [note("a"), note("b"), seen_by_others]) == ["a", "b", "0 seen"]
    assert await notes(store) == ["a", "b"]


async def test_a_group_has_a_limit(store: Store) -> None:
    texts = [f"{number:03}" for number in range(2 * GROUP_MAX + 1)]
    assert await gathered(store, [note(text) for text in texts]) == texts
    assert await notes(store) == texts
    assert [len(touched) for touched in store.told] == [GROUP_MAX, GROUP_MAX, 1]


async def test_a_fact_that_fails_fails_alone(store: Store) -> None:
    answers = await gathered(store, [note("a"), refused, note("b"), mistaken, note(""), note("c")])
    assert [answer for answer in answers if isinstance(answer, str)] == ["a", "b", "c"]
    assert [type(answer) for answer in (answers[1], answers[3], answers[4])] == [
        ParleyError,
        ZeroDivisionError,
        IntegrityError,
    ]
    assert await notes(store) == ["a", "b", "c"]
    assert store.told == [{"a", "b", "c"}]


async def test_a_fact_that_fails_by_itself_leaves_nothing(store: Store) -> None:
    for fact, error in ((refused, ParleyError), (mistaken, ZeroDivisionError)):
        with pytest.raises(error):
            await store.write(fact)
    assert (await notes(store), store.told) == ([], [])
    assert await store.write(note("later")) == "later"


async def test_the_answer_comes_after_the_commit(store: Store) -> None:
    await store.write(note("a"))
    # Another connection sees only what is committed.
    other = sqlite3.connect(store.path)
    assert other.execute("SELECT text FROM notes").fetchall() == [("a",)]
    other.close()


async def test_the_fact_of_a_caller_who_left_stays(store: Store) -> None:
    gate = Gate()
    first = asyncio.ensure_future(store.write(gate))
    await gate.reached.wait()
    leaving = [asyncio.ensure_future(store.write(fact)) for fact in (note("a"), mistaken)]
    await asyncio.wait(leaving, timeout=0)
    for task in leaving:
        task.cancel()
    ended = await asyncio.gather(*leaving, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError] * 2
    gate.open()
    await first
    assert await store.write(note("b")) == "b"
    assert await notes(store) == ["a", "b"]


async def test_what_waits_when_the_database_is_closed_is_committed_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as store:
        await store.write(lambda tx: tx.connection.exec_driver_sql("CREATE TABLE notes (text TEXT)"))
        last = [asyncio.ensure_future(store.write(note(text))) for text in "abc"]
        await asyncio.wait(last, timeout=0)
    assert [task.result() for task in last] == ["a", "b", "c"]
    async with opened(tmp_path / "c.db") as store:
        assert await notes(store) == ["a", "b", "c"]


async def test_a_full_disk_refuses_one_fact_and_takes_later_ones(store: Store) -> None:
    await store.write(note("a"))
    (pages,) = (await store.ask("PRAGMA page_count"))[0]
    await store.write(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(StorageFailed, match="database or disk is full"):
        await store.write(note("x" * 100_000))
    answers = await gathered(store, [note("b"), note("x" * 100_000), note("c")])
    assert isinstance(answers[1], StorageFailed)
    await store.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count = 1000000"))
    await store.write(note("x" * 100_000))
    assert [text[:1] for text in await notes(store)] == ["a", "b", "c", "x"]


async def test_a_database_locked_by_another_program_refuses_and_later_takes_facts(store: Store) -> None:
    await store.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA busy_timeout = 20"))
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="database is locked"):
        await store.write(note("a"))
    other.execute("ROLLBACK")
    other.close()
    assert await store.write(note("b")) == "b"
    assert await notes(store) == ["b"]


async def test_readers_can_not_write(store: Store) -> None:
    with pytest.raises(StorageFailed, match="attempt to write a readonly database"):
        await store.ask("DELETE FROM notes")


async def test_a_reader_sees_one_moment_while_facts_are_committed(store: Store) -> None:
    await store.write(note("a"))

    def look(connection: Connection) -> list[int]:
        count = text("SELECT count(*) FROM notes")
        before = connection.execute(count).scalar_one()
        # Committed in the middle of this reading.
        other = sqlite3.connect(store.path)
        other.execute("INSERT INTO notes VALUES ('b')")
        other.commit()
        other.close()
        return [before, connection.execute(count).scalar_one()]

    assert await store.database.read(look) == [1, 1]
    assert await notes(store) == ["a", "b"]


async def test_commits_survive_a_power_cut(store: Store) -> None:
    pragmas = [
        await store.write(lambda tx, name=name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    assert pragmas == ["wal", 2, 1]


async def test_a_fact_after_the_end_is_refused_and_waits_for_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as store:
        pass
    with pytest.raises(StorageFailed, match="the writer has ended"):
        async with asyncio.timeout(5):
            await store.write(note("a"))


async def test_the_queue_has_a_limit(store: Store) -> None:
    gate = Gate()
    first = asyncio.ensure_future(store.write(gate))
    await gate.reached.wait()
    waiting = [asyncio.ensure_future(store.write(note("a"))) for _ in range(QUEUE_MAX)]
    await asyncio.wait(waiting, timeout=0)
    with pytest.raises(StorageFailed, match="10000 facts wait for the database"):
        await store.write(note("one too many"))
    gate.open()
    await asyncio.gather(first, *waiting)
