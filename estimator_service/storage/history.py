"""What calls took, as it is learned from: the newest of some models at one provider."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from estimator_service.domain.history import (
    LEARNED_PURPOSES,
    CallKey,
    CallSeen,
    History,
    columns_of,
    kind_of,
    real_seconds,
)
from estimator_service.domain.observation import Outcome, Purpose
from estimator_service.storage.tables import observations

# Of each model; older ones are not read, so that a quote takes as long after a million calls as after these.
CALLS_MAX = 20_000
_US_PER_S = 1e6
_of = observations.c
_PROMPT = _of.input_tokens + _of.cache_write_5m_tokens + _of.cache_write_1h_tokens + _of.cache_read_tokens
_READ = select(
    _of.tier,
    _of.model,
    _of.effort,
    _of.prompt_fingerprint,
    _of.purpose,
    _of.batch,
    _of.outcome,
    _PROMPT.label("prompt"),
    _of.output_tokens,
    _of.thinking_tokens,
    _of.prompt_characters,
    _of.duration_us,
    _of.first_token_us,
    _of.speed_up,
    _of.seen_us,
)


def get_history(
    connection: Connection, *, models: Collection[str], provider: str, more: Sequence[CallSeen] = ()
) -> History:
    """What was seen of these models at this provider; at all of them where `provider` is empty. `more` is newer still.

    A sandbox is no evidence for what a paid provider does, so their observations stay apart.
    """
    rows = [row for model in sorted(models) for row in _newest(connection, model=model, provider=provider)]
    rows.sort(key=lambda row: row.seen_us)
    return columns_of([*(_seen(row) for row in rows), *more])


def _newest(connection: Connection, *, model: str, provider: str) -> Sequence[Any]:
    wanted = (_of.model == model) & _of.purpose.in_(LEARNED_PURPOSES) & (_of.outcome != Outcome.LIMITED)
    if provider:
        wanted &= _of.provider == provider
    newest = _READ.where(wanted).order_by(_of.seen_us.desc()).limit(CALLS_MAX)
    return connection.execute(newest).all()


def _seen(row: Any) -> CallSeen:
    first_us = row.first_token_us
    return CallSeen(
        key=CallKey(
            tier=row.tier,
            model=row.model,
            effort=row.effort,
            prompt_fingerprint=row.prompt_fingerprint,
            turn_by_turn=row.purpose == Purpose.TURN,
        ),
        batch=row.batch or _day(row.seen_us),
        kind=kind_of(Outcome(row.outcome), paid=row.prompt + row.output_tokens > 0, answered=row.output_tokens > 0),
        input_tokens=row.prompt,
        output_tokens=row.output_tokens,
        thinking_tokens=row.thinking_tokens,
        prompt_characters=row.prompt_characters,
        seconds=real_seconds(row.duration_us / _US_PER_S, row.speed_up),
        first_token_s=np.nan if first_us is None else real_seconds(first_us / _US_PER_S, row.speed_up),
        ended_s=row.seen_us / _US_PER_S,
    )


def _day(time_us: int) -> str:
    """Calls of no batch are taken together by their day."""
    return f"{datetime.fromtimestamp(time_us / _US_PER_S, UTC):%Y-%m-%d}"
