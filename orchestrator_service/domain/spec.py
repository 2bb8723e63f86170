"""What to generate, as the contract's BatchSpec says it; what is wrong with it; and its hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from orchestrator_service.domain.breaker import Breaker

ParameterValue: TypeAlias = "str | float | int | bool | list[ParameterValue] | dict[str, ParameterValue] | None"
Parameters: TypeAlias = Mapping[str, ParameterValue]

EXCHANGES_MAX = 50
FINDINGS_MAX = 100
TEXT_MAX_CHARS = 262_144
# Placeholders that every prompt has, so no parameter and no axis may take their names.
RESERVED_NAMES = ("tier", "exchanges_min", "exchanges_max", "loop")


@dataclass(frozen=True, kw_only=True)
class AxisValue:
    id: str
    # What the axis' placeholder becomes; the id where empty.
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    id: str
    values: tuple[AxisValue, ...]


@dataclass(frozen=True, kw_only=True)
class Exchanges:
    min: int
    max: int


EXCHANGES: Mapping[str, Exchanges] = {
    "scenario": Exchanges(min=5, max=6),
    "edge_case": Exchanges(min=2, max=4),
}
EXCHANGES_OTHERWISE = Exchanges(min=4, max=5)


@dataclass(frozen=True, kw_only=True)
class Tier:
    id: str
    # How many the plan draws; listed conversations come on top.
    count: int
    # None is the built-in template of the tier's id.
    prompt: str | None = None
    parameters: Parameters = field(default_factory=dict[str, ParameterValue])
    # Empty means all axes of the spec.
    axes: tuple[str, ...] = ()
    exchanges: Exchanges | None = None
    # 0 is the server's default.
    max_output_tokens: int = 0

    @property
    def exchange_range(self) -> Exchanges:
        return self.exchanges or EXCHANGES.get(self.id, EXCHANGES_OTHERWISE)


@dataclass(frozen=True, kw_only=True)
class Listed:
    tier: str
    parameters: Parameters = field(default_factory=dict[str, ParameterValue])


@dataclass(frozen=True, kw_only=True)
class Spec:
    name: str
    model: str
    seed: int
    tiers: tuple[Tier, ...]
    axes: tuple[Axis, ...] = ()
    shared_parameters: Parameters = field(default_factory=dict[str, ParameterValue])
    shared_prompt: str | None = None
    system_prompt: str = ""
    listed: tuple[Listed, ...] = ()
    concurrency: int = 3
    budget_nanos: int | None = None
    hold_after: int | None = None
    stop_on_error: bool = False
    # 1 is low, 2 normal, 3 high.
    priority: int = 2
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    # "off", "5m" or "1h".
    prompt_cache: str = "off"
    max_attempts: int = 5
    effort: str = ""
    breaker: Breaker = Breaker()


@dataclass(frozen=True, kw_only=True)
class BuiltinTemplate:
    id: str
    version: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Builtins:
    """What a spec may leave out: templates by tier id, shared instructions, and axes that they use."""

    templates: Mapping[str, BuiltinTemplate]
    shared_prompt: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Finding:
    severity: str
    # A name of the contract's enum Reason; empty for a warning without one.
    reason: str
    # A path from the spec: tiers[1].prompt.text.
    field: str
    message: str
    tier: str = ""
    # The first conversation that it concerns; 0 for none.
    conversation: int = 0


def with_builtin_axes(spec: Spec, builtins: Builtins) -> Spec:
    """The spec as it is planned: without axes of its own, a tier on a built-in prompt varies along the built-in ones.

    A built-in axis gives way to a parameter of its name: of all tiers if shared, of its own tier otherwise.
    """
    if spec.axes or all(tier.prompt is not None for tier in spec.tiers):
        return spec
    axes = tuple(axis for axis in builtins.axes if axis.id not in spec.shared_parameters)
    return replace(spec, axes=axes, tiers=tuple(_without_fixed_axes(tier, axes) for tier in spec.tiers))


def findings(spec: Spec) -> list[Finding]:
    """Everything wrong with a spec that shows without filling a prompt, errors first, at most FINDINGS_MAX."""
    found = [
        *_count_findings(spec),
        *_id_findings(spec),
        *_tier_findings(spec),
        *_parameter_findings(spec),
        *_listed_findings(spec),
        *_unused_axes(spec),
    ]
    found.sort(key=lambda finding: finding.severity)
    return found[:FINDINGS_MAX]


def content_sha256(spec: Spec) -> str:
    """Names what decides content, price and pace: not name, labels, priority, nor where the batch may stop."""
    content = {
        "model": spec.model,
        "seed": spec.seed,
        "tiers": [_tier_content(tier) for tier in spec.tiers],
        "axes": [[axis.id, [[value.id, value.text or value.id] for value in axis.values]] for axis in spec.axes],
        "shared_parameters": plain(dict(spec.shared_parameters)),
        "shared_prompt": spec.shared_prompt,
        "system_prompt": spec.system_prompt,
        "listed": [[listed.tier, plain(dict(listed.parameters))] for listed in spec.listed],
        "concurrency": spec.concurrency,
        "prompt_cache": spec.prompt_cache,
        "max_attempts": spec.max_attempts,
        "effort": spec.effort,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def plain(value: ParameterValue) -> ParameterValue:
    """The value with whole floats as integers: protobuf's Struct makes 45 a 45.0, which no prompt should show."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def tier_axes(spec: Spec, tier: Tier) -> tuple[Axis, ...]:
    """The axes that vary in a tier, in the spec's order."""
    return tuple(axis for axis in spec.axes if not tier.axes or axis.id in tier.axes)


