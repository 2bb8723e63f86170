"""SummarizeHistory over gRPC, and how past outcomes calibrate the ranges of the next quote."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

import pytest
from estimator_fixtures import MODEL, SteppedClock, estimator, observed, record
from google.protobuf.timestamp_pb2 import Timestamp
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2
from parley.wire.auth import LOCAL
from record_fixtures import dollars, duration, ended, timestamp

from estimator_service.domain.history import OVERHEAD_CALL_S
from estimator_service.record import Record
from estimator_service.storage import calls, quotes
from estimator_service.storage.database import Database, open_database
from estimator_service.storage.quotes import NewQuote

pytestmark = pytest.mark.anyio

NOW = SteppedClock().now()
SANDBOX, PAID = "http://127.0.0.1:8071", "https://api.example"
MEDIAN = 20.0
# The quoted range as logarithms about the median: a standard deviation of 0.1.
QUANTILES = {0.025: -0.196, 0.05: -0.164, 0.10: -0.128, 0.50: 0.0, 0.90: 0.128, 0.95: 0.164, 0.975: 0.196}


def asked(*models: str, provider: str = "") -> estimator_pb2.SummarizeHistoryRequest:
    return estimator_pb2.SummarizeHistoryRequest(models=models, provider=provider)


async def test_without_calls_there_is_no_history(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        assert list((await served.stub.SummarizeHistory(asked())).slices) == []


async def test_calls_are_summarized_by_tier_and_model(tmp_path: Path) -> None:
    told = [
        *(observed(n, output_tokens=1_000 + 100 * n, batch=f"batches/b00{n % 2}") for n in range(11)),
        *(observed(20 + n, tier="scenario", seconds=60, first_token_delay=duration(2.01)) for n in range(3)),
        observed(30, tier="scenario", outcome=conversation_pb2.CALL_OUTCOME_CUT),
        observed(31, tier="scenario", outcome=conversation_pb2.CALL_OUTCOME_CONNECTION_LOST, output_tokens=0),
        observed(32, tier="scenario", outcome=conversation_pb2.CALL_OUTCOME_LIMITED, output_tokens=0),
    ]
    judged = observed(33, tier="scenario", output_tokens=9)
    judged.purpose = conversation_pb2.CALL_PURPOSE_JUDGE
    told[0].usage.cache_read_tokens = 5_500
    told[0].usage.thinking_tokens = 440
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*told, judged))
        scenario, template = (await served.stub.SummarizeHistory(asked())).slices
    assert (template.tier, template.model, template.calls, template.batches) == ("template", MODEL, 11, 2)
    assert (template.output_tokens.mean, template.output_tokens.p10, template.output_tokens.p90) == (1500, 1100, 1900)
    assert math.isclose(template.output_tokens.sd, 331.66, abs_tol=0.01)
    assert (template.input_tokens.mean, template.thinking_tokens.mean) == (2_500, 40)
    assert not template.HasField("first_token_seconds")
    assert (scenario.tier, scenario.calls, scenario.failed_calls, template.failed_calls) == ("scenario", 3, 2, 0)
    # A little of every call is ours.
    assert math.isclose(scenario.seconds.p50, 60 - OVERHEAD_CALL_S)
    assert math.isclose(scenario.first_token_seconds.mean, 2.01 - OVERHEAD_CALL_S)
    assert math.isclose(scenario.tokens_per_second.p50, 1_000 / (60 - OVERHEAD_CALL_S))
    assert scenario.batches == scenario.drift_log_sd == 0


async def test_seconds_are_those_of_real_speed(tmp_path: Path) -> None:
    told = [
        *(observed(n, seconds=1, speed_up=40) for n in range(5)),
        # Faster than that shows our own overhead.
        *(observed(10 + n, seconds=1, speed_up=1_000_000) for n in range(5)),
    ]
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*told))
        (found,) = (await served.stub.SummarizeHistory(asked())).slices
    assert found.calls == 10
    assert math.isclose(found.seconds.mean, (1 - OVERHEAD_CALL_S) * 40)


async def test_models_and_provider_can_be_chosen(tmp_path: Path) -> None:
    told = [observed(n, provider=(PAID, SANDBOX)[n % 2]) for n in range(8)]
    for each in told[:4]:
        each.model = "other"
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*told))
        counts = [
            [(each.model, each.calls) for each in (await served.stub.SummarizeHistory(request)).slices]
            for request in (asked(), asked("other"), asked(provider=PAID), asked(MODEL, provider=SANDBOX), asked("x"))
        ]
    assert counts == [[(MODEL, 4), ("other", 4)], [("other", 4)], [(MODEL, 2), ("other", 2)], [(MODEL, 2)], []]


async def test_batches_that_differ_show_their_drift(tmp_path: Path) -> None:
    rng = Random(3)
    told: list[quote_pb2.Observation] = []
    for batch in range(40):
        level = 2_000 * math.exp(rng.gauss(0, 0.3))
        tokens = [round(level * math.exp(rng.gauss(0, 0.3))) for _ in range(20)]
        told += [
            observed(100 * batch + n, output_tokens=each, batch=f"batches/b{batch:03}") for n, each in enumerate(tokens)
        ]
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*told))
        (found,) = (await served.stub.SummarizeHistory(asked())).slices
    assert found.batches == 40
    assert 0.22 < found.drift_log_sd < 0.38


async def test_only_the_newest_calls_are_summarized_with_the_failures_of_their_time(tmp_path: Path) -> None:
    def ago(hours: int) -> Timestamp:
        return timestamp(NOW - timedelta(hours=hours))

    lost = conversation_pb2.CALL_OUTCOME_CONNECTION_LOST
    async with open_database(tmp_path / "e.db") as database:
        told = [observed(n, output_tokens=n, end_time=ago(n)) for n in range(6)]
        told += [observed(10 + n, outcome=lost, end_time=ago(n)) for n in range(6)]
        request = record(*told)
        await Record(database, now=SteppedClock().now).record_observations(request, LOCAL)
        (taken,) = await database.read(partial(calls.get_taken, models=[], provider="", calls_max=3))
    assert taken.output_tokens == [0, 1, 2]
    assert taken.failed_calls == 3


def quote_of(number: int, *, provider: str = PAID, calibration: float = 0.0) -> quote_pb2.Quote:
    factor = calibration or 1.0
    levels = {p: MEDIAN * math.exp(log * factor) for p, log in QUANTILES.items()}
    cost = quote_pb2.CostRange(
        mean=dollars(MEDIAN),
        quantiles=[quote_pb2.CostRange.Quantile(p=p, value=dollars(level)) for p, level in levels.items()],
    )
    time = quote_pb2.TimeRange(
        mean=duration(MEDIAN),
        quantiles=[quote_pb2.TimeRange.Quantile(p=p, value=duration(level)) for p, level in levels.items()],
    )
    group = quote_pb2.WorkloadGroup(id="g", tier="template", model=MODEL, count=10)
    return quote_pb2.Quote(
        name=f"quotes/q{number:05}",
        cost=cost,
        time=time,
        groups=[quote_pb2.GroupQuote(group="g", count=10, cost=cost)],
        workload=quote_pb2.Workload(groups=[group], concurrency=1, provider=provider),
        cost_calibration=calibration,
        time_calibration=calibration,
    )


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[tuple[Database, Record]]:
    async with open_database(path / "e.db") as database:
        yield database, Record(database, now=SteppedClock().now)


async def lived_through(
    database: Database, record_: Record, quote: quote_pb2.Quote, *, cost: float, seconds: float, conversations: int = 10
) -> None:
    id = quote.name.removeprefix("quotes/")
    new = NewQuote(
        id=id,
        owner="ann",
        caller="ann",
        request_id="",
        request_sha256="0" * 64,
        create_time=NOW,
        body=quote.SerializeToString(),
    )
    await database.write(partial(quotes.insert_quote, new=new))
    number = int(id.removeprefix("q"))
    await record_.record_outcome(
        ended(
            quote.name,
            batch=f"batches/b{number:05}",
            end_time=NOW - timedelta(days=1) + timedelta(seconds=number),
            cost=cost,
            seconds=seconds,
            conversations=conversations,
        ),
        LOCAL,
    )


def drawn(rng: Random, spread: float) -> float:
    return MEDIAN * math.exp(rng.gauss(0, spread))


async def test_costs_that_miss_their_range_widen_it_and_times_that_keep_it_do_not(tmp_path: Path) -> None:
    rng = Random(7)
    async with opened(tmp_path) as (database, record_):
        factors: list[tuple[float, float]] = []
        for number in range(40):
            if number in (0, 30, 31):
                factors.append(await record_.calibrations(PAID))
            await lived_through(database, record_, quote_of(number), cost=drawn(rng, 0.3), seconds=drawn(rng, 0.1))
        cost, time = await record_.calibrations(PAID)
        assert await record_.calibrations(SANDBOX) == (1.0, 1.0)
    assert factors[:2] == [(1.0, 1.0), (1.0, 1.0)]
    assert factors[2][0] > 1.5
    assert 2.0 < cost <= 3.0
    assert 0.7 < time < 1.4


async def test_ranges_that_were_calibrated_are_learned_from_as_they_were_before(tmp_path: Path) -> None:
    async def cost_factor(name: str, calibration: float) -> float:
        rng = Random(7)
        async with opened(tmp_path / name) as (database, record_):
            for number in range(60):
                quote = quote_of(number, calibration=calibration)
                await lived_through(database, record_, quote, cost=drawn(rng, 0.2), seconds=MEDIAN)
            return (await record_.calibrations(PAID))[0]

    plain, calibrated = await cost_factor("a", 0.0), await cost_factor("b", 2.0)
    assert plain > 1.5
    assert math.isclose(plain, calibrated, rel_tol=1e-6)


@pytest.mark.parametrize("kind", ["rest", "assumed", "given up"])
async def test_what_says_nothing_of_the_estimator_calibrates_nothing(tmp_path: Path, kind: str) -> None:
    rng = Random(7)
    async with opened(tmp_path) as (database, record_):
        for number in range(40):
            quote = quote_of(number)
            if kind == "rest":
                quote.batch = "batches/abcd"
            if kind == "assumed":
                quote.workload.groups[0].assumptions.output_tokens_mean = 1_000
            made = 8 if kind == "given up" else 10
            await lived_through(database, record_, quote, cost=drawn(rng, 0.3), seconds=MEDIAN, conversations=made)
        assert await record_.calibrations(PAID) == (1.0, 1.0)
        summary = await record_.summarize_accuracy(estimator_pb2.SummarizeAccuracyRequest(), LOCAL)
    assert summary.slices[0].count == 0


async def test_the_newest_three_hundred_count(tmp_path: Path) -> None:
    rng = Random(7)
    async with opened(tmp_path) as (database, record_):
        for number in range(340):
            # Far off at first, as quoted since.
            spread = 1.0 if number < 40 else 0.1
            await lived_through(database, record_, quote_of(number), cost=drawn(rng, spread), seconds=MEDIAN)
        cost, _ = await record_.calibrations(PAID)
    assert 0.8 < cost < 1.25
