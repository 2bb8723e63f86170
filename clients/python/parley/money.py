"""Money: google.type.Money, whole nano-dollars and Decimal into each other, and as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal, InvalidOperation

from google.type import money_pb2

NANOS_PER_DOLLAR = 1_000_000_000
# Below this a cent is too coarse to tell two calls apart.
CENTS_TOO_COARSE_NANOS = 100_000_000
SHOWN_MIN_NANOS = 100_000
_NANO = Decimal(1).scaleb(-9)
_CENT = Decimal(1).scaleb(-2)
_UNITS_MAX = 9_000_000_000


def to_nanos(money: money_pb2.Money) -> int:
    """Whole nano-dollars; an absent money is 0."""
    return money.units * NANOS_PER_DOLLAR + money.nanos


def to_decimal(money: money_pb2.Money) -> Decimal:
    """Dollars, exact."""
    return Decimal(to_nanos(money)).scaleb(-9)


def from_nanos(nanos: int) -> money_pb2.Money:
    """Money in USD. Units and nanos carry the same sign, as google.type.Money wants it."""
    units, rest = divmod(abs(nanos), NANOS_PER_DOLLAR)
    sign = -1 if nanos < 0 else 1
    return money_pb2.Money(currency_code="USD", units=sign * units, nanos=sign * rest)


def from_decimal(dollars: Decimal) -> money_pb2.Money:
    """Money in USD from dollars, rounded half-even to a nano-dollar."""
    return from_nanos(int(dollars.quantize(_NANO, rounding=ROUND_HALF_EVEN).scaleb(9)))


def parse(text: str) -> money_pb2.Money:
    """Money from what a person writes: 5, 5.00, $5, $1,234.50. Raises ValueError with one sentence."""
    bare = text.strip().removeprefix("$").replace(",", "")
    try:
        dollars = Decimal(bare)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount of US dollars, such as 5.00 or $5") from None
    if not dollars.is_finite() or dollars < 0 or dollars > _UNITS_MAX:
        raise ValueError(f"{text!r} is not an amount from $0 to ${_UNITS_MAX:,}")
    return from_decimal(dollars)


def enough(money: money_pb2.Money) -> Decimal:
    """Dollars in whole cents, never less than `money`: what a person types to allow it."""
    return to_decimal(money).quantize(_CENT, rounding=ROUND_CEILING)


def show(money: money_pb2.Money) -> str:
    """$0.0123 below ten cents, $12.34 and $1,234.50 above; never so rounded that something becomes nothing."""
    return show_nanos(to_nanos(money))


def show_column(column: Sequence[int]) -> list[str]:
    """Amounts in nanos that stand below one another: all with cents, or all finer where one needs it."""
    fine = any(0 < abs(nanos) < CENTS_TOO_COARSE_NANOS for nanos in column)
    if not fine or any(abs(nanos) >= NANOS_PER_DOLLAR for nanos in column):
        return [show_nanos(nanos) for nanos in column]
    return [f"${Decimal(nanos).scaleb(-9):,.4f}" for nanos in column]


def show_nanos(nanos: int) -> str:
    sign, size = ("-" if nanos < 0 else ""), abs(nanos)
    if 0 < size < SHOWN_MIN_NANOS:
        return f"{sign}<$0.0001"
    places = 4 if 0 < size < CENTS_TOO_COARSE_NANOS else 2
    return f"{sign}${Decimal(size).scaleb(-9):,.{places}f}"


def show_change(nanos: int) -> str:
    """+$0.13, -$0.13, $0.00: a difference, with its sign."""
    return show_changes([nanos])[0]


def show_changes(column: Sequence[int]) -> list[str]:
    """Differences that stand below one another, each with its sign."""
    sizes = show_column([abs(nanos) for nanos in column])
    return [f"{_sign(nanos)}{size}" for nanos, size in zip(column, sizes, strict=True)]


def _sign(nanos: int) -> str:
    return "+" if nanos > 0 else "-" if nanos < 0 else ""
