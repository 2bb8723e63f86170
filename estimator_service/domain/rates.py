"""Prices of models by date, in whole nano-dollars per million tokens."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

from estimator_service.domain.errors import ModelUnknown

VERSION_LENGTH = 12
# A message names no more of the known models.
MODELS_NAMED_MAX = 30
TOKENS_PER_MTOK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Nano-dollars per million tokens."""

    input: int = 0
    output: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0

    def cost_nanos(
        self, *, input: int, output: int, cache_write_5m: int = 0, cache_write_1h: int = 0, cache_read: int = 0
    ) -> int:
        """Of so many tokens, to the nano-dollar."""
        paid = input * self.input + output * self.output + cache_read * self.cache_read
        paid += cache_write_5m * self.cache_write_5m + cache_write_1h * self.cache_write_1h
        return round(paid / TOKENS_PER_MTOK)


FREE = Prices()


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPrompt:
    """The prices of calls whose prompt has more tokens than the threshold."""

    threshold_tokens: int
    prices: Prices


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The prices of one model at one time; not `known` where the table has none for that time.

    Such a rate only serves to judge old quotes: `RateTable.require` lets no new one be made of it.
    """

    model: str
    prices: Prices = FREE
    long_prompt: LongPrompt | None = None
    # The last change of price before the time asked for; None where there was none.
    effective_time: datetime | None = None
    retire_time: datetime | None = None
    # Taken away already, on a date that the table does not say.
    retired: bool = False
    known: bool = True

    @property
    def free(self) -> bool:
        """Known to cost nothing: a local model."""
        return self.known and self.prices == FREE and (self.long_prompt is None or self.long_prompt.prices == FREE)

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
    """One model of the table: its first prices and every change since, ascending by date, without a hole."""

    model: str
    first: Prices
    changes: tuple[Change, ...] = ()
    # From then on the table says nothing of its price; None where its last prices hold on.
    end_time: datetime | None = None
    long_prompt: LongPrompt | None = None
    retire_time: datetime | None = None
    retired: bool = False

    def at(self, time: datetime) -> Rate:
        if self.ended(time):
            return Rate(model=self.model, known=False)
        changes = [change for change in self.changes if change.since <= time]
        return Rate(
            model=self.model,
            prices=changes[-1].prices if changes else self.first,
            long_prompt=self.long_prompt,
            effective_time=changes[-1].since if changes else None,
            retire_time=self.retire_time,
            retired=self.retired,
        )

    def ended(self, time: datetime) -> bool:
        return self.end_time is not None and self.end_time <= time


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTable:
    as_of: datetime
    models: Mapping[str, ModelPrices]

    def rate(self, model: str, *, time: datetime) -> Rate:
        prices = self.models.get(model)
        return prices.at(time) if prices else Rate(model=model, known=False)

    def rates(self, models: Iterable[str], *, time: datetime) -> tuple[Rate, ...]:
        return tuple(self.rate(model, time=time) for model in models)

    def require(self, models: Sequence[str], *, time: datetime, groups: str = "workload.groups") -> None:
        """Raises ModelUnknown unless the table has a price for each; `models` are those of the groups, in order."""
        fields = {f"{groups}[{at}].model": model for at, model in enumerate(models)}
        unpriced = {field: model for field, model in fields.items() if not self.rate(model, time=time).known}
        if unpriced:
            model = next(iter(unpriced.values()))
            why = {field: self._why_unpriced(each) for field, each in unpriced.items()}
            raise ModelUnknown(model, fields=why, hint=f"{self._known(model, time)} {_how_to_add(model)}")

    def _why_unpriced(self, model: str) -> str:
        prices = self.models.get(model)
        if prices and prices.end_time:
            return f"the prices of {model!r} ended on {prices.end_time:%Y-%m-%d}"
        return f"{model!r} is not in the rate table"

    def _known(self, model: str, time: datetime) -> str:
        known = sorted(each for each, prices in self.models.items() if not prices.ended(time))
        nearest = difflib.get_close_matches(model, known, n=1)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        more = f" and {len(known) - MODELS_NAMED_MAX} more" if len(known) > MODELS_NAMED_MAX else ""
        return f"{meant}Known are {', '.join(known[:MODELS_NAMED_MAX]) or 'none'}{more}."


def version(rates: Iterable[Rate]) -> str:
    """The start of the sha256 over the prices, in the order of the models' names; dates and notes do not count."""
    canonical = sorted((rate.model, rate.known, astuple(rate.prices), _long_prompt(rate)) for rate in rates)
    return hashlib.sha256(json.dumps(canonical).encode()).hexdigest()[:VERSION_LENGTH]


def _how_to_add(model: str) -> str:
    entry = f'{json.dumps(model)}: {{"in": 0, "out": 0, "w5m": 0, "w1h": 0, "read": 0}}'
    return (
        f"To add a price, copy the rate file, put {entry} under models, in USD per million tokens "
        "(0 for a local model), and name the copy in PARLEY_RATES_FILE."
    )


def _long_prompt(rate: Rate) -> tuple[int, ...]:
    return (rate.long_prompt.threshold_tokens, *astuple(rate.long_prompt.prices)) if rate.long_prompt else ()
