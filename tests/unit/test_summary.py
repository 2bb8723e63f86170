"""What calls took, summarized: distributions, and the drift between batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain.summary import CallsTaken, distribution, drift_log_sd, summarize_calls


def test_a_distribution_has_mean_spread_and_quantiles() -> None:
    found = distribution([float(each) for each in range(101)])
    assert found is not None
    assert (found.mean, found.p10, found.p50, found.p90, found.p99) == (50.0, 10.0, 50.0, 90.0, 99.0)
    assert math.isclose(found.sd, 29.3, abs_tol=0.01)


def test_values_that_tell_nothing_are_left_out() -> None:
    found = distribution([math.nan, 4.0, math.nan])
    assert found is not None
    assert (found.mean, found.sd, found.p99) == (4.0, 0.0, 4.0)
    assert distribution([math.nan]) is None
    assert distribution([]) is None


@pytest.mark.parametrize("drift", [0.0, 0.05, 0.3])
def test_the_drift_between_batches_is_found_beside_a_larger_spread_within_them(drift: float) -> None:
    rng = np.random.default_rng(11)
    sizes = rng.integers(20, 120, 400)
    of = np.repeat(np.arange(400), sizes)
    logs = 7.5 + drift * rng.normal(size=400)[of] + 0.4 * rng.normal(size=of.size)
    found = drift_log_sd(np.exp(logs).tolist(), [f"batches/{each}" for each in of.tolist()])
    assert math.isclose(found, drift, rel_tol=0.1, abs_tol=0.015)


@pytest.mark.parametrize(
    ("tokens", "batches"),
    [
        ([], []),
        ([100.0], ["a"]),
        ([100.0, 200.0], ["a", "b"]),
        ([100.0, 200.0, 300.0], ["a", "a", "a"]),
        ([100.0, 200.0, 300.0], ["a", "a", ""]),
        ([100.0, 200.0, 0.0], ["a", "b", "b"]),
    ],
)
def test_too_little_tells_no_drift(tokens: list[float], batches: list[str]) -> None:
    assert drift_log_sd(tokens, batches) == 0.0


def test_batches_that_are_all_alike_inside_differ_by_the_whole_drift() -> None:
    tokens = [100.0 * math.e] * 3 + [100.0 / math.e] * 3
    assert math.isclose(drift_log_sd(tokens, ["a"] * 3 + ["b"] * 3), math.sqrt(2))


def test_calls_are_summarized_with_what_could_be_measured() -> None:
    taken = CallsTaken(
        tier="template",
        model="m",
        failed_calls=3,
        batches=["a", "", "b", "b"],
        input_tokens=[10.0, 20.0, 30.0, 40.0],
        output_tokens=[100.0, 200.0, 300.0, 400.0],
        thinking_tokens=[0.0, 0.0, 0.0, 0.0],
        seconds=[10.0, math.nan, 10.0, 10.0],
        first_token_s=[math.nan, math.nan, 2.0, 4.0],
    )
    found = summarize_calls(taken)
    assert (found.calls, found.batches, found.failed_calls) == (4, 2, 3)
    assert found.input_tokens is not None
    assert found.input_tokens.mean == 25.0
    assert found.tokens_per_second is not None
    assert math.isclose(found.tokens_per_second.mean, 80.0 / 3)
    assert found.first_token_s is not None
    assert found.first_token_s.mean == 3.0
    assert found.thinking_tokens is not None
    assert found.thinking_tokens.mean == 0.0


def test_calls_of_which_nothing_was_measured_have_no_times() -> None:
    found = summarize_calls(CallsTaken(tier="t", model="m"))
    assert (found.calls, found.batches, found.drift_log_sd) == (0, 0, 0.0)
    assert found.seconds is found.first_token_s is found.tokens_per_second is found.output_tokens is None
