"""The estimator's client against a real gRPC server: what it sends, and what it raises."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from estimator_answers import BATCH, MODEL, QUOTE, Answers, answering, compared, quote
from google.protobuf import duration_pb2
from parley import money
from parley.estimator import EstimatorClient, estimator_settings
from parley.exceptions import Conflict, InvalidRequest, NotFound, ParleyError, Unavailable
from parley.v1 import estimator_pb2, quote_pb2
from parley.wire.errors import Refusal

pytestmark = pytest.mark.anyio

WORKLOAD = quote_pb2.Workload(
    groups=[quote_pb2.WorkloadGroup(id="scenario", tier="scenario", model=MODEL, count=90)], concurrency=3
)


async def test_a_quote_is_asked_for_with_an_id_so_that_it_may_be_sent_again() -> None:
    answers = Answers()
    async with answering(answers) as target, EstimatorClient(target) as client:
        made = await client.create_quote(WORKLOAD, seed=7, batch="plants1")
        await client.create_quote(WORKLOAD, request_id="mine", owner="nadia", spec_sha256="a" * 64)
    first, second = answers.asked(estimator_pb2.CreateQuoteRequest)
    assert (made.seed, made.batch, made.workload) == (7, BATCH, WORKLOAD)
    assert len(first.request_id) == 32
    assert (second.request_id, second.owner, second.spec_sha256, second.batch) == ("mine", "nadia", "a" * 64, "")


async def test_a_bare_id_names_the_quote() -> None:
    answers = Answers(quotes=[quote()], comparisons={QUOTE: compared()})
    async with answering(answers) as target, EstimatorClient(target) as client:
        assert (await client.get_quote("quote1")).name == (await client.get_quote(QUOTE)).name == QUOTE
        assert (await client.compare("quote1")).batch == BATCH


async def test_quotes_go_on_over_all_pages() -> None:
    names = [f"quotes/q{number:04}" for number in range(5)]
    answers = Answers(quotes=[quote_pb2.Quote(name=name) for name in names])
    async with answering(answers) as target, EstimatorClient(target) as client:
        assert [listed.name async for listed in client.list_quotes(owner="nadia")] == names
    assert [(request.page_token, request.owner) for request in answers.requests] == [
        ("", "nadia"),
        ("2", "nadia"),
        ("4", "nadia"),
    ]


async def test_a_forecast_is_asked_for_with_what_is_left_and_what_was_spent() -> None:
    answers = Answers()
    in_flight = [quote_pb2.InFlightCall(group="scenario", age=duration_pb2.Duration(seconds=12))]
    async with answering(answers) as target, EstimatorClient(target) as client:
        forecast = await client.forecast(
            WORKLOAD,
            quote="quote1",
            batch=BATCH,
            in_flight=in_flight,
            spent=Decimal("1.24"),
            elapsed=timedelta(seconds=90.5),
        )
    (asked,) = answers.asked(estimator_pb2.ForecastBatchRequest)
    assert (asked.quote, asked.batch, list(asked.in_flight), asked.remaining) == (QUOTE, BATCH, in_flight, WORKLOAD)
    assert money.to_decimal(forecast.projected_cost) == Decimal("1.24")
    assert forecast.time_left == duration_pb2.Duration(seconds=90, nanos=500_000_000)


async def test_what_happened_is_recorded() -> None:
    answers = Answers()
    ended = datetime(2026, 11, 23, 20, 48, tzinfo=UTC)
    actuals = quote_pb2.Actuals(cost=money.from_nanos(3_410_000_000), conversations=90)
    observation = quote_pb2.Observation(call=f"{BATCH}/calls/1", tier="scenario", model=MODEL)
    async with answering(answers) as target, EstimatorClient(target) as client:
        assert (await client.record_observations([observation])).recorded == 1
        assert await client.record_outcome("quote1", "plants1", actuals, ended=ended)
        assert not await client.record_outcome("quote1", "plants1", actuals, ended=ended)
    first, _ = answers.asked(estimator_pb2.RecordOutcomeRequest)
    assert (first.quote, first.batch, first.actuals) == (QUOTE, BATCH, actuals)
    assert first.end_time.ToDatetime(UTC) == ended


async def test_summaries_and_rates_are_narrowed_as_asked() -> None:
    answers = Answers()
    since = datetime(2026, 11, 1, tzinfo=UTC)
    async with answering(answers) as target, EstimatorClient(target) as client:
        await client.accuracy(start=since, group_by=["model", "month"], provider="http://here:1")
        await client.accuracy()
        await client.history(models=[MODEL], provider="http://here:1")
        assert [rate.model for rate in (await client.rates([MODEL], at=since)).rates] == [MODEL]
    narrow, wide = answers.asked(estimator_pb2.SummarizeAccuracyRequest)
    assert (narrow.start_time.ToDatetime(UTC), list(narrow.group_by)) == (since, ["model", "month"])
    assert narrow.provider == "http://here:1"
    assert wide == estimator_pb2.SummarizeAccuracyRequest()
    (history,) = answers.asked(estimator_pb2.SummarizeHistoryRequest)
    assert (list(history.models), history.provider) == ([MODEL], "http://here:1")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("MODEL_UNKNOWN", InvalidRequest),
        ("QUOTE_NOT_FOUND", NotFound),
        ("OUTCOME_NOT_FOUND", NotFound),
        ("DUPLICATE_DIFFERS", Conflict),
    ],
)
async def test_a_refusal_has_its_exception(reason: str, kind: type[ParleyError]) -> None:
    answers = Answers()
    answers.refuse("CompareQuote", Refusal(reason, "It can't be done.", metadata={"known": "a, b"}))
    async with answering(answers) as target, EstimatorClient(target) as client:
        with pytest.raises(kind) as caught:
            await client.compare(QUOTE)
    assert (caught.value.reason, caught.value.message) == (reason, "It can't be done.")
    assert caught.value.metadata == {"known": "a, b"}


async def test_an_estimator_that_is_not_there_is_unavailable() -> None:
    async with EstimatorClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable) as caught:
            await client.history()
    assert (caught.value.reason, caught.value.message) == ("", "The server can't be reached.")


def test_the_estimator_has_its_own_address_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PARLEY_ESTIMATOR", "PARLEY_ESTIMATOR_TOKEN", "PARLEY_TOKEN", "PARLEY_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PARLEY_ORCHESTRATOR", "127.0.0.1:9")
    assert estimator_settings(None, token=None, tls_ca_file=None).target == "127.0.0.1:7461"
    monkeypatch.setenv("PARLEY_ESTIMATOR", "127.0.0.1:8")
    monkeypatch.setenv("PARLEY_TOKEN", "both")
    settings = estimator_settings(None, token=None, tls_ca_file=None)
    assert (settings.target, settings.token, settings.target_setting) == ("127.0.0.1:8", "both", "PARLEY_ESTIMATOR")
    monkeypatch.setenv("PARLEY_ESTIMATOR_TOKEN", "its own")
    assert estimator_settings(None, token=None, tls_ca_file=None).token == "its own"
    assert estimator_settings("127.0.0.1:7", token="given", tls_ca_file=None).token == "given"
