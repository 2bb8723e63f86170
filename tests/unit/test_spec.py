"""What is found wrong with a spec, what its hash stands for, and how built-in axes come in."""

import math
from dataclasses import replace
from typing import Any

import pytest

from orchestrator_service.domain.spec import (
    FINDINGS_MAX,
    TEXT_MAX_CHARS,
    Axis,
    AxisValue,
    Builtins,
    Exchanges,
    Finding,
    Listed,
    Spec,
    Tier,
    content_sha256,
    findings,
    plain,
    tier_axes,
    with_builtin_axes,
)


def axis(id: str, *values: str) -> Axis:
    return Axis(id=id, values=tuple(AxisValue(id=value) for value in values))


def spec(**fields: Any) -> Spec:
    given: dict[str, Any] = {"name": "n", "model": "m", "seed": 1, "tiers": (Tier(id="template", count=3),)}
    return Spec(**given | fields)


def found(made: Spec) -> list[tuple[str, str]]:
    return [(finding.reason, finding.field) for finding in findings(made)]


BUILTINS = Builtins(templates={}, shared_prompt="", axes=(axis("persona", "maya", "jo"), axis("topic", "debt", "ira")))


def test_a_plain_spec_has_no_findings() -> None:
    assert (
        findings(spec(axes=(axis("persona", "maya"),), shared_parameters={"age": 45.0, "more": [1, {"a": None}]})) == []
    )


def test_no_tiers_and_no_conversations_is_an_empty_spec() -> None:
    assert found(spec(tiers=())) == [("SPEC_EMPTY", "tiers")]


def test_a_tier_without_count_is_empty_unless_conversations_are_listed_for_it() -> None:
    tiers = (Tier(id="template", count=0), Tier(id="scenario", count=0))
    assert found(spec(tiers=tiers, listed=(Listed(tier="scenario"),))) == [("TIER_EMPTY", "tiers[0].count")]
    assert found(spec(tiers=tiers)) == [
        ("SPEC_EMPTY", "tiers"),
        ("TIER_EMPTY", "tiers[0].count"),
        ("TIER_EMPTY", "tiers[1].count"),
    ]


def test_everything_wrong_is_found_at_once_with_its_path() -> None:
    made = spec(
        tiers=(
            Tier(id="template", count=1, axes=("persona", "weather", "persona"), parameters={"persona": "x"}),
            Tier(id="template", count=1, exchanges=Exchanges(min=3, max=2)),
        ),
        axes=(axis("persona", "maya", "maya"), axis("persona", "jo"), axis("tier"), axis("unused", "x")),
        shared_parameters={"exchanges_min": 3, "persona": "x"},
        listed=(Listed(tier="scenario", parameters={"ratio": [1.0, {"deep": math.inf}]}),),
    )
    assert found(made) == [
        ("INVALID_FIELD", "tiers[1].id"),
        ("INVALID_FIELD", "axes[1].id"),
        ("INVALID_FIELD", "axes[0].values[1].id"),
        ("INVALID_FIELD", "axes[2].values"),
        ("INVALID_FIELD", "axes[2].id"),
        ("AXIS_UNKNOWN", "tiers[0].axes[1]"),
        ("INVALID_FIELD", "tiers[0].axes[2]"),
        ("INVALID_FIELD", "tiers[1].exchanges"),
        ("INVALID_FIELD", "shared_parameters.exchanges_min"),
        ("INVALID_FIELD", "shared_parameters.persona"),
        ("INVALID_FIELD", "tiers[0].parameters.persona"),
        ("TIER_UNKNOWN", "conversations[0].tier"),
        ("INVALID_FIELD", "conversations[0].parameters.ratio"),
    ]


@pytest.mark.parametrize(("fewest", "most"), [(0, 3), (3, 2), (1, 51)])
def test_exchanges_outside_1_to_50_are_refused(fewest: int, most: int) -> None:
    tier = Tier(id="t", count=1, exchanges=Exchanges(min=fewest, max=most))
    assert found(spec(tiers=(tier,))) == [("INVALID_FIELD", "tiers[0].exchanges")]


def test_exchanges_follow_from_the_tier_where_not_given() -> None:
    ranges = {id: Tier(id=id, count=1).exchange_range for id in ("template", "scenario", "edge_case", "mine")}
    assert {id: (length.min, length.max) for id, length in ranges.items()} == {
        "template": (4, 5),
        "scenario": (5, 6),
        "edge_case": (2, 4),
        "mine": (4, 5),
    }


def test_a_listed_conversation_may_name_an_axis_and_a_tier_one_that_does_not_vary_in_it() -> None:
    axes = (axis("persona", "maya"), axis("topic", "debt"))
    tiers = (Tier(id="a", count=1, axes=("topic",), parameters={"persona": "Jo"}), Tier(id="b", count=1))
    assert findings(spec(tiers=tiers, axes=axes, listed=(Listed(tier="a", parameters={"topic": "ira"}),))) == []


