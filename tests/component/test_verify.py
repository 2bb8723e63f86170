"""`verify`: whatever was changed behind the ledger's back is named, so is what is damaged, and nothing is written."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from damaged_files import change, cut, of_first_version, overwrite
from storage_fixtures import AGAIN, GIVEN_UP, QUARANTINED, Store, new_batch, opened

from orchestrator_service import maintenance
from orchestrator_service.convert.rate import rate_from_json
from orchestrator_service.domain.ledger import CallOutcome, Rate, Usage
from orchestrator_service.storage import batches
from orchestrator_service.storage.corrections import Correction, settle_by_person
from orchestrator_service.storage.ledger import Preflight, journal_preflight
from orchestrator_service.storage.rates import PricedAt
from orchestrator_service.storage.recovery import recover_batch
from orchestrator_service.storage.verify import findings, opened_read_only

pytestmark = pytest.mark.anyio

# At it the calls of the fixtures cost what they say.
RATE = Rate(input_nanos_per_mtok=2_000_000, output_nanos_per_mtok=2_000_000)
RATE_JSON = json.dumps(asdict(RATE))
VERSION = "2026-11-01"
FREE_OUTPUT = json.dumps(asdict(Rate(input_nanos_per_mtok=2_000_000, output_nanos_per_mtok=0)))


@pytest.fixture(name="sound", scope="module")
async def sound_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch in every situation: ended, in flight, paused after a crash, deleted, being stored; and a preflight."""
    path = tmp_path_factory.mktemp("verify") / "sound.db"
    async with opened(path) as store:
        await ended(store)
        await in_flight(store)
        await crashed(store)
        await deleted(store)
        await store.write(batches.prepare(new_batch("b5", {"template": 4})))
        await store.write(journal_preflight(preflight(store)))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT OR IGNORE INTO rates VALUES (?, 'm', ?)", (VERSION, RATE_JSON))
        connection.commit()
    return path


async def created(store: Store, **values: Any) -> str:
    return await store.create(rate_version=VERSION, rate=RATE_JSON, **values)


async def ended(store: Store) -> None:
    batch = await created(store)
    await store.make(batch, 1)
    await store.make(batch, 2, QUARANTINED)
    await store.make(batch, 3, GIVEN_UP)
    await store.make(batch, 4, AGAIN)
    await store.make(batch, 4)


async def in_flight(store: Store) -> None:
    batch = await created(store, budget_nanos=10_000)
    await store.make(batch, 1)
    await store.claimed(batch, 2)


async def crashed(store: Store) -> None:
    batch = await created(store)
    await store.make(batch, 1)
    lost = [await store.claimed(batch, number) for number in (2, 3)]
    await store.write(recover_batch(batch, now_us=store.tick()))
    said = Correction(batch=batch, call=lost[0].call, cost_nanos=7, by="ann", note="The bill.", now_us=store.tick())
    await store.write(settle_by_person(said))
    await store.pause(batch)


async def deleted(store: Store) -> None:
    batch = await created(store)
    await store.make(batch, 1)
    await store.cancel(batch)
    await store.remove(batch)


def preflight(store: Store) -> Preflight:
    return Preflight(
        model="m",
        outcome=CallOutcome.ANSWERED,
        usage=Usage(input_tokens=1),
        cost_nanos=2,
        priced=PricedAt(version=VERSION, rate=RATE_JSON),
        duration_s=0.1,
        error="",
        now_us=store.tick(),
    )


