"""The engine that is played: its fixtures with a wall clock that jumps, two tiers, and every fact watched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from engine_fixtures import MAX_ATTEMPTS, MAX_TOKENS, RATE, TEXT, World
from engine_watch import ToldDatabase, Watch
from model_terms import Answer, Terms
from storage_fixtures import new_batch

from orchestrator_service.domain.breaker import Breaker
from orchestrator_service.domain.budget import DailyBudgets
from orchestrator_service.domain.ledger import Usage
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.domain.spec import Builtins, Exchanges, Listed, Spec, Tier
from orchestrator_service.engine.bell import Bell
from orchestrator_service.engine.experience import Experience
from orchestrator_service.engine.runner import Tools
from orchestrator_service.engine.supervisor import Supervisor
from orchestrator_service.generation.claude import CallFailure, Reply
from orchestrator_service.generation.planning import Planned
from orchestrator_service.storage.batches import NewBatch

MINUTE_S = 60.0
ONE_SIDED = '{"turns": [{"role": "assistant", "content": "Hello."}]}'
TEXTS = {"MADE": TEXT, "QUARANTINED": ONE_SIDED, "MALFORMED": '{"turns": ['}


@dataclass(frozen=True, kw_only=True)
class Process:
    """What an orchestrator is started with."""

    owner_day: int | None = None
    server_day: int | None = None
    # A minute.
    requests: int = 1_000_000


@dataclass
class PlayedWorld(World):
    """The engine's world with a wall clock of its own, and every fact watched."""

    watch: Watch = field(default_factory=Watch)
    engines: ToldDatabase = field(init=False)

    def __post_init__(self) -> None:
        self.engines = ToldDatabase.of(self.database, self.watch, "engine")

    def start(self, process: Process) -> None:
        self.daily = DailyBudgets(owner_nanos=process.owner_day, server_nanos=process.server_day)
        self.employ(requests=process.requests, window_s=MINUTE_S)

    def another_supervisor(self) -> Supervisor:
        return Supervisor(
            Tools(
                database=self.engines,
                provider=self.desk,
                base_url="http://127.0.0.1",
                limiter=self.limiter,
                experience=Experience(),
                daily=self.daily,
                settled=Bell(),
                clock=self.clock,
                rng=lambda: 1.0,
                plan=planned,
                rate=lambda stored: RATE,
            )
        )


def new_of(name: str, terms: Terms, *, first: int) -> NewBatch:
    """Its prompts are numbered from `first`."""
    totals = {tier: count for tier, count in terms.tiers.items() if count}
    spec = {"first": first, "tiers": totals, "breaker": [terms.failures_in_a_row, terms.failure_share]}
    values: Mapping[str, Any] = {
        "owner": terms.owner,
        "concurrency": terms.concurrency,
        "budget_nanos": terms.budget,
        "hold_after": terms.hold_after,
        "stop_on_error": terms.stop_on_error,
    }
    plain = new_batch(name, totals, values)
    stored = json.dumps(spec).encode()
    return NewBatch(id=name, values=plain.values, labels=plain.labels, spec=stored, totals=totals)


def reply_of(answer: Answer) -> Reply:
    usage = None if answer.tokens is None else Usage(input_tokens=10, output_tokens=answer.tokens)
    if answer.kind in TEXTS:
        return Reply(text=TEXTS[answer.kind], usage=usage, stop_reason="end_turn", http_status=200, raw="{}")
    failure = CallFailure(
        kind=FailureKind(answer.kind),
        message="So it was.",
        server_delay_s=answer.delay_s,
        possibly_paid=answer.lost,
    )
    return Reply(failure=failure, usage=usage)


@cache
def planned(stored: bytes) -> Planned:
    spec = json.loads(stored)
    tiers = tuple(
        Tier(
            id=tier,
            count=0,
            prompt="Number {{ n }}.",
            exchanges=Exchanges(min=1, max=2),
            max_output_tokens=MAX_TOKENS,
        )
        for tier in spec["tiers"]
    )
    names = [tier for tier, count in spec["tiers"].items() for _ in range(count)]
    listed = tuple(
        Listed(tier=tier, parameters={"n": str(number)}) for number, tier in enumerate(names, start=spec["first"])
    )
    in_a_row, share = spec["breaker"]
    breaker = Breaker(failures_in_a_row=in_a_row, failure_share=share)
    made = Spec(name="Test", model="m", seed=1, tiers=tiers, listed=listed, max_attempts=MAX_ATTEMPTS, breaker=breaker)
    return Planned(made, Builtins(templates={}, shared_prompt="", axes=()))
