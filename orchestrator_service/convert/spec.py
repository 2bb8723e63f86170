"""The contract's BatchSpec to the domain's Spec."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct, Value
from google.type.money_pb2 import Money
from parley.v1 import batch_pb2

from orchestrator_service.convert.values import NANOS, nanos, word_of
from orchestrator_service.domain.breaker import Breaker
from orchestrator_service.domain.errors import InvalidRequest
from orchestrator_service.domain.spec import Axis, AxisValue, Exchanges, Listed, ParameterValue, Spec, Tier

DEFAULT_CONCURRENCY = 3
DEFAULT_ATTEMPTS = 5
LISTED_MAX_BYTES = 2_000_000
# What a column of nano-dollars holds.
BUDGET_MAX_NANOS = 2**63 - 1

_PRIORITIES = {"": 2, "LOW": 1, "NORMAL": 2, "HIGH": 3}
_CACHES = {"": "off", "OFF": "off", "5M": "5m", "1H": "1h"}


def spec_of(spec: batch_pb2.BatchSpec, *, default_model: str) -> Spec:
    """Raises InvalidRequest for what the contract has and this server does not serve."""
    _refuse_unbuilt(spec)
    return Spec(
        name=spec.name,
        model=spec.model or default_model,
        seed=spec.seed,
        tiers=tuple(_tier(tier) for tier in spec.tiers),
        axes=tuple(_axis(axis) for axis in spec.axes),
        shared_parameters=_parameters(spec.shared_parameters),
        shared_prompt=spec.shared_prompt.text if spec.HasField("shared_prompt") else None,
        system_prompt=spec.system_prompt,
        listed=tuple(Listed(tier=one.tier, parameters=_parameters(one.parameters)) for one in spec.conversations),
        concurrency=spec.concurrency if spec.HasField("concurrency") else DEFAULT_CONCURRENCY,
        budget_nanos=budget_of(spec.budget, "spec.budget") if spec.HasField("budget") else None,
        hold_after=spec.hold_after if spec.HasField("hold_after") else None,
        stop_on_error=spec.error_mode == batch_pb2.ERROR_MODE_STOP,
        priority=priority_of(spec.priority),
        labels=dict(spec.labels),
        prompt_cache=_CACHES[word_of(batch_pb2.PromptCache.DESCRIPTOR, spec.prompt_cache)],
        max_attempts=spec.max_attempts or DEFAULT_ATTEMPTS,
        effort=spec.effort,
        breaker=_breaker(spec.circuit_breaker),
    )


def _breaker(told: batch_pb2.CircuitBreaker) -> Breaker:
    otherwise = Breaker()
    in_a_row, share = told.HasField("failures_in_a_row"), told.HasField("failure_share")
    return Breaker(
        failures_in_a_row=told.failures_in_a_row if in_a_row else otherwise.failures_in_a_row,
        failure_share=told.failure_share if share else otherwise.failure_share,
    )


def budget_of(budget: Money, field: str) -> int:
    asked = nanos(budget)
    if asked > BUDGET_MAX_NANOS:
        raise InvalidRequest(field, f"must be at most {BUDGET_MAX_NANOS // NANOS:,} USD")
    return asked


def priority_of(priority: int) -> int:
    return _PRIORITIES[word_of(batch_pb2.Priority.DESCRIPTOR, priority)]


def _refuse_unbuilt(spec: batch_pb2.BatchSpec) -> None:
    if spec.execution == batch_pb2.EXECUTION_BULK:
        raise InvalidRequest("spec.execution", "execution BULK is not served yet; use STANDARD.", reason="NOT_BUILT")
    if spec.generation_mode == batch_pb2.GENERATION_MODE_TURNS:
        message = "generation_mode TURNS is not served yet; use WHOLE."
        raise InvalidRequest("spec.generation_mode", message, reason="NOT_BUILT")
    if sum(one.ByteSize() for one in spec.conversations) > LISTED_MAX_BYTES:
        raise InvalidRequest("spec.conversations", "listed conversations have at most 2 MB in all")


def _tier(tier: batch_pb2.Tier) -> Tier:
    exchanges = Exchanges(min=tier.exchanges.min, max=tier.exchanges.max) if tier.HasField("exchanges") else None
    return Tier(
        id=tier.id,
        count=tier.count,
        # A prompt without text is none: the built-in one of the tier's id, where there is one.
        prompt=tier.prompt.text if tier.prompt.text.strip() else None,
        parameters=_parameters(tier.parameters),
        axes=tuple(tier.axes),
        exchanges=exchanges,
        max_output_tokens=tier.max_output_tokens,
    )


def _axis(axis: batch_pb2.Axis) -> Axis:
    return Axis(id=axis.id, values=tuple(AxisValue(id=value.id, text=value.text) for value in axis.values))


def _parameters(struct: Struct) -> dict[str, ParameterValue]:
    # Protobuf's own way to JSON raises where a number is not finite; which one it is, the findings say.
    return {name: _parameter(value) for name, value in struct.fields.items()}


def _parameter(value: Value) -> ParameterValue:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _parameters(value.struct_value)
        case "list_value":
            return [_parameter(item) for item in value.list_value.values]
        case "number_value":
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
