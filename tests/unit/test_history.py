"""Which calls are learned from, and as what."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from estimator_service.domain.history import (
    LEARNED_SPEED_UP_MAX,
    NOTHING_SEEN,
    OVERHEAD_CALL_S,
    Kind,
    call_seen,
    columns_of,
    history_of,
    joined,
    real_seconds,
)
from estimator_service.domain.observation import Observation, Outcome, Purpose

DAY = datetime(2026, 11, 1, 12, tzinfo=UTC)


def observed(**changes: Any) -> Observation:
    told: dict[str, Any] = {
        "call": "c",
        "tier": "template",
        "model": "m",
        "provider": "",
        "outcome": Outcome.ANSWERED,
        "purpose": Purpose.GENERATE,
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0,
        "cache_read_tokens": 0,
        "thinking_tokens": 100,
        "duration": timedelta(seconds=20),
        "first_token_delay": None,
        "speed_up": 1.0,
        "prompt_fingerprint": "f",
        "batch": "batches/abcd",
        "effort": "high",
        "max_output_tokens": 0,
        "end_time": DAY,
    }
    return Observation(**(told | changes))


def kind(**changes: Any) -> Kind | None:
    seen = call_seen(observed(**changes))
    return None if seen is None else seen.kind


@pytest.mark.parametrize("purpose", list(Purpose))
def test_only_tries_at_a_conversation_are_learned_from(purpose: Purpose) -> None:
    learned = purpose in (Purpose.GENERATE, Purpose.TURN, Purpose.REPAIR)
    assert (kind(purpose=purpose) is not None) == learned


def test_a_call_that_was_told_to_wait_is_left_out() -> None:
    assert kind(outcome=Outcome.LIMITED) is None


@pytest.mark.parametrize(
    ("outcome", "paid", "unpaid"),
    [
        (Outcome.ANSWERED, Kind.ANSWERED, Kind.FREE_FAILURE),
        (Outcome.CUT, Kind.CUT, Kind.FREE_FAILURE),
        (Outcome.REFUSED, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.MALFORMED, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.UNKNOWN_STOP, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.INTERRUPTED, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.TIMEOUT, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.CONNECTION_LOST, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
        (Outcome.PROVIDER_ERROR, Kind.PAID_FAILURE, Kind.FREE_FAILURE),
    ],
)
def test_what_is_no_answer_is_a_failure_paid_or_not(outcome: Outcome, paid: Kind, unpaid: Kind) -> None:
    assert kind(outcome=outcome) is paid
    assert kind(outcome=outcome, input_tokens=0, output_tokens=0) is unpaid


@pytest.mark.parametrize("outcome", [Outcome.ANSWERED, Outcome.CUT])
def test_an_answer_of_nothing_is_paid_for_nothing(outcome: Outcome) -> None:
    assert kind(outcome=outcome, output_tokens=0) is Kind.PAID_FAILURE


def test_a_prompt_counts_whole_however_it_was_cached() -> None:
    seen = call_seen(
        observed(input_tokens=1, cache_write_5m_tokens=20, cache_write_1h_tokens=300, cache_read_tokens=4_000)
    )
    assert seen is not None
    assert seen.input_tokens == 4_321


def test_seconds_are_those_of_the_model_at_real_speed() -> None:
    seen = call_seen(
        observed(
            duration=timedelta(seconds=1.5 + OVERHEAD_CALL_S),
            first_token_delay=timedelta(seconds=0.1 + OVERHEAD_CALL_S),
            speed_up=40.0,
        )
    )
    assert seen is not None
    assert seen.seconds == pytest.approx(60)
    assert seen.first_token_s == pytest.approx(4)


def test_what_is_our_own_overhead_alone_tells_no_seconds() -> None:
    assert math.isnan(real_seconds(OVERHEAD_CALL_S, 1.0))
    assert real_seconds(1 + OVERHEAD_CALL_S, LEARNED_SPEED_UP_MAX) == pytest.approx(1_000)
    assert math.isnan(real_seconds(1 + OVERHEAD_CALL_S, LEARNED_SPEED_UP_MAX + 1))
    seen = call_seen(observed(speed_up=2_000.0))
    assert seen is not None
    assert math.isnan(seen.seconds)
    assert math.isnan(seen.first_token_s)
    assert seen.output_tokens == 500


def test_calls_stand_in_the_order_of_their_end_whoever_told_them_first() -> None:
    told = [observed(end_time=DAY + timedelta(hours=each), output_tokens=each + 1) for each in (5, 0, 3)]
    assert history_of(told).output_tokens.tolist() == [1, 4, 6]
    assert history_of(reversed(told)).output_tokens.tolist() == [1, 4, 6]
    undated = history_of([observed(), observed(end_time=None, output_tokens=7)])
    assert undated.output_tokens.tolist() == [7, 500]
    assert math.isnan(undated.ended_s[0])


def test_batches_are_numbered_by_their_begin() -> None:
    told = [observed(batch=batch, end_time=DAY + timedelta(hours=at)) for at, batch in enumerate(("b", "a", "b", "c"))]
    found = history_of(told)
    assert found.batches == ("b", "a", "c")
    assert found.batch.tolist() == [0, 1, 0, 2]


def test_calls_of_no_batch_are_taken_together_by_their_day() -> None:
    later = DAY + timedelta(days=1)
    told = [observed(batch="", end_time=each) for each in (DAY, DAY + timedelta(hours=11), later, None)]
    assert history_of(told).batches == ("", "2026-11-01", "2026-11-02")


def test_kinds_of_calls_are_told_apart_by_all_that_sets_their_size() -> None:
    told = [
        observed(),
        observed(tier="scenario"),
        observed(effort="low"),
        observed(prompt_fingerprint="g"),
        observed(purpose=Purpose.TURN),
        observed(model="other"),
        observed(purpose=Purpose.REPAIR),
    ]
    found = history_of(told)
    assert found.key.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert [each.turn_by_turn for each in found.keys] == [False, False, False, False, True, False]


def test_a_model_has_its_own_calls() -> None:
    found = history_of([observed(), observed(model="other", output_tokens=9)])
    assert found.of_model("other").output_tokens.tolist() == [9]
    assert len(found.of_model("none")) == 0
    assert NOTHING_SEEN.of_model("m") is NOTHING_SEEN


def test_what_nothing_is_learned_from_is_no_row() -> None:
    assert len(history_of([observed(purpose=Purpose.JUDGE), observed(outcome=Outcome.LIMITED), observed()])) == 1
    assert len(history_of([])) == 0


def test_two_histories_joined_are_one_of_both() -> None:
    calls = [each for number in range(8) if (each := call_seen(observed(batch=f"b{number % 3}"))) is not None]
    whole, parts = columns_of(calls), joined(columns_of(calls[:5]), columns_of(calls[5:]))
    assert (parts.keys, parts.batches) == (whole.keys, whole.batches)
    assert parts.batch.tolist() == whole.batch.tolist()
    assert parts.output_tokens.tolist() == whole.output_tokens.tolist()
