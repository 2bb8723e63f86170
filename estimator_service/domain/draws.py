"""Possible outcomes of a workload: what each conversation takes, draw by draw, from one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain.duration import FIRST_TOKEN_SPREAD_LOG_SD, SPEED_DRIFT_LOG_SD, SPEED_SPREAD_LOG_SD
from estimator_service.domain.estimate import FAILURE_SHARE, GroupEstimate
from estimator_service.domain.tokens import INPUT_SPREAD_LOG_SD, OUTPUT_DRIFT_LOG_SD, OUTPUT_SPREAD_LOG_SD

Array = NDArray[np.float64]

# The 2.5 % quantile of 400 outcomes rests on ten of them.
DRAWS = 400
# More conversations are sampled, each standing for several: the sum's own error is then 0.36 / sqrt(2000) = 0.8 %,
# and what all conversations share (0.25) is not touched by it.
CONVERSATIONS_MAX = 2_000
# A group keeps this many, or all, however small its part is.
GROUP_CONVERSATIONS_MIN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDraws:
    """One group. Arrays are draws x conversations; each conversation stands for `scale` of them."""

    scale: float
    calls: Array
    fresh_input_tokens: Array
    output_tokens: Array
    # At real speed, all calls of the conversation after each other, without our overhead.
    seconds: Array


@dataclass(frozen=True, slots=True)
class _Drift:
    """What all conversations of one draw share, as standard normals: a column each."""

    input: Array
    output: Array
    speed: Array


def draw(estimates: Sequence[GroupEstimate], *, seed: int) -> tuple[GroupDraws, ...]:
    """The outcomes of each group, in their order; the same seed gives the same ones."""
    drift = _drift(np.random.default_rng([seed]))
    total = sum(estimate.group.count for estimate in estimates)
    return tuple(
        _draw_group(estimate, _sampled(estimate.group.count, total), drift, np.random.default_rng([seed, 1 + number]))
        for number, estimate in enumerate(estimates)
    )


def cost_nanos(estimate: GroupEstimate, drawn: GroupDraws) -> Array:
    """The group's cost in every draw; their mean is the expected cost, so ranges and sums agree."""
    fresh = drawn.fresh_input_tokens.sum(axis=1) * estimate.prices.input
    output = drawn.output_tokens.sum(axis=1) * estimate.prices.output
    cost: Array = (fresh + output) * drawn.scale / 1e6 + estimate.cache_nanos
    mean = float(cost.mean())
    return cost * (estimate.cost_nanos / mean) if mean else cost


def _sampled(count: int, total: int) -> int:
    if total <= CONVERSATIONS_MAX:
        return count
    return min(count, max(GROUP_CONVERSATIONS_MIN, round(count * CONVERSATIONS_MAX / total)))


def _drift(rng: np.random.Generator) -> _Drift:
    # One value from each of 400 equally likely strata, shuffled: the tails are there for every seed.
    strata = np.array([NormalDist().inv_cdf((at + 0.5) / DRAWS) for at in range(DRAWS)])
    return _Drift(*(rng.permutation(strata)[:, None] for _ in range(3)))


def _draw_group(estimate: GroupEstimate, count: int, drift: _Drift, rng: np.random.Generator) -> GroupDraws:
    tokens, calls_each = estimate.tokens, estimate.group.calls_each
    shape = (DRAWS, count)
    repeats = rng.poisson(calls_each * FAILURE_SHARE / (1 - FAILURE_SHARE), shape)
    calls: Array = (calls_each + repeats).astype(np.float64)
    # The mean over several calls of one conversation varies less than one call does.
    narrowing = math.sqrt(max(calls_each, 1.0))
    per_call = tokens.output_tokens_uncapped * _lognormal(drift.output, OUTPUT_DRIFT_LOG_SD)
    per_call = per_call * _lognormal(rng.standard_normal(shape), OUTPUT_SPREAD_LOG_SD / narrowing)
    output: Array = calls * np.minimum(per_call, estimate.group.max_output_tokens or math.inf)
    fresh = estimate.fresh_tokens * _lognormal(drift.input, tokens.input_drift_log_sd)
    slowness = _lognormal(drift.speed, SPEED_DRIFT_LOG_SD) * _lognormal(
        rng.standard_normal(shape), SPEED_SPREAD_LOG_SD / narrowing
    )
    first_token_s = estimate.pace.first_token_s * _lognormal(
        rng.standard_normal(shape), FIRST_TOKEN_SPREAD_LOG_SD / narrowing
    )
    return GroupDraws(
        scale=estimate.group.count / count if count else 0.0,
        calls=calls,
        fresh_input_tokens=calls * fresh * _lognormal(rng.standard_normal(shape), INPUT_SPREAD_LOG_SD / narrowing),
        output_tokens=output,
        seconds=calls * first_token_s + output / estimate.pace.tokens_per_s * slowness,
    )


def _lognormal(standard: Array, log_sd: float) -> Array:
    """Factors with mean 1."""
    return np.exp(standard * log_sd - log_sd**2 / 2)
