"""What one call really took, as its orchestrator tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum

from estimator_service.domain.errors import DuplicateDiffers


class Outcome(StrEnum):
    # The only outcome whose tokens and seconds are learned from.
    ANSWERED = "ANSWERED"
    REFUSED = "REFUSED"
    CUT = "CUT"
    MALFORMED = "MALFORMED"
    PROVIDER_ERROR = "PROVIDER_ERROR"
    LIMITED = "LIMITED"
    TIMEOUT = "TIMEOUT"
    CONNECTION_LOST = "CONNECTION_LOST"
    INTERRUPTED = "INTERRUPTED"
    UNKNOWN_STOP = "UNKNOWN_STOP"


class Purpose(StrEnum):
    # Also where the orchestrator does not say.
    GENERATE = "GENERATE"
    TURN = "TURN"
    REPAIR = "REPAIR"
    JUDGE = "JUDGE"
    WARM = "WARM"
    PREFLIGHT = "PREFLIGHT"


# Those that the contract holds in an observation's `usage`.
USAGE_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "thinking_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    call: str
    tier: str
    model: str
    provider: str
    outcome: Outcome
    purpose: Purpose
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    thinking_tokens: int
    duration: timedelta
    # None where the call was not streamed.
    first_token_delay: timedelta | None
    speed_up: float
    prompt_fingerprint: str
    batch: str
    effort: str
    max_output_tokens: int
    # None where it was not told.
    end_time: datetime | None
    # The id of the quote that its batch was started on; empty where there is none.
    quote: str = ""
    # Its number in the batch; 0 where it belongs to none.
    conversation: int = 0
    # Of its prompt; 0 where it was not told.
    prompt_characters: int = 0


def new_ones(told: Sequence[Observation], known: Mapping[str, Observation]) -> list[Observation]:
    """Those not `known` by their call, each once. Raises DuplicateDiffers where one came with other figures."""
    first: dict[str, Observation] = {}
    for at, each in enumerate(told):
        before = known.get(each.call) or first.setdefault(each.call, each)
        field = _first_difference(before, each)
        if field:
            raise DuplicateDiffers("call", each.call, field=field, place=f"observations[{at}].{field}")
    return list(first.values())


def _first_difference(before: Observation, now: Observation) -> str | None:
    """The field, in the contract's words."""
    differing = [field.name for field in fields(before) if getattr(before, field.name) != getattr(now, field.name)]
    if not differing:
        return None
    return f"usage.{differing[0]}" if differing[0] in USAGE_FIELDS else differing[0]
