"""The check of key, model and limits: one call of a few tokens, journalled like every paid call."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2

from orchestrator_service.convert.rate import rate_to_json
from orchestrator_service.convert.values import money
from orchestrator_service.creation import Creation
from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.domain.ledger import FREE, CallOutcome, Usage, cost_nanos
from orchestrator_service.domain.retry import FailureKind
from orchestrator_service.generation.claude import CallFailure, Probe
from orchestrator_service.storage.ledger import Preflight, journal_preflight
from orchestrator_service.storage.rates import PricedAt

UNREACHABLE = (FailureKind.CONNECTION_LOST, FailureKind.TIMEOUT, FailureKind.SERVER_ERROR, FailureKind.OVERLOADED)


async def check_provider(creation: Creation, *, model: str) -> orchestrator_pb2.CheckProviderResponse:
    """Raises PROVIDER_UNAVAILABLE or PROVIDER_REFUSED."""
    asked = model or creation.limits.default_model
    probe = await creation.provider.probe(asked)
    card = await creation.estimator.rates()
    rate = card.rates.get(asked) if card else None
    priced = rate_to_json(rate)
    cost = cost_nanos(probe.usage, rate or FREE) if probe.usage else 0
    call = Preflight(
        model=asked,
        outcome=CallOutcome.ANSWERED if probe.ok else CallOutcome.PROVIDER_ERROR,
        usage=probe.usage or Usage(),
        cost_nanos=cost,
        priced=PricedAt(version=card.version, rate=priced) if card and priced else None,
        duration_s=probe.duration_s,
        error=probe.failure.message if probe.failure else "",
        now_us=creation.clock.now_us(),
    )
    await creation.database.write(journal_preflight(call))
    if probe.failure is not None:
        raise _refusal(probe.failure, creation.provider.base_url, asked)
    return _reply(creation, probe, model=asked, cost=cost)


def _reply(creation: Creation, probe: Probe, *, model: str, cost: int) -> orchestrator_pb2.CheckProviderResponse:
    details = Struct()
    if creation.limits.requests_per_minute is not None:
        details.update({"server_requests_per_minute": creation.limits.requests_per_minute})
    reply = orchestrator_pb2.CheckProviderResponse(
        provider=batch_pb2.ProviderInfo(
            base_url=creation.provider.base_url, sandbox=probe.sandbox, speed_up=probe.speed_up
        ),
        model=model,
        cost=money(cost),
        models=probe.models,
        details=details,
    )
    if probe.limits is not None:
        limits = quote_pb2.RateLimits(
            requests_per_minute=probe.limits.requests or 0,
            input_tokens_per_minute=probe.limits.input_tokens or 0,
            output_tokens_per_minute=probe.limits.output_tokens or 0,
        )
        reply.limits.CopyFrom(limits)
    return reply


def _refusal(failure: CallFailure, base_url: str, model: str) -> ParleyError:
    metadata = {"base_url": base_url, "model": model, "kind": failure.kind.value}
    if failure.kind in UNREACHABLE:
        message = f"{base_url} can't be reached: {failure.message}"
        return ParleyError("PROVIDER_UNAVAILABLE", message, metadata=metadata, retry_after_s=failure.server_delay_s)
    return ParleyError("PROVIDER_REFUSED", f"{base_url} refused {model}: {failure.message}", metadata=metadata)
