"""Prices by date, and the file that they come from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from estimator_service.config import PRICES_FILE
from estimator_service.domain.rate_file import RateFileError, parse_rates
from estimator_service.domain.rates import FREE, RateTable, version

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


def test_an_unknown_model_is_free_and_says_so() -> None:
    rate = built_in().rate("llama-3", time=NOW)
    assert not rate.known
    assert rate.prices == FREE


def test_long_prompts_have_their_own_prices_above_the_threshold() -> None:
    rate = built_in().rate("claude-haiku-5-5", time=NOW)
    assert rate.prices_for(100_000).input == 100_000_000
    assert rate.prices_for(100_001).input == 500_000_000
    assert table().rate("m", time=NOW).prices_for(1_000_000).input == 2_000_000_000


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
        (
            text(models={"m": PRICES | {"effective": [{"from": "2026-02-01"}, {"from": "2026-01-01"}]}}),
            "models.m.effective[1].from: must be later",
        ),
        (text(models={"m": PRICES | {"over_100k_prompt": {"in": 1}}}), "models.m.over_100k_prompt.out: must be"),
        (text().replace('"in": 2', '"in": 2, "in": 3'), "in: is there twice"),
    ],
)
def test_a_broken_rate_file_names_the_place(broken: str, place: str) -> None:
    with pytest.raises(RateFileError) as failure:
        parse_rates(broken)
    assert str(failure.value).startswith(place)
