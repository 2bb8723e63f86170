"""Spec files: the shorthands that people write, and faults that say where and what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from google.protobuf import json_format
from parley import money
from parley.cli import schema, spec_file
from parley.cli.spec_file import SpecFile, SpecFileError
from parley.cli.spec_reader import SpecFault, slug
from parley.cli.starter import FOLDER, SCHEMA
from parley.v1 import batch_pb2

EXAMPLES = Path(__file__).parents[2] / "examples"
SHIPPED = [FOLDER / "spec.yaml", *sorted(EXAMPLES.rglob("*.yaml"))]


@pytest.fixture(name="folder")
def spec_folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scenario.md").write_text("Write about {{ topic }}.\n")
    return tmp_path


def load(folder: Path, text: str) -> SpecFile:
    path = folder / "spec.yaml"
    path.write_text(text)
    return spec_file.load(path)


def faults(folder: Path, text: str) -> list[SpecFault]:
    with pytest.raises(SpecFileError) as caught:
        load(folder, text)
    return list(caught.value.faults)


def said(folder: Path, text: str) -> list[str]:
    return [f"{fault.line} {fault.field}: {fault.message}" for fault in faults(folder, text)]


def tier(folder: Path, text: str) -> batch_pb2.Tier:
    return load(folder, f"name: x\ntiers: [{{id: scenario, count: 1, {text}}}]").spec.tiers[0]


def test_the_five_line_start_is_enough(folder: Path) -> None:
    spec = load(folder, "name: Plants\ntiers: [{id: scenario, count: 30}]\nshared_parameters: {domain: plants}").spec
    assert (spec.name, spec.tiers[0].count) == ("Plants", 30)
    assert spec.shared_parameters["domain"] == "plants"


def test_lower_camel_names_are_taken_too(folder: Path) -> None:
    spec = load(folder, "name: x\nholdAfter: 0\nsharedParameters: {a: 1}\ntiers: [{id: a, maxOutputTokens: 900}]").spec
    assert spec.HasField("hold_after")
    assert spec.tiers[0].max_output_tokens == 900


def test_a_prompt_is_read_from_beside_the_spec(folder: Path) -> None:
    assert tier(folder, "prompt: prompts/scenario.md").prompt.text == "Write about {{ topic }}.\n"
    assert tier(folder, "prompt: {file: prompts/scenario.md}").prompt.text == "Write about {{ topic }}.\n"


def test_a_prompt_may_stand_in_the_spec(folder: Path) -> None:
    text = "name: x\nshared_prompt: |\n  See prompts/scenario.md\ntiers: [{id: a, prompt: {text: Write well.md}}]"
    spec = load(folder, text).spec
    assert spec.shared_prompt.text == "See prompts/scenario.md\n"
    assert spec.tiers[0].prompt.text == "Write well.md"


def test_axis_values_are_texts_with_ids_made_of_them(folder: Path) -> None:
    text = "name: x\naxes:\n  mood: [Worry -> relief, worry/relief, 日本]\n  topic:\n    - {id: t1, text: Leaves}\n"
    mood, topic = load(folder, text).spec.axes
    assert [(value.id, value.text) for value in mood.values] == [
        ("worry_relief", "Worry -> relief"),
        ("worry_relief_2", "worry/relief"),
        ("value", "日本"),
    ]
    assert (topic.id, topic.values[0].id, topic.values[0].text) == ("topic", "t1", "Leaves")


def test_axes_may_be_a_list(folder: Path) -> None:
    (axis,) = load(folder, "name: x\naxes: [{id: mood, values: [calm]}]").spec.axes
    assert (axis.id, axis.values[0].id) == ("mood", "calm")


@pytest.mark.parametrize(("written", "least", "most"), [("4-5", 4, 5), ("4 to 5", 4, 5), ("6", 6, 6)])
def test_exchanges_are_a_range_or_a_number(folder: Path, written: str, least: int, most: int) -> None:
    read = tier(folder, f"exchanges: {written}").exchanges
    assert (read.min, read.max) == (least, most)


@pytest.mark.parametrize("written", ["5", "5.00", "$5", '"$5.00"', "{units: 5}"])
def test_a_budget_is_an_amount(folder: Path, written: str) -> None:
    budget = load(folder, f"name: x\nbudget: {written}").spec.budget
    assert (money.to_nanos(budget), budget.currency_code) == (5 * 10**9, "USD")


def test_a_budget_of_nothing_is_a_limit_and_an_empty_one_is_none(folder: Path) -> None:
    assert load(folder, "name: x\nbudget: 0").spec.HasField("budget")
    assert not load(folder, "name: x\nbudget:").spec.HasField("budget")


def test_enums_are_short_words(folder: Path) -> None:
    spec = load(folder, "name: x\nerror_mode: stop\npriority: HIGH\nprompt_cache: 5m\nexecution: EXECUTION_BULK").spec
    assert spec.error_mode == batch_pb2.ERROR_MODE_STOP
    assert spec.priority == batch_pb2.PRIORITY_HIGH
    assert spec.prompt_cache == batch_pb2.PROMPT_CACHE_5M
    assert spec.execution == batch_pb2.EXECUTION_BULK


def test_the_circuit_breaker_is_counts_and_shares(folder: Path) -> None:
    breaker = load(folder, "name: x\ncircuit_breaker: {failures_in_a_row: 3, failure_share: 0.25}").spec.circuit_breaker
    assert (breaker.failures_in_a_row, breaker.failure_share) == (3, 0.25)
    never = load(folder, "name: x\ncircuitBreaker: {failuresInARow: 0, failureShare: 1}").spec.circuit_breaker
    assert (never.failures_in_a_row, never.failure_share) == (0, 1.0)
    # What is not given stays the server's default, which 0 is not.
    assert never.HasField("failures_in_a_row")
    assert not load(folder, "name: x\ncircuit_breaker: {failure_share: 0}").spec.circuit_breaker.HasField(
        "failures_in_a_row"
    )


def test_the_word_off_is_no_boolean(folder: Path) -> None:
    assert load(folder, "name: x\nprompt_cache: off").spec.prompt_cache == batch_pb2.PROMPT_CACHE_OFF


def test_texts_stay_as_they_are_written(folder: Path) -> None:
    spec = load(folder, "name: no\nlabels: {version: 1.10, day: 2026-01-01}\naxes: {answer: [yes, 007]}").spec
    assert spec.name == "no"
    assert dict(spec.labels) == {"version": "1.10", "day": "2026-01-01"}
    assert [value.text for value in spec.axes[0].values] == ["yes", "007"]


def test_parameters_are_what_json_can_say(folder: Path) -> None:
    text = "name: x\nshared_parameters: {n: 1.5, t: true, w: no, at: 12:30, l: [1, {a: b}], day: 2026-01-01, z: null}"
    parameters: Any = json_format.MessageToDict(load(folder, text).spec.shared_parameters)
    assert parameters == {
        "n": 1.5, "t": True, "w": "no", "at": "12:30", "l": [1.0, {"a": "b"}], "day": "2026-01-01", "z": None,
    }  # fmt: skip


def test_anchors_and_merges_are_followed(folder: Path) -> None:
    text = "name: x\ntiers:\n  - &base {id: a, count: 2, exchanges: 3}\n  - {<<: *base, id: b}\n"
    assert [(one.id, one.count, one.exchanges.max) for one in load(folder, text).spec.tiers] == [
        ("a", 2, 3),
        ("b", 2, 3),
    ]


def test_conversations_are_listed(folder: Path) -> None:
    spec = load(folder, "name: x\nconversations:\n  - {tier: a, parameters: {topic: figs}}").spec
    assert spec.conversations[0].parameters["topic"] == "figs"


def test_all_faults_are_told_at_once_with_line_and_field(folder: Path) -> None:
    text = (
        "name: x\n"
        "tiers:\n"
        "  - id: a\n"
        "    cuont: 3\n"
        "    exchanges: many\n"
        "    prompt: prompts/missing.md\n"
        "prompt_cache: 2h\n"
        "budget: five\n"
        "concurrency: lots\n"
    )
    assert said(folder, text) == [
        "4 tiers[0].cuont: is not known; did you mean count?",
        "5 tiers[0].exchanges: expected a range such as 4-5, a number, or {min, max}",
        f"6 tiers[0].prompt: the file {folder}/prompts/missing.md can't be read: No such file or directory",
        "7 prompt_cache: expected one of off, 5m, 1h, not '2h'",
        "8 budget: 'five' is not an amount of US dollars, such as 5.00 or $5",
        "9 concurrency: expected a whole number, not 'lots'",
    ]


def test_rules_of_the_contract_are_told_with_their_lines(folder: Path) -> None:
    (name, concurrency, tier_id) = faults(folder, "name: ''\nconcurrency: 0\ntiers:\n  - count: 1\n    id: Not an id\n")
    assert (name.line, name.field) == (1, "name")
    assert (concurrency.line, concurrency.field) == (2, "concurrency")
    assert (tier_id.line, tier_id.field) == (5, "tiers[0].id")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name: [", "1 : is not YAML: expected the node content, but found '<stream end>'"),
        ("- a", "1 : expected a mapping with name, tiers and so on"),
        ("", "1 : expected a mapping with name, tiers and so on"),
        ("name: x\ntiers: 3", "2 tiers: expected a list, not '3'"),
        ("name: x\ntiers: [3]", "2 tiers[0]: expected a mapping of names to values, not '3'"),
        ("name: x\nname: y", "2 name: is given twice"),
        ("name: {a: b}", "1 name: expected a text, not a mapping"),
        (
            "name: x\ntiers: [{id: a, prompt: {path: b}}]",
            "2 tiers[0].prompt: expected either {text: ...} or {file: ...}",
        ),
        ("name: x\nconcurrency: 9999999999999", "2 concurrency: 9999999999999 is out of range"),
        ("name: x\nseed: -1", "2 seed: -1 is out of range"),
        (
            "name: x\ncircuit_breaker: {failure_share: 50 %}",
            "2 circuit_breaker.failure_share: expected a number, not '50 %'",
        ),
        (
            "name: x\ncircuit_breaker:\n  failure_share: nan",
            "3 circuit_breaker.failure_share: must be greater than or equal to 0 and less than or equal to 1",
        ),
        (
            "name: x\ncircuit_breaker: {failures_in_a_row: 0.5}",
            "2 circuit_breaker.failures_in_a_row: expected a whole number, not '0.5'",
        ),
    ],
)
def test_each_fault_says_what_was_expected(folder: Path, text: str, fault: str) -> None:
    assert fault in said(folder, text)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError) as caught:
        spec_file.load(tmp_path / "none.yaml")
    assert caught.value.faults == (SpecFault(0, "", "can't be read: No such file or directory"),)


def test_a_spec_that_contains_itself_is_refused(folder: Path) -> None:
    assert "contains itself" in said(folder, "name: x\nshared_parameters: &a {b: *a}")[0]


def test_aliases_can_not_blow_a_spec_up(folder: Path) -> None:
    levels = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "more than" in said(folder, f"name: x\nshared_parameters:\n  l0: &l0 [x]\n{levels}")[0]


def test_the_line_of_a_field_is_that_of_the_nearest_one_written(folder: Path) -> None:
    file = load(folder, "name: x\ntiers:\n  - id: scenario\n    prompt: prompts/scenario.md\naxes:\n  mood: [calm]\n")
    assert file.line_of("tiers[0].prompt.text") == 4
    assert file.line_of("axes[0].values[0].text") == 6
    assert file.line_of("tiers[0].exchanges.min") == 3
    assert file.line_of("nowhere") is None


def test_slugs_are_cut_at_a_word() -> None:
    assert slug("Café — the very long story of a plant that would not grow at all") == (
        "cafe_the_very_long_story_of_a_plant_that_would"
    )
    assert len(slug("x" * 200)) <= 64


def test_the_schema_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema.text(), "run python -m parley.cli.schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.parent.name))
def test_what_is_shipped_can_be_read_and_pleases_the_schema(path: Path) -> None:
    spec_file.load(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(SCHEMA.read_text()))


def test_what_the_starter_only_mentions_can_be_read_too(folder: Path) -> None:
    mentioned = (FOLDER / "spec.yaml").read_text().replace("# circuit_breaker:", "circuit_breaker:")
    breaker = load(folder, mentioned).spec.circuit_breaker
    assert (breaker.failures_in_a_row, breaker.failure_share) == (10, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nconcurrency: 0",
        "name: x\ncuont: 1",
        "tiers: []",
        "name: x\nprompt_cache: 2h",
        "name: x\ncircuit_breaker: {failure_share: 1.5}",
        "name: x\ncircuit_breaker: {failures_in_a_row: 0.5}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA.read_text()))


def test_the_schema_takes_a_share(folder: Path) -> None:
    text = "name: x\ncircuit_breaker: {failures_in_a_row: 3, failureShare: 0.25}"
    load(folder, text)
    jsonschema.validate(yaml.safe_load(text), json.loads(SCHEMA.read_text()))
