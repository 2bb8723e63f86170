"""The examples that are shipped: what their specs promise is there, and every placeholder is filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, meta

from orchestrator_service.generation.templates import compile_template

EXAMPLES = Path(__file__).parents[2] / "examples"
PLANNER = EXAMPLES / "planner"
ALWAYS_THERE = {"tier", "exchanges_min", "exchanges_max"}
TIERS = ("template", "scenario", "edge_case")


def read_spec(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def placeholders(template: str) -> set[str]:
    return meta.find_undeclared_variables(Environment(autoescape=True).parse(template))


@pytest.fixture(name="spec", scope="module")
def planner_spec() -> dict[str, Any]:
    return read_spec(PLANNER / "spec.yaml")


def tier_of(spec: dict[str, Any], tier_id: str) -> dict[str, Any]:
    return next(tier for tier in spec["tiers"] if tier["id"] == tier_id)


def prompt_of(spec: dict[str, Any], tier_id: str) -> str:
    return (PLANNER / tier_of(spec, tier_id)["prompt"]).read_text(encoding="utf-8")


def test_the_planner_makes_ninety_conversations(spec: dict[str, Any]) -> None:
    counts = {tier["id"]: tier["count"] for tier in spec["tiers"]}
    assert counts == {"template": 40, "scenario": 35, "edge_case": 15}


def test_the_tiers_have_their_lengths(spec: dict[str, Any]) -> None:
    lengths = {tier["id"]: (tier["exchanges"]["min"], tier["exchanges"]["max"]) for tier in spec["tiers"]}
    assert lengths == {"template": (4, 5), "scenario": (5, 6), "edge_case": (2, 4)}


def test_the_axes_have_their_values(spec: dict[str, Any]) -> None:
    sizes = {axis["id"]: len({value["id"] for value in axis["values"]}) for axis in spec["axes"]}
    assert sizes == {"persona": 3, "emotional_arc": 7, "topic": 20, "edge_case": 3}


def test_the_text_of_a_value_is_one_line(spec: dict[str, Any]) -> None:
    # A prompt gives each its own line after a label; a line break would end it early.
    texts = [value["text"] for axis in spec["axes"] for value in axis["values"]]
    assert [text for text in texts if not text or "\n" in text] == []


def test_only_edge_cases_draw_a_class(spec: dict[str, Any]) -> None:
    assert [tier["id"] for tier in spec["tiers"] if "edge_case" in tier["axes"]] == ["edge_case"]


@pytest.mark.parametrize("tier_id", TIERS)
def test_the_spec_fills_every_placeholder_of_a_tier(spec: dict[str, Any], tier_id: str) -> None:
    tier = tier_of(spec, tier_id)
    filled = {*spec["shared_parameters"], *tier.get("parameters", {}), *tier["axes"], *ALWAYS_THERE}
    assert placeholders(prompt_of(spec, tier_id)) - filled == set()


@pytest.mark.parametrize("path", sorted(PLANNER.glob("prompts/*.md")), ids=lambda path: path.name)
def test_a_prompt_uses_only_what_templates_may_use(path: Path) -> None:
    assert compile_template(path.read_text(encoding="utf-8")).names


@pytest.mark.parametrize("tier_id", TIERS)
def test_a_tier_uses_all_that_it_draws_and_is_given(spec: dict[str, Any], tier_id: str) -> None:
    tier = tier_of(spec, tier_id)
    given = {*tier.get("parameters", {}), *tier["axes"], *ALWAYS_THERE}
    assert given - placeholders(prompt_of(spec, tier_id)) == set()


def test_what_all_conversations_share_needs_shared_parameters_only(spec: dict[str, Any]) -> None:
    shared = (PLANNER / spec["shared_prompt"]).read_text(encoding="utf-8")
    used = placeholders(shared) | placeholders(spec["system_prompt"])
    assert used == set(spec["shared_parameters"])


@pytest.mark.parametrize("tier_id", TIERS)
def test_a_prompt_says_what_it_wants_in_lines_of_their_own(spec: dict[str, Any], tier_id: str) -> None:
    lines = prompt_of(spec, tier_id).splitlines()
    assert {"Tier: {{ tier }}", "Persona: {{ persona }}", "Topic: {{ topic }}"} <= set(lines)
    assert sum(line.startswith("Emotional arc: ") for line in lines) == 1
    assert sum(line.startswith("Write {{ exchanges_min }} to {{ exchanges_max }} exchanges") for line in lines) == 1


def test_a_crisis_is_given_the_lines_that_help(spec: dict[str, Any]) -> None:
    contacts = " ".join(tier_of(spec, "edge_case")["parameters"]["contacts"])
    assert all(number in contacts for number in ("911", "988", "1-800-799-7233", "1-800-677-1116"))


def test_the_smallest_spec_has_five_lines_of_which_none_is_a_prompt() -> None:
    path = EXAMPLES / "minimal.yaml"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    assert set(read_spec(path)) == {"name", "tiers", "shared_parameters"}
    assert read_spec(path)["tiers"] == [{"id": "scenario", "count": 6}]
