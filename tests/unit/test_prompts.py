"""Templates that are refused, prompts that can't be filled, and what the filled ones say."""

from typing import Any

import pytest

from orchestrator_service.domain.errors import InvalidRequest
from orchestrator_service.domain.plan import Plan
from orchestrator_service.domain.spec import (
    FINDINGS_MAX,
    Axis,
    AxisValue,
    Builtins,
    BuiltinTemplate,
    Exchanges,
    Finding,
    Listed,
    Spec,
    Tier,
)
from orchestrator_service.generation.prompts import OUTPUT_INSTRUCTIONS, Filled, PromptRefused, Prompts
from orchestrator_service.generation.templates import (
    FILLED_MAX_BYTES,
    FilledTooLarge,
    FillError,
    TemplateRefused,
    Unresolved,
    compile_template,
)

BUILTINS = Builtins(
    templates={"scenario": BuiltinTemplate(id="scenario", version="scenario@1", text="Built in, tier {{ tier }}.")},
    shared_prompt="Built-in shared{% if domain is defined %} about {{ domain }}{% endif %}.",
    axes=(),
)


def spec(prompt: str | None = "Write about {{ topic }}.", **fields: Any) -> Spec:
    given: dict[str, Any] = {"name": "n", "model": "m", "seed": 1, "tiers": (Tier(id="t", count=1, prompt=prompt),)}
    return Spec(**given | fields)


def rendered(made: Spec, number: int = 1) -> Filled:
    return Prompts(made, BUILTINS).render(Plan(made).item(number))


def checked(made: Spec) -> list[Finding]:
    return Prompts(made, BUILTINS).check(Plan(made))


def fill(template: str, **values: object) -> str:
    return compile_template(template).fill(values)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ range(9) }}", "a call is not allowed"),
        ("{{ name.upper() }}", "a call is not allowed"),
        ("{{ a * 9 }}", "the operator * is not allowed"),
        ("{{ a ** 9 }}", "the operator ** is not allowed"),
        ("{{ '%999d' % a }}", "the operator % is not allowed"),
        ("{% set a = 1 %}", "set is not allowed"),
        ("{% set a %}x{% endset %}", "set is not allowed"),
        ("{% macro a() %}{% endmacro %}", "macro is not allowed"),
        ("{% include 'a' %}", "include is not allowed"),
        ("{% import 'a' as b %}", "import is not allowed"),
        ("{% from 'a' import b %}", "import is not allowed"),
        ("{% extends 'a' %}", "extends is not allowed"),
        ("{% block a %}{% endblock %}", "block is not allowed"),
        ("{% filter upper %}{% endfilter %}", "a filter block is not allowed"),
        ("{% for a in b %}{% for c in d %}{% endfor %}{% endfor %}", "a loop inside a loop"),
        ("{% for a in b %}{% if a %}{% for c in d %}{% endfor %}{% endif %}{% endfor %}", "a loop inside a loop"),
        ("{% for a in [1, 2] %}{% endfor %}", "a loop goes over a parameter"),
        ("{% for a in b ~ c %}{% endfor %}", "a loop goes over a parameter"),
        ("{% for a in b recursive %}{% endfor %}", "a loop goes over a parameter"),
        ("{{ name|replace('a', 'aaaa') }}", "No filter named 'replace'"),
        ("{{ name|format(9) }}", "No filter named 'format'"),
        ("{{ name|center(99999999) }}", "No filter named 'center'"),
        ("{{ names|given_list }}", "No filter named 'given_list'"),
        ("{{ a is callable }}", "No test named 'callable'"),
        ("{{ names|join(sep) }}", "join takes one short text"),
        ("{{ names|join(', ', attribute='x') }}", "join takes one short text"),
        ("{{ names|join('" + "x" * 101 + "') }}", "join takes one short text"),
        ("{{ name.__class__ }}", "__class__ is no placeholder"),
        ("{{ _x }}", "_x is no placeholder"),
        ("{{ self }}", "self is no placeholder"),
        ("{{ " + " ~ ".join(["a"] * 201) + " }}", "the expression is too long"),
        ("{% if " + " and ".join(["a"] * 105) + " %}{% endif %}", "the expression is too long"),
        ("{% for a in b if " + " and ".join(["a"] * 105) + " %}{% endfor %}", "the expression is too long"),
        ("{{ a }}" * 5_000, "too many parts"),
        ("{% for a in b %}{% endfor %}" * 21, "too many parts"),
        ("{{ " + "(" * 5_000 + "a" + ")" * 5_000 + " }}", "nested too deeply"),
        ("{% if a %}" * 110 + "{% endif %}" * 110, "nested too deeply"),
        ("{{ " + "1" * 5_000 + " }}", "a number is too long"),
        ("{{ " + "9" * 4_300 + " + 1 }}", "a number is too long"),
        ("{{ a", "unexpected end"),
        ("{% endif %}", "unknown tag 'endif'"),
    ],
)
def test_what_templates_may_not_use_is_refused_before_anything_is_filled(template: str, said: str) -> None:
    with pytest.raises(TemplateRefused) as refused:
        compile_template(template)
    assert said.lower() in str(refused.value).lower()


