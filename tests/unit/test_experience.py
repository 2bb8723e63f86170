"""What calls teach: estimates move towards what was seen, deadlines follow the slow end of the speed."""

from __future__ import annotations

import pytest

from orchestrator_service.domain.ledger import Usage
from orchestrator_service.domain.retry import Speed
from orchestrator_service.engine.experience import OUTPUT_TOKENS, Experience

MODEL, TIER = "m", "template"


def answered(experience: Experience, *, tokens: int = 1_000, real_s: float = 25.0, times: int = 1) -> None:
    usage = Usage(input_tokens=2_000, output_tokens=tokens)
    for _ in range(times):
        experience.answered(MODEL, TIER, characters=8_000, usage=usage, real_s=real_s)


def test_estimates_move_from_the_prior_to_what_was_seen() -> None:
    experience = Experience()
    assert experience.output_tokens(MODEL, TIER) == OUTPUT_TOKENS
    assert experience.input_tokens(MODEL, 7_000) == pytest.approx(2_000)
    answered(experience, times=100)
    assert experience.output_tokens(MODEL, TIER) == pytest.approx(1_000)
    assert experience.output_tokens(MODEL, "other") == OUTPUT_TOKENS
    assert experience.output_tokens("another", TIER) == OUTPUT_TOKENS
    # Four characters a token were seen.
    assert experience.input_tokens(MODEL, 8_000) == pytest.approx(2_000, rel=0.01)


def test_a_speed_is_believed_after_ten_answers() -> None:
    experience = Experience()
    answered(experience, times=9)
    assert experience.speed(MODEL) == Speed()
    answered(experience)
    # 40 tokens a second and 25 s were seen: half as fast and twice as long are still waited for.
    assert experience.speed(MODEL) == Speed(tokens_per_s=20.0, longest_s=50.0)


def test_the_slow_end_decides() -> None:
    experience = Experience()
    answered(experience, real_s=100.0, times=2)
    answered(experience, real_s=10.0, times=10)
    assert experience.speed(MODEL).tokens_per_s == 5.0


def test_short_answers_and_those_without_a_time_say_nothing_of_the_speed() -> None:
    experience = Experience()
    answered(experience, tokens=199, times=20)
    answered(experience, real_s=0.0, times=20)
    assert experience.speed(MODEL) == Speed()


def test_each_time_out_in_a_row_doubles_the_next_deadline_up_to_eightfold() -> None:
    experience = Experience()
    seen: list[float] = []
    for _ in range(5):
        seen.append(experience.speed(MODEL).tokens_per_s)
        experience.timed_out(MODEL)
    assert seen == [15.0, 7.5, 3.75, 1.875, 1.875]
    answered(experience)
    assert experience.speed(MODEL).tokens_per_s == 15.0
