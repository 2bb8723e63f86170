"""RecordObservations, ListRates and what is not built, over gRPC."""

from __future__ import annotations

import math
from pathlib import Path

import grpc
import pytest
from estimator_fixtures import MODEL, ask, estimator, observed, record
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from parley import money
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2

pytestmark = pytest.mark.anyio

TEMPLATE = ["template"]
PROVIDER = "https://api.example"


async def test_each_call_is_recorded_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        first = await served.stub.RecordObservations(record(observed(1), observed(2), observed(2)))
        again = await served.stub.RecordObservations(record(observed(2), observed(3)))
    async with estimator(tmp_path / "e.db") as served:
        restarted = await served.stub.RecordObservations(record(observed(1), observed(2), observed(3)))
    assert [(each.recorded, each.duplicates) for each in (first, again, restarted)] == [(2, 1), (1, 1), (0, 3)]


async def test_a_thousand_at_a_time_are_taken_and_one_more_refused(tmp_path: Path) -> None:
    thousand = [observed(number) for number in range(1_000)]
    async with estimator(tmp_path / "e.db") as served:
        assert (await served.stub.RecordObservations(record(*thousand))).recorded == 1_000
        error = await served.refused("RecordObservations", record(*thousand, observed(1_000)))
    assert error.reason == "INVALID_FIELD"


async def test_answered_calls_move_tokens_and_speed_of_the_next_quote(tmp_path: Path) -> None:
    # 1,000 tokens in 11 s: 100 a second after the first token.
    calls = [observed(number, seconds=11) for number in range(10)]
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*calls))
        made = await served.stub.CreateQuote(ask(tiers=TEMPLATE))
    (group,) = made.groups
    assert math.isclose(group.output_tokens_mean, 2_000 / 0.97)
    assert math.isclose(group.call_duration_mean.ToTimedelta().total_seconds(), 1 + 2_000 / 68, rel_tol=0.01)
    assert group.basis.text == "prior, moved by tokens of 10 calls and speed of 10 calls"


@pytest.mark.parametrize(
    "calls",
    [
        [observed(n, provider=PROVIDER, outcome=conversation_pb2.CALL_OUTCOME_CUT) for n in range(20)],
        [observed(n, provider=PROVIDER, outcome=conversation_pb2.CALL_OUTCOME_REFUSED) for n in range(20)],
        [observed(n, provider=PROVIDER, output_tokens=0) for n in range(20)],
        [observed(n, provider=PROVIDER, tier="scenario", seconds=0) for n in range(20)],
        [observed(n, provider="http://127.0.0.1:8071") for n in range(20)],
    ],
    ids=["cut", "refused", "empty", "another tier", "another provider"],
)
async def test_what_is_no_evidence_changes_no_quote(tmp_path: Path, calls: list[quote_pb2.Observation]) -> None:
    request = ask(tiers=TEMPLATE, provider=PROVIDER)
    async with estimator(tmp_path / "e.db") as served:
        before = await served.stub.CreateQuote(request)
        await served.stub.RecordObservations(record(*calls))
        after = await served.stub.CreateQuote(request)
    assert after.cost == before.cost
    assert after.time == before.time


async def test_a_sandbox_without_latency_teaches_no_speed(tmp_path: Path) -> None:
    calls = [observed(n, output_tokens=3_000, speed_up=1_000_000) for n in range(20)]
    async with estimator(tmp_path / "e.db") as served:
        before = await served.stub.CreateQuote(ask(tiers=TEMPLATE))
        await served.stub.RecordObservations(record(*calls))
        after = await served.stub.CreateQuote(ask(tiers=TEMPLATE))
    assert after.groups[0].call_duration_mean == before.groups[0].call_duration_mean