# What is changed, and all that is then said.
BROKEN: dict[str, tuple[list[str], list[str]]] = {
    "money of a batch": (
        [
            "UPDATE batches SET confirmed_nanos = confirmed_nanos + 1 WHERE id = 'b1'",
            "UPDATE batches SET reserved_nanos = 0 WHERE id = 'b2'",
            "UPDATE batches SET possibly_spent_nanos = 0 WHERE id = 'b3'",
        ],
        [
            "Batch b1: confirmed_nanos: stored 301, recomputed 300.",
            "Batch b2: reserved_nanos: stored 0, recomputed 100.",
            "Batch b3: possibly_spent_nanos: stored 0, recomputed 100.",
        ],
    ),
    "money of a deleted batch": (
        ["UPDATE batches SET confirmed_nanos = 0 WHERE id = 'b4'"],
        ["Batch b4: confirmed_nanos: stored 0, recomputed 60."],
    ),
    "counts of calls": (
        ["UPDATE batches SET calls_settled = 9, calls_possibly_spent = 8 WHERE id = 'b3'"],
        [
            "Batch b3: calls_settled: stored 9, recomputed 2.",
            "Batch b3: calls_possibly_spent: stored 8, recomputed 1.",
        ],
    ),
    "usage of a batch": (
        ["UPDATE batches SET input_tokens = 0, thinking_tokens = 1 WHERE id = 'b1'"],
        ["Batch b1: input_tokens: stored 0, recomputed 50.", "Batch b1: thinking_tokens: stored 1, recomputed 0."],
    ),
    "a call that was lost": (
        ["DELETE FROM answers WHERE call = 5", "DELETE FROM calls WHERE id = 5"],
        [
            "Batch b1: confirmed_nanos: stored 300, recomputed 240.",
            "Batch b1: calls_settled: stored 5, recomputed 4.",
            "Batch b1: input_tokens: stored 50, recomputed 40.",
            "Batch b1: output_tokens: stored 100, recomputed 80.",
            "Batch b1: cache_read_tokens: stored 25, recomputed 20.",
            "Batch b1: conversation 4: attempts: stored 2, recomputed 1.",
            "Batch b1: conversation 4: cost_nanos: stored 120, recomputed 60.",
            "Batch b1: conversation 4: input_tokens: stored 20, recomputed 10.",
            "Batch b1: conversation 4: output_tokens: stored 40, recomputed 20.",
            "Batch b1: conversation 4: cache_read_tokens: stored 10, recomputed 5.",
            "Batch b1: conversation 4: raw answer: stored none, recomputed some.",
            "spend of ann on day 0: confirmed_nanos: stored 487, recomputed 427.",
        ],
    ),
    "a conversation's cost": (
        ["UPDATE conversations SET cost_nanos = 61 WHERE batch = 'b1' AND number = 1"],
        [
            "Batch b1: conversation 1: cost_nanos: stored 61, recomputed 60.",
            "Batch b1: tier template: cost_nanos: stored 300, recomputed 301.",
        ],
    ),
    "a conversation's attempts": (
        ["UPDATE conversations SET attempts = 3 WHERE batch = 'b1' AND number = 1"],
        ["Batch b1: conversation 1: attempts: stored 3, recomputed 1."],
    ),
    "counts of a tier": (
        ["UPDATE batch_tiers SET generated = 2, failed = 2, deliverable = 1 WHERE batch = 'b1'"],
        [
            "Batch b1: tier template: generated: stored 2, recomputed 3.",
            "Batch b1: tier template: failed: stored 2, recomputed 1.",
            "Batch b1: tier template: deliverable: stored 1, recomputed 2.",
        ],
    ),
    "a review": (
        ["UPDATE conversations SET review = 'REJECTED' WHERE batch = 'b1' AND number = 2"],
        ["Batch b1: tier template: quarantined: stored 1, recomputed 0."],
    ),
    "a conversation that was lost": (
        [
            "DELETE FROM conversation_texts WHERE batch = 'b1' AND number = 1",
            "DELETE FROM conversations WHERE batch = 'b1' AND number = 1",
        ],
        [
            "Batch b1: tier template: total: stored 4, recomputed 3.",
            "Batch b1: tier template: generated: stored 3, recomputed 2.",
            "Batch b1: tier template: deliverable: stored 2, recomputed 1.",
            "Batch b1: tier template: cost_nanos: stored 300, recomputed 240.",
            "Batch b1: started: stored 4, recomputed 3.",
            "Batch b1: call 1: conversations: stored 0, recomputed 1.",
        ],
    ),
    "how many were started": (
        ["UPDATE batches SET started = 1 WHERE id = 'b1'"],
        ["Batch b1: started: stored 1, recomputed 4."],
    ),
    "how many were made": (
        ["UPDATE batches SET made = 5, answered = 1 WHERE id = 'b1'"],
        ["Batch b1: made: stored 5, recomputed 4.", "Batch b1: answered: stored 1, recomputed 3."],
    ),
    "the counter of events": (
        ["UPDATE batches SET last_event = 99 WHERE id = 'b1'"],
        ["Batch b1: last_event: stored 99, recomputed 7."],
    ),
    "an event that was lost": (
        ["DELETE FROM events WHERE batch = 'b1' AND number = 4"],
        [
            "Batch b1: made: stored 4, recomputed 3.",
            "Batch b1: answered: stored 3, recomputed 2.",
            "Batch b1: events without a gap: stored 6, recomputed 7.",
        ],
    ),
    "a change of state that the log does not have": (
        ["UPDATE batches SET state = 'FAILED' WHERE id = 'b1'"],
        ["Batch b1: state: stored FAILED, recomputed PARTIALLY_SUCCEEDED."],
    ),
    "a log that jumps": (
        ["""UPDATE events SET detail = '{"from": "PAUSED", "to": "RUNNING"}' WHERE batch = 'b2' AND number = 2"""],
        ["Batch b2: event 2: the state that it leaves: stored PAUSED, recomputed QUEUED."],
    ),
    "a text that was lost": (
        ["DELETE FROM conversation_texts WHERE batch = 'b1' AND number = 1"],
        ["Batch b1: conversation 1: text: stored none, recomputed some."],
    ),
    "a raw answer that was lost": (
        ["DELETE FROM answers WHERE call = 1"],
        ["Batch b1: conversation 1: raw answer: stored none, recomputed some."],
    ),
    "a state that the rows do not bear": (
        ["UPDATE batches SET state = 'PAUSED' WHERE id = 'b2'"],
        [
            "Batch b2: state: stored PAUSED, recomputed RUNNING.",
            "Batch b2: conversations RUNNING of a batch that is PAUSED: stored 1, recomputed none.",
            "Batch b2: holds of a batch that is PAUSED: stored 0, recomputed some.",
        ],
    ),
    "a pause without a hold": (
        ["DELETE FROM holds WHERE batch = 'b3'"],
        ["Batch b3: holds of a batch that is PAUSED: stored 0, recomputed some."],
    ),
    "an end without a time": (
        ["UPDATE batches SET ended_us = NULL WHERE id = 'b1'"],
        ["Batch b1: time of the end of a batch that is PARTIALLY_SUCCEEDED: stored none, recomputed some."],
    ),
    "a call in flight of an earlier epoch": (
        ["UPDATE batches SET epoch = 1 WHERE id = 'b2'"],
        ["Batch b2: conversation 2: calls in flight: stored 0, recomputed 1."],
    ),
    "a call in flight for nobody": (
        ["UPDATE calls SET state = 'RESERVED', cost_nanos = NULL WHERE batch = 'b4'"],
        [
            "Batch b4: confirmed_nanos: stored 60, recomputed 0.",
            "Batch b4: reserved_nanos: stored 0, recomputed 100.",
            "Batch b4: calls_settled: stored 1, recomputed 0.",
            "Batch b4: call 11: conversations: stored 0, recomputed 1.",
            "spend of ann on day 0: confirmed_nanos: stored 487, recomputed 427.",
            "spend of ann on day 0: reserved_nanos: stored 100, recomputed 200.",
        ],
    ),
    "a budget that was passed": (
        ["UPDATE batches SET budget_nanos = 159 WHERE id = 'b2'"],
        ["Batch b2: spent, reserved and possibly spent are 160 nano-dollars, its budget 159."],
    ),
    "a budget that a person lowered": (
        [
            "UPDATE batches SET budget_nanos = 159, last_event = last_event + 1 WHERE id = 'b2'",
            """INSERT INTO events SELECT id, last_event, 1, 'settings_changed', '{"fields": ["budget"]}' FROM batches
            WHERE id = 'b2'""",
        ],
        [],
    ),
    "the spend of a day": (
        ["UPDATE daily_spend SET confirmed_nanos = 1 WHERE owner = 'ann'", "DELETE FROM daily_spend WHERE owner = ''"],
        [
            "spend of nobody on day 0: confirmed_nanos: stored 0, recomputed 2.",
            "spend of ann on day 0: confirmed_nanos: stored 1, recomputed 487.",
        ],
    ),
    "the spend of a day without calls": (
        ["INSERT INTO daily_spend VALUES (7, 'bob', 1, 2, 3)"],
        [
            "spend of bob on day 7: confirmed_nanos: stored 1, recomputed 0.",
            "spend of bob on day 7: reserved_nanos: stored 2, recomputed 0.",
            "spend of bob on day 7: possibly_spent_nanos: stored 3, recomputed 0.",
        ],
    ),
    "the price of a call": (
        [
            f"INSERT INTO rates VALUES ('other', 'm', '{FREE_OUTPUT}')",  # noqa: S608  our own text
            "UPDATE calls SET rate_version = 'other' WHERE id = 1",
        ],
        ["Batch b1: call 1: cost_nanos: stored 60, recomputed 20."],
    ),
    "a price that was lost": (
        ["DELETE FROM rates"],
        ["the cost of 9 calls can't be checked: no price of m in version '2026-11-01' is kept."],
    ),
    "what a deleted batch leaves": (
        [
            "INSERT INTO batch_specs VALUES ('b4', 'spec')",
            "INSERT INTO answers SELECT id, 'raw' FROM calls WHERE batch = 'b4'",
            "INSERT INTO events VALUES ('b4', 9, 1, 'resumed', '{}')",
        ],
        [
            "Batch b4: events without a gap: stored 1, recomputed 9.",
            "Batch b4: events of a deleted batch: stored 1, recomputed 0.",
            "Batch b4: batch_specs of a deleted batch: stored 1, recomputed 0.",
            "Batch b4: answers of a deleted batch: stored 1, recomputed 0.",
        ],
    ),
    "a row that belongs nowhere": (
        ["INSERT INTO batch_specs VALUES ('nobody', 'spec')"],
        ["Table batch_specs is damaged: row 5 belongs to a row of batches that is not there."],
    ),
    "a detail that can't be read": (
        ["UPDATE events SET detail = '{' WHERE batch = 'b2' AND number = 2"],
        [
            "the event states can't be checked: JSONDecodeError('Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)')."
        ],
    ),
}


