"""A real database file for one test: batches are made and moved by facts, and every rule about rows is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, text

from orchestrator_service.domain.batch import FINAL, BatchState, HoldReason
from orchestrator_service.domain.budget import DailyBudgets, WaitForSettlement
from orchestrator_service.domain.ledger import CallOutcome, CallPurpose, Usage
from orchestrator_service.storage import batches, events, verbs
from orchestrator_service.storage.batches import NewBatch, Snapshot
from orchestrator_service.storage.claims import Claim, Claimed, NotClaimable, claim
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.database import Database, open_database
from orchestrator_service.storage.events import LoggedEvent
from orchestrator_service.storage.rates import PricedAt
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import Again, GivenUp, Made, Settlement, settle_call
from orchestrator_service.storage.transitions import NewHold
from orchestrator_service.storage.verbs import Settings
from orchestrator_service.storage.writer import Fact, Transaction

T = TypeVar("T")
RESERVE, COST = 100, 60
EVERYTHING = Which()
USAGE = Usage(input_tokens=10, output_tokens=20, cache_read_tokens=5)
MADE = Made(turns=[("user", "Hi."), ("assistant", "Hello.")], checks=[("schema", "PASS", "Fine.")], passed=True)
QUARANTINED = Made(turns=MADE.turns, checks=[("roles", "FAIL", "Turn 1 is the assistant's.")], passed=False)
GIVEN_UP = GivenUp("REFUSAL", "The model refused.")
AGAIN = Again(counts=True)
ANY = Request(owner="ann", method="RetryBatch", request_id="", body_sha256="")


@dataclass
class Store:
    database: Database
    path: Path
    # What the writer told of each commit.
    told: list[set[str]] = field(default_factory=list[set[str]])
    now_us: int = 1_000
    made: int = 0
    daily: DailyBudgets = DailyBudgets()

    async def write(self, fact: Fact[T]) -> T:
        return await self.database.write(fact)

    async def create(self, tiers: Mapping[str, int] | None = None, **values: Any) -> str:
        """A QUEUED batch of four conversations, or as many as the tiers say."""
        self.made += 1
        new = new_batch(f"b{self.made}", tiers or {"template": 4}, values)
        await self.write(batches.prepare(new))
        await self.write(batches.add_rows(rows_of(new)))
        key = Request(owner="ann", method="CreateBatch", request_id="", body_sha256="")
        return await self.write(batches.queue(new.id, key, now_us=self.tick()))

    def tick(self) -> int:
        self.now_us += 1
        return self.now_us

    def wanted(self, batch: str, number: int, *, reserve: int = RESERVE, epoch: int = 0) -> Claim:
        return Claim(
            batch=batch,
            number=number,
            epoch=epoch,
            prompt_sha256=f"{number:064}",
            purpose=CallPurpose.GENERATE,
            max_tokens=100,
            reserve_nanos=reserve,
            daily=self.daily,
            now_us=self.tick(),
        )

    async def claim(
        self, batch: str, number: int = 1, *, reserve: int = RESERVE, epoch: int = 0
    ) -> Claimed | NotClaimable | WaitForSettlement:
        return await self.write(claim(self.wanted(batch, number, reserve=reserve, epoch=epoch)))

    async def claimed(self, batch: str, number: int = 1, *, reserve: int = RESERVE, epoch: int = 0) -> Claimed:
        claimed = await self.claim(batch, number, reserve=reserve, epoch=epoch)
        assert isinstance(claimed, Claimed)
        return claimed

    async def settle(
        self, batch: str, call: Claimed, number: int = 1, result: Made | GivenUp | Again = MADE, **fields: Any
    ) -> BatchState:
        return await self.write(settle_call(self.settlement(batch, call, number, result, **fields)))

    def settlement(
        self, batch: str, call: Claimed, number: int = 1, result: Made | GivenUp | Again = MADE, **fields: Any
    ) -> Settlement:
        outcome = CallOutcome.ANSWERED if isinstance(result, Made) else CallOutcome.PROVIDER_ERROR
        given: dict[str, Any] = {
            "outcome": outcome,
            "usage": USAGE,
            "cost_nanos": COST,
            "possibly_spent": False,
            "duration_s": 2.0,
            "raw": '{"answer": true}',
        }
        return Settlement(
            batch=batch, number=number, call=call.call, result=result, now_us=self.tick(), **given | fields
        )

    async def make(self, batch: str, number: int = 1, result: Made | GivenUp | Again = MADE, epoch: int = 0) -> None:
        """Claimed and settled."""
        await self.settle(batch, await self.claimed(batch, number, epoch=epoch), number, result)

    async def pause(self, batch: str, *, etag: str = "") -> None:
        await self.write(verbs.pause(batch, etag=etag, now_us=self.tick()))

    async def resume(self, batch: str, *, etag: str = "", priced: PricedAt | None = None) -> None:
        await self.write(verbs.resume(batch, etag=etag, priced=priced, daily=self.daily, now_us=self.tick()))

    async def cancel(self, batch: str, *, etag: str = "") -> None:
        await self.write(verbs.cancel(batch, etag=etag, now_us=self.tick()))

    async def retry(self, batch: str, which: Which = EVERYTHING, *, request: Request = ANY, etag: str = "") -> int:
        return await self.write(verbs.retry(batch, which, etag=etag, request=request, now_us=self.tick()))

    async def change(self, batch: str, *, etag: str = "", **settings: Any) -> None:
        """`budget` is in nano-dollars."""
        named = {"budget_nanos" if name == "budget" else name: value for name, value in settings.items()}
        wanted = Settings(fields=list(settings), **named)
        await self.write(verbs.change(batch, wanted, etag=etag, now_us=self.tick()))

    async def remove(self, batch: str, *, etag: str = "") -> None:
        await self.write(verbs.remove(batch, etag=etag, now_us=self.tick()))

    async def get(self, batch: str) -> Snapshot:
        snapshot = await self.database.read(partial(batches.get, batch=batch))
        assert snapshot is not None
        return snapshot

    async def etag(self, batch: str) -> str:
        return batches.etag_of((await self.get(batch)).row)

    async def state(self, batch: str) -> str:
        return (await self.get(batch)).state.value

    async def holds(self, batch: str) -> set[str]:
        return {row["reason"] for row in (await self.get(batch)).holds}

    async def events(self, batch: str) -> list[LoggedEvent]:
        return list(await self.database.read(partial(events.after, batch=batch, number=0, upto=10**9)))

    async def kinds(self, batch: str) -> list[str]:
        return [event.kind for event in await self.events(batch)]

    async def rows(self, batch: str) -> dict[int, str]:
        """Number to state, with the review where there is one."""
        found = await self.ask(
            "SELECT number, coalesce(review, state) FROM conversations WHERE batch = :batch ORDER BY number",
            batch=batch,
        )
        return {row[0]: row[1] for row in found}

    async def calls(self, batch: str) -> list[str]:
        """The states of its calls, in order."""
        found = await self.ask("SELECT state FROM calls WHERE batch = :batch ORDER BY id", batch=batch)
        return [state for (state,) in found]

    async def ask(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        return await self.database.read(lambda connection: _all(connection, sql, **values))

    async def check(self, batch: str) -> None:
        await self.database.read(lambda connection: check(connection, batch))


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[Store]:
    told: list[set[str]] = []
    async with open_database(path, committed=told.append) as database:
        yield Store(database, path, told)


def new_batch(batch: str, tiers: Mapping[str, int], values: Mapping[str, Any] | None = None) -> NewBatch:
    given: dict[str, Any] = {
        "owner": "ann",
        "display_name": "Test",
        "model": "m",
        "concurrency": 3,
        "budget_nanos": None,
        "hold_after": None,
        "stop_on_error": False,
        "priority": 2,
        "spec_sha256": "0" * 64,
        "fingerprint": "0" * 64,
        "base_url": "http://127.0.0.1",
        "speed_up": 1.0,
        "created_us": 1,
    }
    return NewBatch(id=batch, values=given | dict(values or {}), labels={"for": "test"}, spec=b"spec", totals=tiers)


def rows_of(new: NewBatch) -> list[dict[str, Any]]:
    tiers = [tier for tier, total in new.totals.items() for _ in range(total)]
    return [
        {"batch": new.id, "number": number, "tier": tier, "place": number, "state": "PENDING", "axis_values": "{}"}
        for number, tier in enumerate(tiers, start=1)
    ]


def held(reason: HoldReason = HoldReason.CREDENTIALS, *, clears_us: int | None = None) -> NewHold:
    return NewHold(reason, "The provider refuses the key.", clears_us=clears_us)


def checked(fact: Fact[T], batch: str) -> Fact[T]:
    """The fact, with every rule checked in its own transaction: one that breaks a rule fails and leaves nothing."""

    def run(tx: Transaction) -> T:
        result = fact(tx)
        check(tx.connection, batch)
        return result

    return run


def check(connection: Connection, batch: str) -> None:
    """What holds after every fact, whatever happened: counters, sums, states and events agree with the rows."""
    row = connection.execute(text("SELECT * FROM batches WHERE id = :batch"), {"batch": batch}).mappings().one()
    _check_counters(connection, batch)
    _check_money(connection, batch, row)
    _check_state(connection, batch, row)
    _check_calls(connection, batch)
    _check_events(connection, batch, row)


def _check_counters(connection: Connection, batch: str) -> None:
    counted = _all(
        connection,
        """
        SELECT tier, sum(state = 'PENDING'), sum(state = 'RUNNING'), sum(state = 'GENERATED'), sum(state = 'FAILED'),
            sum(state = 'CANCELLED'), sum(coalesce(review, '') IN ('PASSED', 'ACCEPTED', 'EDITED')),
            sum(coalesce(review, '') = 'QUARANTINED'), sum(cost_nanos), count(*)
        FROM conversations WHERE batch = :batch GROUP BY tier ORDER BY tier
        """,
        batch=batch,
    )
    kept = _all(
        connection,
        """
        SELECT tier, pending, running, generated, failed, cancelled, deliverable, quarantined, cost_nanos, total
        FROM batch_tiers WHERE batch = :batch ORDER BY tier
        """,
        batch=batch,
    )
    assert kept == counted


def _check_money(connection: Connection, batch: str, row: RowMapping) -> None:
    (sums,) = _all(
        connection,
        """
        SELECT coalesce(sum(CASE state WHEN 'SETTLED' THEN cost_nanos END), 0) AS confirmed_nanos,
            coalesce(sum(CASE state WHEN 'RESERVED' THEN reserved_nanos END), 0) AS reserved_nanos,
            coalesce(sum(CASE state WHEN 'POSSIBLY_SPENT' THEN reserved_nanos END), 0) AS possibly_spent_nanos,
            sum(state = 'SETTLED'), sum(state = 'POSSIBLY_SPENT'), sum(input_tokens), sum(output_tokens),
            sum(cache_read_tokens)
        FROM calls WHERE batch = :batch HAVING count(*) > 0
        """,
        batch=batch,
    ) or [(0,) * 8]
    names = ("confirmed_nanos", "reserved_nanos", "possibly_spent_nanos", "calls_settled", "calls_possibly_spent")
    tokens = ("input_tokens", "output_tokens", "cache_read_tokens")
    assert tuple(row[name] for name in names + tokens) == sums
    (started,) = _all(connection, "SELECT count(*) FROM conversations WHERE batch = :b AND attempts > 0", b=batch)[0]
    assert row["started"] == started
    _check_days(connection)


def _check_days(connection: Connection) -> None:
    """What a day has cost an owner is the sum of the calls that were journalled on it."""
    summed = _all(
        connection,
        """
        SELECT calls.created_us / 86400000000, coalesce(batches.owner, ''),
            coalesce(sum(CASE calls.state WHEN 'SETTLED' THEN cost_nanos END), 0) AS confirmed,
            coalesce(sum(CASE calls.state WHEN 'RESERVED' THEN calls.reserved_nanos END), 0) AS reserved,
            coalesce(sum(CASE calls.state WHEN 'POSSIBLY_SPENT' THEN calls.reserved_nanos END), 0) AS possible
        FROM calls LEFT JOIN batches ON batches.id = calls.batch
        GROUP BY 1, 2 HAVING confirmed + reserved + possible > 0 ORDER BY 1, 2
        """,
    )
    kept = _all(
        connection,
        """
        SELECT day, owner, confirmed_nanos, reserved_nanos, possibly_spent_nanos FROM daily_spend
        WHERE confirmed_nanos + reserved_nanos + possibly_spent_nanos > 0 ORDER BY 1, 2
        """,
    )
    assert kept == summed


def _check_state(connection: Connection, batch: str, row: RowMapping) -> None:
    states = Counter(
        state for (state,) in _all(connection, "SELECT state FROM conversations WHERE batch = :batch", batch=batch)
    )
    holds = {reason for (reason,) in _all(connection, "SELECT reason FROM holds WHERE batch = :batch", batch=batch)}
    running, pending = states["RUNNING"] > 0, states["PENDING"] > 0
    state = BatchState(row["state"])
    assert (row["ended_us"] is not None) == (state in FINAL)
    match state:
        case BatchState.QUEUED:
            assert (running, pending, holds) == (False, True, set())
        case BatchState.RUNNING:
            assert (running or pending, holds) == (True, set())
        case BatchState.PAUSING:
            assert running and holds
        case BatchState.PAUSED:
            assert not running and pending and holds
        case BatchState.CANCELLING:
            assert running
        case _:
            assert (running, pending, holds) == (False, False, set())


def _check_calls(connection: Connection, batch: str) -> None:
    """Exactly one call is in flight for each running conversation; every generated one has its text."""
    in_flight = _all(
        connection,
        "SELECT conversation FROM calls WHERE batch = :batch AND state = 'RESERVED' ORDER BY conversation",
        batch=batch,
    )
    running = _all(
        connection,
        "SELECT number FROM conversations WHERE batch = :batch AND state = 'RUNNING' ORDER BY number",
        batch=batch,
    )
    assert in_flight == running
    costs = "SELECT number, cost_nanos, output_tokens FROM conversations WHERE batch = :batch ORDER BY number"
    summed = """
        SELECT number, coalesce(sum(calls.cost_nanos), 0), coalesce(sum(calls.output_tokens), 0)
        FROM conversations c LEFT JOIN calls ON calls.batch = c.batch AND calls.conversation = c.number
        WHERE c.batch = :batch GROUP BY number ORDER BY number
        """
    assert _all(connection, costs, batch=batch) == _all(connection, summed, batch=batch)
    assert not _all(
        connection,
        """
        SELECT number FROM conversations c WHERE batch = :batch AND state = 'GENERATED'
            AND NOT EXISTS (SELECT 1 FROM conversation_texts t WHERE t.batch = c.batch AND t.number = c.number)
        """,
        batch=batch,
    )


def _check_events(connection: Connection, batch: str, row: RowMapping) -> None:
    logged = _all(
        connection,
        """
        SELECT number, kind, json_extract(detail, '$.from'), json_extract(detail, '$.to')
        FROM events WHERE batch = :batch ORDER BY number
        """,
        batch=batch,
    )
    assert [number for number, *_ in logged] == list(range(1, row["last_event"] + 1))
    state = "PREPARING"
    for _number, kind, old, new in logged:
        if kind == "state_changed":
            assert old == state
            state = new
    assert state == row["state"]
    assert row["made"] == [kind for _number, kind, _old, _new in logged].count("conversation_ended")


def _all(connection: Connection, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(sql), values)]
