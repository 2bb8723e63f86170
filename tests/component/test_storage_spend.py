"""Sums of spend, in any order of keys."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from storage_fixtures import opened

from orchestrator_service.storage import ledger
from orchestrator_service.storage.ledger import SpendQuery

pytestmark = pytest.mark.anyio

KEYS = ("day", "owner", "label", "model", "batch")


async def test_no_order_of_keys_is_kept_in_memory(tmp_path: Path) -> None:
    """There are 325 of them, each with its filters: kept compiled, 2,000 questions held 25 MB."""
    kept: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        if statement.startswith("SELECT"):
            kept.append(context.cache_hit.name)

    async with opened(tmp_path / "o.db") as store:
        event.listen(store.database.reading, "before_cursor_execute", note)
        for keys in permutations(KEYS, 3):
            await store.database.read(partial(ledger.spend, query=SpendQuery(keys=keys, label_key="team")))
    assert set(kept) == {"CACHING_DISABLED"}
    assert len(kept) == 60
