"""What a conversation must satisfy: the answer's text in, turns and measured results out."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from orchestrator_service.domain.spec import Exchanges

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
ROLES = ("user", "assistant")
TURNS_MAX = 1_000
# How many braces in the prose before an answer are tried as its beginning.
BEGINNINGS_MAX = 20
SHOWN_MAX_CHARS = 40
UNFILLED = re.compile(r"\{\{[^{}]*\}\}|\{%.*?%\}|\[INSERT\b[^\]]*\]")


@dataclass(frozen=True)
class Parsed:
    value: object


@dataclass(frozen=True)
class Malformed:
    """No JSON: another attempt may help. JSON of another shape is for the check "schema"."""

    message: str


@dataclass(frozen=True)
class Turn:
    role: str
    # NFC, without lone surrogates.
    content: str


@dataclass(frozen=True)
class CheckResult:
    check: str
    # A name of the contract's enum CheckOutcome.
    outcome: str
    # Never with the conversation's words in it, but for an unfilled placeholder.
    message: str


@dataclass(frozen=True)
class Checked:
    turns: tuple[Turn, ...]
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        return all(result.outcome != FAIL for result in self.results)


def parse(text: str) -> Parsed | Malformed:
    """The JSON of an answer, also with a code fence or prose around it, as models without a schema send it."""
    try:
        return Parsed(json.loads(text))
    except (ValueError, RecursionError):
        pass
    for beginning in _beginnings(text):
        try:
            value, _ = _DECODER.raw_decode(text, beginning)
        except (ValueError, RecursionError):
            continue
        # Inside a broken answer single turns may be whole; only the whole conversation counts.
        if isinstance(value, dict) and "turns" in value:
            return Parsed(cast(object, value))
    return Malformed(f"The answer of {len(text):,} characters is not one JSON object with turns.")


def check(turns_json: object, exchanges: Exchanges) -> Checked:
    """Judges a parsed answer. Nothing is dropped but what can't be stored as a turn, and that is named."""
    turns, problems = _turns(turns_json)
    results = (
        _result("schema", problems, f"{len(turns)} turns with role and content."),
        _roles(turns),
        _turn_count(turns, exchanges),
        _placeholders(turns),
        _endings(turns),
    )
    return Checked(turns=turns, results=results)


_DECODER = json.JSONDecoder()


def _beginnings(text: str) -> Iterator[int]:
    at = text.find("{")
    for _ in range(BEGINNINGS_MAX):
        if at < 0:
            return
        yield at
        at = text.find("{", at + 1)


def _turns(turns_json: object) -> tuple[tuple[Turn, ...], list[str]]:
    listed = cast("dict[str, object]", turns_json).get("turns") if isinstance(turns_json, dict) else None
    if not isinstance(listed, list):
        return (), ["The answer has no list of turns"]
    entries = cast("list[object]", listed)
    if not 1 <= len(entries) <= TURNS_MAX:
        return (), [f"The answer has {len(entries):,} turns"]
    turns: list[Turn] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        turn = _turn(entry)
        if isinstance(turn, Turn):
            turns.append(turn)
        else:
            problems.append(f"turn {number} {turn}")
    return tuple(turns), problems


def _turn(entry: object) -> Turn | str:
    """The turn, or what is wrong with it."""
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if role not in ROLES:
        return "has no role user or assistant"
    if not isinstance(content, str) or not content.strip():
        return "has no content"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    if "\0" in content:
        return "holds a NUL"
    return Turn(role, unicodedata.normalize("NFC", content))


def _roles(turns: Sequence[Turn]) -> CheckResult:
    problems = [
        f"turn {number} is the {turn.role}'s"
        for number, turn in enumerate(turns, start=1)
        if turn.role != ROLES[(number - 1) % 2]
    ]
    if not problems and len(turns) % 2:
        problems = ["the last turn is the user's"]
    return _result("roles", problems[:1], "User and assistant alternate, the assistant speaks last.")


def _turn_count(turns: Sequence[Turn], exchanges: Exchanges) -> CheckResult:
    fewest, most = 2 * exchanges.min, 2 * exchanges.max
    said = f"{len(turns)} turns; {fewest} to {most} were asked for"
    return _result("turn_count", [] if fewest <= len(turns) <= most else [said], f"{said}.")


def _placeholders(turns: Sequence[Turn]) -> CheckResult:
    problems: list[str] = []
    for number, turn in enumerate(turns, start=1):
        found = UNFILLED.search(turn.content)
        if found:
            problems.append(f"turn {number} holds {found[0][:SHOWN_MAX_CHARS]}")
    return _result("placeholders", problems, "Nothing is left unfilled.")


def _endings(turns: Sequence[Turn]) -> CheckResult:
    """A quote escaped twice ends a content in mid-sentence, inside valid JSON and with an ordinary stop reason."""
    broken = [f"turn {number} ends in a backslash" for number, turn in enumerate(turns, start=1) if _is_cut(turn)]
    if broken:
        return _result("endings", broken, "")
    # People write as they like; the voice that is trained ends its sentences.
    open_ended = [
        f"turn {number} ends without a full stop"
        for number, turn in enumerate(turns, start=1)
        if turn.role == "assistant" and _is_open(turn)
    ]
    return _result("endings", open_ended, "Every turn is whole.", outcome=WARN)


def _is_cut(turn: Turn) -> bool:
    return turn.content.rstrip().endswith("\\")


def _is_open(turn: Turn) -> bool:
    last = turn.content.rstrip()[-1]
    return last.isalnum() or last in ",;(["


def _result(name: str, problems: Sequence[str], fine: str, *, outcome: str = FAIL) -> CheckResult:
    if not problems:
        return CheckResult(name, PASS, fine)
    more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
    said = "; ".join(problems[:3]) + more
    return CheckResult(name, outcome, f"{said[0].upper()}{said[1:]}.")
