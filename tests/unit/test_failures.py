"""Calls that are paid for nothing or not at all: how many there will be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulated_calls import call, history

from estimator_service.domain.failures import (
    BACK_OFF_S,
    CALLS_MAX,
    LOST_S,
    PRIOR_FAILED,
    PRIOR_FINE,
    PRIOR_LOST,
    Failures,
    estimate_failures,
)
from estimator_service.domain.history import NOTHING_SEEN, CallSeen, Kind

RNG_DRAWS = 200_000


def calls(answered: int = 0, *, cut: int = 0, paid: int = 0, free: int = 0) -> list[CallSeen]:
    kinds = [Kind.ANSWERED] * answered + [Kind.CUT] * cut + [Kind.PAID_FAILURE] * paid + [Kind.FREE_FAILURE] * free
    return [call(kind=kind, seconds=5.0 if kind is Kind.FREE_FAILURE else 50.0) for kind in kinds]


def test_nothing_seen_leaves_the_prior() -> None:
    assert estimate_failures(NOTHING_SEEN) == Failures()
    assert Failures().share == pytest.approx(PRIOR_FAILED / (PRIOR_FAILED + PRIOR_FINE))
    assert Failures().lost_s == LOST_S + BACK_OFF_S


def test_the_share_moves_to_what_was_seen() -> None:
    found = estimate_failures(history(calls(400, paid=100)))
    assert found.share == pytest.approx(0.19, abs=0.01)
    assert found.calls_mean == pytest.approx(1.235, abs=0.02)


def test_the_expected_calls_are_the_mean_over_all_shares() -> None:
    found = estimate_failures(history(calls(30, paid=10)))
    shares = found.draw_shares(RNG_DRAWS, np.random.default_rng(1))
    assert shares.mean() == pytest.approx(found.share, rel=0.01)
    assert (1 / (1 - shares)).mean() == pytest.approx(found.calls_mean, rel=0.001)


def test_an_answer_that_was_cut_is_no_failure() -> None:
    assert estimate_failures(history(calls(10, cut=10))).share == estimate_failures(history(calls(20))).share


def test_calls_that_are_not_paid_are_counted_against_those_that_are() -> None:
    found = estimate_failures(history(calls(300, paid=100, free=400)))
    assert found.lost_mean == pytest.approx(0.93, abs=0.03)
    assert found.share == pytest.approx(0.233, abs=0.01)
    lost = found.draw_lost(RNG_DRAWS, np.random.default_rng(1))
    assert lost.mean() == pytest.approx(found.lost_mean, rel=0.01)
    assert Failures().lost_mean == pytest.approx(PRIOR_LOST / 29, rel=0.05)


def test_only_the_newest_calls_count() -> None:
    assert estimate_failures(history(calls(paid=500), calls(CALLS_MAX))).failed == PRIOR_FAILED


def test_only_failures_and_no_answer_leave_a_finite_number_of_calls() -> None:
    found = estimate_failures(history(calls(paid=CALLS_MAX)))
    assert found.share > 0.95
    assert 20 < found.calls_mean < 50
    lost = estimate_failures(history(calls(free=CALLS_MAX)))
    assert np.isfinite(lost.draw_lost(10_000, np.random.default_rng(1))).all()


def test_a_lost_call_takes_what_lost_calls_took_or_what_is_usual() -> None:
    usual = estimate_failures(history(calls(20)))
    assert usual.lost_s == pytest.approx(50 + BACK_OFF_S)
    many = estimate_failures(history(calls(20, free=97)))
    assert many.lost_s == pytest.approx((3 * 50 + 97 * 5) / 100 + BACK_OFF_S)


def test_seconds_that_were_not_told_are_left_out() -> None:
    untold = [call(seconds=math.nan), call(kind=Kind.FREE_FAILURE, seconds=math.nan)]
    assert estimate_failures(history(untold)).lost_s == LOST_S + BACK_OFF_S
    assert estimate_failures(history(untold, calls(5))).lost_s == pytest.approx(50 + BACK_OFF_S)


def test_a_share_that_is_assumed_is_taken_as_it_is() -> None:
    certain = Failures(certain=0.2)
    assert (certain.share, certain.calls_mean) == (0.2, 1.25)
    rng = np.random.default_rng(1)
    assert set(certain.draw_shares(100, rng).tolist()) == {0.2}
    assert set(certain.draw_lost(100, rng).tolist()) == {0.0}
