"""What is read back to learn from is what was observed, as the domain sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest

from estimator_service.domain.history import COLUMNS, CallKey, History, Kind, call_seen, history_of
from estimator_service.domain.observation import Observation, Outcome, Purpose
from estimator_service.storage import history, observations
from estimator_service.storage.database import open_database

pytestmark = pytest.mark.anyio
BEGAN = datetime(2026, 11, 20, tzinfo=UTC)
PAID = "https://api.example"


def observed(number: int, rng: Random, *, provider: str = PAID) -> Observation:
    answered = rng.random() < 0.7
    return Observation(
        call=f"c{provider}{number}",
        tier=rng.choice(["template", "scenario"]),
        model=rng.choice(["one", "other"]),
        provider=provider,
        outcome=Outcome.ANSWERED if answered else rng.choice(list(Outcome)),
        purpose=rng.choice(list(Purpose)),
        input_tokens=rng.choice([0, 2_000]),
        output_tokens=rng.choice([0, 1_500]),
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        cache_read_tokens=rng.choice([0, 3]),
        thinking_tokens=rng.choice([0, 100]),
        duration=timedelta(seconds=rng.choice([0.0, 0.004, 1.5, 60.0])),
        first_token_delay=rng.choice([None, timedelta(seconds=0.5)]),
        speed_up=rng.choice([1.0, 40.0, 2_000.0]),
        prompt_fingerprint=rng.choice(["", "f"]),
        batch=rng.choice(["", "batches/abcd", "batches/efgh"]),
        effort=rng.choice(["", "high"]),
        max_output_tokens=8_000,
        end_time=BEGAN + timedelta(hours=number),
        prompt_characters=rng.choice([0, 8_000]),
    )


async def read_back(
    database: Path, told: Sequence[Observation], *, more: Sequence[Observation] = (), most: int = history.CALLS_MAX
) -> History:
    async with open_database(database) as opened:
        await opened.write(partial(observations.insert_observations, told=told, owner="", now=BEGAN))
        newer = [seen for seen in map(call_seen, more) if seen is not None]
        query = partial(history.get_history, models=["one", "other"], provider=PAID, more=newer, most=most)
        return await opened.read(query)


def rows(of: History) -> list[tuple[CallKey, str, Kind, tuple[str, ...]]]:
    """Numbers as text, for NaN is not NaN."""
    figures = np.stack([getattr(of, name) for name in COLUMNS], axis=1).round(6).tolist()
    return [
        (of.keys[key], of.batches[batch], Kind(kind), tuple(map(str, row)))
        for key, batch, kind, row in zip(of.key, of.batch, of.kind, figures, strict=True)
    ]


async def test_calls_of_every_kind_are_read_as_they_were_observed(tmp_path: Path) -> None:
    rng = Random(1)
    told = [observed(number, rng) for number in range(600)]
    found = await read_back(tmp_path / "e.db", told)
    assert rows(found) == rows(history_of(told))
    assert {kind for _, _, kind, _ in rows(found)} == set(Kind)
    assert len(set(found.keys)) == len(found.keys)


async def test_calls_that_are_newer_still_follow_those_that_are_stored(tmp_path: Path) -> None:
    rng = Random(2)
    told = [observed(number, rng) for number in range(300)]
    found = await read_back(tmp_path / "e.db", told[:200], more=told[200:])
    assert rows(found) == rows(history_of(told))


async def test_another_providers_calls_stay_apart(tmp_path: Path) -> None:
    rng = Random(3)
    told = [observed(number, rng) for number in range(50)]
    found = await read_back(tmp_path / "e.db", [*told, observed(99, rng, provider="http://127.0.0.1:8071")])
    assert rows(found) == rows(history_of(told))


async def test_only_the_newest_calls_of_a_model_are_read(tmp_path: Path) -> None:
    rng = Random(4)
    told = [observed(number, rng) for number in range(300)]
    found = await read_back(tmp_path / "e.db", told, most=20)
    newest = [
        row
        for model in ("one", "other")
        for row in [each for each in rows(history_of(told)) if each[0].model == model][-20:]
    ]
    assert sorted(map(str, rows(found))) == sorted(map(str, newest))
