"""Whatever happens to a batch, in whatever order: after each fact counters, sums, states and events agree with rows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_fixtures import (
    AGAIN,
    GIVEN_UP,
    MADE,
    QUARANTINED,
    RESERVE,
    Store,
    checked,
    held,
    opened,
)

from orchestrator_service.domain.batch import HoldReason
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import CallOutcome
from orchestrator_service.storage import recovery, transitions, verbs
from orchestrator_service.storage.claims import Claimed, claim
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.requests import Request
from orchestrator_service.storage.settlements import Again, GivenUp, Made, settle_call
from orchestrator_service.storage.verbs import Settings
from orchestrator_service.storage.writer import Fact

pytestmark = pytest.mark.anyio

TIERS = {"template": 3, "scenario": 2}
NUMBERS = st.integers(1, sum(TIERS.values()))
RESULTS = st.sampled_from([MADE, MADE, QUARANTINED, GIVEN_UP, AGAIN, Again(counts=False)])
LOST = {"usage": None, "cost_nanos": 0, "possibly_spent": True, "outcome": CallOutcome.TIMEOUT, "raw": ""}
FREE = {"usage": None, "cost_nanos": 0, "outcome": CallOutcome.LIMITED, "raw": ""}

STEPS = st.one_of(
    st.tuples(st.just("claim"), NUMBERS),
    st.tuples(st.just("claim"), NUMBERS),
    # Which of the calls made so far, also settled and written-off ones.
    st.tuples(st.just("settle"), st.integers(0, 7), RESULTS, st.sampled_from([{}, {}, LOST, FREE]), st.booleans()),
    st.tuples(st.just("settle"), st.integers(0, 2), RESULTS, st.just({}), st.just(False)),
    st.tuples(st.sampled_from(["pause", "resume", "cancel", "recover"])),
    st.tuples(st.just("hold"), st.sampled_from(HoldReason)),
    st.tuples(st.just("retry"), st.sampled_from([{}, {"states": ("FAILED",)}, {"reviews": ("QUARANTINED",)}])),
    st.tuples(st.just("budget"), st.sampled_from([None, 0, RESERVE, 3 * RESERVE])),
    st.tuples(st.just("hold_after"), st.sampled_from([None, 0, 1, 3])),
)


@pytest.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Store]:
    async with opened(tmp_path_factory.mktemp("properties") / "o.db") as store:
        yield store


@dataclass
class Story:
    store: Store
    batch: str
    # The newest last, with the conversation of each.
    calls: list[tuple[int, Claimed]]

    async def write(self, fact: Fact[Any]) -> Any:
        """None where the state table refuses it."""
        try:
            return await self.store.write(checked(fact, self.batch))
        except ParleyError as refused:
            assert refused.reason in ("STATE_FORBIDS", "HOLD_STANDS")
            return None

    async def take(self, step: tuple[Any, ...]) -> None:
        now_us = self.store.tick()
        match step:
            case ("claim", number):
                await self._claim(number)
            case ("settle", back, result, fields, stop_on_error):
                await self._settle(back, result, {"stop_on_error": stop_on_error, **fields})
            case ("hold", reason):
                await self.write(lambda tx: transitions.hold(tx, self.batch, held(reason), now_us=now_us))
            case ("recover",):
                await self.write(recovery.recover_batch(self.batch, now_us=now_us))
            case ("retry", which):
                request = Request(owner="ann", method="RetryBatch", request_id="", body_sha256="")
                await self.write(verbs.retry(self.batch, Which(**which), etag="", request=request, now_us=now_us))
            case ("budget", budget):
                change = Settings(fields=["budget"], budget_nanos=budget)
                await self.write(verbs.change(self.batch, change, etag="", now_us=now_us))
            case ("hold_after", hold_after):
                change = Settings(fields=["hold_after"], hold_after=hold_after)
                await self.write(verbs.change(self.batch, change, etag="", now_us=now_us))
            case (verb,):
                await self.write(getattr(verbs, verb)(self.batch, etag="", now_us=now_us))
            case _:
                pass

    async def _settle(self, back: int, result: Made | GivenUp | Again, fields: dict[str, Any]) -> None:
        if self.calls:
            number, call = self.calls[-1 - back % len(self.calls)]
            await self.write(settle_call(self.store.settlement(self.batch, call, number, result, **fields)))

    async def _claim(self, number: int) -> None:
        epoch = (await self.store.get(self.batch)).row["epoch"]
        claimed = await self.write(claim(self.store.wanted(self.batch, number, epoch=epoch)))
        if isinstance(claimed, Claimed):
            self.calls.append((number, claimed))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=10, max_size=40))
async def test_counters_sums_states_and_events_agree_with_the_rows_after_every_fact(
    store: Store, steps: list[tuple[Any, ...]]
) -> None:
    story = Story(store, await store.create(TIERS), [])
    for step in steps:
        await story.take(step)


async def test_the_rules_are_checked(store: Store) -> None:
    """Each of these breaks one of them, so the property above can fail."""
    batch = await store.create(TIERS)
    await store.make(batch, 1)
    breaking = (
        "UPDATE batch_tiers SET pending = pending - 1, failed = failed + 1 WHERE batch = '{}' AND tier = 'scenario'",
        "UPDATE batch_tiers SET cost_nanos = cost_nanos + 1 WHERE batch = '{}'",
        "UPDATE batches SET confirmed_nanos = confirmed_nanos + 1 WHERE id = '{}'",
        "UPDATE batches SET started = started + 1 WHERE id = '{}'",
        "UPDATE batches SET state = 'PAUSING' WHERE id = '{}'",
        "UPDATE batches SET last_event = last_event + 1 WHERE id = '{}'",
        "DELETE FROM conversation_texts WHERE batch = '{}'",
        "DELETE FROM events WHERE batch = '{}' AND number = 2",
        "INSERT INTO holds (batch, reason, message, created_us) VALUES ('{}', 'USER', '', 1)",
    )
    for sql in breaking:
        broken = checked(lambda tx, sql=sql: tx.connection.exec_driver_sql(sql.format(batch)), batch)
        with pytest.raises(AssertionError):
            await store.write(broken)
    await store.check(batch)
