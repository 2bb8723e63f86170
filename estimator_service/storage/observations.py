"""Observed calls, each once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, select

from estimator_service.domain.errors import QuoteNotFound
from estimator_service.domain.observation import USAGE_FIELDS, Observation, Outcome, Purpose, new_ones
from estimator_service.storage import quotes
from estimator_service.storage.tables import observations
from estimator_service.storage.times import EPOCH, MICROSECOND, microseconds

_of = observations.c
# A statement takes some 32,000 parameters.
NAMES_AT_ONCE = 5_000


def insert_observations(connection: Connection, told: Sequence[Observation], *, owner: str, now: datetime) -> int:
    """How many were new; all are stored or none. Raises DuplicateDiffers, and QuoteNotFound for a quote of nobody.

    With an `owner` other people's quotes are nobody's.
    """
    _refuse_unknown_quotes(connection, told, owner=owner)
    known = connection.execute(select(observations).where(_of.call.in_({each.call for each in told})))
    new = new_ones(told, {row["call"]: _observation(row) for row in known.mappings()})
    if new:
        connection.execute(insert(observations), [_row(each, recorded_us=microseconds(now)) for each in new])
    return len(new)


def known_calls(connection: Connection, calls: Collection[str]) -> set[str]:
    """Those of them that are recorded."""
    names = sorted(set(calls))
    return {
        name
        for at in range(0, len(names), NAMES_AT_ONCE)
        for name in connection.execute(select(_of.call).where(_of.call.in_(names[at : at + NAMES_AT_ONCE]))).scalars()
    }


def _refuse_unknown_quotes(connection: Connection, told: Sequence[Observation], *, owner: str) -> None:
    known = quotes.known_ids(connection, {each.quote for each in told}, owner=owner)
    for at, each in enumerate(told):
        if each.quote and each.quote not in known:
            raise QuoteNotFound(f"quotes/{each.quote}", field=f"observations[{at}].quote")


def _row(observation: Observation, *, recorded_us: int) -> dict[str, object]:
    first = observation.first_token_delay
    end = observation.end_time
    ended_us = None if end is None else microseconds(end)
    row: dict[str, object] = {
        name: getattr(observation, name) for name in ("outcome", "purpose", *_SAME, *USAGE_FIELDS)
    }
    row["duration_us"] = observation.duration // MICROSECOND
    row["first_token_us"] = None if first is None else first // MICROSECOND
    row["ended_us"] = ended_us
    row["recorded_us"] = recorded_us
    row["seen_us"] = recorded_us if ended_us is None else ended_us
    return row


def _observation(row: RowMapping) -> Observation:
    first_us, ended_us = row["first_token_us"], row["ended_us"]
    return Observation(
        **{name: row[name] for name in (*_SAME, *USAGE_FIELDS)},
        outcome=Outcome(row["outcome"]),
        purpose=Purpose(row["purpose"]),
        duration=row["duration_us"] * MICROSECOND,
        first_token_delay=None if first_us is None else first_us * MICROSECOND,
        end_time=None if ended_us is None else EPOCH + ended_us * MICROSECOND,
    )


# Columns that are called and held as the domain has them.
_SAME = (
    "call",
    "tier",
    "model",
    "provider",
    "speed_up",
    "prompt_fingerprint",
    "batch",
    "effort",
    "max_output_tokens",
    "quote",
    "conversation",
    "prompt_characters",
)
