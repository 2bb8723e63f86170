"""Possible outcomes of a workload: what each conversation takes, draw by draw, from one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain.estimate import AGAIN_MAXIMUM, GroupEstimate, ModelLearned, certain_shape
from estimator_service.domain.shape import Shape

Array = NDArray[np.float64]

# The 2.5 % quantile of so many outcomes rests on 25 of them; with many conversations on ten.
DRAWS = 1_000
DRAWS_MIN = 400
# Values drawn of one kind at most: 8 bytes each.
VALUES_MAX = 900_000
# More conversations are sampled, each standing for several: the sum's own error is then 0.36 / sqrt(2000) = 0.8 %,
# and what all conversations share (some 3 % at best) is not touched by it.
CONVERSATIONS_MAX = 2_000
# A group keeps this many, or all, however small its part is.
GROUP_CONVERSATIONS_MIN = 5
# Tries at a call in flight that takes longer than it took already.
TRIES = 12
OLDER = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDraws:
    """One group. Arrays are draws x conversations; each conversation stands for `scale` of them."""

    scale: float
    # Paid ones.
    calls: Array
    fresh_input_tokens: Array
    output_tokens: Array
    # At real speed, all calls of the conversation after each other, without our overhead.
    seconds: Array


@dataclass(frozen=True, slots=True)
class ModelDraws:
    """What all conversations of one draw and model share. Shapes: draws x nodes, else draws."""

    input_means: Array
    output_means: Array
    # Of the seconds.
    factors: Array
    failed_shares: Array
    lost_shares: Array


@dataclass(frozen=True, slots=True)
class BatchDraws:
    """The levels of one batch, draw by draw, by model; groups draw from them."""

    draws: int
    seed: int
    by_model: dict[str, ModelDraws]


def draw_batch(
    estimates: Sequence[GroupEstimate], *, seed: int, draws_min: int = DRAWS_MIN, values_max: int = VALUES_MAX
) -> BatchDraws:
    total = sum(_sampled(each.group.count, _total(estimates)) for each in estimates)
    draws = min(DRAWS, max(draws_min, values_max // max(total, 1)))
    learned = {each.group.model: each.learned for each in estimates}
    return BatchDraws(
        draws,
        seed,
        {
            model: _draw_model(learned[model], draws, np.random.default_rng([seed, 0, number]))
            for number, model in enumerate(sorted(learned))
        },
    )


def draw(estimates: Sequence[GroupEstimate], batch: BatchDraws) -> tuple[GroupDraws, ...]:
    """The outcomes of each group, in their order; the same seed gives the same ones."""
    total = _total(estimates)
    return tuple(
        _draw_group(
            estimate,
            _sampled(estimate.group.count, total),
            batch.by_model[estimate.group.model],
            np.random.default_rng([batch.seed, 1, number]),
        )
        for number, estimate in enumerate(estimates)
    )


def first(drawn: GroupDraws, draws: int) -> GroupDraws:
    """So many of its draws: they are in no order."""
    return GroupDraws(
        scale=drawn.scale,
        calls=drawn.calls[:draws],
        fresh_input_tokens=drawn.fresh_input_tokens[:draws],
        output_tokens=drawn.output_tokens[:draws],
        seconds=drawn.seconds[:draws],
    )


def cost_nanos(estimate: GroupEstimate, drawn: GroupDraws) -> Array:
    """The group's cost in every draw; their mean is the expected cost, so ranges and sums agree."""
    cost = variable_nanos(estimate, drawn) + estimate.cache_nanos
    mean = float(cost.mean())
    return cost * (estimate.cost_nanos / mean) if mean else cost


def variable_nanos(estimate: GroupEstimate, drawn: GroupDraws) -> Array:
    """Of fresh input and of output."""
    fresh = drawn.fresh_input_tokens.sum(axis=1) * estimate.prices.input
    output = drawn.output_tokens.sum(axis=1) * estimate.prices.output
    nanos: Array = (fresh + output) * drawn.scale / 1e6
    return nanos


def draw_in_flight(
    estimate: GroupEstimate, batch: BatchDraws, *, ages_s: Array, number: int
) -> tuple[GroupDraws, Array]:
    """Calls that are under way for so long (at real speed), and their seconds from now on: draws x calls.

    Each is drawn until it takes longer than its age; what outlives every try has the tokens of the longest of them, and
    takes a little longer still.
    """
    rng = np.random.default_rng([batch.seed, 2, number])
    shared = batch.by_model[estimate.group.model]
    shape = (batch.draws, len(ages_s))
    ages = np.broadcast_to(ages_s, shape)
    output, seconds = np.zeros(shape), np.full(shape, -1.0)
    open_ = np.ones(shape, dtype=np.bool_)
    for _ in range(TRIES):
        tokens = np.minimum(_call_tokens(estimate, shared, shape, rng), estimate.group.max_output_tokens or math.inf)
        took = _call_seconds(estimate, shared, tokens, rng)
        longer = open_ & (took > seconds)
        output, seconds = np.where(longer, tokens, output), np.where(longer, took, seconds)
        open_ &= took <= ages
        if not open_.any():
            break
    seconds = np.where(open_, ages * OLDER, seconds)
    drawn = GroupDraws(
        scale=1.0,
        calls=np.ones(shape),
        fresh_input_tokens=_fresh(estimate, shared, shape, rng),
        output_tokens=output,
        seconds=seconds,
    )
    return drawn, seconds - ages


