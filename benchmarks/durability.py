"""Durability: what it costs that a commit survives a power cut, and what committing in groups gives back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.work import progress
from orchestrator_service.domain.conversation import ConversationState
from orchestrator_service.domain.ledger import CallOutcome, CallPurpose, Usage
from orchestrator_service.storage import batches
from orchestrator_service.storage.batches import NewBatch
from orchestrator_service.storage.claims import Claim, Claimed, claim
from orchestrator_service.storage.database import Database, open_database
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import Made, Settlement, settle_call
from orchestrator_service.storage.writer import Transaction

COUNT = 1_500
ROUNDS = 3
# As large as a real answer.
TURNS = [("user", "x" * 1_000), ("assistant", "y" * 1_000)] * 3
RAW = "z" * 9_000


async def measure(folder: Path) -> list[Figure]:
    progress(f"durability: {COUNT:,} conversations through the storage alone, synchronous FULL and NORMAL in turn")
    rates: dict[tuple[str, int], float] = {}
    for callers in (10, 1):
        for round_number in range(ROUNDS):
            for mode in ("FULL", "NORMAL"):
                path = folder.with_name(f"{mode}{callers}-{round_number}.db")
                rate = await _conversations_a_second(path, mode, callers=callers)
                rates[mode, callers] = max(rate, rates.get((mode, callers), 0.0))
    return [_figure(rates, callers) for callers in (10, 1)]


def _figure(rates: dict[tuple[str, int], float], callers: int) -> Figure:
    full, normal = rates["FULL", callers], rates["NORMAL", callers]
    return Figure(
        name=f"synchronous FULL over NORMAL, {callers} in flight",
        measured=full / normal,
        note=f"{full:,.0f}/s against {normal:,.0f}/s, best of {ROUNDS}",
    )


async def _conversations_a_second(path: Path, mode: str, *, callers: int) -> float:
    async with open_database(path, committed=lambda touched: None) as database:
        await database.write(lambda tx: _set_synchronous(tx, mode))
        await _create(database)
        numbers = iter(range(1, COUNT + 1))
        began_s = time.monotonic()
        await asyncio.gather(*[_make(database, numbers) for _ in range(callers)])
        return COUNT / (time.monotonic() - began_s)


def _set_synchronous(tx: Transaction, mode: str) -> None:
    # Between two transactions, for within one it can't be changed.
    for statement in ("COMMIT", f"PRAGMA synchronous = {mode}", "BEGIN IMMEDIATE"):
        tx.connection.exec_driver_sql(statement)


async def _create(database: Database) -> None:
    values = {
        "owner": "benchmark",
        "display_name": "",
        "model": "m",
        "concurrency": 10,
        "stop_on_error": False,
        "priority": 2,
        "spec_sha256": "",
        "fingerprint": "",
        "base_url": "",
        "speed_up": 1.0,
        "created_us": 0,
    }
    await database.write(batches.prepare(NewBatch(id="b", values=values, labels={}, spec=b"", totals={"t": COUNT})))
    rows = [
        {"batch": "b", "number": n, "tier": "t", "place": n, "state": ConversationState.PENDING, "axis_values": "{}"}
        for n in range(1, COUNT + 1)
    ]
    await database.write(batches.add_rows(rows))
    key = Request(owner="benchmark", method="CreateBatch", request_id="", body_sha256="")
    await database.write(batches.queue("b", key, now_us=0))


async def _make(database: Database, numbers: Iterator[int]) -> None:
    for number in numbers:
        wanted = Claim(
            batch="b",
            number=number,
            epoch=0,
            prompt_sha256="",
            purpose=CallPurpose.GENERATE,
            max_tokens=8_000,
            reserve_nanos=100_000_000,
            now_us=number,
        )
        claimed = await database.write(claim(wanted))
        assert isinstance(claimed, Claimed)
        settlement = Settlement(
            batch="b",
            number=number,
            call=claimed.call,
            outcome=CallOutcome.ANSWERED,
            result=Made(TURNS, [("roles", "PASS", "")], passed=True),
            usage=Usage(input_tokens=2_300, output_tokens=2_300),
            cost_nanos=40_000_000,
            possibly_spent=False,
            raw=RAW,
            now_us=number,
        )
        await database.write(settle_call(settlement))
