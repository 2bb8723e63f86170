"""The expected figures of one group: calls, tokens, seconds and money, exact where the quote's ranges are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from estimator_service.domain.duration import Pace, PaceSeen, call_duration_s, estimate_pace
from estimator_service.domain.rates import Prices, Rate
from estimator_service.domain.tokens import CallTokens, TokensSeen, estimate_tokens
from estimator_service.domain.workload import Group, Workload

# Calls that are paid, fail a check or are cut, and are made again. A choice until outcomes are learned.
FAILURE_SHARE = 0.03
TOKENS_PER_MTOK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensKey:
    tier: str
    model: str
    turn_by_turn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What was observed that bears on one workload: of its models, at its provider."""

    tokens: Mapping[TokensKey, TokensSeen] = field(default_factory=dict[TokensKey, TokensSeen])
    paces: Mapping[str, PaceSeen] = field(default_factory=dict[str, PaceSeen])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEstimate:
    group: Group
    rate: Rate
    tokens: CallTokens
    pace: Pace

    @property
    def calls_mean(self) -> float:
        """Expected paid calls of one conversation: each failed one is made again."""
        return self.group.calls_each / (1 - FAILURE_SHARE)

    @property
    def input_tokens_mean(self) -> float:
        """Of one conversation, cached ones included."""
        return self.calls_mean * self.tokens.input_tokens_mean

    @property
    def output_tokens_mean(self) -> float:
        """Of one conversation."""
        return self.calls_mean * self.tokens.output_tokens_mean

    @property
    def call_duration_mean_s(self) -> float:
        """At real speed."""
        return call_duration_s(self.pace, output_tokens=self.tokens.output_tokens_mean)

    @property
    def conversation_duration_mean_s(self) -> float:
        return self.calls_mean * self.call_duration_mean_s

    @property
    def cached_tokens(self) -> float:
        """Of one call: written by the group's first call, read by the others."""
        return min(self.group.cacheable_tokens, self.tokens.input_tokens_mean)

    @property
    def fresh_tokens(self) -> float:
        """Of one call: paid at the full price every time."""
        return self.tokens.input_tokens_mean - self.cached_tokens

    @property
    def prices(self) -> Prices:
        return self.rate.prices_for(self.tokens.input_tokens_mean)

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
        calls = self.group.count * self.calls_mean
        fresh = calls * self.fresh_tokens * self.prices.input
        output = calls * self.tokens.output_tokens_mean * self.prices.output
        return round((fresh + output) / TOKENS_PER_MTOK + self.cache_nanos)


def estimate_groups(workload: Workload, rates: Mapping[str, Rate], history: History) -> tuple[GroupEstimate, ...]:
    """In the workload's order. `rates` has every model of the workload."""
    return tuple(
        GroupEstimate(
            group=group,
            rate=rates[group.model],
            tokens=estimate_tokens(group, history.tokens.get(_tokens_key(group))),
            pace=estimate_pace(history.paces.get(group.model)),
        )
        for group in workload.groups
    )


def expected_cost_nanos(estimates: tuple[GroupEstimate, ...]) -> int:
    return sum(estimate.cost_nanos for estimate in estimates)


def _tokens_key(group: Group) -> TokensKey:
    return TokensKey(tier=group.tier, model=group.model, turn_by_turn=group.turn_by_turn)
