"""Run as a program: an orchestrator with one life after another, some of which it ends itself at a told instruction.

Reads a Life as a line of JSON. Writes {"pid"}, then what the orchestrator announces, then {"ended"} with the exit code.
Imports cost two seconds of CPU and are the same in every life: they are made once, and each life is a fork behind them.
From there on it is the real `main` in a process of its own, killed by the real signal.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from sqlalchemy import Engine, event

from orchestrator_service.__main__ import main

# Imported by the orchestrator when it first needs them.
LATE = ("alembic.command", "alembic.config", "aiohttp", "anthropic", "httpx2")
CHANGES = ("INSERT", "UPDATE", "DELETE")
# Transactions, by a change that only they have.
KINDS = {
    "claim": "INSERT INTO calls ",
    "settlement": "INSERT INTO answers ",
    "recovery": "UPDATE batches SET epoch=",
    "creation": "INSERT INTO requests ",
}


@dataclass(frozen=True, kw_only=True)
class Doom:
    """Where a life ends by itself: in front of the n-th change of a row, or at the n-th commit of a kind."""

    number: int
    # "before" or "after" the commit; empty for a change.
    edge: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Life:
    environment: Mapping[str, str]
    doom: Doom | None

    def as_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Fate:
    """Watches what a life writes and ends it at its doom."""

    def __init__(self, doom: Doom) -> None:
        self._doom = doom
        self._changes = 0
        self._commits = 0

    def change(self) -> None:
        self._changes += 1
        if not self._doom.edge and self._changes == self._doom.number:
            _die()

    def commit(self, edge: str, changes: list[str]) -> None:
        if edge != self._doom.edge or not any(one.startswith(KINDS[self._doom.kind]) for one in changes):
            return
        self._commits += 1
        if self._commits == self._doom.number:
            _die()


class WatchedConnection(sqlite3.Connection):
    """Tells a fate what is written here, and when it is committed."""

    fate: Fate
    _written: list[str]

    def watch(self, fate: Fate) -> None:
        self.fate, self._written = fate, []
        self.set_trace_callback(self._trace)

    def commit(self) -> None:
        written, self._written = self._written, []
        self.fate.commit("before", written)
        super().commit()
        self.fate.commit("after", written)

    def rollback(self) -> None:
        self._written = []
        super().rollback()

    def _trace(self, statement: str) -> None:
        if statement.startswith(CHANGES):
            self._written.append(statement)
            self.fate.change()


def watch_all_connections(fate: Fate) -> None:
    def connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> WatchedConnection:
        connection = sqlite3.connect(*arguments, **options, factory=WatchedConnection)
        connection.watch(fate)
        return connection

    event.listen(Engine, "do_connect", connect)


def live(line: str) -> NoReturn:
    say(pid=os.getpid())
    code = 1
    try:
        told = json.loads(line)
        os.environ.update(told["environment"])
        if told["doom"]:
            watch_all_connections(Fate(Doom(**told["doom"])))
        code = main()
    finally:
        # What lies behind the fork belongs to the parent.
        os._exit(code)


def say(**facts: int) -> None:
    os.write(sys.stdout.fileno(), f"{json.dumps(facts)}\n".encode())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lives() -> None:
    for name in LATE:
        importlib.import_module(name)
    for line in sys.stdin:
        if not (pid := os.fork()):
            live(line)
        say(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    lives()
