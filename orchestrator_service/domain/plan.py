"""The spec spread over numbered conversations: item n is a pure function of (spec, seed, n)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random

from orchestrator_service.domain.spec import (
    Axis,
    AxisValue,
    Finding,
    Listed,
    Parameters,
    ParameterValue,
    Spec,
    Tier,
    plain,
    tier_axes,
)

MASK_64 = 2**64 - 1
# For each place in a draw about so many ways are tried, and judged by the first so many numbers.
TRIES = 16
JUDGED_BY = 512


class AxisText(str):
    """An axis' placeholder: renders the value's text; `.id` is the value's id, or the text where it has none."""

    id: str

    def __new__(cls, text: str, *, id: str) -> AxisText:
        made = super().__new__(cls, text)
        made.id = id
        return made


@dataclass(frozen=True, kw_only=True)
class Item:
    number: int
    tier: Tier
    # Axis id to value id; without axes that a listed conversation filled in its own words.
    axis_values: dict[str, str]
    # Conversation over tier over shared, and an AxisText for each axis.
    parameters: dict[str, ParameterValue]


class Plan:
    """Numbers run from 1: the tiers in the spec's order; in a tier the drawn ones, then its listed ones.

    Assumes a spec without error findings. Nothing is held per drawn conversation.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        shared = _plain(spec.shared_parameters)
        self._tiers = [_TierPlan(spec, tier, shared) for tier in spec.tiers]
        self._ends = list(accumulate(tier.total for tier in self._tiers))
        self.total = self._ends[-1] if self._ends else 0
        self.tier_totals = {plan.tier.id: plan.total for plan in self._tiers}

    def item(self, number: int) -> Item:
        if not 1 <= number <= self.total:
            raise IndexError(f"conversation {number} of {self.total}")
        at = bisect_right(self._ends, number - 1)
        plan = self._tiers[at]
        return plan.item(number - 1 - (self._ends[at] - plan.total), number=number)

    def items(self) -> Iterator[Item]:
        return map(self.item, range(1, self.total + 1))

    def numbers(self, tier_id: str) -> range:
        """The numbers of a tier's conversations."""
        at = [plan.tier.id for plan in self._tiers].index(tier_id)
        end = self._ends[at]
        return range(end - self._tiers[at].total + 1, end + 1)

    def coverage(self) -> list[tuple[str, str, str, int]]:
        """(tier, axis, value, conversations with it), also the zeros."""
        return [cell for plan in self._tiers for cell in plan.coverage()]

    def combinations(self) -> dict[str, int]:
        """How many different combinations of axis values each tier has."""
        return {plan.tier.id: plan.draw.combinations for plan in self._tiers}

    def repeats(self) -> dict[str, int]:
        """How many drawn conversations of each tier repeat a combination; only tiers with any."""
        repeated = {plan.tier.id: plan.tier.count - plan.draw.combinations for plan in self._tiers}
        return {tier: count for tier, count in repeated.items() if count > 0}

    def findings(self) -> list[Finding]:
        """A warning for each tier whose combinations run out."""
        repeats, combinations = self.repeats(), self.combinations()
        found: list[Finding] = []
        for at, tier in enumerate(self.spec.tiers):
            if tier.id in repeats:
                message = (
                    f"{repeats[tier.id]:,} conversations of tier {tier.id} repeat a combination of axis values:"
                    f" there are {combinations[tier.id]:,}."
                )
                found.append(Finding("WARNING", "", f"tiers[{at}].count", message, tier=tier.id))
        return found


def claim_order(plan: Plan, expected_tokens: Mapping[str, float], pilot: int | None) -> list[int]:
    """Numbers in the order in which they are claimed: a pilot spread over the tiers, then the longest first.

    What takes longest goes first, so that no long call is left to run alone at the end.
    """
    order = list(plan.tier_totals)
    longest_first = sorted(order, key=lambda tier: -expected_tokens.get(tier, 0.0))
    first = _pilot_shares(plan.tier_totals, min(pilot or 0, plan.total))
    numbers = {tier: plan.numbers(tier) for tier in longest_first}
    piloted = [number for tier in longest_first for number in numbers[tier][: first[tier]]]
    return piloted + [number for tier in longest_first for number in numbers[tier][first[tier] :]]


