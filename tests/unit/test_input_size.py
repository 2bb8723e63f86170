"""What a character weighs: a choice until calls were seen, measured from then on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from estimator_service.domain.history import NOTHING_SEEN, CallKey, CallSeen, History, Kind, columns_of
from estimator_service.domain.input_size import CharacterRatio, measured_ratio, told_size
from estimator_service.domain.nodes import key_of
from estimator_service.domain.tokens import learn_tokens
from estimator_service.domain.workload import Group, InputSource

GROUP = Group(id="g", tier="template", model="m", count=30, input_characters_mean=6_000)


def seen(calls: int, *, characters: float, tokens: float) -> History:
    return columns_of(
        [
            CallSeen(
                key=CallKey(tier="template", model="m"),
                batch="b",
                kind=Kind.ANSWERED,
                input_tokens=tokens,
                output_tokens=1_000,
                thinking_tokens=0,
                prompt_characters=characters,
                seconds=np.nan,
                first_token_s=np.nan,
                ended_s=np.nan,
            )
            for _ in range(calls)
        ]
    )


def test_four_characters_are_a_token_until_calls_were_seen() -> None:
    size = told_size(GROUP, measured_ratio(NOTHING_SEEN))
    assert size is not None
    assert size.tokens == pytest.approx(1_550)
    assert 0.14 < size.log_sd < 0.16


def test_the_ratio_is_that_of_all_calls_which_told_both() -> None:
    assert measured_ratio(seen(10, characters=3_000, tokens=1_000)) == CharacterRatio(calls=10, characters_per_token=3)
    assert measured_ratio(seen(10, characters=0, tokens=1_000)).calls == 0


def test_the_more_was_measured_the_more_it_counts_and_the_surer_it_is() -> None:
    few, many = (told_size(GROUP, measured_ratio(seen(n, characters=3_000, tokens=1_000))) for n in (3, 300))
    assert few is not None
    assert many is not None
    assert few.tokens == pytest.approx(math.sqrt(1_550 * 2_000))
    assert many.tokens == pytest.approx(2_000, rel=0.01)
    assert 0.15 > few.log_sd > many.log_sd > 0.029


def test_a_count_wins_over_characters_and_a_source_without_its_figure_is_none() -> None:
    counted = replace(GROUP, input_source=InputSource.COUNTED, input_tokens_mean=1_234)
    size = told_size(counted, CharacterRatio())
    assert size is not None
    assert size.tokens == 1_234
    assert told_size(replace(counted, input_tokens_mean=0.0), CharacterRatio()) == told_size(GROUP, CharacterRatio())
    assert told_size(replace(GROUP, input_characters_mean=0.0), CharacterRatio()) is None


def test_longer_prompts_than_those_observed_are_quoted_by_their_own_characters() -> None:
    learned = learn_tokens([GROUP], seen(90, characters=3_000, tokens=1_000))
    assert learned.input.mean(learned.nodes.at[key_of(GROUP)]) == pytest.approx(2_000, rel=0.05)
