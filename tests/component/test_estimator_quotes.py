"""CreateQuote, GetQuote and ListQuotes over gRPC, on a real database file."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from estimator_fixtures import SteppedClock, as_caller, ask, estimator, named, observed, record, workload
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import estimator_pb2, quote_pb2

from estimator_service.config import PRICES_FILE
from estimator_service.domain.failures import Failures

pytestmark = pytest.mark.anyio


async def test_a_quote_has_cost_time_groups_and_the_rates_that_it_used(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
    assert re.fullmatch(r"quotes/[a-z0-9]{10}", made.name)
    # The planning figures, and what is paid for nothing on the way.
    planned = 30 * (12_000 * 10_000 + 7_500 * 2_000) * Failures().calls_mean
    assert money.to_nanos(made.cost.mean) == pytest.approx(planned, rel=0.005)
    assert [group.group for group in made.groups] == ["template", "scenario", "edge_case"]
    assert sum(money.to_nanos(group.cost.mean) for group in made.groups) == money.to_nanos(made.cost.mean)
    assert [each.p for each in made.time.quantiles] == [0.025, 0.05, 0.10, 0.50, 0.90, 0.95, 0.975]
    assert [rate.model for rate in made.rate_card.rates] == ["claude-sonnet-5"]
    assert re.fullmatch(r"[0-9a-f]{12}", made.rate_card.version)
    assert (made.basis.source, made.basis.text) == (quote_pb2.Basis.SOURCE_PRIOR, "built-in prior")
    assert made.workload == workload()
    assert made.owner == "local"
    assert not made.stale
    assert not made.HasField("probability_within_budget")
    assert not made.HasField("real_time_mean")


async def test_the_tokens_and_rates_of_a_quote_give_its_cost(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
    (rate,) = made.rate_card.rates
    for group in made.groups:
        nanos = group.input_tokens_mean * rate.input_nanos_per_mtok
        nanos += group.output_tokens_mean * rate.output_nanos_per_mtok
        assert round(group.count * nanos / 1e6) == money.to_nanos(group.cost.mean)


async def test_the_same_workload_and_seed_give_the_same_figures(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        first, second = await served.stub.CreateQuote(ask()), await served.stub.CreateQuote(ask())
    assert first.name != second.name
    assert (first.cost, first.time) == (second.cost, second.time)


async def test_a_sandbox_quote_tells_both_times_and_a_budget_its_probability(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(speed_up=40, budget=Money(currency_code="USD", units=1)))
    assert made.real_time_mean.seconds > 30 * made.time.mean.seconds
    assert made.HasField("probability_within_budget")
    assert made.probability_within_budget == 0
    assert [warning.kind for warning in made.warnings] == [quote_pb2.QuoteWarning.KIND_OVER_BUDGET]


async def test_long_prompts_and_price_changes_are_in_the_rate_card(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        long = await served.stub.CreateQuote(ask(model="claude-haiku-5-5"))
        changed = await served.stub.CreateQuote(ask(model="claude-sonnet-5-5"))
    assert long.rate_card.rates[0].long_prompt_threshold_tokens == 100_000
    assert long.rate_card.rates[0].long_prompt.input_nanos_per_mtok == 500_000_000
    assert changed.rate_card.rates[0].effective_time.ToJsonString() == "2026-10-07T00:00:00Z"
    assert changed.rate_card.rates[0].cache_read_nanos_per_mtok == 100_000_000


async def test_a_model_of_price_0_is_quoted_as_free_with_a_warning(tmp_path: Path) -> None:
    entry = '"models":{"llama-3":{"in":0,"out":0,"w5m":0,"w1h":0,"read":0},'
    rates = PRICES_FILE.read_text("utf-8").replace('"models":{', entry)
    async with estimator(tmp_path / "e.db", rates=rates) as served:
        made = await served.stub.CreateQuote(ask(model="llama-3"))
    assert money.to_nanos(made.cost.mean) == 0
    assert made.time.mean.seconds > 0
    assert [warning.kind for warning in made.warnings] == [quote_pb2.QuoteWarning.KIND_NO_PRICE]


async def test_an_unknown_model_is_refused_with_the_known_ones_and_how_to_add_its_price(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        request = ask()
        request.workload.groups[1].model = "claude-sonet-5"
        error = await served.refused("CreateQuote", request)
        assert (await served.stub.ListQuotes(estimator_pb2.ListQuotesRequest())).quotes == []
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_UNKNOWN")
    assert [violation.field for violation in error.violations] == ["workload.groups[1].model"]
    assert error.metadata["model"] == "claude-sonet-5"
    told = ("Did you mean claude-sonnet-5?", "Known are claude-fable-5, ", "claude-sonnet-5-5.", "PARLEY_RATES_FILE")
    assert all(part in error.message for part in told)


async def test_a_model_whose_prices_ended_is_refused_from_that_day_on(tmp_path: Path) -> None:
    rates = PRICES_FILE.read_text("utf-8").replace('"claude-sonnet-5":{', '"claude-sonnet-5":{"until":"2026-11-24",')
    async with estimator(tmp_path / "e.db", rates=rates) as served:
        made = await served.stub.CreateQuote(ask(request_id="r1"))
        served.clock.step(timedelta(hours=12))
        error = await served.refused("CreateQuote", ask())
        # What was promised before stays readable, also to who asks again.
        found = await served.stub.GetQuote(named(made.name))
        assert (await served.stub.CreateQuote(ask(request_id="r1"))).name == made.name
    assert error.reason == "MODEL_UNKNOWN"
    assert "the prices of 'claude-sonnet-5' ended on 2026-11-24" in error.message
    assert found.cost == made.cost
    assert found.stale


async def test_quotes_of_a_model_that_left_the_table_stay_readable(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
    rates = PRICES_FILE.read_text("utf-8").replace('"claude-sonnet-5":{', '"another-model":{')
    async with estimator(tmp_path / "e.db", rates=rates) as served:
        found = await served.stub.GetQuote(named(made.name))
        listed = await served.stub.ListQuotes(estimator_pb2.ListQuotesRequest())
    assert found.cost == made.cost
    assert found.stale_reason.startswith("prices changed")
    assert [each.name for each in listed.quotes] == [made.name]


async def test_the_same_request_id_and_body_give_the_same_quote(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        first = await served.stub.CreateQuote(ask(request_id="r1"))
        assert await served.stub.CreateQuote(ask(request_id="r1")) == first
        listed = await served.stub.ListQuotes(estimator_pb2.ListQuotesRequest())
    assert len(listed.quotes) == 1


async def test_the_same_request_sent_many_times_at_once_makes_one_quote(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await asyncio.gather(*(served.stub.CreateQuote(ask(request_id="r1")) for _ in range(8)))
    assert len({each.name for each in made}) == 1


async def test_the_same_request_id_with_another_body_is_refused(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.CreateQuote(ask(request_id="r1"))
        error = await served.refused("CreateQuote", ask(31, request_id="r1"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert error.metadata["request_id"] == "r1"


async def test_a_restart_keeps_quotes_and_request_ids(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(request_id="r1"))
    async with estimator(tmp_path / "e.db") as served:
        assert await served.stub.GetQuote(named(made.name)) == made
        assert await served.stub.CreateQuote(ask(request_id="r1")) == made


async def test_a_quote_that_was_never_made_is_not_found(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("GetQuote", named("quotes/abcdefghij"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "QUOTE_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (estimator_pb2.CreateQuoteRequest(), "workload"),
        (ask(concurrency=0), "workload.concurrency"),
        (ask(tiers=[""]), "workload.groups[0].id"),
        (ask(tiers=["a", "b", "a"]), "workload.groups[2].id"),
        (ask(groups=[]), "workload.groups"),
        (ask(-1), "workload.groups[0].count"),
        (
            ask(groups=[quote_pb2.WorkloadGroup(id="g", tier="t", model="m", count=5_000, calls_each=5e-324)]),
            "workload.groups[0].calls_each",
        ),
        (ask(speed_up=float("nan")), "workload.speed_up"),
        (ask(speed_up=1e-300), "workload.speed_up"),
        (
            ask(limits=quote_pb2.RateLimits(output_tokens_per_minute=1e-9)),
            "workload.limits.output_tokens_per_minute",
        ),
        (ask(budget=Money(currency_code="EUR", units=1)), "workload.budget.currency_code"),
        (ask(budget=Money(currency_code="USD", nanos=2_000_000_000)), "workload.budget.nanos"),
        (ask(request_id="with space"), "request_id"),
        (ask(owner="o" * 201), "owner"),
    ],
)
async def test_a_bad_request_names_its_field(
    tmp_path: Path, request_: estimator_pb2.CreateQuoteRequest, field: str
) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("CreateQuote", request_)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert field in [violation.field for violation in error.violations]


async def test_the_largest_workload_that_the_contract_allows_is_quoted(tmp_path: Path) -> None:
    group = quote_pb2.WorkloadGroup(
        id="g", tier="t", model="claude-opus-4-1", count=1_000_000, calls_each=1_000, input_tokens_mean=1e7
    )
    group.input_size_source = quote_pb2.INPUT_SIZE_SOURCE_COUNTED
    limits = quote_pb2.RateLimits(output_tokens_per_minute=0.001)
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(groups=[group], limits=limits, speed_up=0.001))
        assert await served.stub.GetQuote(named(made.name)) == made
    assert made.cost.mean.units > 100_000_000_000
    assert made.time.mean == Duration(seconds=100 * 365 * 86_400)


async def test_a_quote_grows_stale_after_a_day_by_the_estimators_clock(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        served.clock.step(timedelta(hours=24))
        assert not (await served.stub.GetQuote(named(made.name))).stale
        served.clock.step(timedelta(seconds=1))
        found = await served.stub.GetQuote(named(made.name))
    assert (found.stale, found.stale_reason) == (True, "it is older than 24 hours")


async def test_a_quote_grows_stale_with_a_price_of_its_models_and_no_other(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        other = await served.stub.CreateQuote(ask(model="claude-opus-5"))
    rates = PRICES_FILE.read_text("utf-8").replace('"claude-sonnet-5":{"in":2,', '"claude-sonnet-5":{"in":2.01,')
    async with estimator(tmp_path / "e.db", rates=rates) as served:
        found = await served.stub.GetQuote(named(made.name))
        assert found.stale
        assert found.stale_reason.startswith("prices changed")
        assert found.cost == made.cost
        assert not (await served.stub.GetQuote(named(other.name))).stale


async def test_a_quote_grows_stale_when_a_dated_price_takes_effect(tmp_path: Path) -> None:
    rates = PRICES_FILE.read_text("utf-8").replace('"from":"2026-10-07"', '"from":"2026-11-24"')
    async with estimator(tmp_path / "e.db", rates=rates) as served:
        made = await served.stub.CreateQuote(ask(model="claude-sonnet-5-5"))
        served.clock.step(timedelta(hours=11, minutes=59))
        assert not (await served.stub.GetQuote(named(made.name))).stale
        served.clock.step(timedelta(minutes=1))
        assert (await served.stub.GetQuote(named(made.name))).stale


async def test_a_quote_grows_stale_once_observations_moved_its_cost(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(tiers=["template"]))
        as_quoted = [observed(number, output_tokens=3_000) for number in range(4)]
        await served.stub.RecordObservations(record(*as_quoted))
        assert not (await served.stub.GetQuote(named(made.name))).stale
        shorter = [observed(number, batch=f"batches/b00{number % 3}") for number in range(4, 40)]
        await served.stub.RecordObservations(record(*shorter))
        found = await served.stub.GetQuote(named(made.name))
        fresh = await served.stub.CreateQuote(ask(tiers=["template"]))
    assert found.stale_reason.startswith("observed calls moved the expected cost by -")
    assert fresh.basis.source == quote_pb2.Basis.SOURCE_OBSERVATIONS
    assert fresh.basis.observations == 40
    assert money.to_nanos(fresh.cost.mean) < 0.7 * money.to_nanos(made.cost.mean)


async def test_pages_show_every_quote_once_newest_first(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = [(await served.stub.CreateQuote(ask(number))).name for number in range(1, 6)]
        seen: list[str] = []
        token = ""
        for size in (2, 2, 1):
            request = estimator_pb2.ListQuotesRequest(page_size=2, page_token=token)
            page = await served.stub.ListQuotes(request)
            assert len(page.quotes) == size
            assert not any(each.HasField("workload") for each in page.quotes)
            seen += [each.name for each in page.quotes]
            token = page.next_page_token
    assert seen == list(reversed(made))
    assert token == ""


async def test_a_page_judges_each_quote_anew(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.CreateQuote(ask(provider="https://one.example"))
        served.clock.step(timedelta(hours=20))
        await served.stub.CreateQuote(ask(provider="https://other.example"))
        served.clock.step(timedelta(hours=20))
        page = await served.stub.ListQuotes(estimator_pb2.ListQuotesRequest())
    assert [each.stale for each in page.quotes] == [False, True]


@pytest.mark.parametrize("token", ["x", "%%%%", "AAAAAAAAAAE=", "AAAAAAAAAAEAAAAAAAAAAA=="])
async def test_a_page_token_that_is_none_is_refused(tmp_path: Path, token: str) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("ListQuotes", estimator_pb2.ListQuotesRequest(page_token=token))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOKEN_STALE")


async def test_a_page_token_of_another_filter_is_refused(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        for _ in range(2):
            await served.stub.CreateQuote(ask(owner="ann"))
        page = await served.stub.ListQuotes(estimator_pb2.ListQuotesRequest(page_size=1, owner="ann"))
        request = estimator_pb2.ListQuotesRequest(page_size=1, owner="ben", page_token=page.next_page_token)
        error = await served.refused("ListQuotes", request)
    assert error.reason == "TOKEN_STALE"


async def test_each_caller_sees_their_own_quotes_and_a_trusted_one_all(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    secrets = {name: name * 8 for name in ("anna", "bert", "serv")}
    tokens.write_text(
        f"{secrets['anna']} anna\n{secrets['bert']} bert\n{secrets['serv']} service act-for-others\n", "utf-8"
    )
    tokens.chmod(0o600)
    everything = estimator_pb2.ListQuotesRequest()
    async with estimator(tmp_path / "e.db", tokens_file=tokens, token=secrets["anna"]) as anna:
        made = await anna.stub.CreateQuote(ask(request_id="r1"))
        assert made.owner == "anna"
        async with as_caller(anna.address, token=secrets["bert"]) as bert:
            # A request_id is its caller's own.
            assert (await bert.stub.CreateQuote(ask(request_id="r1"))).name != made.name
            assert (await bert.refused("GetQuote", named(made.name))).reason == "QUOTE_NOT_FOUND"
            assert (await bert.refused("CreateQuote", ask(owner="anna"))).reason == "OWNER_FORBIDDEN"
            by_anna = estimator_pb2.ListQuotesRequest(owner="anna")
            assert (await bert.refused("ListQuotes", by_anna)).reason == "OWNER_FORBIDDEN"
            assert [each.owner for each in (await bert.stub.ListQuotes(everything)).quotes] == ["bert"]
        async with as_caller(anna.address, token=secrets["serv"]) as service:
            await service.stub.CreateQuote(ask(owner="anna"))
            owners = [each.owner for each in (await service.stub.ListQuotes(everything)).quotes]
            assert owners == ["anna", "bert", "anna"]
        assert len((await anna.stub.ListQuotes(everything)).quotes) == 2


async def test_a_second_estimator_on_another_clock_judges_by_its_own(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
    later = SteppedClock()
    later.step(timedelta(days=2))
    async with estimator(tmp_path / "e.db", clock=later) as served:
        assert (await served.stub.GetQuote(named(made.name))).stale
