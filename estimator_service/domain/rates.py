"""Prices of models by date, in whole nano-dollars per million tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime

VERSION_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Nano-dollars per million tokens."""

    input: int = 0
    output: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0


FREE = Prices()


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPrompt:
    """The prices of calls whose prompt has more tokens than the threshold."""

    threshold_tokens: int
    prices: Prices


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The prices of one model at one time. A model that the table does not have is free and not `known`."""

    model: str
    prices: Prices = FREE
    long_prompt: LongPrompt | None = None
    # The last change of price before the time asked for; None where there was none.
    effective_time: datetime | None = None
    retire_time: datetime | None = None
    # Taken away already, on a date that the table does not say.
    retired: bool = False
    known: bool = True

    def prices_for(self, prompt_tokens: float) -> Prices:
        if self.long_prompt and prompt_tokens > self.long_prompt.threshold_tokens:
            return self.long_prompt.prices
        return self.prices


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From `since` on, these prices hold."""

    since: datetime
    prices: Prices


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """One model of the table: its first prices and every change since, ascending by date."""

    model: str
    first: Prices
    changes: tuple[Change, ...] = ()
    long_prompt: LongPrompt | None = None
    retire_time: datetime | None = None
    retired: bool = False

    def at(self, time: datetime) -> Rate:
        changes = [change for change in self.changes if change.since <= time]
        return Rate(
            model=self.model,
            prices=changes[-1].prices if changes else self.first,
            long_prompt=self.long_prompt,
            effective_time=changes[-1].since if changes else None,
            retire_time=self.retire_time,
            retired=self.retired,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTable:
    as_of: datetime
    models: Mapping[str, ModelPrices]

    def rate(self, model: str, *, time: datetime) -> Rate:
        prices = self.models.get(model)
        return prices.at(time) if prices else Rate(model=model, known=False)

    def rates(self, models: Iterable[str], *, time: datetime) -> tuple[Rate, ...]:
        return tuple(self.rate(model, time=time) for model in models)


def version(rates: Iterable[Rate]) -> str:
    """The start of the sha256 over the prices, in the order of the models' names; dates and notes do not count."""
    canonical = sorted((rate.model, rate.known, astuple(rate.prices), _long_prompt(rate)) for rate in rates)
    return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:VERSION_LENGTH]


def _long_prompt(rate: Rate) -> tuple[int, ...]:
    return (rate.long_prompt.threshold_tokens, *astuple(rate.long_prompt.prices)) if rate.long_prompt else ()
