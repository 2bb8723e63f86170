"""What a quote learns from observations, and ListRates, over gRPC."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from estimator_fixtures import MODEL, ask, estimator, observed, record
from google.protobuf.timestamp_pb2 import Timestamp
from parley import money
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2

from estimator_service.config import PRICES_FILE

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
    assert 950 < group.output_tokens_mean < 1_300
    assert 10 < group.call_duration_mean.ToTimedelta().total_seconds() < 15
    assert group.basis.text == "10 calls"


@pytest.mark.parametrize(
    "calls",
    [
        [observed(n, provider="http://127.0.0.1:8071") for n in range(20)],
        [observed(n, provider=PROVIDER, outcome=conversation_pb2.CALL_OUTCOME_LIMITED) for n in range(20)],
    ],
    ids=["another provider", "told to wait"],
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
    before_s, after_s = (made.groups[0].call_duration_mean.ToTimedelta().total_seconds() for made in (before, after))
    # 30 s for 3,000 tokens at a million times the speed would be a year.
    assert math.isclose(after_s, before_s, rel_tol=0.05)


async def test_single_turns_are_learned_apart_from_whole_conversations(tmp_path: Path) -> None:
    turns = [observed(n, output_tokens=100) for n in range(10)]
    for turn in turns:
        turn.purpose = conversation_pb2.CALL_PURPOSE_TURN
    group = quote_pb2.WorkloadGroup(id="g", tier="template", model=MODEL, count=1, calls_each=6)
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(*turns))
        whole = await served.stub.CreateQuote(ask(tiers=TEMPLATE))
        by_turn = await served.stub.CreateQuote(ask(groups=[group]))
    # A turn was expected to have 500 tokens.
    assert by_turn.groups[0].output_tokens_mean < 6 * 150
    assert whole.groups[0].output_tokens_mean > 1_000
    assert (by_turn.basis.text, whole.basis.text) == ("10 calls", "10 calls with other prompts")


async def test_answers_that_were_cut_and_failures_that_were_paid_raise_the_next_quote(tmp_path: Path) -> None:
    fine = [observed(n, output_tokens=3_000) for n in range(20)]
    cut = [observed(20 + n, output_tokens=3_000, outcome=conversation_pb2.CALL_OUTCOME_CUT) for n in range(20)]
    refused = [observed(40 + n, outcome=conversation_pb2.CALL_OUTCOME_REFUSED) for n in range(20)]
    means: list[int] = []
    async with estimator(tmp_path / "e.db") as served:
        for calls in (fine, cut, refused):
            await served.stub.RecordObservations(record(*calls))
            means.append(money.to_nanos((await served.stub.CreateQuote(ask(tiers=TEMPLATE))).cost.mean))
    assert means[0] < means[1]
    assert 1.2 * means[1] < means[2]


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


async def test_list_rates_leaves_out_a_model_whose_prices_have_ended(tmp_path: Path) -> None:
    ended = PRICES_FILE.read_text("utf-8").replace('"claude-opus-5":{', '"claude-opus-5":{"until":"2026-11-23",')
    models = ["claude-opus-5", MODEL]
    then = Timestamp()
    then.FromJsonString("2026-11-22T23:59:59Z")
    async with estimator(tmp_path / "e.db", rates=ended) as served:
        before = await served.stub.ListRates(estimator_pb2.ListRatesRequest(models=models, time=then))
        now = await served.stub.ListRates(estimator_pb2.ListRatesRequest(models=models))
    assert sorted(rate.model for rate in before.rate_card.rates) == models
    assert [rate.model for rate in now.rate_card.rates] == [MODEL]
