"""What one call really took, as its orchestrator tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


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
