"""Priors by tier, what moves them, and the cut at the maximum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from estimator_service.domain.learning import weight
from estimator_service.domain.tokens import TokensSeen, capped_mean, estimate_tokens
from estimator_service.domain.workload import Group, InputSource

GROUP = Group(id="g", tier="template", model="m", count=1)


def seen(calls: int) -> TokensSeen:
    return TokensSeen(calls=calls, input_tokens_mean=4_000, output_tokens_mean=1_000)


@pytest.mark.parametrize(
    ("tier", "input_tokens", "output_tokens"),
    [("template", 2_000, 3_000), ("scenario", 2_500, 4_000), ("edge_case", 3_000, 5_000), ("mine", 2_500, 4_000)],
)
def test_each_tier_has_its_prior_and_others_the_pooled_one(tier: str, input_tokens: int, output_tokens: int) -> None:
    tokens = estimate_tokens(replace(GROUP, tier=tier), None)
    assert (tokens.input_tokens_mean, tokens.output_tokens_mean) == (input_tokens, output_tokens)
    assert tokens.observations == 0


def test_a_counted_input_is_taken_as_it_is() -> None:
    counted = replace(GROUP, input_source=InputSource.COUNTED, input_tokens_mean=1_234.5, input_characters_mean=9_999)
    assert estimate_tokens(counted, seen(100)).input_tokens_mean == 1_234.5


@pytest.mark.parametrize("source", list(InputSource))
def test_characters_count_a_quarter_each_where_nothing_was_counted(source: InputSource) -> None:
    tokens = estimate_tokens(replace(GROUP, input_source=source, input_characters_mean=8_000), seen(100))
    assert tokens.input_tokens_mean == 2_050


def test_the_less_is_known_of_the_input_the_wider_it_drifts() -> None:
    drift = [
        estimate_tokens(group, None).input_drift_log_sd
        for group in (
            replace(GROUP, input_source=InputSource.COUNTED, input_tokens_mean=1),
            replace(GROUP, input_characters_mean=1),
            GROUP,
        )
    ]
    assert drift == sorted(drift)
    assert len(set(drift)) == 3


def test_four_observations_change_nothing() -> None:
    assert estimate_tokens(GROUP, seen(4)) == estimate_tokens(GROUP, None)
    assert weight(4) == 0


def test_ten_observations_weigh_as_much_as_the_prior() -> None:
    tokens = estimate_tokens(GROUP, seen(10))
    assert math.isclose(tokens.output_tokens_mean, (3_000 + 1_000) / 2)
    assert math.isclose(tokens.input_tokens_mean, (2_000 + 4_000) / 2)
    assert tokens.observations == 10


def test_turn_by_turn_the_calls_of_a_conversation_share_its_output() -> None:
    assert estimate_tokens(replace(GROUP, calls_each=6), None).output_tokens_mean == 500


def test_the_maximum_cuts_the_expected_output() -> None:
    cut = [
        estimate_tokens(replace(GROUP, max_output_tokens=most), None).output_tokens_mean
        for most in (1_000, 3_000, 6_000, 100_000)
    ]
    assert cut == sorted(cut)
    assert cut[0] < 1_000
    assert math.isclose(cut[-1], 3_000, rel_tol=1e-6)


def test_the_capped_mean_is_that_of_capped_draws() -> None:
    log_sd = 0.44
    draws = 3_000 * np.exp(np.random.default_rng(1).standard_normal(400_000) * log_sd - log_sd**2 / 2)
    exact = capped_mean(3_000, log_sd=log_sd, cap=3_500)
    assert math.isclose(exact, float(np.minimum(draws, 3_500).mean()), rel_tol=0.003)
