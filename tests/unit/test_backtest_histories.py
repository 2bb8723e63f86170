"""The back-test's histories: worlds that drift as they shall, and files of them that are read or refused by line."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.backtest import histories
from benchmarks.backtest.histories import DRIFT_LOG_SD, WORLDS, HistoryError
from benchmarks.backtest.series import Drift

LINE: dict[str, Any] = {
    "format": 1,
    "world": "world 1",
    "model": "claude-sonnet-5-5",
    "concurrency": 10,
    "speed_up": 42,
    "batch": "batches/abcd",
    "began": "2026-11-24T00:00:00+00:00",
    "time_s": 1.5,
    "drift": {"tokens": 0.01, "speed": -0.02},
    "calls": [
        {
            "tier": "template",
            "input_tokens": 1_400,
            "output_tokens": 2_000 + at,
            "start_s": 1.0 - at,
            "end_s": 1.5,
            "first_token_s": None,
            "cost_nanos": 20_000_000,
            "max_output_tokens": 16_000,
        }
        for at in range(2)
    ],
}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "histories.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_world_is_a_series_of_its_batches_in_their_order(tmp_path: Path) -> None:
    others = [{**LINE, "world": "world 2"}, {**LINE, "batch": "batches/efgh"}]
    first, second = histories.read(written(tmp_path, LINE, *others))
    assert [batch.name for batch in first.lanes[0]] == ["world 1/batches/abcd", "world 1/batches/efgh"]
    assert (second.name, len(second.batches)) == ("world 2", 1)
    batch = first.batches[0]
    assert [call.start_s for call in batch.calls] == [0.0, 1.0]
    assert (batch.cost_nanos, batch.time_s, batch.drift) == (40_000_000, 1.5, Drift(tokens=0.01, speed=-0.02))
    assert (first.concurrency, first.speed_up, first.measures) == (10, 42, ("cost", "time"))


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        [1],
        {**LINE, "world": ["list"]},
        {**LINE, "began": "yesterday"},
        {**LINE, "calls": [{"tier": "template"}]},
        {name: value for name, value in LINE.items() if name != "drift"},
    ],
)
def test_a_line_that_is_no_batch_is_named(tmp_path: Path, bad: object) -> None:
    with pytest.raises(HistoryError, match=r"^histories\.jsonl, line 2: is no batch of a history: [^\n]+$"):
        histories.read(written(tmp_path, LINE, bad))


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"none\.jsonl: can't be read"):
        histories.read(tmp_path / "none.jsonl")
    with pytest.raises(HistoryError, match="has no line"):
        histories.read(written(tmp_path))


def test_the_worlds_have_at_least_200_batches_that_drift_by_no_more_than_3_percent() -> None:
    assert len(WORLDS) * histories.BATCHES >= 200
    for world in WORLDS:
        drifts = histories.drifts(Random(world.seed), histories.BATCHES)
        assert 0.9 * DRIFT_LOG_SD < statistics.stdev(drifts) <= DRIFT_LOG_SD <= 0.03
        assert statistics.mean(drifts) == pytest.approx(0.0, abs=1e-9)
        assert drifts != sorted(drifts)


def test_no_two_worlds_are_alike_and_none_has_the_priors_levels() -> None:
    assert len({(world.tokens_mean, world.tokens_per_s, world.first_token_s) for world in WORLDS}) == len(WORLDS)
    for world in WORLDS:
        assert abs(world.tokens_mean / 3_000 - 1) > 0.1
        assert abs(world.tokens_per_s / 36.0 - 1) > 0.1
        assert abs(world.first_token_s - 1.0) > 0.3
