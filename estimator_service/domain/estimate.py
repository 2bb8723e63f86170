"""The expected figures of one group: calls, tokens, seconds and money, exact where the quote's ranges are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from estimator_service.domain.duration import Pace, estimate_pace
from estimator_service.domain.failures import Failures, estimate_failures
from estimator_service.domain.history import Array, CallKey, History
from estimator_service.domain.nodes import key_of
from estimator_service.domain.rates import Prices, Rate
from estimator_service.domain.shape import Shape
from estimator_service.domain.tokens import Running, TokensLearned, learn_tokens
from estimator_service.domain.workload import Group, Workload

TOKENS_PER_MTOK = 1_000_000
# An answer that was cut at the maximum is asked for once more, with so many times as much.
AGAIN_MAXIMUM = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLearned:
    """What is known of one model at the workload's provider, for one batch."""

    tokens: TokensLearned
    pace: Pace
    failures: Failures


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """Expected tokens of one call; of one that is made again because it was cut, and the share of those."""

    input_mean: float
    output_mean: float
    again_mean: float
    cut_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEstimate:
    group: Group
    rate: Rate
    learned: ModelLearned
    tokens: CallTokens
    failures: Failures

    @property
    def node(self) -> int:
        return self.learned.tokens.node(self.group)

    @property
    def observations(self) -> int:
        """Calls behind its token figures, those of the batch itself included."""
        return int(self.learned.tokens.output.observations[self.node])

    @property
    def of_batch(self) -> int:
        """Calls of the batch itself behind its token figures."""
        return int(self.learned.tokens.output.of_batch[self.node])

    @property
    def output_shape(self) -> Shape:
        """Of the mean call of one conversation."""
        if self.group.assumed.output_tokens_mean is not None:
            return certain_shape(self.group.assumed.output_tokens_cv)
        return self.learned.tokens.output.shapes[self.node].narrowed(self.group.calls_each)

    @property
    def calls_fine_mean(self) -> float:
        """Expected paid calls of one conversation if none was cut: each failed one is made again."""
        return self.group.calls_each * self.failures.calls_mean

    @property
    def calls_mean(self) -> float:
        """Expected paid calls of one conversation."""
        return self.calls_fine_mean + self.group.calls_each * self.tokens.cut_share

    @property
    def input_tokens_mean(self) -> float:
        """Of one conversation, cached ones included."""
        return self.calls_mean * self.tokens.input_mean

    @property
    def output_tokens_mean(self) -> float:
        """Of one conversation."""
        return self.calls_fine_mean * self.tokens.output_mean + self.group.calls_each * self.tokens.again_mean

    @property
    def thinking_tokens_mean(self) -> float:
        """Of one conversation; part of its output."""
        return self.output_tokens_mean * float(self.learned.tokens.thinking_share[self.node])

    @property
    def call_duration_mean_s(self) -> float:
        """At real speed; one that is made again because it was cut takes longer."""
        return self._seconds(calls=1.0, output_tokens=self.tokens.output_mean)

    @property
    def conversation_duration_mean_s(self) -> float:
        lost_s = self.calls_mean * self.failures.lost_mean * self.failures.lost_s
        paid_s = self._seconds(calls=self.calls_mean, output_tokens=self.output_tokens_mean)
        return (paid_s + lost_s) * (1 + self.group.assumed.overhead_share)

    def _seconds(self, *, calls: float, output_tokens: float) -> float:
        """Expected, of so many calls with so many tokens together."""
        if self.group.assumed.call_seconds_mean is not None:
            return calls * self.group.assumed.call_seconds_mean
        pace = self.learned.pace
        return (calls * pace.line.first_token_s + output_tokens / pace.line.tokens_per_s) * pace.factor_mean

    @property
    def cached_tokens(self) -> float:
        """Of one call: written by the group's first call, read by the others."""
        return min(self.group.cacheable_tokens, self.tokens.input_mean)

    @property
    def fresh_tokens(self) -> float:
        """Of one call: paid at the full price every time."""
        return self.tokens.input_mean - self.cached_tokens

    @property
    def prices(self) -> Prices:
        return self.rate.prices_for(self.tokens.input_mean)

    @property
    def cache_nanos(self) -> float:
        """One write for the group, then a read by every further call."""
        if not self.group.count:
            return 0.0
        reads = max(self.group.count * self.calls_mean - 1, 0.0)
        paid = self.prices.cache_write_5m + reads * self.prices.cache_read
        return self.cached_tokens * paid / TOKENS_PER_MTOK

    @property
    def cost_nanos(self) -> int:
        """Expected cost of the whole group: tokens times prices."""
        fresh = self.group.count * self.calls_mean * self.fresh_tokens * self.prices.input
        output = self.group.count * self.output_tokens_mean * self.prices.output
        return round((fresh + output) / TOKENS_PER_MTOK + self.cache_nanos)