def found(path: Path) -> list[str]:
    with opened_read_only(path) as connection:
        return [str(finding) for finding in findings(connection, rate_of=rate)]


def rate(stored: str) -> Rate:
    read = rate_from_json(stored)
    assert read is not None
    return read


@pytest.fixture(name="path")
def own_copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "o.db"))


def test_a_sound_file_has_nothing_to_find(path: Path) -> None:
    assert found(path) == []


async def test_a_file_that_is_written_to_is_of_one_moment(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with opened(path) as store:
        await in_flight(store)
        with opened_read_only(path) as connection:
            checking = findings(connection, rate_of=rate)
            first = next(checking, None)
            await store.make("b1", 3)
            assert [first, *checking] == [None]
        assert found(path) == []


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_was_changed_is_named_and_nothing_else(path: Path, name: str) -> None:
    changes, said = BROKEN[name]
    change(path, *changes)
    assert found(path) == said


# What the program says of it, and how it ends.


@dataclass(frozen=True)
class Said:
    code: int
    out: list[str]
    err: str


def verify(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> Said:
    code = maintenance.main(["verify", "--database", str(path), *options])
    out, err = capsys.readouterr()
    return Said(code, out.splitlines(), err)


def test_a_sound_file_is_told_with_what_is_in_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = "5 batches, 12 conversations, 12 calls, last written 1970-01-01 00:00:00 UTC"
    assert verify(capsys, path) == Said(0, [f"{path}: all agrees in {inside}"], "")


def test_differences_are_counted_and_only_the_first_hundred_shown(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = "WITH RECURSIVE days(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM days WHERE n < 150) SELECT n FROM days"
    change(path, f"INSERT INTO daily_spend SELECT n, 'bob', 1, 0, 0 FROM ({days})")  # noqa: S608  our own text
    said = verify(capsys, path)
    assert (said.code, len(said.out)) == (1, 101)
    assert said.out[0] == "spend of bob on day 1: confirmed_nanos: stored 1, recomputed 0."
    assert said.out[-1].startswith(f"{path}: 150 differences in 5 batches")


def test_differences_are_json_lines_where_asked_for(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, "UPDATE batches SET confirmed_nanos = 0 WHERE id = 'b4'")
    said = verify(capsys, path, "--json")
    first, last = map(json.loads, said.out)
    difference = {"batch": "b4", "what": "confirmed_nanos", "stored": 0, "recomputed": 60}
    assert first == {"file": str(path), "difference": difference}
    assert (last["differences"], last["batches"], last["calls"], said.code) == (1, 5, 12, 1)


def test_a_doubt_alone_is_no_failure(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, "DELETE FROM rates")
    said = verify(capsys, path)
    assert said.code == 0
    assert said.out[0].startswith("not certain: the cost of 9 calls can't be checked")


def test_nothing_is_written(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_bytes()
    path.chmod(0o444)
    assert verify(capsys, path).code == 0
    assert path.read_bytes() == before


NEXT = "next: `parley restore FOLDER` brings a backup back, and keeps the damaged file beside it.\n"


@pytest.mark.parametrize("table", ["calls", "events", "conversation_texts", "batches"])
def test_a_damaged_table_is_named(path: Path, capsys: pytest.CaptureFixture[str], table: str) -> None:
    overwrite(path, table)
    said = verify(capsys, path)
    assert (said.code, said.err) == (1, NEXT)
    assert said.out[0].startswith(f"Table {table} is damaged: ")
    assert "1 damaged part" in said.out[-1]
    # What can still be read is checked all the same.
    assert [line for line in said.out[1:-1] if "because of the damage" not in line] == []


def test_a_file_that_was_cut_off_is_damaged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(path)
    said = verify(capsys, path)
    assert (said.code, said.err) == (1, NEXT)
    assert said.out[0].startswith("The file is damaged: ")


def test_a_file_overwritten_from_the_middle_on_is_damaged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xa5" * (len(content) // 2))
    said = verify(capsys, path)
    assert (said.code, said.err) == (1, NEXT)
    assert " is damaged: " in said.out[0]


def test_a_damaged_index_is_named_with_its_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite(path, "calls_by_batch")
    assert verify(capsys, path).out[0].startswith("Table calls is damaged: ")


REPAIR = "`parley verify` says what is damaged, `parley restore` brings a backup back."


def test_a_letter_is_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.db"
    path.write_text("This is a letter, and no database at all." * 100)
    said = verify(capsys, path)
    assert said == Said(1, ["The file is damaged: file is not a database.", f"{path}: 1 damaged part"], NEXT)


@pytest.mark.parametrize("content", ["", "CREATE TABLE events (id INTEGER)"])
def test_a_database_of_another_program_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "o.db"
    path.touch()
    if content:
        change(path, content)
    said = verify(capsys, path)
    assert said == Said(3, [], f"error: {path}: it is a database, and none of Parley's orchestrator.\n")


def test_no_file_is_told_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = verify(capsys, tmp_path / "none.db", "--json")
    assert (said.code, json.loads(said.err)["error"]) == (3, f"There is no database {tmp_path}/none.db.")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_older_version_are_left_to_its_migration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.db"
    of_first_version(path)
    said = verify(capsys, path)
    assert (said.code, said.out) == (3, [])
    assert said.err.startswith(f"error: {path}: its rows can't be checked: they are of schema 0001, and this ")
    assert "A start of the server brings it up to date" in said.err


def test_rows_of_a_newer_version_are_left_to_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(path, "UPDATE alembic_version SET version_num = 'later'")
    said = verify(capsys, path)
    assert (said.code, said.out) == (3, [])
    assert said.err.startswith(f"error: {path}: its rows can't be checked: a newer Parley wrote them (schema later")
