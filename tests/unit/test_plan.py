"""The draw: even, distinct while combinations last, and a pure function of spec, seed and number."""

from collections import Counter
from itertools import combinations, product
from math import prod
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from orchestrator_service.domain.plan import AxisText, Item, Plan, claim_order
from orchestrator_service.domain.spec import Axis, AxisValue, Finding, Listed, Spec, Tier

sizes_of_axes = st.lists(st.integers(1, 12), max_size=5)
seeds = st.integers(0, 2**53)


def axes(*sizes: int) -> tuple[Axis, ...]:
    return tuple(
        Axis(id=f"a{at}", values=tuple(AxisValue(id=f"v{value}", text=f"Value {value}") for value in range(size)))
        for at, size in enumerate(sizes)
    )


def spec(**fields: Any) -> Spec:
    given: dict[str, Any] = {"name": "n", "model": "m", "seed": 1, "tiers": (Tier(id="template", count=3),)}
    return Spec(**given | fields)


def plan(count: int, *sizes: int, seed: int = 1) -> Plan:
    return Plan(spec(tiers=(Tier(id="t", count=count),), axes=axes(*sizes), seed=seed))


def drawn(made: Plan) -> list[tuple[str, ...]]:
    return [tuple(item.axis_values[axis.id] for axis in made.spec.axes) for item in made.items()]


@given(sizes=sizes_of_axes, seed=seeds)
@settings(deadline=None, max_examples=40)
@example(sizes=[4, 6, 10], seed=1)
@example(sizes=[2, 2, 2, 2, 2], seed=1)
def test_every_combination_comes_once_before_any_comes_twice(sizes: list[int], seed: int) -> None:
    assume(prod(sizes) <= 3_000)
    combos = drawn(plan(prod(sizes) * 2, *sizes, seed=seed))
    first, second = combos[: prod(sizes)], combos[prod(sizes) :]
    assert len(set(first)) == prod(sizes)
    assert first == second


@given(sizes=sizes_of_axes, count=st.integers(1, 400), seed=seeds)
@settings(deadline=None, max_examples=40)
@example(sizes=[4, 6, 10], count=333, seed=7)
def test_every_prefix_has_each_value_equally_often_within_one(sizes: list[int], count: int, seed: int) -> None:
    made = plan(count, *sizes, seed=seed)
    counts = {axis.id: {value.id: 0 for value in axis.values} for axis in made.spec.axes}
    for item in made.items():
        for axis, value in item.axis_values.items():
            counts[axis][value] += 1
        assert all(max(values.values()) - min(values.values()) <= 1 for values in counts.values())


