"""The text of a rate file -> RateTable, or one sentence that names the place of the fault."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, NoReturn, cast

from estimator_service.domain.rates import Change, LongPrompt, ModelPrices, Prices, RateTable

UNIT = "USD per million tokens"
LONG_PROMPT_KEY = "over_100k_prompt"
LONG_PROMPT_THRESHOLD_TOKENS = 100_000
MODELS_MAX = 2_000
# As long as the contract lets a model's id be.
MODEL_NAME_MAX = 200
USD_PER_MTOK_MAX = 10_000
NANOS_PER_DOLLAR = 1_000_000_000

# The file's word for each price -> ours.
PRICE_KEYS = {"in": "input", "out": "output", "w5m": "cache_write_5m", "w1h": "cache_write_1h", "read": "cache_read"}
TABLE_KEYS = {"unit", "as_of", "batch_multiplier", "us_geo_multiplier", "models"}
MODEL_KEYS = {
    *PRICE_KEYS,
    "until",
    "effective",
    "retires",
    "retired_first_party",
    LONG_PROMPT_KEY,
    "fast_multiplier",
    "note",
}
CHANGE_KEYS = {*PRICE_KEYS, "from", "until"}


class RateFileError(Exception):
    """The rate file can't be used; the text says where and why."""


def parse_rates(text: str) -> RateTable:
    """Shape: {unit, as_of, models: {id: {in, out, w5m, w1h, read, until, effective: [{from, until, ...}], ...}}}.

    Prices are USD per million tokens. The prices beside the model are its first ones; each entry of `effective`
    replaces those that it names from its date on (00:00 UTC). `until` is the first day on which prices no longer
    hold: it must be the `from` of the next ones, and the last one ends the model's prices. Without it they hold until
    the next ones begin. `over_100k_prompt` holds above 100,000 prompt tokens.
    """
    table = _object(_decoded(text), "the file")
    _refuse_unknown(table, TABLE_KEYS, "the file")
    if table.get("unit") != UNIT:
        raise RateFileError(f"unit: must be {UNIT!r}, is {table.get('unit')!r}")
    models = _object(table.get("models"), "models")
    if not 0 < len(models) <= MODELS_MAX:
        raise RateFileError(f"models: has {len(models)} models, must have 1 to {MODELS_MAX}")
    return RateTable(
        as_of=_day(table.get("as_of"), "as_of"),
        models={model: _model(model, _object(entry, f"models.{model}")) for model, entry in models.items()},
    )


def _decoded(text: str) -> object:
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_no_twice)
    except json.JSONDecodeError as error:
        raise RateFileError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        # Nested too deeply, or a number of thousands of digits.
        raise RateFileError(f"can't be read: {error}") from None


def _no_constant(word: str) -> NoReturn:
    raise RateFileError(f"{word} is not a price")


def _no_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise RateFileError(f"{next(name for name in names if names.count(name) > 1)}: is there twice")
    return entries


def _model(model: str, entry: Mapping[str, object]) -> ModelPrices:
    place = f"models.{model}"
    if not 0 < len(model) <= MODEL_NAME_MAX:
        raise RateFileError(f"{place[:MODEL_NAME_MAX]}: a model's id has 1 to {MODEL_NAME_MAX} characters")
    _refuse_unknown(entry, MODEL_KEYS, place)
    periods = _periods(entry, place)
    long_prompt = entry.get(LONG_PROMPT_KEY)
    retires = entry.get("retires")
    retired = entry.get("retired_first_party", False)
    if not isinstance(retired, bool):
        raise RateFileError(f"{place}.retired_first_party: {retired!r} is not true or false")
    return ModelPrices(
        model=model,
        first=periods[0].prices,
        changes=tuple(Change(since=each.since, prices=each.prices) for each in periods if each.since),
        end_time=periods[-1].until,
        long_prompt=None if long_prompt is None else _long_prompt(long_prompt, f"{place}.{LONG_PROMPT_KEY}"),
        retire_time=None if retires is None else _day(retires, f"{place}.retires"),
        retired=retired,
    )


