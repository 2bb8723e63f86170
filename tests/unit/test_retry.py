"""The one table of what happens after a failed call."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parley.v1 import batch_pb2, conversation_pb2

from orchestrator_service.domain.retry import (
    CLEARS_AFTER_MAX_S,
    Change,
    Decision,
    FailureKind,
    GiveUp,
    HoldBatch,
    Policy,
    RetryAfter,
    Speed,
    deadline_s,
    decide,
)

POLICY = Policy()
FAILURE_REASONS = conversation_pb2.FailureReason.keys()
HOLD_REASONS = batch_pb2.HoldReason.keys()


def judged(kind: FailureKind, policy: Policy = POLICY, **facts: Any) -> Decision:
    given: dict[str, Any] = {
        "attempt": 1,
        "server_delay_s": None,
        "waits": 0,
        "rng": lambda: 1.0,
        "was_changed": False,
    }
    return decide(policy, kind=kind, **given | facts)


@pytest.mark.parametrize(
    "kind",
    [FailureKind.SERVER_ERROR, FailureKind.CONNECTION_LOST, FailureKind.TIMEOUT, FailureKind.UNREADABLE],
)
def test_trouble_on_the_way_is_tried_again_with_growing_delays(kind: FailureKind) -> None:
    delays = [judged(kind, Policy(max_attempts=20), attempt=attempt) for attempt in (1, 2, 3, 7, 19)]
    assert delays == [RetryAfter(delay_s=delay_s, counts=True) for delay_s in (1.0, 2.0, 4.0, 60.0, 60.0)]


def test_the_jitter_is_full() -> None:
    assert judged(FailureKind.TIMEOUT, attempt=4, rng=lambda: 0.0) == RetryAfter(delay_s=0.0, counts=True)
    assert judged(FailureKind.TIMEOUT, attempt=4, rng=lambda: 0.25) == RetryAfter(delay_s=2.0, counts=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FailureKind.SERVER_ERROR, "PROVIDER_ERROR"),
        (FailureKind.CONNECTION_LOST, "PROVIDER_ERROR"),
        (FailureKind.TIMEOUT, "TIMEOUT"),
        (FailureKind.MALFORMED, "MALFORMED"),
        (FailureKind.CUT, "MAX_TOKENS"),
    ],
)
def test_the_last_attempt_is_the_last(kind: FailureKind, reason: str) -> None:
    decision = judged(kind, attempt=5)
    assert isinstance(decision, GiveUp)
    assert decision.reason == reason and "5" in decision.message
    assert isinstance(judged(kind, attempt=4), RetryAfter)


@pytest.mark.parametrize("kind", [FailureKind.RATE_LIMITED, FailureKind.OVERLOADED])
def test_being_told_to_wait_is_no_attempt_and_has_a_bound_of_its_own(kind: FailureKind) -> None:
    assert judged(kind, attempt=5, waits=49) == RetryAfter(delay_s=60.0, counts=False)
    decision = judged(kind, attempt=1, waits=50)
    assert isinstance(decision, GiveUp) and decision.reason == "PROVIDER_ERROR"


def test_waits_grow_by_their_own_count_and_not_by_the_attempts() -> None:
    assert judged(FailureKind.OVERLOADED, attempt=4, waits=0) == RetryAfter(delay_s=1.0, counts=False)
    assert judged(FailureKind.OVERLOADED, attempt=1, waits=2) == RetryAfter(delay_s=4.0, counts=False)


def test_the_servers_own_delay_wins_and_those_who_wait_for_it_spread_out() -> None:
    soonest = judged(FailureKind.RATE_LIMITED, server_delay_s=7.0, waits=3, rng=lambda: 0.0)
    latest = judged(FailureKind.RATE_LIMITED, server_delay_s=7.0, waits=3, rng=lambda: 1.0)
    assert (soonest, latest) == (RetryAfter(delay_s=7.0, counts=False), RetryAfter(delay_s=14.0, counts=False))


def test_the_servers_delay_is_capped() -> None:
    decision = judged(FailureKind.RATE_LIMITED, server_delay_s=86_400.0, rng=lambda: 0.0)
    assert decision == RetryAfter(delay_s=120.0, counts=False)


def test_at_a_sandbox_our_delays_are_shorter_and_the_servers_are_as_told() -> None:
    policy = Policy(speed_up=40.0)
    assert judged(FailureKind.TIMEOUT, policy, attempt=3) == RetryAfter(delay_s=0.1, counts=True)
    told = judged(FailureKind.RATE_LIMITED, policy, server_delay_s=0.125, rng=lambda: 0.0)
    capped = judged(FailureKind.RATE_LIMITED, policy, server_delay_s=10.0, rng=lambda: 0.0)
    assert (told, capped) == (RetryAfter(delay_s=0.125, counts=False), RetryAfter(delay_s=3.0, counts=False))


def test_an_answer_that_was_cut_gets_more_tokens_once() -> None:
    assert judged(FailureKind.CUT) == RetryAfter(delay_s=0.0, counts=True, change=Change.MORE_TOKENS)
    decision = judged(FailureKind.CUT, attempt=2, was_changed=True)
    assert isinstance(decision, GiveUp) and decision.reason == "MAX_TOKENS"


def test_a_malformed_answer_is_asked_for_more_strictly_once() -> None:
    assert judged(FailureKind.MALFORMED) == RetryAfter(delay_s=0.0, counts=True, change=Change.STRICTER)
    decision = judged(FailureKind.MALFORMED, attempt=2, was_changed=True)
    assert isinstance(decision, GiveUp) and decision.reason == "MALFORMED"


def test_a_spend_limit_clears_when_the_provider_says_so() -> None:
    def clears_after_s(kind: FailureKind, server_delay_s: float | None) -> float | None:
        decision = judged(kind, server_delay_s=server_delay_s)
        assert isinstance(decision, HoldBatch)
        return decision.clears_after_s

    assert clears_after_s(FailureKind.PROVIDER_LIMIT, 3_600.0) == 3_600.0
    assert clears_after_s(FailureKind.PROVIDER_LIMIT, -1.0) == 0.0
    assert clears_after_s(FailureKind.PROVIDER_LIMIT, 1e12) == CLEARS_AFTER_MAX_S
    assert clears_after_s(FailureKind.PROVIDER_LIMIT, None) is None
    assert clears_after_s(FailureKind.CREDENTIALS, 3_600.0) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FailureKind.REFUSED, "REFUSAL"),
        (FailureKind.REQUEST_REFUSED, "REQUEST_REFUSED"),
        (FailureKind.TOO_LONG, "TOO_LONG"),
        (FailureKind.UNKNOWN_STOP, "UNKNOWN_STOP"),
    ],
)
def test_what_would_come_out_the_same_is_given_up_at_once(kind: FailureKind, reason: str) -> None:
    decision = judged(kind)
    assert isinstance(decision, GiveUp) and decision.reason == reason


@pytest.mark.parametrize("kind", [FailureKind.CREDENTIALS, FailureKind.PROVIDER_LIMIT])
def test_what_dooms_the_batch_holds_it_and_says_what_to_do(kind: FailureKind) -> None:
    decision = judged(kind, attempt=5)
    assert isinstance(decision, HoldBatch)
    assert decision.reason == kind and decision.message and decision.next_step


@given(
    kind=st.sampled_from(FailureKind),
    attempt=st.integers(1, 1_000),
    server_delay_s=st.none() | st.floats(-1e9, 1e9),
    waits=st.integers(0, 1_000),
    was_changed=st.booleans(),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_every_failure_has_a_decision_in_the_contracts_words_and_bounds(
    kind: FailureKind, attempt: int, server_delay_s: float | None, waits: int, was_changed: bool, chance: float
) -> None:
    decision = decide(
        POLICY,
        kind=kind,
        attempt=attempt,
        server_delay_s=server_delay_s,
        waits=waits,
        rng=lambda: chance,
        was_changed=was_changed,
    )
    match decision:
        case RetryAfter() as again:
            assert 0 <= again.delay_s <= 240
            assert waits < POLICY.max_waits if not again.counts else attempt < POLICY.max_attempts
        case GiveUp() as given_up:
            assert f"FAILURE_REASON_{given_up.reason}" in FAILURE_REASONS
        case HoldBatch() as hold:
            assert f"HOLD_REASON_{hold.reason}" in HOLD_REASONS


def test_the_deadline_follows_from_the_tokens_and_the_speed() -> None:
    assert deadline_s(4_096) == pytest.approx(303.07, abs=0.01)
    assert deadline_s(4_096, speed_up=10.0) == pytest.approx(30.31, abs=0.01)
    assert deadline_s(4_096, speed_up=1e6) == 10.0


def test_a_slow_model_has_more_time_and_a_fast_one_never_less_than_its_longest_call() -> None:
    assert deadline_s(4_096, speed=Speed(tokens_per_s=5.0)) == pytest.approx(849.2)
    assert deadline_s(4_096, speed=Speed(tokens_per_s=100.0, longest_s=200.0)) == 200.0
    assert deadline_s(4_096, speed=Speed(tokens_per_s=100.0, longest_s=200.0), speed_up=10.0) == 20.0


def test_the_deadline_is_far_above_what_calls_of_the_original_took() -> None:
    seconds_p99, output_tokens_p99 = 114, 4_213
    assert deadline_s(output_tokens_p99) > 2 * seconds_p99
