"""The record of past quotes, scored as a whole and by model, tier and month."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from estimator_service.domain.scores import Scored, Scores, summarize

# What a slice may be of, in the order of its name.
PARTS = ("model", "tier", "month")
# Of more slices those of most batches are told.
SLICES_MAX = 1_000
# A batch that was given up early is no test of what the whole was to cost.
MADE_SHARE_MIN = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PastGroup:
    tier: str
    model: str
    # None where the group was quoted as free, or what it cost was not told.
    cost: Scored | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PastBatch:
    """A quoted batch that has ended; cost in dollars, time in seconds."""

    quote: str
    batch: str
    end_time: datetime
    # None where the quote was of nothing: there is no relative error of it.
    cost: Scored | None
    time: Scored | None
    groups: tuple[PastGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    # "model=claude-sonnet-5,month=2026-11"; empty for the whole.
    name: str
    # Batches.
    count: int
    # None where nothing could be scored.
    cost: Scores | None
    time: Scores | None


def slices(past: Sequence[PastBatch], *, by: Collection[str]) -> list[Slice]:
    """The whole first, then by every combination of `by` that occurs, in the order of their names.

    A batch counts in each slice that any of its groups belongs to: with its own cost range where all of them do, with
    those of the groups that do otherwise. Its time is always that of the whole batch.
    """
    parts: dict[str, _Scorable] = {}
    for each in past if by else ():
        for name, groups in _by_name(each, by).items():
            parts.setdefault(name, _Scorable()).add(each, groups)
    kept = sorted(parts, key=lambda name: (-parts[name].count, name))[:SLICES_MAX]
    whole = _Scorable()
    for each in past:
        whole.add(each, each.groups)
    return [whole.slice(""), *(parts[name].slice(name) for name in sorted(kept))]


class _Scorable:
    """What one slice is scored on."""

    def __init__(self) -> None:
        self.count = 0
        self._costs: list[Scored] = []
        self._times: list[Scored] = []

    def add(self, past: PastBatch, groups: Sequence[PastGroup]) -> None:
        self.count += 1
        costs = [past.cost] if len(groups) == len(past.groups) else [group.cost for group in groups]
        self._costs += [cost for cost in costs if cost]
        self._times += [past.time] if past.time else []

    def slice(self, name: str) -> Slice:
        return Slice(
            name=name,
            count=self.count,
            cost=summarize(self._costs) if self._costs else None,
            time=summarize(self._times) if self._times else None,
        )


def _by_name(past: PastBatch, by: Collection[str]) -> dict[str, list[PastGroup]]:
    named: dict[str, list[PastGroup]] = {}
    for group in past.groups:
        named.setdefault(",".join(_parts(past, group, by)), []).append(group)
    return named


def _parts(past: PastBatch, group: PastGroup, by: Collection[str]) -> Iterator[str]:
    values = {"model": group.model, "tier": group.tier, "month": f"{past.end_time:%Y-%m}"}
    return (f"{part}={values[part]}" for part in PARTS if part in by)
