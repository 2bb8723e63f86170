"""Holds: why a batch waits, until when, and the command that lets it go on."""

from __future__ import annotations

from datetime import datetime

from parley import money
from parley.cli import words
from parley.v1 import batch_pb2


def cause(hold: batch_pb2.Hold, now: datetime) -> str:
    """Why, and until when where that is known."""
    said = f"{words.hold(hold.reason)}: {hold.message}".rstrip(": ")
    return f"{said} {_clears(hold, now)}".rstrip()


def next_step(batch: batch_pb2.Batch, hold: batch_pb2.Hold) -> str:
    if not hold.HasField("needed_budget"):
        return hold.next_step
    return f"needs at least ${money.enough(hold.needed_budget):,}: {raise_command(batch, hold)}"


def line(batch: batch_pb2.Batch, hold: batch_pb2.Hold, now: datetime) -> str:
    """Cause and next step on one line."""
    return f"{cause(hold, now)} next: {next_step(batch, hold)}"


def brief(batch: batch_pb2.Batch, hold: batch_pb2.Hold, now: datetime) -> str:
    """What a list has room for."""
    return f"held: {words.hold(hold.reason)}: {_clears(hold, now) or next_step(batch, hold)}"


def raise_command(batch: batch_pb2.Batch, hold: batch_pb2.Hold) -> str:
    return f"parley set {words.bare_id(batch.name)} --budget {money.enough(hold.needed_budget)}"


def _clears(hold: batch_pb2.Hold, now: datetime) -> str:
    return f"Clears by itself at {words.moment(hold.clears_at, now)}." if hold.HasField("clears_at") else ""
