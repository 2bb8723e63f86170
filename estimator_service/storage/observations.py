"""Observed calls, each once, and the sums over them that a quote learns from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.dialects.sqlite import insert

from estimator_service.domain.duration import PaceSeen
from estimator_service.domain.estimate import History, TokensKey
from estimator_service.domain.observation import Observation, Outcome, Purpose
from estimator_service.domain.tokens import TokensSeen
from estimator_service.storage.tables import TOKEN_COLUMNS, observations
from estimator_service.storage.times import MICROSECOND, microseconds

# Faster than this a sandbox shows our own overhead, multiplied, and not a model's speed.
LEARNED_SPEED_UP_MAX = 1_000.0
_US_PER_S = 1e6
_of = observations.c


def insert_observations(connection: Connection, observed: Sequence[Observation], *, now: datetime) -> int:
    """How many were new."""
    rows = [_row(observation) | {"recorded_us": microseconds(now)} for observation in observed]
    statement = insert(observations).on_conflict_do_nothing(index_elements=["call"])
    return connection.execute(statement, rows).rowcount


def get_history(connection: Connection, *, models: Collection[str], provider: str) -> History:
    """What was seen of these models at this provider; at all of them where `provider` is empty.

    A sandbox is no evidence for what a paid provider does, so their observations stay apart.
    """
    answered = (_of.outcome == Outcome.ANSWERED) & _of.model.in_(models) & (_of.output_tokens > 0)
    answered &= _of.purpose.in_((Purpose.GENERATE, Purpose.TURN))
    if provider:
        answered &= _of.provider == provider
    return History(tokens=_tokens(connection, answered), paces=_paces(connection, answered))


def _tokens(connection: Connection, answered: ColumnElement[bool]) -> dict[TokensKey, TokensSeen]:
    prompt = _of.input_tokens + _of.cache_write_5m_tokens + _of.cache_write_1h_tokens + _of.cache_read_tokens
    key = (_of.tier, _of.model, _of.purpose)
    sums = select(*key, func.count(), func.avg(prompt), func.avg(_of.output_tokens)).where(answered).group_by(*key)
    return {
        TokensKey(tier=tier, model=model, turn_by_turn=purpose == Purpose.TURN): TokensSeen(
            calls=calls, input_tokens_mean=float(input_mean), output_tokens_mean=float(output_mean)
        )
        for tier, model, purpose, calls, input_mean, output_mean in connection.execute(sums)
    }


def _paces(connection: Connection, answered: ColumnElement[bool]) -> dict[str, PaceSeen]:
    told = (_of.duration_us > 0) & (_of.speed_up <= LEARNED_SPEED_UP_MAX)
    sums = (
        select(
            _of.model,
            func.count(),
            func.sum(_of.output_tokens),
            func.sum(_of.duration_us * _of.speed_up),
            func.sum(_of.speed_up),
            func.count(_of.first_token_us),
            func.coalesce(func.sum(_of.first_token_us * _of.speed_up), 0.0),
        )
        .where(answered & told)
        .group_by(_of.model)
    )
    return {
        model: PaceSeen(
            calls=calls,
            output_tokens=output,
            seconds=duration_us / _US_PER_S,
            speed_ups=speed_ups,
            first_token_calls=first_calls,
            first_token_s=first_us / _US_PER_S,
        )
        for model, calls, output, duration_us, speed_ups, first_calls, first_us in connection.execute(sums)
    }


def _row(observation: Observation) -> dict[str, object]:
    first = observation.first_token_delay
    end = observation.end_time
    row: dict[str, object] = {name: getattr(observation, name) for name in (*_SAME, *TOKEN_COLUMNS)}
    row["duration_us"] = observation.duration // MICROSECOND
    row["first_token_us"] = None if first is None else first // MICROSECOND
    row["ended_us"] = None if end is None else microseconds(end)
    return row


# Columns that are called and held as the domain has them.
_SAME = (
    "call",
    "tier",
    "model",
    "provider",
    "outcome",
    "purpose",
    "speed_up",
    "prompt_fingerprint",
    "batch",
    "effort",
    "max_output_tokens",
)
