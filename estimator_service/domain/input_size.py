"""What a workload says of its own input: a count, or characters over what a character was seen to weigh."""

from __future__ import annotations

import math
from dataclasses import dataclass

from estimator_service.domain.history import History
from estimator_service.domain.workload import Group, InputSource

# Until a model's prompts were seen.
CHARACTERS_PER_TOKEN = 4.0
# Roles, wrapping and the schema that go with every prompt. A choice; what is measured has them in it.
WRAPPING_TOKENS = 50.0
# How far that may be off, as log-SD, and how many calls count as much as it does.
UNMEASURED_LOG_SD = 0.15
UNMEASURED_CALLS = 3.0
# Prompts of one model differ in it, however many were seen.
MEASURED_LOG_SD = 0.03
# A count leaves out what the provider adds.
COUNTED_LOG_SD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSize:
    """Tokens of one call, and how far they may be off as log-SD, apart from how its prompts differ."""

    tokens: float
    log_sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CharacterRatio:
    """Of one model: characters a token over the calls that told both."""

    calls: int = 0
    characters_per_token: float = CHARACTERS_PER_TOKEN

    def size(self, characters: float) -> InputSize:
        """Between what is usual and what was measured, on the log scale, by their weights."""
        usual = characters / CHARACTERS_PER_TOKEN + WRAPPING_TOKENS
        measured = characters / self.characters_per_token
        share = self.calls / (self.calls + UNMEASURED_CALLS)
        return InputSize(
            tokens=usual ** (1 - share) * measured**share,
            log_sd=math.hypot(UNMEASURED_LOG_SD * (1 - share), MEASURED_LOG_SD),
        )


def measured_ratio(answered: History) -> CharacterRatio:
    """`answered`: calls to one model."""
    told = (answered.prompt_characters > 0) & (answered.input_tokens > 0)
    if not told.any():
        return CharacterRatio()
    return CharacterRatio(
        calls=int(told.sum()),
        characters_per_token=float(answered.prompt_characters[told].sum() / answered.input_tokens[told].sum()),
    )


def told_size(group: Group, ratio: CharacterRatio) -> InputSize | None:
    """A count wins over characters; a source without its figure is none."""
    if group.input_source is InputSource.COUNTED and group.input_tokens_mean > 0:
        return InputSize(tokens=group.input_tokens_mean, log_sd=COUNTED_LOG_SD)
    return ratio.size(group.input_characters_mean) if group.input_characters_mean > 0 else None
