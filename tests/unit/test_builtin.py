"""The built-in prompts: they need nothing, take what they are given, and say how long a conversation is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import product

import pytest

from orchestrator_service.domain.plan import AxisText, Plan
from orchestrator_service.domain.spec import Spec, Tier, with_builtin_axes
from orchestrator_service.generation import builtin
from orchestrator_service.generation.prompts import Prompts
from orchestrator_service.generation.templates import compile_template

TIERS = ("template", "scenario", "edge_case")
STEERING: Mapping[str, object] = {
    "domain": "keeping bees",
    "assistant": "Alma, who has kept bees for forty years",
    "audience": "people with one hive",
    "rules": ["Never blame the beekeeper.", "Name the season."],
    "topics": ["a swarm in May", "mites"],
}
LEFT_OVER = re.compile(r"\{\{|\}\}|\{%|%\}|\n{4}")

compiled = cache(compile_template)


def render(template: str, **parameters: object) -> str:
    return compiled(template).fill(parameters)


def render_tier(tier: str, **parameters: object) -> str:
    template = builtin.load().templates[tier]
    return render(template.text, tier=tier, exchanges_min=3, exchanges_max=7, **parameters)


def drawn() -> list[dict[str, AxisText]]:
    """Every combination of the axes' values."""
    axes = builtin.load().axes
    values = [[AxisText(value.text, id=value.id) for value in axis.values] for axis in axes]
    return [dict(zip((axis.id for axis in axes), combination, strict=True)) for combination in product(*values)]


def test_there_is_one_versioned_template_for_each_well_known_tier() -> None:
    templates = builtin.load().templates
    assert {tier: (template.id, template.version) for tier, template in templates.items()} == {
        "template": ("template", "template@1"),
        "scenario": ("scenario", "scenario@1"),
        "edge_case": ("edge_case", "edge_case@1"),
    }


def test_the_axes_have_distinct_values_of_one_line() -> None:
    axes = {axis.id: axis.values for axis in builtin.load().axes}
    assert {axis: len({value.text for value in values}) for axis, values in axes.items()} == {
        "persona": 6,
        "emotional_arc": 7,
        "situation": 8,
    }
    assert not [value for values in axes.values() for value in values if "\n" in value.text]


def test_ids_are_what_the_contract_allows() -> None:
    axes = builtin.load().axes
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,63}", axis.id) for axis in axes)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value.id) for axis in axes for value in axis.values)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("parameters", [{}, STEERING], ids=["bare", "steered"])
def test_a_template_renders_for_every_combination(tier: str, parameters: Mapping[str, object]) -> None:
    for values in drawn():
        text = render_tier(tier, **parameters, **values)
        assert not LEFT_OVER.search(text)
        assert {f"Persona: {values['persona']}", f"Emotional arc: {values['emotional_arc']}"} <= set(text.splitlines())
        assert str(values["situation"]) in text


@pytest.mark.parametrize("tier", TIERS)
def test_a_template_states_its_tier_and_its_exchanges(tier: str) -> None:
    lines = render_tier(tier).splitlines()
    assert f"Tier: {tier}" in lines
    assert [line for line in lines if line.startswith("Write 3 to 7 exchanges.")]


@pytest.mark.parametrize("tier", TIERS)
def test_a_template_needs_no_axis(tier: str) -> None:
    text = render_tier(tier)
    assert "Persona:" not in text and "Emotional arc:" not in text and "Topic:" not in text


@pytest.mark.parametrize("tier", TIERS)
def test_a_topic_of_the_spec_comes_before_the_domain(tier: str) -> None:
    assert "Topic: mites in August" in render_tier(tier, topic="mites in August", domain="keeping bees").splitlines()
    assert re.search(r"^Topic: .*keeping bees", render_tier(tier, domain="keeping bees"), re.MULTILINE)


@pytest.mark.parametrize("tier", TIERS)
def test_listed_topics_are_offered(tier: str) -> None:
    assert "- a swarm in May\n- mites\n" in render_tier(tier, **STEERING)


def test_an_edge_case_may_be_named() -> None:
    assert "The hard part here is: a sting and short breath" in render_tier(
        "edge_case", edge_case="a sting and short breath"
    )


def test_the_shared_prompt_takes_what_it_is_given() -> None:
    text = render(builtin.load().shared_prompt, **STEERING)
    assert not LEFT_OVER.search(text)
    assert "ask about keeping bees." in text
    assert (
        "The assistant is Alma, who has kept bees for forty years. The people who write are people with one hive."
        in text
    )
    assert "- Never blame the beekeeper.\n- Name the season.\n" in text


def test_the_shared_prompt_needs_nothing() -> None:
    text = render(builtin.load().shared_prompt)
    assert not LEFT_OVER.search(text)
    assert "how to answer. The assistant's messages" in text
    assert "rules" not in text


def test_a_spec_of_tiers_and_counts_makes_prompts_without_a_finding() -> None:
    tiers = tuple(Tier(id=tier, count=50) for tier in TIERS)
    spec = with_builtin_axes(Spec(name="bare", model="any", seed=1, tiers=tiers), builtin.load())
    plan, prompts = Plan(spec), Prompts(spec, builtin.load())
    assert prompts.check(plan) == []
    assert len({prompts.render(item).sha256 for item in plan.items()}) == 150


def test_a_crisis_is_referred_also_by_the_built_in_template() -> None:
    assert "988" in builtin.load().templates["edge_case"].text
