"""What is to be quoted: groups of conversations that are alike, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class InputSource(Enum):
    # Nothing is known: the tier's prior.
    PRIOR = auto()
    # Counted by the provider on a sample.
    COUNTED = auto()
    # Characters over a ratio.
    CHARACTERS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Figures that are taken as they are; None is estimated. A coefficient of variation of 0: all the same."""

    # Of one call, cached ones included; all calls have the same.
    input_tokens_mean: float | None = None
    output_tokens_mean: float | None = None
    output_tokens_cv: float = 0.0
    call_seconds_mean: float | None = None
    call_seconds_cv: float = 0.0
    # Time around the calls, as a share of the calls' own.
    overhead_share: float = 0.0
    failure_share: float | None = None


NOTHING_ASSUMED = Assumed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`count` conversations of one tier and model. Token and character figures are those of one call."""

    id: str
    tier: str
    model: str
    count: int
    calls_each: float = 1.0
    input_source: InputSource = InputSource.PRIOR
    input_tokens_mean: float = 0.0
    input_characters_mean: float = 0.0
    # 0 is no limit.
    max_output_tokens: int = 0
    cacheable_tokens: float = 0.0
    effort: str = ""
    prompt_fingerprint: str = ""
    assumed: Assumed = NOTHING_ASSUMED

    @property
    def turn_by_turn(self) -> bool:
        return self.calls_each > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The provider's limits a minute; 0 is none."""

    requests_per_minute: float = 0.0
    input_tokens_per_minute: float = 0.0
    output_tokens_per_minute: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    groups: tuple[Group, ...]
    concurrency: int = 1
    limits: Limits = Limits()
    # How many times faster than real time the provider runs: 1 for Claude, more for a sandbox.
    speed_up: float = 1.0
    provider: str = ""
    budget_nanos: int | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({group.model for group in self.groups}))

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)
