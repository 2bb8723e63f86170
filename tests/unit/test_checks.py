"""What counts as an answer, and what each check finds in a conversation."""

import json
from typing import Any

import pytest

from orchestrator_service.domain.spec import Exchanges
from orchestrator_service.generation.checks import Checked, Malformed, Parsed, Turn, check, parse

LENGTH = Exchanges(min=1, max=2)


def turns(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"turns": [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]}


def outcome(checked: Checked, name: str) -> tuple[str, str]:
    result = next(result for result in checked.results if result.check == name)
    return result.outcome, result.message


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "  {}\n",
        "```json\n{}\n```",
        "Here is the conversation:\n\n{}",
        "Like <this>:\n{}\nDone.",
        "{oops} and then {}",
    ],
)
def test_an_answer_is_read_with_whatever_models_put_around_it(around: str) -> None:
    answer = json.dumps(turns("Hi.", "Hello."))
    assert parse(around.replace("{}", answer)) == Parsed(turns("Hi.", "Hello."))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would rather not.",
        '{"turns": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hel',
        '{"turns": [{"role": "user", "content": ""Hi."}, {"role": "assistant", "content": "Hello."}]}',
        "{" * 10_000,
        "[" * 200_000,
        '{"turns": [], "seed": ' + "9" * 10_000 + "}",
    ],
)
def test_what_is_no_json_is_malformed_and_the_message_has_no_word_of_it(text: str) -> None:
    parsed = parse(text)
    assert isinstance(parsed, Malformed)
    assert "Hi" not in parsed.message


def test_json_of_another_shape_is_no_matter_of_parsing() -> None:
    assert parse('["a"]') == Parsed(["a"])


def test_a_good_conversation_passes_every_check() -> None:
    checked = check(turns("Hi", "Hello.", "Bye", "Bye!"), LENGTH)
    assert checked.passed
    assert [(result.check, result.outcome) for result in checked.results] == [
        ("schema", "PASS"),
        ("roles", "PASS"),
        ("turn_count", "PASS"),
        ("placeholders", "PASS"),
        ("endings", "PASS"),
    ]
    assert checked.turns == (
        Turn("user", "Hi"),
        Turn("assistant", "Hello."),
        Turn("user", "Bye"),
        Turn("assistant", "Bye!"),
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["a"], "The answer has no list of turns."),
        ({"turns": "a"}, "The answer has no list of turns."),
        ({"turns": []}, "The answer has 0 turns."),
        ({"turns": [{"role": "user", "content": "x"}] * 1_001}, "The answer has 1,001 turns."),
        ({"turns": ["a"]}, "Turn 1 has no role user or assistant."),
        ({"turns": [{"role": "system", "content": "x"}]}, "Turn 1 has no role user or assistant."),
        ({"turns": [{"role": ["user"], "content": "x"}]}, "Turn 1 has no role user or assistant."),
        ({"turns": [{"role": "user", "content": " "}]}, "Turn 1 has no content."),
        ({"turns": [{"role": "user", "content": 5}]}, "Turn 1 has no content."),
        ({"turns": [{"role": "user", "content": "a\ud83d"}]}, "Turn 1 holds a lone surrogate."),
        ({"turns": [{"role": "user", "content": "a\0"}]}, "Turn 1 holds a NUL."),
    ],
)
def test_what_is_no_conversation_fails_the_schema(answer: object, said: str) -> None:
    checked = check(answer, LENGTH)
    assert not checked.passed
    assert outcome(checked, "schema") == ("FAIL", said)


def test_turns_that_can_be_kept_are_kept_beside_one_that_cannot() -> None:
    checked = check(turns("Hi", "\ud83d", "Bye", "Bye."), LENGTH)
    assert [turn.content for turn in checked.turns] == ["Hi", "Bye", "Bye."]
    assert outcome(checked, "schema") == ("FAIL", "Turn 2 holds a lone surrogate.")


def test_many_problems_are_told_in_one_short_sentence() -> None:
    message = outcome(check(turns(*["\0"] * 9), LENGTH), "schema")[1]
    assert message == "Turn 1 holds a NUL; turn 2 holds a NUL; turn 3 holds a NUL, and 6 more."


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (("assistant", "user"), "Turn 1 is the assistant's."),
        (("user", "user", "assistant"), "Turn 2 is the user's."),
        (("user", "assistant", "user"), "The last turn is the user's."),
    ],
)
def test_roles_alternate_from_the_user_to_the_assistant(roles: tuple[str, ...], said: str) -> None:
    answer = {"turns": [{"role": role, "content": "x."} for role in roles]}
    assert outcome(check(answer, LENGTH), "roles") == ("FAIL", said)


@pytest.mark.parametrize(("count", "passes"), [(2, False), (4, True), (6, True), (8, False)])
def test_the_number_of_turns_is_twice_that_of_the_exchanges(count: int, passes: bool) -> None:
    result = outcome(check(turns(*["x."] * count), Exchanges(min=2, max=3)), "turn_count")
    assert result == ("PASS" if passes else "FAIL", f"{count} turns; 4 to 6 were asked for.")


@pytest.mark.parametrize("left", ["{{client_first_name}}", "{% if x %}", "[INSERT NAME HERE]", "{{ a }}"])
def test_an_unfilled_placeholder_is_named(left: str) -> None:
    assert outcome(check(turns("Hi", f"Dear {left}, hello."), LENGTH), "placeholders") == (
        "FAIL",
        f"Turn 2 holds {left}.",
    )


@pytest.mark.parametrize(
    "fine", ["f(x) = {x | x > 0}", "[NAME] is a tag", "a {b} c", "<name>", "100 {%}", "}} {{", "{}"]
)
def test_ordinary_brackets_are_no_placeholders(fine: str) -> None:
    assert outcome(check(turns("Hi", f"{fine}."), LENGTH), "placeholders")[0] == "PASS"


def test_a_turn_cut_at_an_over_escaped_quote_is_quarantined_though_the_json_is_valid() -> None:
    parsed = parse('{"turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "She said \\\\"}]}')
    assert isinstance(parsed, Parsed)
    checked = check(parsed.value, LENGTH)
    assert outcome(checked, "endings") == ("FAIL", "Turn 2 ends in a backslash.")
    assert not checked.passed


@pytest.mark.parametrize(
    ("ending", "found"), [("and then", "WARN"), ("first,", "WARN"), ("so?", "PASS"), ('"done"', "PASS")]
)
def test_an_assistants_open_end_is_a_warning_and_no_reason_to_keep_it_back(ending: str, found: str) -> None:
    checked = check(turns("no full stop here", ending), LENGTH)
    assert outcome(checked, "endings")[0] == found
    assert checked.passed


def test_contents_are_normalised() -> None:
    assert check(turns("Cafe\u0301", "Yes."), LENGTH).turns[0].content == "Caf\u00e9"
