"""The back-test's oracle on batches drawn from its own model: what it says must hold as often as it claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks.backtest.oracle import Oracle, Said, total
from benchmarks.backtest.series import Batch, Call, Drift, InFlight, Series, known
from benchmarks.scheduling import list_starts_s
from estimator_service.domain.scores import P2_5, P10, P90, P97_5, Scored, Scores, summarize

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
CONVERSATIONS = 30
CONCURRENCY = 4
BATCHES = 400
DRIFT_LOG_SD = 0.10


def batches(*, seed: int, is_timed: bool, drift_log_sd: float = DRIFT_LOG_SD) -> Iterator[Batch]:
    """Two tiers of other lengths, lognormal, with a drift that a batch shares."""
    rng = np.random.default_rng(seed)
    for number in range(BATCHES):
        drift = drift_log_sd * float(rng.standard_normal())
        means = np.where(np.arange(CONVERSATIONS) < CONVERSATIONS // 3, 20.0, 10.0)
        sizes = means * np.exp(drift + 0.35 * rng.standard_normal(CONVERSATIONS))
        starts = list_starts_s(sizes.tolist(), concurrency=CONCURRENCY) if is_timed else [0.0] * CONVERSATIONS
        calls = tuple(
            Call(
                tier="long" if at < CONVERSATIONS // 3 else "short",
                input_tokens=100,
                output_tokens=round(size),
                start_s=start,
                end_s=start + size if is_timed else 0.0,
                cost_nanos=1_000.0 * size,
            )
            for at, (start, size) in enumerate(zip(starts, sizes.tolist(), strict=True))
        )
        yield Batch(
            name=f"batches/{number}",
            began=BEGAN + timedelta(hours=number),
            calls=calls,
            time_s=max(call.end_s for call in calls),
            drift=Drift(tokens=drift - DRIFT_LOG_SD**2 / 2, speed=0.0),
        )


def series(*, seed: int, is_timed: bool = True, drift_log_sd: float = DRIFT_LOG_SD) -> Series:
    return Series(
        name="drawn",
        kind="drawn",
        model="claude-sonnet-5",
        concurrency=CONCURRENCY,
        lanes=(tuple(batches(seed=seed, is_timed=is_timed, drift_log_sd=drift_log_sd)),),
        measures=("cost", "time"),
        is_timed=is_timed,
    )


def scores(said: Iterator[tuple[Batch, Said]], measure: str) -> Scores:
    return summarize([Scored(total(batch, measure), each.mean, each.quantiles) for batch, each in said])


@pytest.mark.parametrize("measure", ["cost", "time"])
def test_the_oracles_quote_covers_what_it_claims(measure: str) -> None:
    oracle = Oracle(series(seed=1), measure=measure)
    fresh = [batch for seed in (2, 3) for batch in batches(seed=seed, is_timed=True)]
    found = scores(((batch, oracle.quote()) for batch in fresh), measure)
    assert found.coverage_80 == pytest.approx(0.80, abs=0.035)
    assert found.coverage_95 == pytest.approx(0.95, abs=0.02)
    assert abs(found.bias) < 0.015


@pytest.mark.parametrize("measure", ["cost", "time"])
@pytest.mark.parametrize("done", [0.25, 0.5])
def test_the_oracles_forecast_covers_what_it_claims(measure: str, done: float) -> None:
    oracle = Oracle(series(seed=1), measure=measure)
    fresh = series(seed=2)
    said = [oracle.forecast(known(fresh, 0, at, past=0, done=done)) for at in range(BATCHES)]
    found = scores(zip(fresh.lanes[0], said, strict=True), measure)
    assert found.coverage_80 == pytest.approx(0.80, abs=0.05)
    assert found.coverage_95 == pytest.approx(0.95, abs=0.03)
    # Those that finish first are short: a forecast from them alone is some 10 % low.
    assert abs(found.bias) < 0.01


def test_without_times_the_forecast_covers_what_it_claims() -> None:
    oracle = Oracle(series(seed=1, is_timed=False), measure="cost")
    fresh = series(seed=2, is_timed=False)
    said = [oracle.forecast(known(fresh, 0, at, past=0, done=0.5)) for at in range(BATCHES)]
    found = scores(zip(fresh.lanes[0], said, strict=True), "cost")
    assert found.coverage_80 == pytest.approx(0.80, abs=0.05)
    assert abs(found.bias) < 0.01


@pytest.mark.parametrize("drift_log_sd", [0.0, 0.10, 0.20])
def test_the_drift_is_what_the_batches_vary_by_beyond_their_conversations(drift_log_sd: float) -> None:
    oracle = Oracle(series(seed=1, drift_log_sd=drift_log_sd), measure="cost")
    assert oracle.drift_sd == pytest.approx(drift_log_sd, abs=0.025)


def test_half_of_the_batch_tells_more_than_none_and_its_drift_more_than_half() -> None:
    oracle = Oracle(series(seed=1), measure="cost")
    fresh = series(seed=2)
    seen = [known(fresh, 0, at, past=0, done=0.5) for at in range(BATCHES)]
    drifts = [oracle.drift_of(batch) for batch in fresh.lanes[0]]
    told = [oracle.forecast(each, drift=drift) for each, drift in zip(seen, drifts, strict=True)]
    quoted = scores(((batch, oracle.quote()) for batch in fresh.lanes[0]), "cost")
    forecast = scores(zip(fresh.lanes[0], map(oracle.forecast, seen), strict=True), "cost")
    clairvoyant = scores(zip(fresh.lanes[0], told, strict=True), "cost")
    assert clairvoyant.mape < forecast.mape < quoted.mape


def test_the_longer_those_in_flight_have_run_the_more_they_will_cost() -> None:
    oracle = Oracle(series(seed=1), measure="cost")
    seen = known(series(seed=2), 0, 0, past=0, done=0.5)
    young, old = (
        replace(seen, in_flight=tuple(InFlight(tier=call.tier, age_s=age_s) for call in seen.in_flight))
        for age_s in (1.0, 15.0)
    )
    assert oracle.forecast(old).mean > 1.01 * oracle.forecast(young).mean


def test_the_range_lies_in_order() -> None:
    said = Oracle(series(seed=1), measure="time").quote()
    assert said.quantiles[P2_5] < said.quantiles[P10] < said.mean < said.quantiles[P90] < said.quantiles[P97_5]
