"""How long one call takes: time to the first token, then output tokens over speed."""

from __future__ import annotations

from dataclasses import dataclass

from estimator_service.domain import learning

# At real speed. The product's log has 62 s for 2,292 tokens, very steady at 36 tokens/s after about a second.
FIRST_TOKEN_S = 1.0
TOKENS_PER_S = 36.0
# As log-SD. In the LLMPerf trace a steady endpoint's speed varies by 0.03 to 0.22 and its first token by 0.12 to
# 0.38: the middles. Between stretches of a day the speed drifts for all calls alike: the upper half.
SPEED_SPREAD_LOG_SD = 0.12
FIRST_TOKEN_SPREAD_LOG_SD = 0.25
SPEED_DRIFT_LOG_SD = 0.15
# Ours, of every call: it does not get shorter where a sandbox is faster.
OVERHEAD_CALL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceSeen:
    """Sums over observed calls of one model at one provider; seconds and tokens at real speed."""

    calls: int
    output_tokens: float
    # Measured duration times the provider's speed-up.
    seconds: float
    # The speed-ups added up: our overhead was multiplied by them as well.
    speed_ups: float
    # Only streamed calls tell when the first token came.
    first_token_calls: int = 0
    first_token_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """At real speed."""

    first_token_s: float = FIRST_TOKEN_S
    tokens_per_s: float = TOKENS_PER_S
    # 0 where it is the prior.
    observations: int = 0


def estimate_pace(seen: PaceSeen | None) -> Pace:
    """The prior, moved by what was seen where that is enough."""
    if seen is None or not learning.weight(seen.calls):
        return Pace()
    first_token_s = learning.shrunk(
        FIRST_TOKEN_S,
        seen=seen.first_token_s / max(seen.first_token_calls, 1),
        observations=seen.first_token_calls,
    )
    generating_s = seen.seconds - seen.speed_ups * OVERHEAD_CALL_S - seen.calls * first_token_s
    if generating_s <= 0:
        # Answers that took no longer than their first token tell nothing about speed.
        return Pace(first_token_s=first_token_s)
    speed = learning.shrunk(TOKENS_PER_S, seen=seen.output_tokens / generating_s, observations=seen.calls)
    return Pace(first_token_s=first_token_s, tokens_per_s=speed, observations=seen.calls)


def call_duration_s(pace: Pace, *, output_tokens: float) -> float:
    """Expected seconds of one call at real speed."""
    return pace.first_token_s + output_tokens / pace.tokens_per_s