def test_an_axis_that_no_tier_uses_is_a_warning_after_the_errors() -> None:
    made = spec(
        tiers=(Tier(id="a", count=1, axes=("persona",)), Tier(id="b", count=0, axes=("persona",))),
        axes=(axis("persona", "maya"), axis("topic", "debt")),
    )
    assert findings(made) == [
        Finding(
            "ERROR", "TIER_EMPTY", "tiers[1].count", "Tier b has neither a count nor listed conversations.", tier="b"
        ),
        Finding("WARNING", "", "axes[1]", "Axis topic varies in no tier."),
    ]


def test_an_over_long_text_is_refused_wherever_it_hides() -> None:
    long = "x" * (TEXT_MAX_CHARS + 1)
    made = spec(shared_parameters={"fine": "x", "plain": long, "list": ["x", long], "map": {"a": {"b": long}}})
    assert found(made) == [("INVALID_FIELD", f"shared_parameters.{name}") for name in ("plain", "list", "map")]


def test_findings_are_limited() -> None:
    assert len(findings(spec(listed=(Listed(tier="nowhere"),) * (FINDINGS_MAX + 5)))) == FINDINGS_MAX


def test_the_hash_ignores_what_does_not_decide_content_and_price() -> None:
    made = spec(shared_parameters={"age": 45})
    labelled = replace(made, name="x", labels={"a": "b"}, budget_nanos=1, hold_after=3, priority=3, stop_on_error=True)
    assert content_sha256(labelled) == content_sha256(made)
    assert content_sha256(replace(made, shared_parameters={"age": 45.0})) == content_sha256(made)
    assert content_sha256(
        replace(made, tiers=(Tier(id="template", count=3, exchanges=Exchanges(min=4, max=5)),))
    ) == content_sha256(made)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"seed": 2},
        {"tiers": (Tier(id="template", count=4),)},
        {"axes": (axis("persona", "maya"),)},
        {"shared_parameters": {"age": 46}},
        {"shared_prompt": "Be kind."},
        {"system_prompt": "You are kind."},
        {"listed": (Listed(tier="template"),)},
        {"concurrency": 5},
        {"prompt_cache": "5m"},
        {"max_attempts": 2},
        {"effort": "low"},
    ],
)
def test_the_hash_changes_with_whatever_decides_content_price_or_pace(change: dict[str, Any]) -> None:
    assert content_sha256(spec(**change)) != content_sha256(spec())


def test_whole_floats_become_integers_all_the_way_down() -> None:
    assert repr(plain({"a": [45.0, 1.5, {"b": 2.0}], "c": True, "d": None, "e": "x"})) == (
        "{'a': [45, 1.5, {'b': 2}], 'c': True, 'd': None, 'e': 'x'}"
    )


def test_a_tier_varies_along_all_axes_unless_it_names_some() -> None:
    axes = (axis("a", "x"), axis("b", "x"), axis("c", "x"))
    made = spec(axes=axes)
    assert tier_axes(made, Tier(id="t", count=1)) == axes
    assert tier_axes(made, Tier(id="t", count=1, axes=("c", "a"))) == (axes[0], axes[2])


def test_built_in_axes_come_in_where_a_tier_is_on_a_built_in_prompt_and_the_spec_has_no_axes() -> None:
    assert with_builtin_axes(spec(), BUILTINS).axes == BUILTINS.axes
    own_axes = spec(axes=(axis("mood", "calm"),))
    assert with_builtin_axes(own_axes, BUILTINS) is own_axes
    own_prompt = spec(tiers=(Tier(id="template", count=1, prompt="Write."),))
    assert with_builtin_axes(own_prompt, BUILTINS) is own_prompt


def test_a_built_in_axis_gives_way_to_a_parameter_of_its_name() -> None:
    shared = with_builtin_axes(spec(shared_parameters={"topic": "debt"}), BUILTINS)
    assert [axis.id for axis in shared.axes] == ["persona"]
    tiers = (Tier(id="scenario", count=1, parameters={"persona": "Jo"}), Tier(id="template", count=1))
    own = with_builtin_axes(spec(tiers=tiers), BUILTINS)
    assert [tier.axes for tier in own.tiers] == [("topic",), ()]
    assert findings(shared) == findings(own) == []


def test_a_tier_that_names_built_in_axes_keeps_its_choice() -> None:
    tiers = (Tier(id="scenario", count=1, axes=("topic",), parameters={"persona": "Jo"}),)
    assert with_builtin_axes(spec(tiers=tiers), BUILTINS).tiers == tiers
