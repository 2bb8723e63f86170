"""RecordObservations over gRPC: each call once, and nothing half stored of what can't be."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from estimator_fixtures import SteppedClock, as_caller, ask, estimator, observed, record
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from parley.v1 import conversation_pb2, quote_pb2
from record_fixtures import TOKENS, tables, timestamp, tokens_file

from estimator_service.storage.database import MIGRATIONS, migrate

pytestmark = pytest.mark.anyio

NOW = SteppedClock().now()
Usage = conversation_pb2.Usage


def with_(observation: quote_pb2.Observation, **changes: Any) -> quote_pb2.Observation:
    """The same with other fields; those that are messages are replaced whole."""
    changed = quote_pb2.Observation()
    changed.CopyFrom(observation)
    # The parameters name fields, which the stubs know as literals only.
    for name in changes:
        changed.ClearField(name)  # pyright: ignore[reportArgumentType]
    changed.MergeFrom(quote_pb2.Observation(**changes))
    return changed


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"call": ""}, "observations[1].call"),
        ({"outcome": 0}, "observations[1].outcome"),
        ({"usage": Usage(output_tokens=-1)}, "observations[1].usage.output_tokens"),
        ({"usage": Usage(input_tokens=10_000_001)}, "observations[1].usage.input_tokens"),
        ({"usage": Usage(output_tokens=10_000_001)}, "observations[1].usage.output_tokens"),
        ({"usage": Usage(cache_read_tokens=2**62)}, "observations[1].usage.cache_read_tokens"),
        ({"usage": Usage(cache_write_5m_tokens=-1)}, "observations[1].usage.cache_write_5m_tokens"),
        ({"usage": Usage(cache_write_1h_tokens=10**8)}, "observations[1].usage.cache_write_1h_tokens"),
        ({"usage": Usage(output_tokens=10, thinking_tokens=11)}, "observations[1].usage.thinking_tokens"),
        ({"duration": Duration(seconds=-1)}, "observations[1].duration"),
        ({"duration": Duration(seconds=30 * 86_400, nanos=1_000)}, "observations[1].duration"),
        ({"duration": Duration(seconds=2**62)}, "observations[1].duration"),
        ({"first_token_delay": Duration(nanos=-1)}, "observations[1].first_token_delay"),
        ({"first_token_delay": Duration(seconds=31 * 86_400)}, "observations[1].first_token_delay"),
        ({"end_time": Timestamp(seconds=10**13)}, "observations[1].end_time"),
        ({"end_time": Timestamp(seconds=946_684_799)}, "observations[1].end_time"),
        ({"end_time": timestamp(NOW + timedelta(days=1, seconds=1))}, "observations[1].end_time"),
        ({"speed_up": 1e-9}, "observations[1].speed_up"),
        ({"speed_up": float("nan")}, "observations[1].speed_up"),
        ({"quote": "quotes/x"}, "observations[1].quote"),
        ({"conversation": -1}, "observations[1].conversation"),
    ],
)
async def test_a_bad_observation_names_its_field_and_nothing_of_the_request_is_stored(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    async with estimator(tmp_path / "e.db") as served:
        await served.stub.RecordObservations(record(observed(0)))
        before = tables(tmp_path / "e.db")
        error = await served.refused("RecordObservations", record(observed(1), with_(observed(2), **changes)))
        after = tables(tmp_path / "e.db")
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [field]
    assert error.violations[0].message
    assert after == before


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": Usage(input_tokens=10_000_000, output_tokens=10_000_000, thinking_tokens=10_000_000)},
        {"duration": Duration(seconds=30 * 86_400), "first_token_delay": Duration(seconds=30 * 86_400)},
        {"end_time": timestamp(NOW + timedelta(days=1))},
        {"end_time": Timestamp(seconds=946_684_800)},
        {"usage": Usage()},
    ],
)
async def test_what_is_just_possible_is_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with estimator(tmp_path / "e.db") as served:
        assert (await served.stub.RecordObservations(record(with_(observed(1), **changes)))).recorded == 1


async def test_an_observation_of_an_unknown_quote_is_refused_with_all_that_came_with_it(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        known = await served.stub.CreateQuote(ask(1))
        before = tables(tmp_path / "e.db")
        calls = [observed(1, quote=known.name), observed(2), observed(3, quote="quotes/neverwas")]
        error = await served.refused("RecordObservations", record(*calls))
        assert tables(tmp_path / "e.db") == before
        assert (await served.stub.RecordObservations(record(*calls[:2]))).recorded == 2
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "QUOTE_NOT_FOUND")
    assert error.metadata["quote"] == "quotes/neverwas"
    assert [violation.field for violation in error.violations] == ["observations[2].quote"]


async def test_nobody_observes_calls_of_somebody_elses_quote(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db", tokens_file=tokens_file(tmp_path), token=TOKENS["anna"]) as anna:
        made = await anna.stub.CreateQuote(ask(1))
        async with as_caller(anna.address, token=TOKENS["bert"]) as bert:
            error = await bert.refused("RecordObservations", record(observed(1, quote=made.name)))
        async with as_caller(anna.address, token=TOKENS["serv"]) as service:
            assert (await service.stub.RecordObservations(record(observed(1, quote=made.name)))).recorded == 1
        assert (await anna.stub.RecordObservations(record(observed(1, quote=made.name)))).duplicates == 1
    assert error.reason == "QUOTE_NOT_FOUND"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"usage": Usage(input_tokens=2_000, output_tokens=999)}, "usage.output_tokens"),
        ({"duration": Duration(seconds=30, nanos=1_000)}, "duration"),
        ({"first_token_delay": Duration()}, "first_token_delay"),
        ({"outcome": conversation_pb2.CALL_OUTCOME_CUT}, "outcome"),
        ({"end_time": timestamp(NOW)}, "end_time"),
        ({"conversation": 7}, "conversation"),
    ],
)
async def test_a_duplicate_that_differs_is_refused_and_what_came_first_stays(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    other = with_(observed(1), **changes)
    async with estimator(tmp_path / "e.db") as served:
        within = await served.refused("RecordObservations", record(observed(1), observed(2), other))
        assert tables(tmp_path / "e.db")["observations"] == []
        await served.stub.RecordObservations(record(observed(1)))
        before = tables(tmp_path / "e.db")
        later = await served.refused("RecordObservations", record(observed(2), other))
        assert tables(tmp_path / "e.db") == before
    for error, place in ((within, 2), (later, 1)):
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_DIFFERS")
        assert error.metadata == {"call": "batches/abcd/calls/1", "field": field}
        assert [violation.field for violation in error.violations] == [f"observations[{place}].{field}"]


async def test_the_same_figures_count_once_however_they_come(tmp_path: Path) -> None:
    full = observed(
        1,
        prompt_fingerprint="a" * 64,
        # Finer than we hold times.
        first_token_delay=Duration(seconds=1, nanos=500_000_123),
        batch="batches/abcd",
        provider="https://api.example",
        speed_up=2.7,
        end_time=Timestamp(seconds=1_790_000_000, nanos=999_999_999),
        effort="high",
        max_output_tokens=8_000,
        conversation=3,
    )
    # An absent speed-up is one of 1.
    plain, told = observed(2), with_(observed(2), speed_up=1.0)
    async with estimator(tmp_path / "e.db") as served:
        first = await served.stub.RecordObservations(record(full, full, plain, told))
        again = await served.stub.RecordObservations(record(told, full))
    async with estimator(tmp_path / "e.db") as served:
        restarted = await served.stub.RecordObservations(record(full, plain, observed(3)))
    assert [(each.recorded, each.duplicates) for each in (first, again, restarted)] == [(2, 2), (0, 2), (1, 2)]


async def test_quote_conversation_and_the_time_of_the_call_are_kept(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask(1))
        earlier = timestamp(NOW - timedelta(hours=1))
        calls = [observed(1, quote=made.name, conversation=9, end_time=earlier), observed(2)]
        await served.stub.RecordObservations(record(*calls))
    with closing(sqlite3.connect(tmp_path / "e.db")) as connection:
        kept = connection.execute("SELECT quote, conversation, seen_us FROM observations ORDER BY call").fetchall()
    now_us = int(NOW.timestamp() * 1e6)
    assert kept == [(made.name.removeprefix("quotes/"), 9, now_us - 3_600_000_000), ("", 0, now_us)]


async def test_calls_that_were_recorded_before_the_migration_are_kept(tmp_path: Path) -> None:
    database, first = tmp_path / "e.db", tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, first)
    for later in ("0002_outcomes.py", "0003_prompt_characters.py"):
        (first / "versions" / later).unlink()
    migrate(database, migrations=first)
    columns = (
        "call, tier, model, provider, outcome, purpose, input_tokens, output_tokens, cache_write_5m_tokens, "
        "cache_write_1h_tokens, cache_read_tokens, thinking_tokens, duration_us, first_token_us, speed_up, "
        "prompt_fingerprint, batch, effort, max_output_tokens, ended_us, recorded_us"
    )
    old = "'batches/abcd/calls/{}', 'template', 'claude-sonnet-5', '', 'ANSWERED', 'GENERATE', 2000, 1000, 0, 0, 0, 0, "
    old += "30000000, NULL, 1.0, '', '', '', 0, {}, 1790000000000000"
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, ended_us in ((1, "NULL"), (2, "1780000000000000")):
            connection.execute(f"INSERT INTO observations ({columns}) VALUES ({old.format(number, ended_us)})")  # noqa: S608  our own text
    async with estimator(database) as served:
        again = await served.stub.RecordObservations(record(observed(1), observed(3)))
    assert (again.recorded, again.duplicates) == (1, 1)
    with closing(sqlite3.connect(database)) as connection:
        seen = connection.execute("SELECT seen_us FROM observations ORDER BY call LIMIT 2").fetchall()
    assert seen == [(1790000000000000,), (1780000000000000,)]


@pytest.mark.parametrize(
    ("query", "search"),
    [
        (
            "SELECT output_tokens FROM observations WHERE model = 'm' AND provider = 'p' ORDER BY seen_us DESC LIMIT 9",
            "SEARCH observations USING INDEX observations_newest (model=? AND provider=?)",
        ),
        (
            "SELECT output_tokens FROM observations WHERE outcome = 'ANSWERED' ORDER BY seen_us DESC LIMIT 9",
            "SCAN observations USING INDEX observations_by_time",
        ),
        (
            "SELECT output_tokens FROM observations WHERE batch = 'batches/abcd'",
            "SEARCH observations USING INDEX observations_by_batch (batch=?)",
        ),
        (
            "SELECT cost_nanos FROM outcomes WHERE provider = 'p' ORDER BY seen_us DESC LIMIT 9",
            "SEARCH outcomes USING INDEX outcomes_by_provider (provider=?)",
        ),
        (
            "SELECT cost_nanos FROM outcomes ORDER BY seen_us DESC, batch DESC LIMIT 9",
            "SCAN outcomes USING INDEX outcomes_newest",
        ),
        (
            "SELECT cost_nanos FROM outcomes WHERE quote = 'q'",
            "SEARCH outcomes USING INDEX outcomes_by_quote (quote=?)",
        ),
    ],
)
def test_what_is_newest_is_found_without_looking_at_the_rest(tmp_path: Path, query: str, search: str) -> None:
    migrate(tmp_path / "e.db")
    with closing(sqlite3.connect(tmp_path / "e.db")) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    # No sorting after it.
    assert plan == [search]