def _without_fixed_axes(tier: Tier, axes: tuple[Axis, ...]) -> Tier:
    if not any(axis.id in tier.parameters for axis in axes) or tier.axes:
        return tier
    return replace(tier, axes=tuple(axis.id for axis in axes if axis.id not in tier.parameters))


def _tier_content(tier: Tier) -> dict[str, object]:
    length = tier.exchange_range
    return {
        "id": tier.id,
        "count": tier.count,
        "prompt": tier.prompt,
        "parameters": plain(dict(tier.parameters)),
        "axes": tier.axes,
        "exchanges": [length.min, length.max],
        "max_output_tokens": tier.max_output_tokens,
    }


def _error(reason: str, at: str, message: str, *, tier: str = "", conversation: int = 0) -> Finding:
    return Finding("ERROR", reason, at, message, tier=tier, conversation=conversation)


def _count_findings(spec: Spec) -> Iterator[Finding]:
    listed = Counter(conversation.tier for conversation in spec.listed)
    if not any(tier.count for tier in spec.tiers) and not spec.listed:
        yield _error("SPEC_EMPTY", "tiers", "The spec asks for no conversation.")
    for at, tier in enumerate(spec.tiers):
        if not tier.count and not listed[tier.id]:
            message = f"Tier {tier.id} has neither a count nor listed conversations."
            yield _error("TIER_EMPTY", f"tiers[{at}].count", message, tier=tier.id)


def _id_findings(spec: Spec) -> Iterator[Finding]:
    yield from _repeated("tiers", "tier", [tier.id for tier in spec.tiers])
    yield from _repeated("axes", "axis", [axis.id for axis in spec.axes])
    for at, axis in enumerate(spec.axes):
        yield from _repeated(f"axes[{at}].values", f"value of axis {axis.id}", [value.id for value in axis.values])
        if not axis.values:
            yield _error("INVALID_FIELD", f"axes[{at}].values", f"Axis {axis.id} has no values.")
        if axis.id in RESERVED_NAMES:
            yield _error("INVALID_FIELD", f"axes[{at}].id", f"{axis.id} is a placeholder of every prompt already.")


def _repeated(path: str, noun: str, ids: Iterable[str]) -> Iterator[Finding]:
    seen: set[str] = set()
    for at, id in enumerate(ids):
        if id in seen:
            yield _error("INVALID_FIELD", f"{path}[{at}].id", f"{id} is the id of an earlier {noun}.")
        seen.add(id)


def _tier_findings(spec: Spec) -> Iterator[Finding]:
    known = {axis.id for axis in spec.axes}
    for at, tier in enumerate(spec.tiers):
        for place, axis in enumerate(tier.axes):
            path = f"tiers[{at}].axes[{place}]"
            if axis not in known:
                yield _error("AXIS_UNKNOWN", path, f"The spec has no axis {axis}.", tier=tier.id)
            if axis in tier.axes[:place]:
                yield _error("INVALID_FIELD", path, f"Axis {axis} is named twice.", tier=tier.id)
        length = tier.exchange_range
        if not 1 <= length.min <= length.max <= EXCHANGES_MAX:
            message = f"{length.min} to {length.max} is no range from 1 to {EXCHANGES_MAX} exchanges."
            yield _error("INVALID_FIELD", f"tiers[{at}].exchanges", message, tier=tier.id)


def _parameter_findings(spec: Spec) -> Iterator[Finding]:
    all_axes = {axis.id for axis in spec.axes}
    yield from _named_parameters("shared_parameters", spec.shared_parameters, all_axes)
    for at, tier in enumerate(spec.tiers):
        varying = {axis.id for axis in tier_axes(spec, tier)}
        yield from _named_parameters(f"tiers[{at}].parameters", tier.parameters, varying, tier=tier.id)


def _listed_findings(spec: Spec) -> Iterator[Finding]:
    known = {tier.id for tier in spec.tiers}
    for at, listed in enumerate(spec.listed):
        path = f"conversations[{at}]"
        if listed.tier not in known:
            yield _error("TIER_UNKNOWN", f"{path}.tier", f"The spec has no tier {listed.tier}.")
        # A listed conversation may say what an axis would have drawn.
        yield from _named_parameters(f"{path}.parameters", listed.parameters, set(), tier=listed.tier)


def _named_parameters(path: str, parameters: Parameters, taken: set[str], *, tier: str = "") -> Iterator[Finding]:
    for name, value in parameters.items():
        problem = _value_problem(value)
        if name in taken:
            problem = f"{name} is an axis too, so its value would be ambiguous."
        elif name in RESERVED_NAMES:
            problem = f"{name} is a placeholder of every prompt already."
        if problem:
            yield _error("INVALID_FIELD", f"{path}.{name}", problem, tier=tier)


def _value_problem(value: ParameterValue) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "The value is not a finite number."
    if isinstance(value, str) and len(value) > TEXT_MAX_CHARS:
        return f"The text has {len(value):,} characters; {TEXT_MAX_CHARS:,} are allowed."
    if isinstance(value, list | dict):
        inner = value if isinstance(value, list) else value.values()
        problems = (_value_problem(item) for item in inner)
        return next((problem for problem in problems if problem), "")
    return ""


def _unused_axes(spec: Spec) -> Iterator[Finding]:
    if not all(tier.axes for tier in spec.tiers):
        return
    used = {axis for tier in spec.tiers for axis in tier.axes}
    for at, axis in enumerate(spec.axes):
        if axis.id not in used:
            yield Finding("WARNING", "", f"axes[{at}]", f"Axis {axis.id} varies in no tier.")
