"""A batch is stored with what the estimator is told of it later; one that it can't price runs where that is allowed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import SteppedClock
from parley.v1 import batch_pb2, estimator_pb2, orchestrator_pb2, quote_pb2
from parley.wire.channel import ChannelSettings, open_channel
from parley.wire.errors import FieldViolation as WireViolation
from parley.wire.errors import Refusal
from sandbox_fixtures import MODEL, sandbox
from storage_fixtures import Store, opened
from told_estimator import Told, quoted, telling

from orchestrator_service.creation import Creation, Limits
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.engine.limiter import Limiter
from orchestrator_service.generation import builtin
from orchestrator_service.generation.claude import Claude
from orchestrator_service.provider import Provider
from orchestrator_service.quotes import Estimator

pytestmark = pytest.mark.anyio
UNPRICED = Refusal(
    "MODEL_UNKNOWN",
    "workload.groups[0].model: no price is known. Known are: a, b. Add its price to the file.",
    violations=[WireViolation("workload.groups[0].model", "no price is known")],
    metadata={"model": MODEL},
)


@asynccontextmanager
async def creating(store: Store, told: Told) -> AsyncGenerator[Creation]:
    clock = SteppedClock()
    limiter = Limiter(requests_per_minute=1_000, window_s=60.0, clock=clock)
    async with sandbox() as served, telling(told) as address, open_channel(ChannelSettings(target=address)) as channel:
        claude = Claude(base_url=served.url, api_key="any", monotonic_s=clock.monotonic_s)
        provider = Provider(claude, base_url=served.url, limiter=limiter, clock=clock)
        yield Creation(
            database=store.database,
            estimator=Estimator(channel, address=address, database=store.database),
            provider=provider,
            builtins=builtin.load(),
            clock=clock,
            limits=Limits(default_model=MODEL, max_concurrency=10, max_conversations=100, requests_per_minute=None),
        )
        await provider.close()
        await limiter.close()


async def create(creation: Creation, **more: Any) -> str:
    tiers = [batch_pb2.Tier(id=tier, count=count) for tier, count in (("template", 2), ("scenario", 1))]
    spec = batch_pb2.BatchSpec(name="Test", tiers=tiers, seed=11, effort="high")
    request = orchestrator_pb2.CreateBatchRequest(spec=spec, **more)
    return await creation.create(request, owner="ann", deadline_s=5.0, queued=lambda batch: None)


async def refusal(creation: Creation, **more: Any) -> ParleyError:
    with pytest.raises(ParleyError) as refused:
        await create(creation, **more)
    return refused.value


async def test_a_batch_keeps_what_it_was_quoted_for(tmp_path: Path) -> None:
    told = Told(quote=quoted("quotes/first"))
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        batch = await create(creation)
        ((workload, seed, outcome),) = await store.ask("SELECT workload, seed, outcome FROM batch_estimates")
        snapshot = await store.get(batch)
        prints = await store.ask("SELECT prompt_fingerprint FROM batch_tiers ORDER BY position")
    (asked,) = told.of(estimator_pb2.CreateQuoteRequest)
    assert quote_pb2.Workload.FromString(workload) == asked.workload
    assert (seed, outcome, snapshot.row["effort"]) == (11, "WAITING", "high")
    assert [fingerprint for (fingerprint,) in prints] == [group.prompt_fingerprint for group in asked.workload.groups]


async def test_the_workload_of_a_given_quote_is_the_batchs_own(tmp_path: Path) -> None:
    told = Told(quote=quoted("quotes/first"))
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        await create(creation)
        (asked,) = told.of(estimator_pb2.CreateQuoteRequest)
        told.quote.spec_sha256 = asked.spec_sha256
        told.quote.workload.CopyFrom(asked.workload)
        told.quote.workload.limits.output_tokens_per_minute = 77
        await create(creation, quote="quotes/first")
        (_, (workload,)) = await store.ask("SELECT workload FROM batch_estimates ORDER BY rowid")
        assert quote_pb2.Workload.FromString(workload).limits.output_tokens_per_minute == 77
        # One of other groups than the spec's is not taken on trust.
        del told.quote.workload.groups[0]
        await create(creation, quote="quotes/first")
        (_, _, (workload,)) = await store.ask("SELECT workload FROM batch_estimates ORDER BY rowid")
        assert len(quote_pb2.Workload.FromString(workload).groups) == 2


async def test_the_quote_of_the_rest_of_a_batch_starts_no_other(tmp_path: Path) -> None:
    told = Told(quote=quoted("quotes/rest"))
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        await create(creation)
        (asked,) = told.of(estimator_pb2.CreateQuoteRequest)
        told.quote.spec_sha256, told.quote.batch = asked.spec_sha256, "batches/first"
        error = await refusal(creation, quote="quotes/rest")
    assert error.reason == "QUOTE_MISMATCH"
    assert error.message == "quotes/rest was made for the rest of batches/first."


async def test_a_model_without_a_price_is_refused_in_the_estimators_words(tmp_path: Path) -> None:
    told = Told(refuse=lambda request: UNPRICED)
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        error = await refusal(creation)
        assert await store.ask("SELECT count(*) FROM batches") == [(0,)]
    assert error.reason == "MODEL_UNKNOWN"
    assert error.message == "no price is known. Known are: a, b. Add its price to the file."
    assert [violation.field for violation in error.violations] == ["spec.model"]


async def test_a_model_without_a_price_runs_unquoted_where_that_is_allowed(tmp_path: Path) -> None:
    told = Told(refuse=lambda request: UNPRICED)
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        batch = await create(creation, allow_unquoted=True)
        row = (await store.get(batch)).row
        assert (row["quote_name"], row["rate"], row["quoted_cost_nanos"]) == ("", None, None)
        # It is told of it all the same, for it may know the model later.
        ((workload, outcome),) = await store.ask("SELECT workload, outcome FROM batch_estimates")
    assert len(quote_pb2.Workload.FromString(workload).groups) == 2
    assert outcome == "NONE"


async def test_any_other_refusal_is_no_reason_to_run_unquoted(tmp_path: Path) -> None:
    told = Told(refuse=lambda request: Refusal("QUOTE_NOT_FOUND", "There is no such quote."))
    async with opened(tmp_path / "o.db") as store, creating(store, told) as creation:
        error = await refusal(creation, quote="quotes/gone", allow_unquoted=True)
    assert error.reason == "QUOTE_NOT_FOUND"
