"""Which observations are new, and which contradict what is known."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from estimator_service.domain.errors import DuplicateDiffers
from estimator_service.domain.observation import Observation, Outcome, Purpose, new_ones


def observation(call: str = "c1", **changes: Any) -> Observation:
    plain = Observation(
        call=call,
        tier="template",
        model="m",
        provider="https://api.example",
        outcome=Outcome.ANSWERED,
        purpose=Purpose.GENERATE,
        input_tokens=2_000,
        output_tokens=1_000,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        cache_read_tokens=0,
        thinking_tokens=0,
        duration=timedelta(seconds=30),
        first_token_delay=None,
        speed_up=1.0,
        prompt_fingerprint="",
        batch="batches/abcd",
        effort="",
        max_output_tokens=8_000,
        end_time=None,
    )
    return replace(plain, **changes)


OTHER: dict[str, Any] = {
    "tier": "scenario",
    "model": "n",
    "provider": "",
    "outcome": Outcome.CUT,
    "purpose": Purpose.TURN,
    "input_tokens": 1,
    "output_tokens": 1,
    "cache_write_5m_tokens": 1,
    "cache_write_1h_tokens": 1,
    "cache_read_tokens": 1,
    "thinking_tokens": 1,
    "duration": timedelta(seconds=31),
    "first_token_delay": timedelta(0),
    "speed_up": 2.0,
    "prompt_fingerprint": "a",
    "batch": "",
    "effort": "high",
    "max_output_tokens": 1,
    "end_time": datetime(2026, 11, 23, tzinfo=UTC),
    "quote": "q",
    "conversation": 1,
    "prompt_characters": 7,
}


def test_every_figure_of_an_observation_is_compared() -> None:
    assert OTHER.keys() == {field.name for field in fields(Observation)} - {"call"}


@pytest.mark.parametrize("name", OTHER)
def test_a_call_that_comes_with_another_figure_is_refused_naming_both(name: str) -> None:
    changed = replace(observation("c2"), **{name: OTHER[name]})
    with pytest.raises(DuplicateDiffers) as failure:
        new_ones([observation(), changed], {"c2": observation("c2")})
    error = failure.value
    path = f"usage.{name}" if name.endswith("_tokens") and name != "max_output_tokens" else name
    assert error.reason == "DUPLICATE_DIFFERS"
    assert error.metadata == {"call": "c2", "field": path}
    assert [each.field for each in error.violations] == [f"observations[1].{path}"]
    assert error.message == f"The call c2 came before with another {path}; what was recorded first stays."


def test_the_first_figure_that_differs_is_named() -> None:
    with pytest.raises(DuplicateDiffers) as failure:
        new_ones([observation(conversation=3, output_tokens=5)], {"c1": observation()})
    assert failure.value.metadata["field"] == "usage.output_tokens"


def test_two_of_one_request_may_not_differ_either() -> None:
    with pytest.raises(DuplicateDiffers) as failure:
        new_ones([observation(), observation("c2"), observation(output_tokens=5)], {})
    assert failure.value.violations[0].field == "observations[2].usage.output_tokens"


def test_what_is_known_or_comes_twice_is_not_new() -> None:
    told = [observation("c1"), observation("c2"), observation("c2"), observation("c3")]
    assert [each.call for each in new_ones(told, {"c1": observation("c1")})] == ["c2", "c3"]