def estimate_groups(
    workload: Workload,
    rates: Mapping[str, Rate],
    history: History,
    *,
    batch: str = "",
    ages_s: Mapping[CallKey, Array] | None = None,
) -> tuple[GroupEstimate, ...]:
    """In the workload's order. `rates` has every model of the workload; `batch` is the one at hand, where the workload
    is the rest of one; `ages_s` of its calls in flight, at real speed."""
    learned = {
        model: _learn(model, workload.groups, history.of_model(model), batch=batch, ages_s=ages_s or {})
        for model in workload.models
    }
    return tuple(_estimate(group, rates[group.model], learned[group.model]) for group in workload.groups)


def expected_cost_nanos(estimates: Sequence[GroupEstimate]) -> int:
    return sum(estimate.cost_nanos for estimate in estimates)


def certain_shape(cv: float) -> Shape:
    """Lognormal with this coefficient of variation, and no doubt about it."""
    return Shape(log_sd=math.sqrt(math.log1p(cv**2)), freedom=math.inf)


def _learn(
    model: str, groups: Sequence[Group], history: History, *, batch: str, ages_s: Mapping[CallKey, Array]
) -> ModelLearned:
    pace = estimate_pace(history, batch=batch)
    own = [group for group in groups if group.model == model]
    # Whatever its age, no call has more than its maximum: it has stalled.
    maxima = {key_of(group): group.max_output_tokens or math.inf for group in own}
    surpassed = {key: np.minimum(pace.tokens_by(ages_s[key]), most) for key, most in maxima.items() if key in ages_s}
    running = Running(surpassed=surpassed)
    return ModelLearned(
        tokens=learn_tokens(own, history, batch=batch, running=running),
        pace=pace,
        failures=estimate_failures(history),
    )


def _estimate(group: Group, rate: Rate, learned: ModelLearned) -> GroupEstimate:
    certain = group.assumed.failure_share
    return GroupEstimate(
        group=group,
        rate=rate,
        learned=learned,
        tokens=_call_tokens(group, learned),
        failures=learned.failures if certain is None else Failures(certain=certain),
    )


def _call_tokens(group: Group, learned: ModelLearned) -> CallTokens:
    """E[min(X, maximum)] and what follows from X > maximum, over equally likely levels and shapes."""
    node = learned.tokens.nodes.at[key_of(group)]
    assumed = group.assumed.output_tokens_mean
    if assumed is not None:
        values = assumed * certain_shape(group.assumed.output_tokens_cv).grid()
    else:
        shape = learned.tokens.output.shapes[node].narrowed(group.calls_each)
        values = np.outer(learned.tokens.output.level_grid(node), shape.grid())
    maximum = group.max_output_tokens or math.inf
    cut = values > maximum
    told = group.assumed.input_tokens_mean
    return CallTokens(
        input_mean=learned.tokens.input.mean(node) if told is None else told,
        output_mean=float(np.minimum(values, maximum).mean()),
        again_mean=float((np.minimum(values, AGAIN_MAXIMUM * maximum) * cut).mean()),
        cut_share=float(cut.mean()),
    )
