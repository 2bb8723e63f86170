"""A planned spec to the estimator's workload, and a settled call to an observation. Never prompt text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from parley.v1 import conversation_pb2, quote_pb2

from orchestrator_service.convert.batch import usage_message
from orchestrator_service.convert.values import duration, money, number_of, timestamp
from orchestrator_service.generation.planning import Planned, max_tokens


@dataclass(frozen=True)
class InputSize:
    """Of one call: tokens where the provider counted a sample, else characters."""

    tokens: float | None
    characters: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the provider may be asked, and how fast it runs."""

    base_url: str
    speed_up: float
    requests_per_minute: float
    input_tokens_per_minute: float = 0.0
    output_tokens_per_minute: float = 0.0


def workload_of(planned: Planned, sizes: Mapping[str, InputSize], pace: Pace) -> quote_pb2.Workload:
    """One group a tier. Limits are those of one minute at real speed: the estimator scales them by the speed-up."""
    spec = planned.spec
    workload = quote_pb2.Workload(
        groups=[_group(planned, tier.id, sizes[tier.id]) for tier in spec.tiers],
        concurrency=spec.concurrency,
        limits=quote_pb2.RateLimits(
            requests_per_minute=pace.requests_per_minute,
            input_tokens_per_minute=pace.input_tokens_per_minute,
            output_tokens_per_minute=pace.output_tokens_per_minute,
        ),
        speed_up=pace.speed_up,
        provider=pace.base_url,
    )
    if spec.budget_nanos is not None:
        workload.budget.CopyFrom(money(spec.budget_nanos))
    return workload


def _group(planned: Planned, tier_id: str, size: InputSize) -> quote_pb2.WorkloadGroup:
    tier = next(tier for tier in planned.spec.tiers if tier.id == tier_id)
    counted = size.tokens is not None
    return quote_pb2.WorkloadGroup(
        id=tier_id,
        tier=tier_id,
        model=planned.spec.model,
        count=planned.plan.tier_totals[tier_id],
        prompt_fingerprint=planned.prompts.fingerprint(tier_id),
        input_tokens_mean=size.tokens or 0.0,
        input_size_source=quote_pb2.INPUT_SIZE_SOURCE_COUNTED if counted else quote_pb2.INPUT_SIZE_SOURCE_CHARACTERS,
        input_characters_mean=size.characters,
        max_output_tokens=max_tokens(tier),
        calls_each=1.0,
        effort=planned.spec.effort,
        exchanges_mean=(tier.exchange_range.min + tier.exchange_range.max) / 2,
    )


def observation_of(row: Mapping[Any, Any]) -> quote_pb2.Observation:
    """Of a settled call joined with its batch."""
    return quote_pb2.Observation(
        call=f"batches/{row['batch']}/calls/{row['id']}",
        tier=row["tier"],
        model=row["model"],
        outcome=cast("Any", number_of(conversation_pb2.CallOutcome.DESCRIPTOR, row["outcome"])),
        usage=usage_message(row),
        first_token_delay=duration(row["first_token_s"]),
        duration=duration(row["duration_s"]),
        batch=f"batches/{row['batch']}",
        provider=row["base_url"],
        speed_up=row["speed_up"],
        end_time=timestamp(row["settled_us"]),
        max_output_tokens=row["max_tokens"],
        purpose=cast("Any", number_of(conversation_pb2.CallPurpose.DESCRIPTOR, row["purpose"])),
        # None where the call is of no tier.
        prompt_fingerprint=row["prompt_fingerprint"] or "",
        effort=row["effort"],
        quote=row["quote_name"],
        conversation=row["conversation"],
        prompt_characters=row["prompt_characters"],
    )
