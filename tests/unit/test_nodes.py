"""Which calls are learned together, and what one kind says of another."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_calls import batch, call, history, key

from estimator_service.domain.history import NOTHING_SEEN
from estimator_service.domain.nodes import NODES_MAX, Spread, key_of, nodes_of
from estimator_service.domain.tokens import learn_tokens
from estimator_service.domain.workload import Group

SPREAD = Spread(model=0.3, tier=0.2, unknown_tier=0.8, node=0.1)


def group(tier: str = "template", *, count: int = 30, fingerprint: str = "", calls_each: float = 1.0) -> Group:
    return Group(
        id=f"{tier}{fingerprint}",
        tier=tier,
        model="m",
        count=count,
        prompt_fingerprint=fingerprint,
        calls_each=calls_each,
    )


def test_the_workloads_kinds_come_first_and_the_largest_of_them() -> None:
    seen = history([call(of=key("scenario", fingerprint="old"))])
    nodes = nodes_of([group("template", count=1), group("edge_case", count=5)], seen)
    assert [each.tier for each in nodes.keys] == ["edge_case", "template", "scenario"]
    assert nodes.of_history(seen).tolist() == [2]


def test_groups_of_one_kind_share_a_node_and_one_with_nothing_left_has_its_own() -> None:
    nodes = nodes_of([group(count=3), group(count=4), group("scenario", count=0)], NOTHING_SEEN)
    assert len(nodes.keys) == 2
    assert nodes.of_history(NOTHING_SEEN).tolist() == []


def test_kinds_share_their_model_their_tier_and_nothing_more() -> None:
    keys = [group(fingerprint="a"), group(fingerprint="b"), group("scenario"), group("mine")]
    covariance = nodes_of(keys, NOTHING_SEEN).covariance(SPREAD)
    assert covariance[0, 0] == pytest.approx(0.09 + 0.04 + 0.01)
    assert covariance[0, 1] == pytest.approx(0.09 + 0.04)
    assert covariance[0, 2] == pytest.approx(0.09)
    turns = nodes_of([group(), group(calls_each=6)], NOTHING_SEEN).covariance(SPREAD)
    assert turns[0, 1] == pytest.approx(0.09)
    assert covariance[3, 3] == pytest.approx(0.09 + 0.64 + 0.01)
    assert np.linalg.eigvalsh(covariance).min() > 0


@pytest.mark.parametrize("kinds", [NODES_MAX + 1, 1_000])
def test_prompts_that_are_too_many_share_a_node_of_their_tier(kinds: int) -> None:
    groups = [group(("template", "scenario")[at % 2], fingerprint=str(at)) for at in range(kinds)]
    nodes = nodes_of(groups, NOTHING_SEEN)
    assert len(nodes.keys) == NODES_MAX
    for each in groups:
        assert nodes.keys[nodes.at[key_of(each)]].tier == each.tier


def test_a_tier_that_has_no_node_is_taken_for_one_that_is_called_in_the_same_way() -> None:
    many = [group(fingerprint=str(at), count=100) for at in range(NODES_MAX - 1)]
    turns = [group("scenario", calls_each=6, count=50), group("edge_case", calls_each=6, count=1)]
    nodes = nodes_of([*many, *turns], NOTHING_SEEN)
    assert nodes.keys[nodes.at[key_of(turns[1])]] == key_of(turns[0])
    alone = nodes_of([*many, group(fingerprint="more", count=100), turns[1]], NOTHING_SEEN)
    assert alone.at[key_of(turns[1])] == 0


def test_past_prompts_that_are_too_many_are_not_taken_for_the_workloads_own() -> None:
    seen = history(
        *([call(9_000, of=key(fingerprint=f"old-{at}"))] * 3 for at in range(NODES_MAX + 6)),
        [call(3_000, of=key(fingerprint="now"))] * 2,
    )
    nodes = nodes_of([group(fingerprint="now")], seen)
    rows = nodes.of_history(seen)
    assert (rows == 0).sum() == 2
    assert (rows == -1).sum() == 3 * 7
    learned = learn_tokens([group(fingerprint="now")], seen)
    assert learned.output.observations[0] == 2
    assert learned.output.observations.sum() == 2 + 3 * (NODES_MAX - 1)


def test_a_tier_that_was_seen_moves_another_prompt_of_it_and_less_so_another_tier() -> None:
    rng = np.random.default_rng(1)
    seen = history(*(batch(f"b{at}", of=key(fingerprint="seen"), mean=6_000, calls=60, rng=rng) for at in range(5)))
    groups = [group(fingerprint="seen"), group(fingerprint="new"), group("scenario", fingerprint="new")]
    learned = learn_tokens(groups, seen)
    before = [3_000, 3_000, 4_000]
    moved = [learned.output.mean(learned.node(each)) / prior for each, prior in zip(groups, before, strict=True)]
    assert moved[0] == pytest.approx(2.0, rel=0.08)
    assert moved[0] > moved[1] > moved[2] > 1.15