def _long_prompt(value: object, place: str) -> LongPrompt:
    entry = _object(value, place)
    _refuse_unknown(entry, set(PRICE_KEYS), place)
    return LongPrompt(threshold_tokens=LONG_PROMPT_THRESHOLD_TOKENS, prices=_prices(entry, place))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Period:
    place: str
    prices: Prices
    # None: ever since.
    since: datetime | None
    # Exclusive; None: until the next ones begin.
    until: datetime | None


def _periods(entry: Mapping[str, object], place: str) -> list[_Period]:
    """The first prices and every change, each joined to the one before it."""
    changes = entry.get("effective", [])
    if not isinstance(changes, list):
        raise RateFileError(f"{place}.effective: must be a list of dated changes")
    until = _optional_day(entry, "until", place)
    periods = [_Period(place=place, prices=_prices(entry, place), since=None, until=until)]
    for at, item in enumerate(cast("list[object]", changes)):
        change = _change(_object(item, f"{place}.effective[{at}]"), f"{place}.effective[{at}]", before=periods[-1])
        _refuse_gap(periods[-1], change)
        periods.append(change)
    return periods


def _change(entry: Mapping[str, object], place: str, *, before: _Period) -> _Period:
    _refuse_unknown(entry, CHANGE_KEYS, place)
    since = _day(entry.get("from"), f"{place}.from")
    until = _optional_day(entry, "until", place)
    if until and until <= since:
        raise RateFileError(f"{place}: ends {until:%Y-%m-%d}, which is not after {since:%Y-%m-%d} when it begins")
    return _Period(place=place, prices=_prices(entry, place, base=before.prices), since=since, until=until)


def _refuse_gap(before: _Period, change: _Period) -> None:
    """A hole or an overlap between neighbours; without `until` the earlier one ends where the later begins."""
    assert change.since is not None, "only a model's first prices have no beginning"
    begins = f"{change.place}: begins {change.since:%Y-%m-%d}"
    if before.since and change.since < before.since:
        raise RateFileError(f"{begins}, which must be later than {before.since:%Y-%m-%d} of {before.place}")
    if before.since == change.since:
        raise RateFileError(f"{begins} as {before.place} does: both prices would hold from then on")
    if before.until and before.until < change.since:
        raise RateFileError(
            f"{begins} but the prices before it end {before.until:%Y-%m-%d}: nobody says what holds in between"
        )
    if before.until and before.until > change.since:
        raise RateFileError(
            f"{begins} but the prices before it end only {before.until:%Y-%m-%d}: both would hold in between"
        )


def _prices(entry: Mapping[str, object], place: str, *, base: Prices | None = None) -> Prices:
    """All five prices; those that are missing are `base`'s, and an error where there is none."""
    nanos: dict[str, int] = {}
    for key, name in PRICE_KEYS.items():
        if key in entry or base is None:
            nanos[name] = _nanos(entry.get(key), f"{place}.{key}")
        else:
            nanos[name] = getattr(base, name)
    return Prices(**nanos)


def _nanos(value: object, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= USD_PER_MTOK_MAX:
        raise RateFileError(f"{place}: must be USD per million tokens from 0 to {USD_PER_MTOK_MAX}, is {value}")
    return round(value * NANOS_PER_DOLLAR)


def _day(value: object, place: str) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(cast("str", value)), time(), UTC)
    except (TypeError, ValueError):
        raise RateFileError(f"{place}: {value!r} is not a date such as 2026-11-10") from None


def _optional_day(entry: Mapping[str, object], key: str, place: str) -> datetime | None:
    return _day(entry[key], f"{place}.{key}") if key in entry else None


def _object(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise RateFileError(f"{place}: must be an object")
    return cast("dict[str, Any]", value)


def _refuse_unknown(entry: Mapping[str, object], known: set[str], place: str) -> None:
    unknown = sorted(entry.keys() - known)
    if unknown:
        raise RateFileError(f"{place}: {unknown[0]!r} is not known; known are {', '.join(sorted(known))}")
