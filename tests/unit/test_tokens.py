"""Priors by tier, what the workload says of itself, and what moves both."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from simulated_calls import batch, batches, call, history, key, renamed

from estimator_service.domain.history import NOTHING_SEEN, CallSeen, History, Kind
from estimator_service.domain.nodes import key_of
from estimator_service.domain.tokens import Running, TokensLearned, learn_tokens
from estimator_service.domain.workload import Group, InputSource

GROUP = Group(id="g", tier="template", model="m", count=1)
COUNTED = replace(GROUP, input_source=InputSource.COUNTED, input_tokens_mean=1_234.5)


def learned(group: Group = GROUP, seen: History = NOTHING_SEEN) -> TokensLearned:
    return learn_tokens([group], seen)


def means(group: Group = GROUP, seen: History = NOTHING_SEEN) -> tuple[float, float]:
    found = learned(group, seen)
    return found.input.mean(0), found.output.mean(0)


def alike(calls: int, **changes: float) -> list[CallSeen]:
    return [call(changes.get("output_tokens", 1_000), input_tokens=changes.get("input_tokens", 4_000))] * calls


@pytest.mark.parametrize(
    ("tier", "input_tokens", "output_tokens"),
    [("template", 2_000, 3_000), ("scenario", 2_500, 4_000), ("edge_case", 3_000, 5_000), ("mine", 2_500, 4_000)],
)
def test_each_tier_has_its_prior_and_others_the_pooled_one(tier: str, input_tokens: int, output_tokens: int) -> None:
    assert means(replace(GROUP, tier=tier)) == pytest.approx(
        (input_tokens, output_tokens), rel=0.02 if tier == "mine" else 0.005
    )
    assert learned(replace(GROUP, tier=tier)).output.observations.tolist() == [0]


def test_less_is_known_of_a_tier_that_nobody_planned() -> None:
    known, unknown = (learned(replace(GROUP, tier=tier)).output.levels.variance[0] for tier in ("template", "mine"))
    assert unknown > 2 * known


def test_an_unknown_prompt_is_taken_to_fill_a_third_of_its_maximum() -> None:
    mine = replace(GROUP, tier="mine", max_output_tokens=2_000)
    assert means(mine)[1] == pytest.approx(700, rel=0.02)
    assert means(replace(mine, max_output_tokens=100_000))[1] == pytest.approx(4_000, rel=0.02)
    assert means(replace(mine, tier="template"))[1] == pytest.approx(3_000, rel=0.01)


def test_turn_by_turn_the_calls_of_a_conversation_share_its_output() -> None:
    assert means(replace(GROUP, calls_each=6))[1] == pytest.approx(500, rel=0.01)
    # Of turns that are only known from the past, how many make a conversation was not told.
    turns = history([call(500, of=key("scenario", turn_by_turn=True))])
    assert learned(GROUP, turns).output.medians[1] < learned(GROUP, turns).output.medians[0] / 3


def test_a_count_is_nearly_taken_as_it_is() -> None:
    found = learned(replace(COUNTED, input_characters_mean=9_999))
    assert found.input.mean(0) == pytest.approx(1_234.5, rel=0.03)
    assert found.input.levels.variance[0] < learned().input.levels.variance[0] / 10


@pytest.mark.parametrize("source", list(InputSource))
def test_characters_count_a_quarter_each_where_nothing_was_counted(source: InputSource) -> None:
    told = replace(GROUP, input_source=source, input_characters_mean=8_000)
    assert means(told)[0] == pytest.approx(2_050, rel=0.04)


def test_the_less_is_known_of_the_input_the_wider_it_is() -> None:
    told = replace(GROUP, input_characters_mean=8_000)
    counted, characters, nothing = (learned(each).input.levels.variance[0] for each in (COUNTED, told, GROUP))
    assert counted < characters < nothing


def test_many_batches_of_the_very_prompt_correct_what_its_characters_say() -> None:
    told = replace(GROUP, input_characters_mean=8_000)
    seen = [renamed(alike(20), f"b{at}") for at in range(20)]
    assert means(told, history(*seen))[0] == pytest.approx(3_950, rel=0.05)
    assert means(told, history(*seen[:2]))[0] < 3_500


@pytest.mark.parametrize("tokens", [0.0001, 1.0, 1e7])
def test_a_count_of_any_size_is_no_trouble(tokens: float) -> None:
    assert means(replace(COUNTED, input_tokens_mean=tokens))[0] == pytest.approx(tokens, rel=0.5)


def test_observations_move_input_and_output() -> None:
    few, many = means(seen=history(alike(3))), means(seen=history(alike(300)))
    assert 2_000 < few[0] < many[0] < 4_000
    assert 1_000 < many[1] < few[1] < 3_000
    assert many == pytest.approx((4_000, 1_000), rel=0.05)


def test_an_input_that_was_not_told_says_nothing_of_inputs() -> None:
    assert means(seen=history(alike(50, input_tokens=0)))[0] == pytest.approx(2_000, rel=0.01)


def test_failures_say_nothing_of_tokens() -> None:
    failed = [call(100, kind=kind) for kind in (Kind.PAID_FAILURE, Kind.FREE_FAILURE)] * 30
    assert means(seen=history(failed)) == means()


def test_an_answer_that_was_cut_counts_as_longer_than_it_came() -> None:
    rng = np.random.default_rng(1)
    whole = [each for at in range(4) for each in batch(f"b{at}", mean=4_000, rng=rng)]
    cut = [
        replace(each, output_tokens=3_500.0, kind=Kind.CUT) if each.output_tokens > 3_500 else each for each in whole
    ]
    assert means(seen=history(cut))[1] == pytest.approx(4_000, rel=0.08)
    as_answers = [replace(each, kind=Kind.ANSWERED) for each in cut]
    assert means(seen=history(as_answers))[1] < 3_400


def test_the_share_of_thinking_is_learned_from_none() -> None:
    assert learned().thinking_share.tolist() == [0]
    shares = [
        learned(seen=history([call(1_000, thinking_tokens=400)] * calls)).thinking_share[0] for calls in (1, 5, 500)
    ]
    assert shares == pytest.approx([0.4 / 6, 0.2, 0.4 * 500 / 505])


def test_calls_under_way_count_for_the_node_that_their_kind_shares() -> None:
    groups = [replace(GROUP, id=str(at), prompt_fingerprint=str(at)) for at in range(40)]
    surpassed = {key_of(each): np.full(2, 6_000.0) for each in groups[24:]}
    found = learn_tokens(groups, NOTHING_SEEN, running=Running(surpassed=surpassed))
    one = learn_tokens(groups, NOTHING_SEEN, running=Running(surpassed=dict(list(surpassed.items())[:1])))
    assert found.output.mean(0) > 1.1 * one.output.mean(0) > 1.1 * 3_000


def test_the_rest_of_a_batch_has_its_own_drift() -> None:
    rng = np.random.default_rng(2)
    past = batches(12, drift=0.15, rng=rng)
    own = batch("own", mean=4_500, rng=rng, calls=60)
    seen = history(past, own)
    rest, new = (learn_tokens([GROUP], seen, batch=each).output for each in ("own", ""))
    assert rest.mean(0) > 1.2 * new.mean(0)
    assert (rest.of_batch.tolist(), new.of_batch.tolist()) == ([60], [0])
    unknown = learn_tokens([GROUP], seen, batch="never heard of").output
    assert unknown.mean(0) == new.mean(0)


def test_twenty_thousand_calls_are_learned_from_and_leave_only_the_drift() -> None:
    rng = np.random.default_rng(3)
    found = learned(seen=history(batches(200, drift=0.05, rng=rng, calls=100)))
    assert found.output.observations.tolist() == [20_000]
    assert found.output.mean(0) == pytest.approx(3_000, rel=0.03)
    assert 0.03 < math.sqrt(found.output.levels.variance[0]) < 0.08
