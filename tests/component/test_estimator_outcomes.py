"""RecordOutcome, CompareQuote and SummarizeAccuracy over gRPC, on real quotes and a real database file."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from estimator_fixtures import Served, SteppedClock, as_caller, ask, estimator, observed, record
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2
from record_fixtures import DOLLAR, TOKENS, actuals, dollars, duration, ended, tables, timestamp, tokens_file

pytestmark = pytest.mark.anyio

NOW = SteppedClock().now()
LOCAL_RATES = (
    '{"unit":"USD per million tokens","as_of":"2026-11-10","models":'
    '{"claude-sonnet-5":{"in":0,"out":0,"w5m":0,"w1h":0,"read":0}}}'
)
CAUSES = ["tokens", "price", "failures", "speed", "waiting"]


def compare(quote: str, **more: Any) -> estimator_pb2.CompareQuoteRequest:
    return estimator_pb2.CompareQuoteRequest(name=quote, **more)


def accuracy(*by: str, **more: Any) -> estimator_pb2.SummarizeAccuracyRequest:
    return estimator_pb2.SummarizeAccuracyRequest(group_by=by, **more)


def mean_dollars(quote: quote_pb2.Quote) -> float:
    return money.to_nanos(quote.cost.mean) / DOLLAR


async def make_ended(served: Served, number: int, ratio: float, *, ago: timedelta = timedelta(), **more: Any) -> str:
    """A quote of 30 a tier, and its batch that cost and took `ratio` of what was expected."""
    made = await served.stub.CreateQuote(ask(**more))
    figures: dict[str, Any] = {
        "cost": mean_dollars(made) * ratio,
        "seconds": made.time.mean.ToTimedelta().total_seconds() * ratio,
        "conversations": sum(group.count for group in made.groups),
        "by_group": {each.group: money.to_nanos(each.cost.mean) / DOLLAR * ratio for each in made.groups},
    }
    request = ended(made.name, batch=f"batches/b{number:05}", end_time=served.clock.now() - ago, **figures)
    assert (await served.stub.RecordOutcome(request)).recorded
    return made.name


async def test_an_outcome_is_recorded_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        request = ended(made.name, by_group={"template": 0.5}, at_quoted=1.25, end_time=NOW)
        first = await served.stub.RecordOutcome(request)
        again = await served.stub.RecordOutcome(request)
    async with estimator(tmp_path / "e.db") as served:
        restarted = await served.stub.RecordOutcome(request)
        kept = await served.stub.CompareQuote(compare(made.name))
    assert [each.recorded for each in (first, again, restarted)] == [True, False, False]
    assert kept.actuals == request.actuals
    assert kept.batch == "batches/abcd"
    assert kept.quote.name == made.name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cost": 1.6}, "actuals.cost"),
        ({"seconds": 601.0}, "actuals.duration"),
        ({"conversations": 89}, "actuals.conversations"),
        ({"by_group": {"template": 0.6}}, "actuals.cost_by_group"),
        ({"at_quoted": 1.5}, "actuals.cost_at_quoted_prices"),
        ({"end_time": NOW}, "end_time"),
    ],
)
async def test_an_outcome_that_differs_from_the_first_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        await served.stub.RecordOutcome(ended(made.name))
        before = tables(tmp_path / "e.db")
        error = await served.refused("RecordOutcome", ended(made.name, **changes))
        assert tables(tmp_path / "e.db") == before
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_DIFFERS")
    assert error.metadata == {"batch": "batches/abcd", "field": field}
    assert [violation.field for violation in error.violations] == [field]


async def test_a_batch_has_one_quote(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made, other = await served.stub.CreateQuote(ask()), await served.stub.CreateQuote(ask())
        await served.stub.RecordOutcome(ended(made.name))
        error = await served.refused("RecordOutcome", ended(other.name))
    assert error.metadata["field"] == "quote"


def spoilt(**changes: Any) -> quote_pb2.Actuals:
    message = actuals()
    for name in changes:
        message.ClearField(name)  # pyright: ignore[reportArgumentType]
    message.MergeFrom(quote_pb2.Actuals(**{name: value for name, value in changes.items() if value is not None}))
    return message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (spoilt(cost=None), "actuals.cost"),
        (spoilt(duration=None), "actuals.duration"),
        (spoilt(cost=Money(currency_code="USD", units=-1)), "actuals.cost"),
        (spoilt(cost=Money(currency_code="USD", nanos=-1)), "actuals.cost"),
        (spoilt(cost=Money(currency_code="USD", nanos=1_000_000_000)), "actuals.cost.nanos"),
        (spoilt(cost=Money(currency_code="USD", units=2**62)), "actuals.cost.units"),
        (spoilt(cost=Money(currency_code="EUR", units=1)), "actuals.cost.currency_code"),
        (spoilt(cost_at_quoted_prices=Money(currency_code="USD", units=-1)), "actuals.cost_at_quoted_prices.units"),
        (spoilt(cost_at_quoted_prices=Money(currency_code="USD", nanos=-1)), "actuals.cost_at_quoted_prices.nanos"),
        (spoilt(cost_by_group={"template": dollars(-1)}), 'actuals.cost_by_group["template"].units'),
        (spoilt(cost_by_group={"template": Money()}), 'actuals.cost_by_group["template"].currency_code'),
        (spoilt(cost_by_group={"other": dollars(1)}), 'actuals.cost_by_group["other"]'),
        (spoilt(duration=Duration(seconds=-1)), "actuals.duration"),
        (spoilt(duration=Duration(seconds=367 * 86_400)), "actuals.duration"),
        (spoilt(conversations=-1), "actuals.conversations"),
    ],
)
async def test_a_bad_outcome_names_its_field_and_stores_nothing(
    tmp_path: Path, message: quote_pb2.Actuals, field: str
) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        before = tables(tmp_path / "e.db")
        request = estimator_pb2.RecordOutcomeRequest(quote=made.name, batch="batches/abcd", actuals=message)
        error = await served.refused("RecordOutcome", request)
        compared = await served.refused("CompareQuote", compare(made.name, actuals=message))
        assert tables(tmp_path / "e.db") == before
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [field]
    assert [violation.field for violation in compared.violations] == [field]


@pytest.mark.parametrize("end_time", [Timestamp(seconds=1), timestamp(NOW + timedelta(days=2))])
async def test_an_outcome_of_an_impossible_time_is_refused(tmp_path: Path, end_time: Timestamp) -> None:
    async with estimator(tmp_path / "e.db") as served:
        request = ended((await served.stub.CreateQuote(ask())).name)
        request.end_time.CopyFrom(end_time)
        error = await served.refused("RecordOutcome", request)
    assert [violation.field for violation in error.violations] == ["end_time"]


async def test_an_outcome_of_an_unknown_quote_is_refused(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("RecordOutcome", ended("quotes/neverwas"))
        assert tables(tmp_path / "e.db")["outcomes"] == []
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "QUOTE_NOT_FOUND")
    assert [violation.field for violation in error.violations] == ["quote"]


async def test_each_caller_records_and_sees_outcomes_of_their_own_quotes(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db", tokens_file=tokens_file(tmp_path), token=TOKENS["anna"]) as anna:
        by_anna = await make_ended(anna, 1, 1.0)
        async with as_caller(anna.address, token=TOKENS["bert"]) as bert:
            assert (await bert.refused("RecordOutcome", ended(by_anna))).reason == "QUOTE_NOT_FOUND"
            assert (await bert.refused("CompareQuote", compare(by_anna))).reason == "QUOTE_NOT_FOUND"
            by_bert = await make_ended(bert, 2, 1.0)
            assert [each.quote for each in (await bert.stub.SummarizeAccuracy(accuracy())).outcomes] == [by_bert]
        async with as_caller(anna.address, token=TOKENS["serv"]) as service:
            seen = (await service.stub.SummarizeAccuracy(accuracy())).outcomes
            assert {each.quote for each in seen} == {by_anna, by_bert}
            assert (await service.stub.CompareQuote(compare(by_anna))).batch == "batches/b00001"
        assert [each.quote for each in (await anna.stub.SummarizeAccuracy(accuracy())).outcomes] == [by_anna]


async def test_a_comparison_wants_an_outcome_or_actuals(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        error = await served.refused("CompareQuote", compare(made.name))
        told = await served.stub.CompareQuote(compare(made.name, actuals=actuals()))
        unknown = await served.refused("CompareQuote", compare("quotes/neverwas"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "OUTCOME_NOT_FOUND")
    assert error.metadata["quote"] == made.name
    assert told.batch == ""
    assert unknown.reason == "QUOTE_NOT_FOUND"


async def test_the_newest_of_two_batches_on_one_quote_is_compared(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        older = ended(made.name, batch="batches/zzzz", end_time=NOW - timedelta(hours=1))
        await served.stub.RecordOutcome(ended(made.name, batch="batches/aaaa", end_time=NOW))
        await served.stub.RecordOutcome(older)
        assert (await served.stub.CompareQuote(compare(made.name))).batch == "batches/aaaa"


async def test_the_causes_add_up_to_the_whole_difference(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(count=2, tiers=["template", "scenario"]))
        own: dict[str, Any] = {"batch": "batches/abcd", "quote": made.name}
        calls = [
            *(observed(n, seconds=90, output_tokens=5_000, first_token_delay=duration(2.5), **own) for n in range(2)),
            *(observed(n, tier="scenario", seconds=40, output_tokens=2_000, **own) for n in (2, 3)),
            observed(4, tier="scenario", seconds=20, outcome=conversation_pb2.CALL_OUTCOME_MALFORMED, **own),
            observed(5, seconds=15, output_tokens=0, outcome=conversation_pb2.CALL_OUTCOME_LIMITED, **own),
            # Of another batch.
            observed(6, seconds=5_000, batch="batches/other", outcome=conversation_pb2.CALL_OUTCOME_MALFORMED),
        ]
        # Nobody pays for a call that was refused for now.
        calls[-2].ClearField("usage")
        await served.stub.RecordObservations(record(*calls))
        figures: dict[str, Any] = {"cost": 0.123456789, "at_quoted": 0.1, "seconds": 300.5, "conversations": 4}
        await served.stub.RecordOutcome(ended(made.name, by_group={"template": 0.08, "scenario": 0.04}, **figures))
        found = await served.stub.CompareQuote(compare(made.name))
    causes = {each.cause: each for each in found.by_cause}
    assert list(causes) == CAUSES
    whole = money.to_nanos(found.actuals.cost) - money.to_nanos(made.cost.mean)
    assert sum(money.to_nanos(each.cost) for each in found.by_cause) == whole
    longer = 300.5 - made.time.mean.ToTimedelta().total_seconds()
    assert math.isclose(sum(each.seconds for each in found.by_cause), longer, abs_tol=1e-9)
    assert money.to_nanos(causes["price"].cost) == 23_456_789
    # One malformed call of 2,000 and 1,000 tokens, less what the quote expected to be paid for nothing.
    expected = sum(money.to_nanos(each.cost.mean) * each.failure_share for each in made.groups)
    assert money.to_nanos(causes["failures"].cost) == 2_000 * 2_000 + 1_000 * 10_000 - round(expected)
    assert all(causes[cause].seconds != 0.0 for cause in ("tokens", "failures", "speed", "waiting"))
    assert [each.cause for each in found.by_group] == ["template", "scenario"]
    for each, group, cost in zip(found.by_group, made.groups, (0.08, 0.04), strict=True):
        assert money.to_nanos(each.cost) == round(cost * DOLLAR) - money.to_nanos(group.cost.mean)


async def test_failures_of_long_prompts_are_priced_as_such(tmp_path: Path) -> None:
    model = "claude-haiku-5-5"
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(count=2, tiers=["template"], model=model))
        calls = [observed(n, batch="batches/abcd", outcome=conversation_pb2.CALL_OUTCOME_CUT) for n in range(2)]
        for call in calls:
            call.model = model
        calls[1].usage.input_tokens = 200_000
        await served.stub.RecordObservations(record(*calls))
        await served.stub.RecordOutcome(ended(made.name, conversations=2))
        found = await served.stub.CompareQuote(compare(made.name))
    expected = money.to_nanos(made.groups[0].cost.mean) * made.groups[0].failure_share
    paid = (2_000 * 100 + 1_000 * 500) + (200_000 * 500 + 1_000 * 2_500)
    assert abs(money.to_nanos(found.by_cause[2].cost) - (paid - expected)) <= 1


async def test_only_actuals_give_price_tokens_and_waiting(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        told = actuals(5.0, 900.0, at_quoted=4.0)
        found = await served.stub.CompareQuote(compare(made.name, actuals=told))
    causes = {each.cause: (money.to_nanos(each.cost), each.seconds) for each in found.by_cause}
    longer = 900.0 - made.time.mean.ToTimedelta().total_seconds()
    assert causes["price"] == (DOLLAR, 0.0)
    assert causes["tokens"] == (4 * DOLLAR - money.to_nanos(made.cost.mean), 0.0)
    assert causes["failures"] == causes["speed"] == (0, 0.0)
    assert causes["waiting"][1] == pytest.approx(longer)
    assert list(found.by_group) == []


@pytest.mark.parametrize("count", [0, 30])
async def test_a_quote_of_nothing_compares_to_finite_figures(tmp_path: Path, count: int) -> None:
    async with estimator(tmp_path / "e.db", rates=LOCAL_RATES) as served:
        made = await served.stub.CreateQuote(ask(count))
        await served.stub.RecordObservations(record(*(observed(n, batch="batches/abcd") for n in range(3))))
        await served.stub.RecordOutcome(ended(made.name, by_group={"template": 1.0}))
        found = await served.stub.CompareQuote(compare(made.name))
        summary = await served.stub.SummarizeAccuracy(accuracy("tier"))
    assert all(math.isfinite(each.seconds) for each in (*found.by_cause, *found.by_group))
    assert sum(money.to_nanos(each.cost) for each in found.by_cause) == 1_500_000_000
    assert [each.cost_ratio for each in summary.outcomes] == [0.0]
    for each in summary.slices:
        assert all(math.isfinite(value) for _, value in each.ListFields() if isinstance(value, float))


async def test_nothing_recorded_is_a_whole_of_nothing(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        found = await served.stub.SummarizeAccuracy(accuracy("model", "tier", "month"))
    assert [(each.slice, each.count) for each in found.slices] == [("", 0)]
    assert list(found.outcomes) == []


async def test_past_quotes_are_scored_as_a_whole_and_in_slices(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        for number, ratio in enumerate((1.0, 1.05, 0.5)):
            await make_ended(served, number, ratio, ago=timedelta(days=number))
        await make_ended(served, 3, 1.0, ago=timedelta(days=40), model="claude-opus-5", tiers=["template"])
        found = await served.stub.SummarizeAccuracy(accuracy("model"))
        by_tier = await served.stub.SummarizeAccuracy(accuracy("tier"))
        by_month = await served.stub.SummarizeAccuracy(accuracy("month", "model"))
    whole, opus, sonnet = found.slices
    assert [(each.slice, each.count) for each in found.slices] == [
        ("", 4),
        ("model=claude-opus-5", 1),
        ("model=claude-sonnet-5", 3),
    ]
    assert math.isclose(sonnet.cost_bias, (0.05 - 0.5) / 3, abs_tol=1e-6)
    assert math.isclose(sonnet.cost_mape, (0.05 / 1.05 + 1.0) / 3, abs_tol=1e-6)
    assert math.isclose(sonnet.time_bias, (0.05 - 0.5) / 3, abs_tol=1e-4)
    assert sonnet.cost_within_10_percent == sonnet.time_within_20_percent == pytest.approx(2 / 3)
    assert (opus.cost_bias, opus.cost_coverage_80, opus.time_coverage_95) == (0.0, 1.0, 1.0)
    assert whole.cost_coverage_80_low < whole.cost_coverage_80 < whole.cost_coverage_80_high
    assert min(whole.cost_pinball_loss, whole.cost_interval_score, whole.time_pinball_loss) > 0
    assert whole.time_interval_score > 0
    tiers = [(each.slice, each.count) for each in by_tier.slices]
    assert tiers == [("", 4), ("tier=edge_case", 3), ("tier=scenario", 3), ("tier=template", 4)]
    assert [each.slice for each in by_month.slices] == [
        "",
        "model=claude-opus-5,month=2026-10",
        "model=claude-sonnet-5,month=2026-11",
    ]


async def test_the_outcomes_are_told_oldest_first_with_their_ranges(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        names = [await make_ended(served, number, 1.0 + number, ago=timedelta(days=9 - number)) for number in range(2)]
        found = (await served.stub.SummarizeAccuracy(accuracy())).outcomes
    assert [each.quote for each in found] == names
    assert [each.batch for each in found] == ["batches/b00000", "batches/b00001"]
    assert [each.cost_ratio for each in found] == [pytest.approx(1.0), pytest.approx(2.0)]
    assert [each.time_ratio for each in found] == [pytest.approx(1.0), pytest.approx(2.0)]
    assert [(each.cost_held, each.time_held) for each in found] == [(True, True), (False, False)]
    assert all(0 < each.cost_low_ratio < 1 < each.cost_high_ratio for each in found)
    assert found[0].end_time == timestamp(NOW - timedelta(days=9))


async def test_only_outcomes_of_the_asked_time_are_scored(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        for number in range(4):
            await make_ended(served, number, 1.0, ago=timedelta(days=number))
        start, end = timestamp(NOW - timedelta(days=2)), timestamp(NOW)
        found = await served.stub.SummarizeAccuracy(accuracy(start_time=start, end_time=end))
    assert [each.batch for each in found.outcomes] == ["batches/b00002", "batches/b00001"]
    assert found.slices[0].count == 2


async def test_a_batch_that_was_given_up_is_no_test_of_its_quote(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        await served.stub.RecordOutcome(ended(made.name, batch="batches/some", conversations=80))
        await served.stub.RecordOutcome(ended(made.name, batch="batches/most", conversations=81))
        found = await served.stub.SummarizeAccuracy(accuracy())
    assert [each.batch for each in found.outcomes] == ["batches/most"]


async def test_more_outcomes_than_are_read_at_once_are_all_scored_once(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        for number in range(120):
            # All ended at one moment: their order is that of their names.
            await served.stub.RecordOutcome(ended(made.name, batch=f"batches/b{number:05}", end_time=NOW))
        found = await served.stub.SummarizeAccuracy(accuracy())
    assert found.slices[0].count == 120
    assert [each.batch for each in found.outcomes] == [f"batches/b{number:05}" for number in range(120)]