def test_a_refusal_names_the_line() -> None:
    with pytest.raises(TemplateRefused, match=r"^Line 3: set is not allowed in a prompt template\.$"):
        compile_template("one\ntwo\n{% set a = 1 %}")


@pytest.mark.parametrize(
    ("template", "values", "filled"),
    [
        ("{{ age }}, {{ share }}", {"age": 45.0, "share": 0.5}, "45, 0.5"),
        ("{{ yes }} {{ no }}", {"yes": True, "no": False}, "true false"),
        ("{{ names }}", {"names": ["a", 2.0, True]}, "a, 2, true"),
        ("{{ client }}", {"client": {"name": "Zoë"}}, '{"name": "Zoë"}'),
        (
            "{{ client.name }} {{ client['name'] }} {{ names[0] }}",
            {"client": {"name": "Jo"}, "names": ["a"]},
            "Jo Jo a",
        ),
        ("{{ client.items }}", {"client": {"items": "a list"}}, "a list"),
        ("{{ name|upper|trim }} {{ x|default('none') }}", {"name": " jo "}, "JO none"),
        ("{{ names|join(' and ') }}", {"names": ["a", "b"]}, "a and b"),
        ("{% for n in ns %}{{ loop.index }}{{ n if loop.last else n ~ ',' }}{% endfor %}", {"ns": ["a", "b"]}, "1a,2b"),
        ("{% for n in client.tags %}{{ n }}{% else %}none{% endfor %}", {"client": {"tags": []}}, "none"),
        ("{% for key in client %}{{ key }}={{ client[key] }};{% endfor %}", {"client": {"a": 1, "b": 2}}, "a=1;b=2;"),
        ("{% if mood is defined and mood in ['calm'] %}x{% elif n > 2 %}y{% endif %}", {"n": 3}, "y"),
        ("{{ a + 1 - b }} {{ -a }} {{ 'x' ~ a }}", {"a": 3, "b": 1}, "3 -3 x3"),
        ("{% raw %}a { b }{% endraw %}{# nothing #}", {}, "a { b }"),
    ],
)
def test_templates_fill(template: str, values: dict[str, object], filled: str) -> None:
    assert fill(template, **values) == filled


@pytest.mark.parametrize(
    ("template", "placeholder"),
    [
        ("{{ nmae }}", "nmae"),
        ("{{ client.nmae }}", "client.nmae"),
        ("{{ client.address.street }}", "client.address"),
        ("{{ nobody.name }}", "nobody"),
        ("{{ names[5] }}", "5"),
        ("{{ client.null }}", "client.null"),
        ("{{ name.upper }}", "name.upper"),
        ("{{ nmae|upper }}", "nmae"),
        ("{% if nmae %}x{% endif %}", "nmae"),
        ("{% for a in nmaes %}{% endfor %}", "nmaes"),
        ("{{ 'x' ~ nmae }}", "nmae"),
        ("{{ nmae + 1 }}", "nmae"),
    ],
)
def test_a_placeholder_without_a_value_is_named(template: str, placeholder: str) -> None:
    with pytest.raises(Unresolved) as unresolved:
        fill(template, name="Jo", names=["a"], client={"name": "Jo", "null": None})
    assert unresolved.value.placeholder == placeholder


@pytest.mark.parametrize(
    "template", ["{{ name + 1 }}", "{% for a in name %}{% endfor %}", "{{ 1 < name }}", "{{ names - 1 }}"]
)
def test_a_value_of_the_wrong_kind_is_an_error_of_the_template(template: str) -> None:
    with pytest.raises(FillError):
        fill(template, name="Jo", names=["a"])


def test_a_loop_has_a_limit() -> None:
    with pytest.raises(FillError, match="at most 1,000"):
        fill("{% for a in names %}{% endfor %}", names=["a"] * 1_001)


def test_filling_stops_at_the_limit() -> None:
    with pytest.raises(FilledTooLarge):
        fill("{% for a in names %}{{ text }}{% endfor %}", names=["a"] * 1_000, text="x" * 1_000)