def _pilot_shares(totals: Mapping[str, int], pilot: int) -> dict[str, int]:
    """In proportion, by largest remainders; one of each tier that has any before two of another."""
    total = sum(totals.values())
    filled = [tier for tier, count in totals.items() if count]
    if pilot <= len(filled):
        largest = sorted(filled, key=lambda tier: -totals[tier])[:pilot]
        return {tier: int(tier in largest) for tier in totals}
    exact = {tier: pilot * count / total for tier, count in totals.items()}
    shares = {tier: max(math.floor(exact[tier]), 1 if totals[tier] else 0) for tier in totals}
    while sum(shares.values()) < pilot:
        open_tiers = [tier for tier in filled if shares[tier] < totals[tier]]
        shares[max(open_tiers, key=lambda tier: exact[tier] - shares[tier])] += 1
    while sum(shares.values()) > pilot:
        above = [tier for tier in filled if shares[tier] > 1]
        shares[max(above, key=lambda tier: shares[tier] - exact[tier])] -= 1
    return shares


class _TierPlan:
    """One tier: what its conversations have in common, and the draw of what they differ in."""

    def __init__(self, spec: Spec, tier: Tier, shared: dict[str, ParameterValue]) -> None:
        self.tier = tier
        self.axes = tier_axes(spec, tier)
        self.listed = [listed for listed in spec.listed if listed.tier == tier.id]
        self.total = tier.count + len(self.listed)
        self._common = shared | _plain(tier.parameters)
        self._texts = {axis.id: [_text(value) for value in axis.values] for axis in self.axes}
        self._ids = {axis.id: {value.id for value in axis.values} for axis in self.axes}
        self._seed = spec.seed

    @cached_property
    def draw(self) -> _Draw:
        return _Draw([(axis.id, len(axis.values)) for axis in self.axes], seed=f"{self._seed}/{self.tier.id}")

    def item(self, index: int, *, number: int) -> Item:
        """Listed conversations go on with the draw, for the axes that they leave open."""
        parameters = dict(self._common)
        for axis, value in self.draw.values(index):
            parameters[axis] = self._texts[axis][value]
        if index >= self.tier.count:
            parameters.update(self._own(self.listed[index - self.tier.count]))
        axis_values = {
            axis: text.id
            for axis, ids in self._ids.items()
            if isinstance(text := parameters[axis], AxisText) and text.id in ids
        }
        return Item(number=number, tier=self.tier, axis_values=axis_values, parameters=parameters)

    def coverage(self) -> Iterator[tuple[str, str, str, int]]:
        listed = (self.item(index, number=0) for index in range(self.tier.count, self.total))
        counts = Counter(pair for item in listed for pair in item.axis_values.items())
        for axis in self.axes:
            drawn = self.draw.counts(axis.id, self.tier.count)
            for at, value in enumerate(axis.values):
                yield self.tier.id, axis.id, value.id, drawn[at] + counts[axis.id, value.id]

    def _own(self, listed: Listed) -> dict[str, ParameterValue]:
        own = _plain(listed.parameters)
        for axis in self.axes:
            told = own.get(axis.id)
            if isinstance(told, str):
                own[axis.id] = _given_text(axis, told)
        return own


