"""What calls have shown of a model: how long answers get, how fast they come, how prompts count."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from orchestrator_service.domain.ledger import Usage
from orchestrator_service.domain.retry import Speed

# Prompts of our languages have 3 to 5 characters a token.
CHARS_PER_TOKEN = 3.5
# Tokens of an answer, until answers have come.
OUTPUT_TOKENS = 4_000.0
# How much a new call counts against all before it.
WEIGHT = 0.1
# Speeds and durations that are remembered, and from how many on they count.
RECENT = 100
RECENT_MIN = 10
# Shorter answers show the way there more than the speed.
SPEED_MIN_TOKENS = 200
# How much slower a model may be than it was, before a call is given up.
SLOWER = 2.0
TIMEOUTS_MAX = 3


@dataclass
class _OfModel:
    chars_per_token: float = CHARS_PER_TOKEN
    # By tier.
    output_tokens: dict[str, float] = field(default_factory=dict[str, float])
    # In real time, the newest last.
    tokens_per_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT))
    durations_s: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT))
    # In a row: no answer came within the deadline.
    timeouts: int = 0


class Experience:
    """Of this process; times are real ones, so a sandbox's are stretched by its speed-up."""

    def __init__(self) -> None:
        self._models: defaultdict[str, _OfModel] = defaultdict(_OfModel)

    def input_tokens(self, model: str, characters: int) -> float:
        return characters / self._models[model].chars_per_token

    def output_tokens(self, model: str, tier: str) -> float:
        return self._models[model].output_tokens.get(tier, OUTPUT_TOKENS)

    def speed(self, model: str) -> Speed:
        """The slow end of what was seen, and half of that; less again for every time-out in a row."""
        known = self._models[model]
        otherwise = Speed()
        slowed = 2.0**known.timeouts
        if len(known.tokens_per_s) < RECENT_MIN:
            return Speed(tokens_per_s=otherwise.tokens_per_s / slowed)
        slow = sorted(known.tokens_per_s)[len(known.tokens_per_s) // 10]
        return Speed(tokens_per_s=slow / SLOWER / slowed, longest_s=max(known.durations_s) * SLOWER)

    def answered(self, model: str, tier: str, *, characters: int, usage: Usage, real_s: float) -> None:
        known = self._models[model]
        known.timeouts = 0
        if usage.prompt_tokens:
            known.chars_per_token += WEIGHT * (characters / usage.prompt_tokens - known.chars_per_token)
        before = known.output_tokens.get(tier, float(usage.output_tokens))
        known.output_tokens[tier] = before + WEIGHT * (usage.output_tokens - before)
        if usage.output_tokens >= SPEED_MIN_TOKENS and real_s > 0:
            known.tokens_per_s.append(usage.output_tokens / real_s)
            known.durations_s.append(real_s)

    def timed_out(self, model: str) -> None:
        """Nobody knows how long it would have taken: the next may take twice as long."""
        known = self._models[model]
        known.timeouts = min(TIMEOUTS_MAX, known.timeouts + 1)