def test_a_prompt_is_shared_instructions_and_the_conversations_own_part() -> None:
    made = spec(
        "Write about {{ topic }} for {{ persona }} ({{ persona.id }}).",
        shared_prompt="You know {{ domain }}.",
        shared_parameters={"domain": "money", "topic": "debt"},
        axes=(Axis(id="persona", values=(AxisValue(id="maya", text="Maya, 34"),)),),
    )
    filled = rendered(made)
    assert filled.system == f"You know money.\n\n{OUTPUT_INSTRUCTIONS}"
    assert filled.user == (
        "Write about debt for Maya, 34 (maya).\n\n# Conversation\n\nTier: t\n"
        "Length: 4 to 5 exchanges (an exchange is one user message and the assistant's answer)"
    )


def test_facts_that_the_template_states_are_not_stated_again() -> None:
    both = spec("Tier: {{ tier }}, {{ exchanges_min }} to {{ exchanges_max }} exchanges.")
    assert rendered(both).user == "Tier: t, 4 to 5 exchanges."
    tier = Tier(id="t", count=1, prompt="A {{ tier }}.", exchanges=Exchanges(min=1, max=2))
    assert rendered(spec(tiers=(tier,))).user.endswith(
        "# Conversation\n\nLength: 1 to 2 exchanges (an exchange is one user message and the assistant's answer)"
    )


def test_the_system_part_is_the_same_for_all_conversations() -> None:
    tiers = (Tier(id="scenario", count=3), Tier(id="t", count=3, prompt="{{ topic }}"))
    made = spec(tiers=tiers, shared_parameters={"domain": "money", "topic": "debt"})
    prompts, plan = Prompts(made, BUILTINS), Plan(made)
    assert {prompts.render(item).system for item in plan.items()} == {
        f"Built-in shared about money.\n\n{OUTPUT_INSTRUCTIONS}"
    }


def test_the_built_in_instructions_stay_out_where_every_prompt_is_the_users_own() -> None:
    assert rendered(spec("Write.")).system == OUTPUT_INSTRUCTIONS


def test_the_hash_names_the_filled_prompt() -> None:
    one = rendered(spec("Write about {{ topic }}.", shared_parameters={"topic": "debt"}))
    again = rendered(spec("Write about debt."))
    other = rendered(spec("Write about debt.", shared_prompt="Be kind."))
    assert one.sha256 == again.sha256 != other.sha256


def test_a_missing_template_is_found_before_anything_is_filled() -> None:
    made = spec(None)
    message = "Tier t has no prompt, and there is a built-in one for scenario only."
    assert checked(made) == [Finding("ERROR", "TEMPLATE_MISSING", "tiers[0].prompt.text", message, tier="t")]
    with pytest.raises(PromptRefused, match="Tier t has no prompt"):
        rendered(made)


def test_a_refused_template_is_a_finding_with_its_line() -> None:
    message = "Line 2: a call is not allowed in a prompt template."
    finding = Finding("ERROR", "TEMPLATE_REFUSED", "tiers[0].prompt.text", message, tier="t")
    assert checked(spec("Hello\n{{ range(3) }}")) == [finding]


def test_an_unresolved_placeholder_is_found_once_a_tier_with_the_first_conversation_and_the_count() -> None:
    tiers = (Tier(id="scenario", count=2), Tier(id="t", count=3, prompt="{{ topic }} {{ who.name }}"))
    listed = (
        Listed(tier="t", parameters={"topic": "x", "who": {"name": "Jo"}}),
        Listed(tier="t", parameters={"topic": "x"}),
    )
    assert checked(spec(tiers=tiers, listed=listed)) == [
        Finding(
            "ERROR",
            "PLACEHOLDER_UNRESOLVED",
            "tiers[1].prompt.text",
            "The placeholder topic has no value. First in conversation 3, 3 in all.",
            tier="t",
            conversation=3,
        ),
        Finding(
            "ERROR",
            "PLACEHOLDER_UNRESOLVED",
            "tiers[1].prompt.text",
            "The placeholder who has no value. First in conversation 7, 1 in all.",
            tier="t",
            conversation=7,
        ),
    ]


@pytest.mark.parametrize("value", ["Dear {{ client_name }}", "Dear {{client_name|upper}}", "{{client_name"])
def test_a_placeholder_inside_a_value_is_found_too(value: str) -> None:
    with pytest.raises(PromptRefused) as refused:
        rendered(spec(shared_parameters={"topic": value}))
    assert (refused.value.reason, refused.value.placeholder) == ("PLACEHOLDER_UNRESOLVED", "client_name")