class _Axis:
    """The part of the draw that one axis takes; a number x of the draw becomes one of `size` values.

    period: after how many numbers the combinations of the axes before this one come round again. Its own value is
    x + (x div lcm(period, size) + spread(block)) mod gcd(period, size), mod size, with block = (x mod lcm) div size.
    Without the second term x alone would pair a value of this axis with the same few values of the earlier ones.
    The term is constant on blocks of `size` numbers, so every prefix has each value equally often, within one.
    It stays a bijection: for a given x mod period, the multiple of gcd in the value tells x mod lcm, the rest tells
    x div lcm. So `spread` may be anything that depends on x mod lcm alone: a shuffled digit, so that blocks in a row
    differ, and chance on top, so that axes whose sizes share factors do not move together.
    """

    def __init__(self, id: str, size: int, *, period: int, rng: Random) -> None:
        self.id, self.size = id, size
        self._gcd = math.gcd(period, size)
        self._lcm = period // self._gcd * size
        self.is_free = self._gcd == 1
        self._values = _shuffled(size, rng)
        self._digits = _shuffled(self._gcd, rng)
        self._salt = int(rng.random() * 2**53)

    def value(self, x: int) -> int:
        gcd = self._gcd
        if self.is_free:
            return self._values[x % self.size]
        round_, rest = divmod(x, self._lcm)
        high, low = divmod(rest // self.size, gcd)
        shift = round_ + self._digits[low] + _mixed(high, self._salt)
        return self._values[(x + shift % gcd) % self.size]

    def first(self, count: int) -> list[int]:
        return [self.value(x) for x in range(count)]


class _Draw:
    """Values for the axes of a tier: all combinations once before any comes twice, each value within one of even."""

    def __init__(self, axes: list[tuple[str, int]], *, seed: str) -> None:
        rng = Random(seed)
        self.combinations = 1
        self._axes: list[_Axis] = []
        columns: list[list[int]] = []
        left = [axes[at] for at in _shuffled(len(axes), rng)]
        while left:
            best = max(self._ways(left, rng), key=lambda axis: _pairing(axis, columns))
            left.remove((best.id, best.size))
            self.combinations *= best.size
            self._axes.append(best)
            columns.append(best.first(JUDGED_BY))

    def _ways(self, left: list[tuple[str, int]], rng: Random) -> Iterator[_Axis]:
        """The next axis may be any of those left; its size decides whether there is more than one way to draw it."""
        for id, size in left:
            tries = -(-TRIES // len(left)) if math.gcd(self.combinations, size) > 1 else 1
            for _ in range(tries):
                yield _Axis(id, size, period=self.combinations, rng=rng)

    def values(self, index: int) -> list[tuple[str, int]]:
        x = index % self.combinations
        return [(axis.id, axis.value(x)) for axis in self._axes]

    def counts(self, axis_id: str, count: int) -> list[int]:
        """How often each value of an axis comes up in the first `count`: whole blocks, then what is begun."""
        axis = next(axis for axis in self._axes if axis.id == axis_id)
        whole, begun = divmod(count, axis.size)
        counts = [whole] * axis.size
        for index in range(count - begun, count):
            counts[axis.value(index % self.combinations)] += 1
        return counts


def _pairing(axis: _Axis, columns: list[list[int]]) -> tuple[float, bool]:
    """The least share of value pairs that an axis meets with one of the earlier ones early on.

    Where that is equal, an axis that shares no factor with them goes first: it has no choice, and later may need one.
    """
    shares: list[float] = []
    values = axis.first(JUDGED_BY)
    for column in columns:
        pairs = axis.size * (max(column) + 1)
        judged = min(2 * pairs, JUDGED_BY)
        shares.append(len(set(zip(values[:judged], column[:judged], strict=True))) / min(pairs, judged))
    return min(shares, default=1.0), axis.is_free


def _shuffled(size: int, rng: Random) -> list[int]:
    # Of all that Random offers, only seeding and random() stay the same from one Python to the next.
    keys = [rng.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def _mixed(number: int, salt: int) -> int:
    """Chance as a function: the finalizer of SplitMix64."""
    mixed = (number * 0x9E3779B97F4A7C15 + salt) & MASK_64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK_64
    return mixed ^ (mixed >> 31)


def _text(value: AxisValue) -> AxisText:
    return AxisText(value.text or value.id, id=value.id)


def _given_text(axis: Axis, told: str) -> AxisText:
    """A value of the axis, by its id or in its words, or else the conversation's own words."""
    named = (_text(value) for value in axis.values if told in (value.id, value.text))
    return next(named, AxisText(told, id=told))


def _plain(parameters: Parameters) -> dict[str, ParameterValue]:
    return {name: plain(value) for name, value in parameters.items()}
