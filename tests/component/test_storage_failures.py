"""What the database says of its own state is told as that, not as a fact's mistake; and what is whole goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_files import FILE_MAX_BYTES, no_larger_files, overwrite
from storage_fixtures import Store, opened

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage.claims import Claimed, claim
from orchestrator_service.storage.database import DatabaseUnusable, open_database
from orchestrator_service.storage.writer import REPAIR, Fact, StorageDamaged, StorageFailed, Transaction

pytestmark = pytest.mark.anyio

MALFORMED = f"The database file is damaged: database disk image is malformed. {REPAIR}"


def rename(batch: str, name: str) -> Fact[None]:
    """By a statement of SQLAlchemy's; claims are prepared statements of the driver's."""

    def fact(tx: Transaction) -> None:
        tx.connection.exec_driver_sql("UPDATE batches SET display_name = ? WHERE id = ?", (name, batch))

    return fact


async def with_damage(path: Path, table: str) -> None:
    async with opened(path) as store:
        await store.create()
    overwrite(path, table)


async def test_a_fact_that_meets_damage_fails_by_the_database_and_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    await with_damage(path, "conversations")
    async with opened(path) as store:
        with pytest.raises(StorageDamaged) as refused:
            await store.claim("b1")
        assert str(refused.value) == MALFORMED
        assert (refused.value.reason, "damaged" in refused.value.message) == ("STORAGE_UNAVAILABLE", True)
        await store.write(rename("b1", "Whole"))
        assert (await store.get("b1")).row["display_name"] == "Whole"


async def test_a_plain_statement_that_meets_damage_fails_by_the_database(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    await with_damage(path, "batches")
    async with opened(path) as store:
        with pytest.raises(StorageDamaged) as refused:
            await store.write(rename("b1", "Lost"))
        assert str(refused.value) == MALFORMED


async def test_a_reading_that_meets_damage_fails_by_the_database(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    await with_damage(path, "events")
    async with opened(path) as store:
        with pytest.raises(StorageDamaged) as refused:
            await store.events("b1")
        assert str(refused.value) == MALFORMED
        assert (await store.get("b1")).row["id"] == "b1"


async def test_damage_where_a_start_looks_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    await with_damage(path, "store")
    with pytest.raises(DatabaseUnusable) as refused:
        async with open_database(path, committed=lambda touched: None):
            raise AssertionError("it was opened")
    assert str(refused.value) == f"{path} is damaged, or is no database: database disk image is malformed. {REPAIR}"


Attempt = Callable[[Store, str], Fact[object]]


def by_claim(store: Store, batch: str) -> Fact[object]:
    return claim(store.wanted(batch, 1))


def by_statement(_store: Store, batch: str) -> Fact[object]:
    return rename(batch, "x" * 4 * FILE_MAX_BYTES)


def while_read_only(fact: Fact[object]) -> Fact[object]:
    def run(tx: Transaction) -> object:
        tx.connection.exec_driver_sql("PRAGMA query_only = ON")
        try:
            return fact(tx)
        finally:
            tx.connection.exec_driver_sql("PRAGMA query_only = OFF")

    return run


@pytest.mark.parametrize("attempt", [by_claim, by_statement])
async def test_a_read_only_database_is_no_mistake_of_a_fact(tmp_path: Path, attempt: Attempt) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await store.create()
        with pytest.raises(StorageFailed, match="attempt to write a readonly database"):
            await store.write(while_read_only(attempt(store, batch)))
        assert isinstance(await store.claim(batch), Claimed)


async def test_a_full_disk_is_no_mistake_of_a_prepared_statement(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await store.create({"template": 400})
        (pages,) = (await store.ask("PRAGMA page_count"))[0]
        await store.write(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(StorageFailed, match="database or disk is full"):
            for number in range(1, 401):
                await store.claim(batch, number)
        await store.write(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count = 1000000"))
        assert isinstance(await store.claim(batch, 400), Claimed)
        await store.check(batch)


async def test_a_failing_disk_is_no_mistake_of_a_fact(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        batch = await store.create()
        with no_larger_files(), pytest.raises(StorageFailed, match="disk I/O error"):
            await store.write(by_statement(store, batch))
        assert isinstance(await store.claim(batch), Claimed)
        await store.check(batch)


async def test_a_refusal_is_no_failure_of_the_database(tmp_path: Path) -> None:
    async with opened(tmp_path / "o.db") as store:
        with pytest.raises(ParleyError) as refused:
            await store.pause("b9")
        assert not isinstance(refused.value, StorageFailed)