def test_a_statement_inside_a_value_is_found_too() -> None:
    with pytest.raises(PromptRefused) as refused:
        rendered(spec(shared_parameters={"topic": "{% if x %}"}))
    assert refused.value.placeholder == "{%"


def test_nested_json_in_an_example_is_no_placeholder() -> None:
    assert '{"a": {"b": 1}}' in rendered(spec('Like {"a": {"b": 1}}.')).user


def test_a_null_parameter_has_no_value() -> None:
    with pytest.raises(PromptRefused, match="topic has no value"):
        rendered(spec(shared_parameters={"topic": None}))


def test_a_prompt_refused_is_an_invalid_request_with_field_and_reason() -> None:
    with pytest.raises(InvalidRequest) as refused:
        rendered(spec())
    assert refused.value.field == "tiers[0].prompt.text"
    assert refused.value.metadata == {"field": "tiers[0].prompt.text", "placeholder": "topic"}


@pytest.mark.parametrize("text", ["x" * (FILLED_MAX_BYTES + 1), "ä" * (FILLED_MAX_BYTES // 2 + 1)])
def test_a_prompt_larger_than_the_limit_is_refused(text: str) -> None:
    with pytest.raises(PromptRefused) as refused:
        rendered(spec(shared_parameters={"topic": text}))
    assert refused.value.reason == "PROMPT_TOO_LARGE"


def test_values_of_the_wrong_kind_are_findings() -> None:
    finding = checked(spec("{{ topic + 1 }}", shared_parameters={"topic": "x"}))[0]
    assert finding.reason == "TEMPLATE_REFUSED" and "can't be filled" in finding.message


def test_the_shared_prompt_knows_shared_parameters_only() -> None:
    tier = Tier(id="t", count=1, prompt="x", parameters={"topic": "y"})
    made = spec(shared_prompt="You know {{ topic }}.", tiers=(tier,))
    message = "The placeholder topic has no value. Only shared parameters count here."
    assert checked(made) == [Finding("ERROR", "PLACEHOLDER_UNRESOLVED", "shared_prompt.text", message)]
    with pytest.raises(PromptRefused, match="shared prompt"):
        rendered(made)


def test_the_datasets_system_message_is_filled_from_shared_parameters() -> None:
    made = spec("x", system_prompt="You advise on {{ domain }}.", shared_parameters={"domain": "money"})
    assert Prompts(made, BUILTINS).dataset_system() == "You advise on money."
    assert Prompts(spec("x"), BUILTINS).dataset_system() == ""


def test_a_system_message_that_cannot_be_filled_is_a_finding() -> None:
    prompts = Prompts(spec("x", system_prompt="{{ nobody }}"), BUILTINS)
    assert [(finding.reason, finding.field) for finding in prompts.findings] == [
        ("PLACEHOLDER_UNRESOLVED", "system_prompt")
    ]
    with pytest.raises(PromptRefused):
        prompts.dataset_system()


def test_an_axis_that_a_prompt_does_not_use_is_a_warning() -> None:
    axes = tuple(Axis(id=id, values=(AxisValue(id="x"),)) for id in ("persona", "mood"))
    assert [(finding.severity, finding.message) for finding in checked(spec("{{ mood }}", axes=axes))] == [
        ("WARNING", "The prompt of tier t does not use persona: varying it changes nothing.")
    ]


def test_checking_ends_where_nobody_waits_for_it() -> None:
    filled = 0

    def is_left() -> bool:
        nonlocal filled
        filled += 1
        return filled > 3

    made = spec("{{ missing }}", tiers=(Tier(id="t", count=100_000, prompt="{{ missing }}"),))
    [finding] = Prompts(made, BUILTINS).check(Plan(made), is_left)
    assert finding.message.endswith("First in conversation 1, 3 in all.")


def test_findings_are_limited() -> None:
    prompt = "{% if n is defined %}{{ client[n] }}{% endif %}"
    listed = tuple(Listed(tier="t", parameters={"n": f"n{at}", "client": {}}) for at in range(FINDINGS_MAX + 10))
    assert len(checked(spec(prompt, listed=listed))) == FINDINGS_MAX


def test_the_fingerprint_names_the_texts_and_not_the_values() -> None:
    def fingerprint(prompt: str, **fields: Any) -> str:
        return Prompts(spec(prompt, **fields), BUILTINS).fingerprint("t")

    same = fingerprint("a", shared_parameters={"x": 1})
    assert same == fingerprint("a", shared_parameters={"x": 2}, seed=5)
    assert len({same, fingerprint("b"), fingerprint("a", shared_prompt="c")}) == 3