@given(sizes=sizes_of_axes, count=st.integers(1, 300), listed=st.integers(0, 5), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_coverage_counts_what_the_items_have(sizes: list[int], count: int, listed: int, seed: int) -> None:
    own = tuple(Listed(tier="t", parameters={"a0": "v0"} if at % 2 else {}) for at in range(listed))
    made = Plan(spec(tiers=(Tier(id="t", count=count),), axes=axes(*sizes), listed=own, seed=seed))
    counted = Counter(("t", axis, value) for item in made.items() for axis, value in item.axis_values.items())
    cells = made.coverage()
    assert {cell[:3]: cell[3] for cell in cells} == {cell[:3]: counted[cell[:3]] for cell in cells}
    assert len(cells) == sum(sizes) and sum(cell[3] for cell in cells) == sum(counted.values())


@given(sizes=sizes_of_axes, seed=seeds)
@settings(deadline=None, max_examples=40)
def test_the_same_spec_and_seed_give_the_same_items_in_any_order(sizes: list[int], seed: int) -> None:
    one, other = plan(30, *sizes, seed=seed), plan(30, *sizes, seed=seed)
    assert [one.item(number) for number in range(30, 0, -1)] == [other.item(number) for number in range(30, 0, -1)]
    assert list(one.items()) == [one.item(number) for number in range(1, 31)]


def test_another_seed_gives_another_plan() -> None:
    assert len({tuple(drawn(plan(20, 5, 6, 7, seed=seed))) for seed in range(50)}) == 50


def test_a_draw_stays_what_it_was_in_earlier_versions() -> None:
    # A batch that waits over an upgrade is planned anew; these values must never change.
    assert drawn(plan(4, 3, 4, 5, seed=42)) == [
        ("v1", "v0", "v0"),
        ("v0", "v3", "v3"),
        ("v2", "v1", "v4"),
        ("v1", "v2", "v1"),
    ]
    assert drawn(plan(60, 4, 4, 6, seed=42))[55:] == [
        ("v2", "v2", "v3"),
        ("v1", "v0", "v5"),
        ("v2", "v3", "v4"),
        ("v3", "v1", "v0"),
        ("v0", "v2", "v1"),
    ]


@pytest.mark.parametrize("sizes", [(5, 5, 5), (3, 4, 5), (6, 7, 8), (4, 6, 10), (10, 10, 10), (6, 7, 7), (2, 4, 8, 16)])
def test_pairs_of_values_are_spread_and_axes_do_not_move_together(sizes: tuple[int, ...]) -> None:
    """Twice as many conversations as the largest pair of axes has combinations meet at least 90 % of every pair's."""
    for seed in range(4):
        count = 2 * max(one * other for one, other in combinations(sizes, 2))
        combos = drawn(plan(count, *sizes, seed=seed))
        for one, other in combinations(range(len(sizes)), 2):
            pairs = {(combo[one], combo[other]) for combo in combos}
            assert len(pairs) >= 0.9 * sizes[one] * sizes[other], (seed, one, other)


def test_90_conversations_over_three_small_axes_meet_every_pair() -> None:
    combos = drawn(plan(90, 5, 5, 6))
    for one, other in combinations(range(3), 2):
        assert {(combo[one], combo[other]) for combo in combos} == set(
            product(*({combo[at] for combo in combos} for at in (one, other)))
        )


def test_numbers_run_through_the_tiers_the_drawn_before_the_listed() -> None:
    tiers = (Tier(id="a", count=2), Tier(id="b", count=0), Tier(id="c", count=1))
    listed = (Listed(tier="c", parameters={"x": 1}), Listed(tier="a", parameters={"x": 2}), Listed(tier="c"))
    made = Plan(spec(tiers=tiers, listed=listed))
    assert [(item.number, item.tier.id, item.parameters) for item in made.items()] == [
        (1, "a", {}),
        (2, "a", {}),
        (3, "a", {"x": 2}),
        (4, "c", {}),
        (5, "c", {"x": 1}),
        (6, "c", {}),
    ]
    assert made.total == 6
    assert made.tier_totals == {"a": 3, "b": 0, "c": 3}
    assert [made.numbers(tier) for tier in "abc"] == [range(1, 4), range(4, 4), range(4, 7)]


@pytest.mark.parametrize("number", [0, -1, 4])
def test_there_is_no_item_outside_the_plan(number: int) -> None:
    with pytest.raises(IndexError, match="of 3"):
        plan(3).item(number)


def test_a_spec_without_tiers_has_an_empty_plan() -> None:
    assert Plan(spec(tiers=())).total == 0


def test_a_conversations_parameters_win_over_its_tiers_and_these_over_the_shared() -> None:
    tier = Tier(id="t", count=1, parameters={"b": "tier", "c": "tier"})
    shared = {"a": 45.0, "b": "shared", "c": "shared"}
    made = Plan(spec(tiers=(tier,), shared_parameters=shared, listed=(Listed(tier="t", parameters={"c": 1.0}),)))
    assert made.item(1).parameters == {"a": 45, "b": "tier", "c": "tier"}
    assert repr(made.item(2).parameters) == "{'a': 45, 'b': 'tier', 'c': 1}"


def test_an_axis_placeholder_is_the_values_text_and_knows_its_id() -> None:
    one = Axis(id="persona", values=(AxisValue(id="maya", text="Maya, 34"),))
    other = Axis(id="mood", values=(AxisValue(id="calm"),))
    item = Plan(spec(tiers=(Tier(id="t", count=1),), axes=(one, other))).item(1)
    persona, mood = item.parameters["persona"], item.parameters["mood"]
    assert isinstance(persona, AxisText) and isinstance(mood, AxisText)
    assert (persona, persona.id, mood, mood.id) == ("Maya, 34", "maya", "calm", "calm")
    assert item.axis_values == {"persona": "maya", "mood": "calm"}


def test_a_tier_varies_along_its_own_axes_only() -> None:
    tiers = (Tier(id="t", count=2, axes=("a1",)), Tier(id="u", count=2))
    made = Plan(spec(tiers=tiers, axes=axes(2, 3)))
    assert [sorted(item.axis_values) for item in made.items()] == [["a1"], ["a1"], ["a0", "a1"], ["a0", "a1"]]
    assert made.combinations() == {"t": 3, "u": 6}


def told(value: Any) -> Item:
    persona = Axis(id="persona", values=(AxisValue(id="maya", text="Maya, 34"),))
    listed = (Listed(tier="t", parameters={"persona": value}),)
    return Plan(spec(tiers=(Tier(id="t", count=1),), axes=(persona,), listed=listed)).item(2)


@pytest.mark.parametrize("value", ["maya", "Maya, 34"])
def test_a_listed_conversation_picks_an_axis_value_by_its_id_or_text(value: str) -> None:
    item = told(value)
    assert item.axis_values == {"persona": "maya"}
    assert item.parameters["persona"] == "Maya, 34"


def test_a_listed_conversation_may_fill_an_axis_in_its_own_words() -> None:
    item = told("Jo, 50")
    persona = item.parameters["persona"]
    assert isinstance(persona, AxisText)
    assert (persona, persona.id, item.axis_values) == ("Jo, 50", "Jo, 50", {})


def test_a_listed_conversation_may_fill_an_axis_with_more_than_a_text() -> None:
    item = told({"name": "Jo"})
    assert (item.parameters["persona"], item.axis_values) == ({"name": "Jo"}, {})


def test_repeats_are_counted_and_told() -> None:
    tiers = (Tier(id="t", count=8, axes=("a0",)), Tier(id="u", count=6), Tier(id="v", count=7))
    made = Plan(spec(tiers=tiers, axes=axes(2, 3)))
    assert made.repeats() == {"t": 6, "v": 1}
    assert made.findings() == [
        Finding(
            "WARNING",
            "",
            "tiers[0].count",
            "6 conversations of tier t repeat a combination of axis values: there are 2.",
            tier="t",
        ),
        Finding(
            "WARNING",
            "",
            "tiers[2].count",
            "1 conversations of tier v repeat a combination of axis values: there are 6.",
            tier="v",
        ),
    ]


def test_a_large_plan_is_planned_item_by_item() -> None:
    made = plan(1_000_000, 1_000, 999, 998, 997)
    assert made.item(1_000_000) == made.item(1_000_000)
    assert len({tuple(made.item(number).axis_values.values()) for number in range(1, 1_000_000, 997)}) == 1_004


TIERS = (Tier(id="a", count=60), Tier(id="b", count=30), Tier(id="c", count=10))
EXPECTED = {"a": 1_000.0, "b": 3_000.0, "c": 2_000.0}


def test_the_longest_are_claimed_first() -> None:
    order = claim_order(Plan(spec(tiers=TIERS)), EXPECTED, None)
    assert order == [*range(61, 91), *range(91, 101), *range(1, 61)]


def test_tiers_of_unknown_length_keep_the_specs_order_at_the_end() -> None:
    order = claim_order(Plan(spec(tiers=TIERS)), {"c": 1.0}, 0)
    assert order == [*range(91, 101), *range(1, 91)]


@pytest.mark.parametrize(
    ("pilot", "shares"),
    [
        (1, (1, 0, 0)),
        (2, (1, 1, 0)),
        (3, (1, 1, 1)),
        (10, (6, 3, 1)),
        (5, (3, 1, 1)),
        (100, (60, 30, 10)),
        (999, (60, 30, 10)),
    ],
)
def test_a_pilot_is_spread_over_the_tiers(pilot: int, shares: tuple[int, int, int]) -> None:
    made = Plan(spec(tiers=TIERS))
    first = Counter(made.item(number).tier.id for number in claim_order(made, EXPECTED, pilot)[:pilot])
    assert tuple(first[tier] for tier in "abc") == shares


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    pilot=st.integers(0, 300),
    expected=st.lists(st.floats(0, 10), min_size=6, max_size=6),
)
@example(counts=[40, 1, 1, 1, 1, 1], pilot=7, expected=[0.0] * 6)
def test_every_number_is_claimed_once_and_a_pilot_has_all_tiers_if_it_can(
    counts: list[int], pilot: int, expected: list[float]
) -> None:
    made = Plan(spec(tiers=tuple(Tier(id=f"t{at}", count=count) for at, count in enumerate(counts))))
    order = claim_order(made, {f"t{at}": tokens for at, tokens in enumerate(expected)}, pilot)
    assert sorted(order) == list(range(1, sum(counts) + 1))
    filled = sum(1 for count in counts if count)
    piloted = {made.item(number).tier.id for number in order[:pilot]}
    assert len(piloted) == min(filled, pilot)
