"""The books that are checked: how rows are read and compared, and what a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    RowMapping,
    Subquery,
    Table,
    and_,
    func,
    literal,
    or_,
    select,
)

from orchestrator_service.domain.ledger import Rate

ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What is stored, and what the rows that it stands for say."""

    # Empty where it belongs to no batch.
    batch: str
    what: str
    stored: int | str
    recomputed: int | str

    def __str__(self) -> str:
        return f"{_of(self.batch)}{self.what}: stored {self.stored}, recomputed {self.recomputed}."


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Not certainly wrong, or nothing to check it by."""

    batch: str
    what: str

    def __str__(self) -> str:
        return f"{_of(self.batch)}{self.what}."


@dataclass(frozen=True)
class Books:
    """One moment of a database."""

    connection: Connection
    # Reads a rate as the tables keep it.
    rate_of: Callable[[str], Rate]

    def rows(self, statement: Executable) -> Iterator[RowMapping]:
        """However many there are, only some are in memory."""
        yield from self.connection.execute(statement, execution_options={"yield_per": ROWS_AT_ONCE}).mappings()


def compare(
    books: Books,
    stored: Table,
    recomputed: Subquery,
    *,
    by: Sequence[str],
    columns: Sequence[str],
    batch: ColumnElement[Any],
    place: ColumnElement[str] | None = None,
    where: ColumnElement[bool] | None = None,
) -> Iterator[Difference]:
    """Columns of the same names, row by row; where there is nothing to recompute from it is 0."""
    again = {name: func.coalesce(recomputed.c[name], 0) for name in columns}
    statement = select(
        batch.label("batch"),
        (literal("") if place is None else place).label("place"),
        *[stored.c[name] for name in columns],
        *[column.label(f"r_{name}") for name, column in again.items()],
    ).outerjoin(recomputed, and_(*[stored.c[name] == recomputed.c[name] for name in by]))
    differs = or_(*[stored.c[name] != column for name, column in again.items()])
    for row in books.rows(statement.where(differs, True if where is None else where)):
        yield from unequal(row, columns=columns, batch=row["batch"], place=row["place"])


def unequal(row: RowMapping, *, columns: Sequence[str], batch: str, place: str) -> Iterator[Difference]:
    """Of columns `x` and `r_x`."""
    for name in columns:
        if row[name] != row[f"r_{name}"]:
            yield Difference(batch=batch, what=f"{place}{name}", stored=row[name], recomputed=row[f"r_{name}"])


def each(books: Books, statement: Executable, what: str = "") -> Iterator[Difference]:
    """Every row is one: batch, stored, recomputed, and what, where it is not the same for all."""
    for row in books.rows(statement):
        said = what or row["what"]
        yield Difference(batch=row["batch"], what=said, stored=row["stored"], recomputed=row["recomputed"])


def count_of(where: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count().filter(where)


def total(column: ColumnElement[Any], where: ColumnElement[bool] | None = None) -> ColumnElement[int]:
    added = func.sum(column)
    return func.coalesce(added if where is None else added.filter(where), 0)


def _of(batch: str) -> str:
    return f"Batch {batch}: " if batch else ""