async def test_single_turns_are_learned_apart_from_whole_conversations(tmp_path: Path) -> None:
    turns = [observed(n, output_tokens=100) for n in range(10)]
    for turn in turns:
        turn.purpose = conversation_pb2.CALL_PURPOSE_TURN
    group = quote_pb2.WorkloadGroup(id="g", tier="template", model=MODEL, count=1, calls_each=6)
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*turns))
        whole = await served.stub.CreateQuote(ask(tiers=TEMPLATE))
        by_turn = await served.stub.CreateQuote(ask(groups=[group]))
    assert math.isclose(whole.groups[0].output_tokens_mean, 3_000 / 0.97)
    assert math.isclose(by_turn.groups[0].output_tokens_mean, 6 * 300 / 0.97)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"call": ""}, "observations[1].call"),
        ({"outcome": 0}, "observations[1].outcome"),
        ({"usage": conversation_pb2.Usage(output_tokens=-1)}, "observations[1].usage.output_tokens"),
        ({"usage": conversation_pb2.Usage(input_tokens=2**40)}, "observations[1].usage.input_tokens"),
        ({"duration": Duration(seconds=-1)}, "observations[1].duration"),
        ({"duration": Duration(seconds=10**11)}, "observations[1].duration"),
        ({"first_token_delay": Duration(nanos=-1)}, "observations[1].first_token_delay"),
        ({"end_time": Timestamp(seconds=10**13)}, "observations[1].end_time"),
        ({"speed_up": 1e-9}, "observations[1].speed_up"),
    ],
)
async def test_a_bad_observation_names_its_field_and_records_nothing(
    tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    bad = quote_pb2.Observation()
    bad.CopyFrom(observed(2))
    # The parameters name fields, which the stubs know as literals only.
    for name in changes:
        bad.ClearField(name)  # pyright: ignore[reportArgumentType]
    bad.MergeFrom(quote_pb2.Observation(**changes))  # pyright: ignore[reportArgumentType]
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("RecordObservations", record(observed(1), bad))
        assert error.reason == "INVALID_FIELD"
        assert [violation.field for violation in error.violations] == [field]
        assert (await served.stub.RecordObservations(record(observed(1)))).recorded == 1


async def test_everything_that_an_observation_tells_is_kept(tmp_path: Path) -> None:
    full = observed(
        1,
        prompt_fingerprint="a" * 64,
        first_token_delay=Duration(seconds=1, nanos=500_000_000),
        batch="batches/abcd",
        provider="https://api.example",
        speed_up=2,
        end_time=Timestamp(seconds=1_790_000_000),
        effort="high",
        max_output_tokens=8_000,
    )
    async with estimator(tmp_path / "e.db") as served:
        assert (await served.stub.RecordObservations(record(full))).recorded == 1


async def test_list_rates_has_every_known_model_or_those_that_were_asked_for(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        everything = await served.stub.ListRates(estimator_pb2.ListRatesRequest())
        request = estimator_pb2.ListRatesRequest(models=["claude-opus-5", "llama-3"])
        asked = await served.stub.ListRates(request)
    assert len(everything.rate_card.rates) == 17
    assert everything.rate_card.as_of_time.ToJsonString() == "2026-11-10T00:00:00Z"
    assert [rate.model for rate in asked.rate_card.rates] == ["claude-opus-5"]
    assert asked.rate_card.rates[0].output_nanos_per_mtok == 25 * money.NANOS_PER_DOLLAR
    assert asked.rate_card.version != everything.rate_card.version


async def test_list_rates_tells_the_prices_of_another_time(tmp_path: Path) -> None:
    def request(**more: Timestamp) -> estimator_pb2.ListRatesRequest:
        return estimator_pb2.ListRatesRequest(models=["claude-sonnet-5-5"], **more)

    then = Timestamp()
    then.FromJsonString("2026-10-06T23:59:59Z")
    async with estimator(tmp_path / "e.db") as served:
        before = (await served.stub.ListRates(request(time=then))).rate_card.rates[0]
        now = (await served.stub.ListRates(request())).rate_card.rates[0]
    assert (before.cache_read_nanos_per_mtok, now.cache_read_nanos_per_mtok) == (200_000_000, 100_000_000)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ForecastBatch", estimator_pb2.ForecastBatchRequest()),
        ("CompareQuote", estimator_pb2.CompareQuoteRequest(name="quotes/abcd", actuals=quote_pb2.Actuals())),
        ("SummarizeAccuracy", estimator_pb2.SummarizeAccuracyRequest()),
    ],
)
async def test_what_is_not_built_says_what_is_missing(tmp_path: Path, method: str, request_: object) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused(method, request_)
    assert (error.code, error.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT")
    assert error.message.startswith(f"{method} is not served yet: ")
