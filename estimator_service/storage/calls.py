"""Observed calls as they are told of: the sums of one batch, and the newest of all by tier and model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, literal, select

from estimator_service.domain.compare import CallsSeen
from estimator_service.domain.history import LEARNED_PURPOSES, OVERHEAD_CALL_S, real_seconds
from estimator_service.domain.observation import USAGE_FIELDS, Outcome
from estimator_service.domain.rates import FREE, Rate
from estimator_service.domain.summary import CallsTaken
from estimator_service.storage.tables import observations

# Answered calls that a summary is made of.
CALLS_MAX = 50_000
# Rows that are turned into objects at one go: the event loop waits meanwhile.
_CHUNK = 500
_US_PER_S = 1e6
# No prompt is longer.
_NEVER = 1 << 62
# Not answered, and not paid either.
_UNPAID = (Outcome.LIMITED, Outcome.PROVIDER_ERROR)
_of = observations.c
_PROMPT = _of.input_tokens + _of.cache_write_5m_tokens + _of.cache_write_1h_tokens + _of.cache_read_tokens
_MADE = _of.purpose.in_(LEARNED_PURPOSES)


def get_calls_of_batch(connection: Connection, batch: str, *, rates: Mapping[str, Rate]) -> list[CallsSeen]:
    """`batch` is batches/{batch}; its calls are priced by `rates`, those of other models as free."""
    thresholds = {model: rate.long_prompt.threshold_tokens for model, rate in rates.items() if rate.long_prompt}
    threshold = case(thresholds, value=_of.model, else_=_NEVER) if thresholds else literal(_NEVER)
    long = threshold < _PROMPT
    key = (_of.tier, _of.model, _of.outcome, long.label("long"))
    sums = select(
        *key,
        func.count().label("calls"),
        *(func.sum(_of[name]).label(name) for name in USAGE_FIELDS),
        func.sum(_real_us(_of.duration_us)).label("duration_us"),
        func.count(_of.first_token_us).label("first_token_calls"),
        func.coalesce(func.sum(_real_us(_of.first_token_us)), 0.0).label("first_token_us"),
    )
    rows = connection.execute(sums.where((_of.batch == batch) & _MADE).group_by(*key).order_by(*key))
    return [_calls_seen(row, rates.get(row.model)) for row in rows]


def _real_us(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """At real speed, without what we add ourselves."""
    without = column - round(OVERHEAD_CALL_S * _US_PER_S)
    return case((without > 0, without), else_=0) * _of.speed_up


def _calls_seen(row: Any, rate: Rate | None) -> CallsSeen:
    prices = FREE if rate is None else rate.long_prompt.prices if row.long and rate.long_prompt else rate.prices
    return CallsSeen(
        tier=row.tier,
        model=row.model,
        outcome=Outcome(row.outcome),
        calls=row.calls,
        output_tokens=row.output_tokens,
        seconds=row.duration_us / _US_PER_S,
        first_token_calls=row.first_token_calls,
        first_token_s=row.first_token_us / _US_PER_S,
        cost_nanos=prices.cost_nanos(
            input=row.input_tokens,
            output=row.output_tokens,
            cache_write_5m=row.cache_write_5m_tokens,
            cache_write_1h=row.cache_write_1h_tokens,
            cache_read=row.cache_read_tokens,
        ),
    )


def get_taken(
    connection: Connection, *, models: Collection[str], provider: str, calls_max: int = CALLS_MAX
) -> list[CallsTaken]:
    """The newest answered calls by tier and model, and how many failed since the oldest of them; all where empty."""
    wanted = _MADE
    if models:
        wanted &= _of.model.in_(models)
    if provider:
        wanted &= _of.provider == provider
    taken: dict[tuple[str, str], CallsTaken] = {}
    oldest_us = _NEVER
    newest = _TAKEN.where(wanted & (_of.outcome == Outcome.ANSWERED)).order_by(_of.seen_us.desc()).limit(calls_max)
    # Not all at once: the event loop turns rows into objects, and others wait for it.
    rows = connection.execute(newest, execution_options={"stream_results": True, "max_row_buffer": _CHUNK})
    for chunk in rows.partitions(_CHUNK):
        for row in chunk:
            key = (row.tier, row.model)
            _add(taken.setdefault(key, CallsTaken(tier=row.tier, model=row.model)), row)
            oldest_us = row.seen_us
    failed = _failed(connection, wanted & (_of.seen_us >= oldest_us))
    return [replace(each, failed_calls=failed.get(key, 0)) for key, each in sorted(taken.items())]


_TAKEN = select(
    _of.tier,
    _of.model,
    _of.batch,
    _PROMPT.label("prompt"),
    _of.output_tokens,
    _of.thinking_tokens,
    _of.duration_us,
    _of.first_token_us,
    _of.speed_up,
    _of.seen_us,
)


def _add(taken: CallsTaken, row: Any) -> None:
    first_us = row.first_token_us
    taken.batches.append(row.batch)
    taken.input_tokens.append(row.prompt)
    taken.output_tokens.append(row.output_tokens)
    taken.thinking_tokens.append(row.thinking_tokens)
    taken.seconds.append(real_seconds(row.duration_us / _US_PER_S, row.speed_up))
    taken.first_token_s.append(math.nan if first_us is None else real_seconds(first_us / _US_PER_S, row.speed_up))


def _failed(connection: Connection, wanted: ColumnElement[bool]) -> dict[tuple[str, str], int]:
    """Calls that were paid for nothing, or may have been: one that was lost tells no tokens."""
    lost = wanted & _of.outcome.not_in((Outcome.ANSWERED, *_UNPAID))
    counts = select(_of.tier, _of.model, func.count()).where(lost).group_by(_of.tier, _of.model)
    return {(tier, model): count for tier, model, count in connection.execute(counts)}
