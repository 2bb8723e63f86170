"""Money: exact both ways, and as people read it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from google.type import money_pb2
from hypothesis import given
from hypothesis import strategies as st
from parley import money

NANOS = st.integers(min_value=-(10**18), max_value=10**18)


@given(NANOS)
def test_nanos_survive_the_way_there_and_back(nanos: int) -> None:
    assert money.to_nanos(money.from_nanos(nanos)) == nanos


@given(NANOS)
def test_units_and_nanos_have_one_sign(nanos: int) -> None:
    made = money.from_nanos(nanos)
    assert made.units * made.nanos >= 0
    assert abs(made.nanos) < 10**9


@given(NANOS)
def test_decimals_survive_the_way_there_and_back(nanos: int) -> None:
    assert money.to_nanos(money.from_decimal(money.to_decimal(money.from_nanos(nanos)))) == nanos


@pytest.mark.parametrize(
    ("dollars", "shown"),
    [
        ("0", "$0.00"),
        ("0.00000001", "<$0.0001"),
        ("0.0123", "$0.0123"),
        ("0.09996", "$0.1000"),
        ("0.26", "$0.26"),
        ("12.345", "$12.34"),
        ("1234.5", "$1,234.50"),
        ("-3.2", "-$3.20"),
        ("-0.012", "-$0.0120"),
    ],
)
def test_money_is_shown_as_people_write_it(dollars: str, shown: str) -> None:
    assert money.show(money.from_decimal(Decimal(dollars))) == shown


@pytest.mark.parametrize(
    ("nanos", "shown"),
    [
        ([130_000_000, -50_000_000, 0], ["+$0.1300", "-$0.0500", "$0.0000"]),
        ([1_300_000_000, -50_000_000], ["+$1.30", "-$0.0500"]),
        ([-250_000_000, 0], ["-$0.25", "$0.00"]),
    ],
)
def test_differences_below_one_another_have_signs_and_the_same_places(nanos: list[int], shown: list[str]) -> None:
    assert money.show_changes(nanos) == shown


@pytest.mark.parametrize("text", ["5", "5.00", "$5", " $5.0 "])
def test_people_write_five_dollars_in_many_ways(text: str) -> None:
    assert money.parse(text) == money_pb2.Money(currency_code="USD", units=5)


def test_thousands_may_have_commas() -> None:
    assert money.to_decimal(money.parse("$1,234.50")) == Decimal("1234.5")


@pytest.mark.parametrize("text", ["", "five", "-1", "nan", "inf", "5 EUR", "1e30"])
def test_what_is_no_amount_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount"):
        money.parse(text)


@pytest.mark.parametrize(
    ("dollars", "enough"), [("5.0312", "5.04"), ("5.04", "5.04"), ("0.000000001", "0.01"), ("0", "0.00"), ("6", "6.00")]
)
def test_an_amount_that_allows_something_is_never_rounded_down(dollars: str, enough: str) -> None:
    assert str(money.enough(money.from_decimal(Decimal(dollars)))) == enough


def test_amounts_below_one_another_are_equally_fine() -> None:
    assert money.show_column([170_000_000, 12_300_000, 0]) == ["$0.1700", "$0.0123", "$0.0000"]
    assert money.show_column([3_280_000_000, 170_000_000]) == ["$3.28", "$0.17"]
