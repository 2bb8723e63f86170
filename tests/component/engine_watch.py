"""Sees every fact in the order of the commits, what it changed, and when nothing is under way any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from anyio.lowlevel import checkpoint
from engine_fixtures import SteppedClock
from sqlalchemy import Connection, text

from orchestrator_service.storage.claims import Claimed
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.writer import Fact, Transaction

T = TypeVar("T")
P = ParamSpec("P")
Row = dict[str, Any]

# A test that waits longer has failed.
WAIT_MAX_S = 20.0
# No chain of callbacks on the loop is as long.
STILL_ROUNDS = 30
FIRST_DAY = 20_000

_LEDGER = """
SELECT coalesce(sum(CASE calls.state WHEN 'SETTLED' THEN cost_nanos ELSE calls.reserved_nanos END), 0) AS nanos
FROM calls JOIN batches ON batches.id = calls.batch WHERE
"""


class WallClock(SteppedClock):
    """The wall clock may jump; what sleeps does not notice."""

    jumped_s = FIRST_DAY * 86_400.0

    def now_us(self) -> int:
        return super().now_us() + round(self.jumped_s * 1e6)


class AtOnce(ThreadPoolExecutor):
    """Runs right here what is for another thread, so that the loop is at rest when nothing on it moves."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@dataclass(frozen=True)
class Event:
    batch: str
    kind: str
    detail: Row


@dataclass(frozen=True)
class Seen:
    """A fact as it was committed: who wrote it and why, what came of it, the calls and the log that it changed."""

    teller: str
    # The engine's tasks are named by their conversations.
    task: str
    intent: object
    result: object
    calls: list[Row]
    events: list[Event]


class Watch:
    def __init__(self) -> None:
        # What a day may cost an owner, and all.
        self.day_limits: tuple[int | None, int | None] = (None, None)
        self._seen: dict[object, Seen] = {}
        self._overspent: list[str] = []
        self._busy = 0
        self._moved = asyncio.Event()

    @contextmanager
    def busy(self) -> Generator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._moved.set()

    async def quiet(self) -> None:
        """Every task has come as far as it can without time and without an answer."""
        async with asyncio.timeout(WAIT_MAX_S):
            still = 0
            while still < STILL_ROUNDS:
                if self._busy:
                    self._moved.clear()
                    await self._moved.wait()
                    still = 0
                await checkpoint()
                still += 1

    def take(self) -> list[Seen]:
        """What was committed since, in order."""
        assert not self._overspent, self._overspent
        taken = list(self._seen.values())
        self._seen.clear()
        return taken

    def told(self, fact: Fact[T], teller: str, intent: object) -> Fact[T]:
        key, current = object(), asyncio.current_task()
        task = "" if current is None else current.get_name()

        def run(tx: Transaction) -> T:
            # A group that is rolled back is run again, each fact alone.
            self._seen.pop(key, None)
            before, result = _Before.of(tx.connection), None
            try:
                result = fact(tx)
            except Exception as error:
                self._seen[key] = Seen(teller, task, intent, error, [], [])
                raise
            changed, logged = before.changed(tx.connection), before.logged(tx.connection)
            self._seen[key] = Seen(teller, task, intent, result, changed, logged)
            if isinstance(result, Claimed):
                self._compare_budgets(tx.connection, result.call)
            return result

        return run

    def _compare_budgets(self, connection: Connection, call: int) -> None:
        """The invariant of every claim, from the rows of the ledger."""
        claimed = "SELECT c.*, b.owner, b.budget_nanos FROM calls c JOIN batches b ON b.id = c.batch WHERE c.id = :call"
        (row,) = rows(connection, claimed, call=call)
        of_day = "calls.created_us / 86400000000 = :created_us / 86400000000"
        of_owner, of_all = self.day_limits
        for limit, whose in (
            (row["budget_nanos"], "batch = :batch"),
            (of_owner, f"owner = :owner AND {of_day}"),
            (of_all, of_day),
        ):
            (spent,) = rows(connection, f"{_LEDGER} {whose}", **row)
            if limit is not None and spent["nanos"] > limit:
                self._overspent.append(f"call {call} makes {spent['nanos']} of {limit} where {whose}")


@dataclass(frozen=True)
class ToldDatabase(Database):
    """The database as one of its writers has it."""

    watch: Watch
    teller: str

    @staticmethod
    def of(database: Database, watch: Watch, teller: str) -> ToldDatabase:
        return ToldDatabase(database.writer, database.reading, database.readers, database.generation, watch, teller)

    async def write(self, fact: Fact[T], intent: object = None) -> T:
        with self.watch.busy():
            return await super().write(self.watch.told(fact, self.teller, intent))

    async def read(self, query: Callable[[Connection], T]) -> T:
        with self.watch.busy():
            return await super().read(query)


@dataclass(frozen=True)
class _Before:
    newest_call: int
    # Calls that may still change.
    states: dict[int, str]
    # The number of each batch's last event.
    last_events: dict[str, int]

    @staticmethod
    def of(connection: Connection) -> _Before:
        (newest,) = rows(connection, "SELECT coalesce(max(id), 0) AS id FROM calls")
        open_calls = rows(connection, "SELECT id, state FROM calls WHERE state != 'SETTLED'")
        logs = rows(connection, "SELECT id, last_event FROM batches")
        return _Before(
            newest["id"],
            {row["id"]: row["state"] for row in open_calls},
            {row["id"]: row["last_event"] for row in logs},
        )

    def changed(self, connection: Connection) -> list[Row]:
        found = rows(connection, "SELECT * FROM calls WHERE id > :newest ORDER BY id", newest=self.newest_call)
        for id, state in self.states.items():
            found += rows(connection, "SELECT * FROM calls WHERE id = :id AND state != :state", id=id, state=state)
        return found

    def logged(self, connection: Connection) -> list[Event]:
        sql = "SELECT * FROM events WHERE batch = :batch AND number > :number ORDER BY number"
        return [
            Event(row["batch"], row["kind"], json.loads(row["detail"]))
            for batch, number in self.last_events.items()
            for row in rows(connection, sql, batch=batch, number=number)
        ]


def rows(connection: Connection, sql: str, **values: Any) -> list[Row]:
    return [dict(row) for row in connection.execute(text(sql), values).mappings()]
