"""Prices by date, and the file that they come from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from estimator_service.config import PRICES_FILE
from estimator_service.domain.errors import ModelUnknown
from estimator_service.domain.rate_file import RateFileError, parse_rates
from estimator_service.domain.rates import RateTable, version

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PRICES: dict[str, Any] = {"in": 2, "out": 10, "w5m": 2.5, "w1h": 4, "read": 0.2}


def built_in() -> RateTable:
    return parse_rates(PRICES_FILE.read_text("utf-8"))


def table(**entry: Any) -> RateTable:
    return parse_rates(text(models={"m": PRICES | entry}))


def text(**changes: Any) -> str:
    return json.dumps(
        {"unit": "USD per million tokens", "as_of": "2026-11-10", "models": {"m": PRICES}} | changes,
    )


def test_the_built_in_table_has_its_date_and_prices_in_nano_dollars() -> None:
    rates = built_in()
    assert rates.as_of == datetime(2026, 11, 10, tzinfo=UTC)
    prices = rates.rate("claude-haiku-5-5", time=NOW).prices
    assert (prices.input, prices.output) == (100_000_000, 500_000_000)
    assert (prices.cache_write_5m, prices.cache_write_1h, prices.cache_read) == (125_000_000, 200_000_000, 10_000_000)


def test_a_price_change_holds_from_its_date_on() -> None:
    def read_price(day: str) -> int:
        time = datetime.fromisoformat(f"{day}T00:00:00+00:00")
        return built_in().rate("claude-sonnet-5-5", time=time).prices.cache_read

    assert read_price("2026-10-06") == 200_000_000
    assert read_price("2026-10-07") == 100_000_000
    assert built_in().rate("claude-sonnet-5-5", time=NOW).effective_time == datetime(2026, 10, 7, tzinfo=UTC)


def test_a_change_keeps_the_prices_that_it_does_not_name() -> None:
    changed = table(effective=[{"from": "2026-01-01", "in": 3}, {"from": "2026-02-01", "out": 20}])
    prices = changed.rate("m", time=NOW).prices
    assert (prices.input, prices.output) == (3_000_000_000, 20_000_000_000)


def test_a_model_without_changes_was_always_priced_so() -> None:
    rate = table().rate("m", time=datetime(2020, 1, 1, tzinfo=UTC))
    assert rate.known
    assert rate.effective_time is None


def test_a_model_that_the_table_lacks_has_no_price() -> None:
    rate = built_in().rate("llama-3", time=NOW)
    assert (rate.known, rate.free) == (False, False)


def test_a_model_of_price_0_is_free() -> None:
    free = dict.fromkeys(PRICES, 0)
    assert table(**free).rate("m", time=NOW).free
    assert table(**free, over_100k_prompt=free).rate("m", time=NOW).free
    assert not table(**free, over_100k_prompt=PRICES).rate("m", time=NOW).free
    assert not table().rate("m", time=NOW).free


def test_long_prompts_have_their_own_prices_above_the_threshold() -> None:
    rate = built_in().rate("claude-haiku-5-5", time=NOW)
    assert rate.prices_for(100_000).input == 100_000_000
    assert rate.prices_for(100_001).input == 500_000_000
    assert table().rate("m", time=NOW).prices_for(1_000_000).input == 2_000_000_000


def test_tokens_cost_what_their_prices_say_to_the_nano_dollar() -> None:
    prices = built_in().rate("claude-sonnet-5", time=NOW).prices
    cost = prices.cost_nanos(input=1_000, output=100, cache_write_5m=10, cache_write_1h=10, cache_read=100)
    assert cost == 1_000 * 2_000 + 100 * 10_000 + 10 * 2_500 + 10 * 4_000 + 100 * 200


def test_retirement_is_read_from_the_table() -> None:
    assert built_in().rate("claude-sonnet-4-5", time=NOW).retire_time == datetime(2026, 11, 30, tzinfo=UTC)
    assert built_in().rate("claude-opus-4-1", time=NOW).retired


def test_the_version_is_twelve_hex_digits_and_the_same_for_any_order() -> None:
    rates = built_in().rates(["claude-sonnet-5", "claude-opus-5"], time=NOW)
    assert version(rates) == version(tuple(reversed(rates)))
    assert len(version(rates)) == 12
    assert set(version(rates)) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "entry",
    [{"in": 2.1}, {"read": 0.21}, {"effective": [{"from": "2026-01-01", "w1h": 5}]}, {"over_100k_prompt": PRICES}],
)
def test_every_price_changes_the_version(entry: dict[str, Any]) -> None:
    assert version(table(**entry).rates(["m"], time=NOW)) != version(table().rates(["m"], time=NOW))


def test_a_change_in_the_future_leaves_the_version() -> None:
    later = table(effective=[{"from": "2027-01-01", "in": 9}])
    assert version(later.rates(["m"], time=NOW)) == version(table().rates(["m"], time=NOW))


def test_a_model_that_gets_a_price_changes_the_version_even_if_it_is_free() -> None:
    free = dict.fromkeys(PRICES, 0)
    assert version(table(**free).rates(["m"], time=NOW)) != version(table().rates(["unknown"], time=NOW))


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        ("{", "line 1, column 2"),
        ("[" * 100_000, "can't be read"),
        (text().replace("2.5", "1" * 5_000), "can't be read"),
        ("[]", "the file: must be an object"),
        (text(unit="EUR"), "unit: must be 'USD per million tokens'"),
        (text(as_of="soon"), "as_of: 'soon' is not a date"),
        (text(as_of=None), "as_of: None is not a date"),
        (text(models={}), "models: has 0 models"),
        (text(models=[]), "models: must be an object"),
        (text(extra=1), "the file: 'extra' is not known"),
        (text(models={"m": 1}), "models.m: must be an object"),
        (text(models={"m": {"in": 1}}), "models.m.out: must be USD per million tokens"),
        (text(models={"m": PRICES | {"in": -1}}), "models.m.in: must be USD per million tokens"),
        (text(models={"m": PRICES | {"in": True}}), "models.m.in: must be USD per million tokens"),
        (text(models={"m": PRICES | {"in": "2"}}), "models.m.in: must be USD per million tokens"),
        (text(models={"m": PRICES | {"in": float("nan")}}), "NaN is not a price"),
        (text(models={"m": PRICES | {"cache_read": 1}}), "models.m: 'cache_read' is not known"),
        (text(models={"m": PRICES | {"retires": "2026-13-01"}}), "models.m.retires: '2026-13-01' is not a date"),
        (text(models={"m": PRICES | {"retired_first_party": "yes"}}), "models.m.retired_first_party: 'yes' is not"),
        (text(models={"m": PRICES | {"effective": 1}}), "models.m.effective: must be a list"),
        (text(models={"m": PRICES | {"effective": [{"in": 1}]}}), "models.m.effective[0].from: None is not a date"),
        (
            text(models={"m": PRICES | {"effective": [{"from": "2026-01-01", "note": 1}]}}),
            "models.m.effective[0]: 'note'",
        ),
        (text(models={"": PRICES}), "models.: a model's id has 1 to 200 characters"),
        (text(models={"m" * 201: PRICES}), "models.mmm"),
        (text(models={"m": PRICES | {"until": "soon"}}), "models.m.until: 'soon' is not a date"),
        (text(models={"m": PRICES | {"until": None}}), "models.m.until: None is not a date"),
        (text(models={"m": PRICES | {"over_100k_prompt": {"in": 1}}}), "models.m.over_100k_prompt.out: must be"),
        (text().replace('"in": 2', '"in": 2, "in": 3'), "in: is there twice"),
    ],
)
def test_a_broken_rate_file_names_the_place(broken: str, place: str) -> None:
    with pytest.raises(RateFileError) as failure:
        parse_rates(broken)
    assert str(failure.value).startswith(place)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (
            {"effective": [{"from": "2026-02-01"}, {"from": "2026-01-01"}]},
            "models.m.effective[1]: begins 2026-01-01, which must be later than 2026-02-01 of models.m.effective[0]",
        ),
        (
            {"effective": [{"from": "2026-02-01"}, {"from": "2026-02-01", "in": 3}]},
            "models.m.effective[1]: begins 2026-02-01 as models.m.effective[0] does: "
            "both prices would hold from then on",
        ),
        (
            {"until": "2026-03-01", "effective": [{"from": "2026-03-05"}]},
            "models.m.effective[0]: begins 2026-03-05 but the prices before it end 2026-03-01: "
            "nobody says what holds in between",
        ),
        (
            {"until": "2026-03-06", "effective": [{"from": "2026-03-05"}]},
            "models.m.effective[0]: begins 2026-03-05 but the prices before it end only 2026-03-06: "
            "both would hold in between",
        ),
        (
            {"effective": [{"from": "2026-01-01", "until": "2026-03-01"}, {"from": "2026-03-05"}]},
            "models.m.effective[1]: begins 2026-03-05 but the prices before it end 2026-03-01: "
            "nobody says what holds in between",
        ),
        (
            {"effective": [{"from": "2026-01-01", "until": "2026-03-10"}, {"from": "2026-03-05"}]},
            "models.m.effective[1]: begins 2026-03-05 but the prices before it end only 2026-03-10: "
            "both would hold in between",
        ),
        (
            {"effective": [{"from": "2026-03-05", "until": "2026-03-05"}]},
            "models.m.effective[0]: ends 2026-03-05, which is not after 2026-03-05 when it begins",
        ),
    ],
)
def test_dates_with_a_hole_or_an_overlap_are_refused_with_both_dates(entry: dict[str, Any], fault: str) -> None:
    with pytest.raises(RateFileError) as failure:
        table(**entry)
    assert str(failure.value) == fault


def test_prices_that_join_hold_one_after_the_other_until_the_last_one_ends() -> None:
    joined = table(
        until="2026-02-01",
        effective=[
            {"from": "2026-02-01", "until": "2026-03-01", "in": 3},
            {"from": "2026-03-01", "until": "2026-04-01"},
        ],
    )

    def price(day: str) -> int | None:
        rate = joined.rate("m", time=datetime.fromisoformat(f"{day}T00:00:00+00:00"))
        return rate.prices.input // 1_000_000_000 if rate.known else None

    days = ("2020-01-01", "2026-01-31", "2026-02-01", "2026-03-01", "2026-03-31", "2026-04-01")
    assert [price(day) for day in days] == [2, 2, 3, 3, 3, None]


def test_prices_that_end_make_old_quotes_another_version() -> None:
    ended = table(until="2026-11-01")
    before = ended.rates(["m"], time=datetime(2026, 10, 31, tzinfo=UTC))
    assert version(before) == version(table().rates(["m"], time=NOW))
    assert version(ended.rates(["m"], time=NOW)) != version(before)


def test_a_known_model_is_let_through() -> None:
    built_in().require(["claude-sonnet-5", "claude-opus-5"], time=NOW)


def test_an_unknown_model_names_its_field_the_nearest_the_known_ones_and_how_to_add_it() -> None:
    with pytest.raises(ModelUnknown) as failure:
        built_in().require(["claude-opus-5", "claude-sonet-5", "llama-3"], time=NOW)
    error = failure.value
    assert error.reason == "MODEL_UNKNOWN"
    assert [(each.field, each.message) for each in error.violations] == [
        ("workload.groups[1].model", "'claude-sonet-5' is not in the rate table"),
        ("workload.groups[2].model", "'llama-3' is not in the rate table"),
    ]
    assert error.message.startswith("workload.groups[1].model: 'claude-sonet-5' is not in the rate table. ")
    assert "Did you mean claude-sonnet-5? Known are claude-fable-5, claude-fable-5-1, " in error.message
    entry = '"claude-sonet-5": {"in": 0, "out": 0, "w5m": 0, "w1h": 0, "read": 0}'
    assert entry in error.message
    assert error.message.endswith("and name the copy in PARLEY_RATES_FILE.")


def test_a_model_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(ModelUnknown) as failure:
        table().require(["zephyr"], time=NOW, groups="remaining.groups")
    assert failure.value.message.startswith(
        "remaining.groups[0].model: 'zephyr' is not in the rate table. Known are m."
    )


def test_thirty_known_models_are_named_and_the_rest_counted() -> None:
    many = parse_rates(text(models={f"m{number:03}": PRICES for number in range(45)}))
    with pytest.raises(ModelUnknown) as failure:
        many.require(["zephyr"], time=NOW)
    assert "m028, m029 and 15 more." in failure.value.message
    assert "m030" not in failure.value.message


def test_a_model_whose_prices_ended_is_refused_with_the_day_and_is_not_among_the_known() -> None:
    ended = table(until="2026-11-01")
    with pytest.raises(ModelUnknown) as failure:
        ended.require(["m"], time=NOW)
    assert failure.value.message.startswith(
        "workload.groups[0].model: the prices of 'm' ended on 2026-11-01. Known are none."
    )
    ended.require(["m"], time=datetime(2026, 10, 31, tzinfo=UTC))


def test_the_table_of_the_original_design_has_its_prices() -> None:
    text = PRICES_FILE.with_name("original-design.json").read_text("utf-8")
    prices = parse_rates(text).rate("original-design", time=NOW).prices
    assert (prices.input, prices.output) == (15_000_000_000, 75_000_000_000)
    assert (prices.cache_write_5m, prices.cache_write_1h, prices.cache_read) == (
        18_750_000_000,
        30_000_000_000,
        1_500_000_000,
    )


def test_no_price_of_the_built_in_table_ends() -> None:
    assert [model for model, prices in built_in().models.items() if prices.end_time] == []
