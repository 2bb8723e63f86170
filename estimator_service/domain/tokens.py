"""How many tokens one call takes in and gives out: priors by tier, and what was learned of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from estimator_service.domain import learning
from estimator_service.domain.history import Array, CallKey, History, Kind
from estimator_service.domain.input_size import measured_ratio, told_size
from estimator_service.domain.learning import Learned, Sample, Told
from estimator_service.domain.nodes import Nodes, Spread, key_of, nodes_of
from estimator_service.domain.workload import Group

# Between two conversations of one prompt, as log-SD. The product's own log (47 calls) has output 2,292 sd 865:
# sqrt(ln(1 + (865 / 2292)^2)) = 0.36; and input 2,312 sd 441: 0.19.
OUTPUT_LOG_SD = 0.36
INPUT_LOG_SD = 0.19
# How far the mean of a prompt that was never seen is from its prior. A choice: in all 0.54 for a well-known tier, so
# 80 % within a factor of 2 either way (the log's template tier is 0.76 of its prior), and 0.9 for any other.
OUTPUT_SPREAD = Spread(model=0.4, tier=0.3, unknown_tier=0.8, node=0.2)
INPUT_SPREAD = Spread(model=0.2, tier=0.4, unknown_tier=0.8, node=0.3)
# What the workload itself says of its input is of a few prompts of a group.
SAMPLED_CONVERSATIONS = 3
TOLD_SPREAD = 3.0

# Who sets a maximum leaves room: answers of unknown prompts are taken to have about this share of it.
SHARE_OF_MAXIMUM = 0.35
# Calls of a conversation that is made turn by turn, where only its past is known.
TURNS = 6.0
# Prior weight of no thinking, in calls.
NO_THINKING = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPrior:
    """Input tokens of one call and output tokens of one whole conversation."""

    input_tokens: float
    output_tokens: float


# The original product's planning figures.
PRIORS: Mapping[str, TierPrior] = {
    "template": TierPrior(input_tokens=2_000, output_tokens=3_000),
    "scenario": TierPrior(input_tokens=2_500, output_tokens=4_000),
    "edge_case": TierPrior(input_tokens=3_000, output_tokens=5_000),
}
# For every other tier: the mean of the three.
POOLED = TierPrior(input_tokens=2_500, output_tokens=4_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensLearned:
    """Of one model at one provider, for one batch."""

    nodes: Nodes
    input: Learned
    output: Learned
    # Of the output, by node.
    thinking_share: Array

    def node(self, group: Group) -> int:
        return self.nodes.at[key_of(group)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Calls of the batch at hand that have not ended: tokens that they surely have by now, by the key of the call."""

    surpassed: Mapping[CallKey, Array] = field(default_factory=dict[CallKey, Array])


NOTHING_RUNS = Running()


def learn_tokens(
    groups: Sequence[Group], history: History, *, batch: str = "", running: Running = NOTHING_RUNS
) -> TokensLearned:
    """`groups` and `history` are of one model; `batch` is the one that the groups are the rest of, if any."""
    nodes = nodes_of(groups, history)
    current = history.batches.index(batch) if batch in history.batches else None
    known = nodes.of_history(history) >= 0
    answered = history.rows(known & (history.kind <= Kind.CUT) & (history.output_tokens > 0))
    priors = [_output_prior(key, groups) for key in nodes.keys]
    output = learning.learn(
        _sample(answered, answered.output_tokens, nodes, censored=answered.kind == Kind.CUT),
        learning.Prior(means=np.array(priors), covariance=nodes.covariance(OUTPUT_SPREAD), log_sd=OUTPUT_LOG_SD),
        current=current,
        in_flight=_by_node(running, nodes),
    )
    return TokensLearned(
        nodes=nodes,
        input=_learn_input(groups, answered, nodes, current=current),
        output=output,
        thinking_share=_thinking_share(answered, nodes),
    )


def _by_node(running: Running, nodes: Nodes) -> dict[int, Array]:
    joined: defaultdict[int, list[Array]] = defaultdict(list)
    for key, bounds in running.surpassed.items():
        joined[nodes.at[key]].append(bounds)
    return {node: np.concatenate(each) for node, each in joined.items()}


def _learn_input(groups: Sequence[Group], answered: History, nodes: Nodes, *, current: int | None) -> Learned:
    seen = answered.rows(answered.input_tokens > 0)
    ratio = measured_ratio(seen)
    sizes = [(key_of(group), size) for group in groups for size in [told_size(group, ratio)] if size]
    telling = {key for key, _ in sizes}
    tells = np.array([key in telling for key in nodes.keys])
    prior = learning.Prior(
        means=np.array([PRIORS.get(key.tier, POOLED).input_tokens for key in nodes.keys]),
        # Where the workload tells of its input, no prior has a say in it.
        covariance=nodes.covariance(INPUT_SPREAD) + np.diag(np.where(tells, TOLD_SPREAD**2, 0.0)),
        log_sd=INPUT_LOG_SD,
    )
    return learning.learn(
        _sample(seen, seen.input_tokens, nodes, censored=np.zeros(len(seen), dtype=np.bool_)),
        prior,
        current=current,
        told=[
            Told(
                node=nodes.at[key],
                log_ratio=math.log(size.tokens / prior.medians[nodes.at[key]]),
                noise=size.log_sd**2,
                conversations=SAMPLED_CONVERSATIONS,
            )
            for key, size in sizes
        ],
    )


def _output_prior(key: CallKey, groups: Sequence[Group]) -> float:
    """Of one call: turn by turn, each gives its share of the conversation."""
    group = next((group for group in groups if key_of(group) == key), None)
    calls = max(group.calls_each, 1.0) if group else TURNS if key.turn_by_turn else 1.0
    if key.tier not in PRIORS and group and group.max_output_tokens:
        return min(POOLED.output_tokens / calls, SHARE_OF_MAXIMUM * group.max_output_tokens)
    return PRIORS.get(key.tier, POOLED).output_tokens / calls


def _sample(
    history: History, values: Array, nodes: Nodes, *, censored: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> Sample:
    return Sample(
        values=values,
        node=nodes.of_history(history),
        batch=history.batch,
        censored=censored,
        ended_s=history.ended_s,
    )


def _thinking_share(answered: History, nodes: Nodes) -> Array:
    """Of the output; none until some was seen."""
    node = nodes.of_history(answered)
    size = len(nodes.keys)
    thinking = np.bincount(node, answered.thinking_tokens, minlength=size)
    output = np.bincount(node, answered.output_tokens, minlength=size)
    calls = np.bincount(node, minlength=size)
    share: Array = thinking / np.maximum(output, 1.0) * calls / (calls + NO_THINKING)
    return share
