"""What calls took, as it is learned from: the newest of some models at one provider."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Column, ColumnElement, Connection, and_, case, null, select

from estimator_service.domain.history import (
    COLUMNS,
    LEARNED_PURPOSES,
    LEARNED_SPEED_UP_MAX,
    NOTHING_SEEN,
    OVERHEAD_CALL_S,
    CallKey,
    CallSeen,
    History,
    Kind,
    columns_of,
    day_of,
    joined,
)
from estimator_service.domain.observation import Outcome, Purpose
from estimator_service.storage.tables import observations
from estimator_service.storage.times import EPOCH, MICROSECOND

# Of each model; older ones are not read, so that a quote takes as long after a million calls as after these.
CALLS_MAX = 10_000
_US_PER_S = 1e6
_of = observations.c
_PROMPT = _of.input_tokens + _of.cache_write_5m_tokens + _of.cache_write_1h_tokens + _of.cache_read_tokens


def _real_s(column: Column[Any]) -> ColumnElement[Any]:
    """As domain.history.real_seconds; NULL where the measurement says nothing about the model."""
    measured_s = column / _US_PER_S
    tells = and_(measured_s > OVERHEAD_CALL_S, _of.speed_up <= LEARNED_SPEED_UP_MAX)
    return case((tells, (measured_s - OVERHEAD_CALL_S) * _of.speed_up), else_=null())


# As domain.history.kind_of. What the database computes, it computes beside the event loop.
_KIND = case(
    (and_(_of.outcome == Outcome.ANSWERED, _of.output_tokens > 0), int(Kind.ANSWERED)),
    (and_(_of.outcome == Outcome.CUT, _of.output_tokens > 0), int(Kind.CUT)),
    (_PROMPT + _of.output_tokens > 0, int(Kind.PAID_FAILURE)),
    else_=int(Kind.FREE_FAILURE),
)
# A repair is a call like the first.
_KEY = (_of.tier, _of.model, _of.effort, _of.prompt_fingerprint, _of.purpose == Purpose.TURN)
_FIGURES = {
    "input_tokens": _PROMPT,
    "output_tokens": _of.output_tokens,
    "thinking_tokens": _of.thinking_tokens,
    "prompt_characters": _of.prompt_characters,
    "seconds": _real_s(_of.duration_us),
    "first_token_s": _real_s(_of.first_token_us),
    "ended_s": _of.seen_us / _US_PER_S,
}
_READ = select(*_KEY, _of.batch, _of.seen_us, _KIND, *(_FIGURES[name] for name in COLUMNS))


def get_history(
    connection: Connection,
    *,
    models: Collection[str],
    provider: str,
    more: Sequence[CallSeen] = (),
    most: int = CALLS_MAX,
) -> History:
    """What was seen of these models at this provider; at all of them where `provider` is empty. `more` is newer still;
    `most` is of each model.

    A sandbox is no evidence for what a paid provider does, so their observations stay apart.
    """
    rows = [tuple(row) for model in sorted(models) for row in _newest(connection, model, provider, most)]
    rows.sort(key=lambda row: row[len(_KEY) + 1])
    found = _history(rows) if rows else NOTHING_SEEN
    return joined(found, columns_of(more)) if more else found


def _newest(connection: Connection, model: str, provider: str, most: int) -> Sequence[Any]:
    wanted = (_of.model == model) & _of.purpose.in_(LEARNED_PURPOSES) & (_of.outcome != Outcome.LIMITED)
    if provider:
        wanted &= _of.provider == provider
    return connection.execute(_READ.where(wanted).order_by(_of.seen_us.desc()).limit(most)).all()


def _history(rows: Sequence[tuple[Any, ...]]) -> History:
    columns = list(zip(*rows, strict=True))
    keys: dict[tuple[Any, ...], int] = {}
    key = [keys.setdefault(each, len(keys)) for each in zip(*columns[: len(_KEY)], strict=True)]
    named, seen_us, kind, *figures = columns[len(_KEY) :]
    batches: dict[str, int] = {}
    of_batch = (name or day_of(EPOCH + time_us * MICROSECOND) for name, time_us in zip(named, seen_us, strict=True))
    batch = [batches.setdefault(name, len(batches)) for name in of_batch]
    return History(
        keys=tuple(_key(each) for each in keys),
        batches=tuple(batches),
        key=np.array(key, dtype=np.int64),
        batch=np.array(batch, dtype=np.int64),
        kind=np.array(kind, dtype=np.int64),
        # What is NULL becomes NaN.
        **{name: np.array(values, dtype=np.float64) for name, values in zip(COLUMNS, figures, strict=True)},
    )


def _key(row: tuple[Any, ...]) -> CallKey:
    tier, model, effort, fingerprint, turn_by_turn = row
    return CallKey(
        tier=tier,
        model=model,
        effort=effort,
        prompt_fingerprint=fingerprint,
        turn_by_turn=bool(turn_by_turn),
    )