def _total(estimates: Sequence[GroupEstimate]) -> int:
    return sum(estimate.group.count for estimate in estimates)


def _sampled(count: int, total: int) -> int:
    if total <= CONVERSATIONS_MAX:
        return count
    return min(count, max(GROUP_CONVERSATIONS_MIN, round(count * CONVERSATIONS_MAX / total)))


def _draw_model(learned: ModelLearned, draws: int, rng: np.random.Generator) -> ModelDraws:
    tokens, pace = learned.tokens, learned.pace
    factors = pace.factor.medians[0] * np.exp(pace.factor.levels.draw(draws, rng)[:, 0])
    return ModelDraws(
        input_means=tokens.input.medians * np.exp(tokens.input.levels.draw(draws, rng)),
        output_means=tokens.output.medians * np.exp(tokens.output.levels.draw(draws, rng)),
        factors=factors,
        failed_shares=learned.failures.draw_shares(draws, rng),
        lost_shares=learned.failures.draw_lost(draws, rng),
    )


def _draw_group(estimate: GroupEstimate, count: int, shared: ModelDraws, rng: np.random.Generator) -> GroupDraws:
    group = estimate.group
    shape = (len(shared.factors), count)
    each = group.calls_each
    maximum = group.max_output_tokens or math.inf
    tokens = _call_tokens(estimate, shared, shape, rng)
    cut = tokens > maximum
    fine: Array = each + _failed(estimate, shared, shape, rng)
    calls = fine + each * cut
    first = np.minimum(tokens, maximum)
    again = each * np.minimum(tokens, AGAIN_MAXIMUM * maximum) * cut if cut.any() else 0.0
    seconds = fine * _call_seconds(estimate, shared, first, rng)
    if cut.any():
        seconds = seconds + each * cut * _call_seconds(
            estimate, shared, np.minimum(tokens, AGAIN_MAXIMUM * maximum), rng
        )
    lost = rng.poisson(calls * shared.lost_shares[:, None]) if estimate.failures.certain is None else 0.0
    return GroupDraws(
        scale=group.count / count if count else 0.0,
        calls=calls,
        fresh_input_tokens=calls * _fresh(estimate, shared, shape, rng),
        output_tokens=fine * first + again,
        seconds=(seconds + lost * estimate.failures.lost_s) * (1 + group.assumed.overhead_share),
    )


def _failed(estimate: GroupEstimate, shared: ModelDraws, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Calls that are paid for nothing, on the way to those that are fine."""
    certain = estimate.failures.certain
    if certain == 0:
        return np.zeros(shape)
    shares = shared.failed_shares if certain is None else np.full(shape[0], certain)
    failed: Array = rng.negative_binomial(estimate.group.calls_each, 1 - shares[:, None], shape).astype(np.float64)
    return failed


def _call_tokens(
    estimate: GroupEstimate, shared: ModelDraws, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Output tokens of the mean call of each conversation, if it may go on for as long as it likes."""
    assumed = estimate.group.assumed.output_tokens_mean
    means = shared.output_means[:, estimate.node] if assumed is None else np.full(shape[0], assumed)
    return means[:, None] * estimate.output_shape.draw(shape, rng)


def _call_seconds(estimate: GroupEstimate, shared: ModelDraws, tokens: Array, rng: np.random.Generator) -> Array:
    assumed, pace = estimate.group.assumed, estimate.learned.pace
    if assumed.call_seconds_mean is not None:
        drawn = certain_shape(assumed.call_seconds_cv).draw((tokens.shape[0], tokens.shape[1]), rng)
        return assumed.call_seconds_mean * drawn
    shape: Shape = pace.factor.shapes[0].narrowed(estimate.group.calls_each)
    spread = shape.draw((tokens.shape[0], tokens.shape[1]), rng)
    return pace.line.seconds(tokens) * shared.factors[:, None] * spread


def _fresh(estimate: GroupEstimate, shared: ModelDraws, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Input tokens of one call that are paid at the full price."""
    if estimate.group.assumed.input_tokens_mean is not None:
        return np.full(shape, estimate.fresh_tokens)
    node = estimate.node
    spread = estimate.learned.tokens.input.shapes[node].narrowed(estimate.group.calls_each)
    means = (shared.input_means[:, node] - estimate.cached_tokens).clip(min=0.0)
    fresh: Array = means[:, None] * spread.draw(shape, rng)
    return fresh
