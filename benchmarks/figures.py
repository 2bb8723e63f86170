"""Figures: what was measured, what it must or should be, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limit:
    value: float
    # Most limits are from above; a throughput has one from below.
    is_least: bool = False

    def holds(self, measured: float) -> bool:
        return measured >= self.value if self.is_least else measured <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.is_least else '<='} {self.value:g}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    name: str
    measured: float
    unit: str = ""
    # A bound that is missed fails the run, an aim does not.
    bound: Limit | None = None
    aim: Limit | None = None
    note: str = ""

    @property
    def keeps_bound(self) -> bool:
        return self.bound is None or self.bound.holds(self.measured)

    @property
    def verdict(self) -> str:
        if not self.keeps_bound:
            return "BOUND MISSED"
        if self.aim is not None:
            return "aim met" if self.aim.holds(self.measured) else "aim missed"
        return "within bound" if self.bound else ""


def table(figures: Sequence[Figure]) -> str:
    rows = [("figure", "measured", "bound", "aim", "verdict", "")]
    rows += [
        (
            figure.name,
            f"{_shown(figure.measured)} {figure.unit}".rstrip(),
            str(figure.bound or ""),
            str(figure.aim or ""),
            figure.verdict,
            figure.note,
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows
    )


def as_json(figures: Sequence[Figure], *, more: Sequence[Mapping[str, object]] = ()) -> str:
    """`more`: what belongs to the figures, each with a name as they have."""
    told = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    return json.dumps([*told, *more], indent=2)


def _shown(measured: float) -> str:
    return f"{measured:,.0f}" if measured >= 100 else f"{measured:.3f}" if measured < 10 else f"{measured:.1f}"
