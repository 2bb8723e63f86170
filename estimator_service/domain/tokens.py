"""How many tokens one call takes in and gives out, and how far that may be off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from estimator_service.domain import learning
from estimator_service.domain.workload import Group, InputSource

# Between two conversations of one prompt, as log-SD. The product's own log (47 calls) has output 2,292 sd 865:
# sqrt(ln(1 + (865 / 2292)^2)) = 0.36; and input 2,312 sd 441: 0.19.
OUTPUT_SPREAD_LOG_SD = 0.36
INPUT_SPREAD_LOG_SD = 0.19
# Shared by all conversations of one batch, as log-SD: how far the mean of a prompt that was never seen is from its
# prior. A choice, not a measurement: 0.25 is 95 % within a factor of 1.6 either way.
OUTPUT_DRIFT_LOG_SD = 0.25
# The same for the input, by what it rests on: a count is of a sample, and a tokenizer's characters a token vary.
INPUT_DRIFT_LOG_SD = {InputSource.PRIOR: 0.25, InputSource.CHARACTERS: 0.10, InputSource.COUNTED: 0.02}

CHARACTERS_PER_TOKEN = 4.0
# Roles, wrapping and the schema that go with every prompt. A choice.
INPUT_WRAPPING_TOKENS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Input tokens of one call and output tokens of one whole conversation."""

    input_tokens: float
    output_tokens: float


# The original product's planning figures.
PRIORS: Mapping[str, Prior] = {
    "template": Prior(input_tokens=2_000, output_tokens=3_000),
    "scenario": Prior(input_tokens=2_500, output_tokens=4_000),
    "edge_case": Prior(input_tokens=3_000, output_tokens=5_000),
}
# For every other tier: the mean of the three.
POOLED = Prior(input_tokens=2_500, output_tokens=4_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensSeen:
    """The means of observed calls of one tier and model."""

    calls: int
    input_tokens_mean: float
    output_tokens_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """Tokens of one call. `output_tokens_uncapped` is the mean if the model could go on for as long as it likes."""

    input_tokens_mean: float
    input_drift_log_sd: float
    output_tokens_uncapped: float
    output_tokens_mean: float
    # 0 where the figures are the prior's.
    observations: int


def estimate_tokens(group: Group, seen: TokensSeen | None) -> CallTokens:
    """Prior, moved by what was seen where that is enough; the output is cut at the group's maximum."""
    prior = PRIORS.get(group.tier, POOLED)
    seen = seen if seen and learning.weight(seen.calls) else None
    # The prior is of a conversation: turn by turn, each call gives its share.
    uncapped = prior.output_tokens / max(group.calls_each, 1.0)
    if seen:
        uncapped = learning.shrunk(uncapped, seen=seen.output_tokens_mean, observations=seen.calls)
    log_sd = math.hypot(OUTPUT_SPREAD_LOG_SD / math.sqrt(max(group.calls_each, 1.0)), OUTPUT_DRIFT_LOG_SD)
    source = _input_source(group)
    return CallTokens(
        input_tokens_mean=_input_tokens(group, source, prior, seen),
        input_drift_log_sd=INPUT_DRIFT_LOG_SD[source],
        output_tokens_uncapped=uncapped,
        output_tokens_mean=capped_mean(uncapped, log_sd=log_sd, cap=group.max_output_tokens or math.inf),
        observations=seen.calls if seen else 0,
    )


def _input_source(group: Group) -> InputSource:
    """A count wins over characters; a source without its figure is none."""
    if group.input_source is InputSource.COUNTED and group.input_tokens_mean > 0:
        return InputSource.COUNTED
    return InputSource.CHARACTERS if group.input_characters_mean > 0 else InputSource.PRIOR


def _input_tokens(group: Group, source: InputSource, prior: Prior, seen: TokensSeen | None) -> float:
    """What is known of this very prompt wins over what calls of other prompts of its tier took."""
    if source is InputSource.COUNTED:
        return group.input_tokens_mean
    if source is InputSource.CHARACTERS:
        return group.input_characters_mean / CHARACTERS_PER_TOKEN + INPUT_WRAPPING_TOKENS
    if seen:
        return learning.shrunk(prior.input_tokens, seen=seen.input_tokens_mean, observations=seen.calls)
    return prior.input_tokens


def capped_mean(mean: float, *, log_sd: float, cap: float) -> float:
    """E[min(X, cap)] of a lognormal X (the limited expected value), same unit as `mean`."""
    if math.isinf(cap):
        return mean
    standard = (math.log(cap / mean) + log_sd**2 / 2) / log_sd
    normal = NormalDist()
    return mean * normal.cdf(standard - log_sd) + cap * (1 - normal.cdf(standard))
