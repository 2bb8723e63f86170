"""The kinds of calls whose levels are learned together: those of a workload, and those of the past that bear on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain.history import CallKey, History
from estimator_service.domain.workload import Group

Array = NDArray[np.float64]

# What is learned takes the cube of it.
NODES_MAX = 24
WELL_KNOWN_TIERS = ("template", "scenario", "edge_case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far the prior's mean may be off, as log-SD: for all nodes of a model alike, for a tier, for a node."""

    model: float
    tier: float
    unknown_tier: float
    node: float


@dataclass(frozen=True, slots=True)
class Nodes:
    keys: tuple[CallKey, ...]
    at: Mapping[CallKey, int]

    def of_history(self, history: History) -> NDArray[np.int64]:
        """The node of each row; -1 where it has none."""
        of_keys = np.array([self.at.get(key, -1) for key in history.keys], dtype=np.int64)
        return of_keys[history.key] if len(history) else history.key

    def covariance(self, spread: Spread) -> Array:
        """The prior's: what nodes share, they err in alike."""
        tiers = [key.tier for key in self.keys]
        own = [spread.tier if tier in WELL_KNOWN_TIERS else spread.unknown_tier for tier in tiers]
        # One turn says little of how long a whole conversation of its tier is.
        kinds = [(key.tier, key.turn_by_turn) for key in self.keys]
        same = np.array([[one == other for other in kinds] for one in kinds])
        return spread.model**2 + same * np.array(own) ** 2 + np.eye(len(tiers)) * spread.node**2


def key_of(group: Group) -> CallKey:
    return CallKey(
        tier=group.tier,
        model=group.model,
        effort=group.effort,
        prompt_fingerprint=group.prompt_fingerprint,
        turn_by_turn=group.turn_by_turn,
    )


def nodes_of(groups: Iterable[Group], history: History) -> Nodes:
    """Of one model. The workload's come first, largest first; those of them that are too many share a node of their
    tier, or of any. Past kinds that are too many have none: they would be taken for the workload's own."""
    wanted: Counter[CallKey] = Counter()
    for group in groups:
        wanted[key_of(group)] += max(group.count, 1)
    rows: Counter[int] = Counter(history.key.tolist())
    past = [history.keys[at] for at, _ in rows.most_common()]
    ranked: list[CallKey] = list(dict.fromkeys([*(key for key, _ in wanted.most_common()), *past]))
    kept = ranked[:NODES_MAX]
    at = {key: number for number, key in enumerate(kept)}
    by_likeness = {each: number for key, number in reversed(at.items()) for each in _likeness(key)}
    for key in ranked[NODES_MAX : len(wanted)]:
        at[key] = next(by_likeness[each] for each in _likeness(key) if each in by_likeness)
    return Nodes(tuple(kept), at)


def _likeness(key: CallKey) -> tuple[tuple[str, bool | None], ...]:
    """The closest first; the last is of any."""
    return (key.tier, key.turn_by_turn), ("", key.turn_by_turn), ("", None)
