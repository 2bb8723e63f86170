"""What a prompt asks a conversation to be: who speaks, about what, in which mood and for how long."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

EXCHANGES_DEFAULT = (4, 5)
EXCHANGES_MAX = 50
STAGES_MAX = 8
WORDS_MAX_CHARS = 90

# "Persona: Maya, 34, nurse", "- **Emotional arc:** shame -> relief", "**Topic**: debt", "## Client: Jo Ann Reyes".
LABELLED = re.compile(
    r"[ \t>#*+\d.)-]*(?:\*\*|__)?"
    r"(?P<label>persona|client|customer|user name|name|emotional arc|arc|topic|training topic|subject|tier)"
    r"(?:\*\*|__)?[ \t]*:[ \t]*(?:\*\*|__)?[ \t]*(?:\n[ \t>*+-]+)?(?P<said>[^\n]+)",
    re.IGNORECASE,
)
MEANINGS = {
    "client": "persona",
    "customer": "persona",
    "user name": "persona",
    "name": "persona",
    "arc": "emotional arc",
    "training topic": "topic",
    "subject": "topic",
}
RANGE_BEFORE = re.compile(r"(?:(\d{1,3})\s*(?:to|and|-|\u2013)\s*)?\b(\d{1,3})\s+$", re.IGNORECASE)
RANGE_MAX_CHARS = 24
LABEL_MAX_CHARS = 40
BETWEEN_STAGES = re.compile(
    r"\s*(?:->|=>|[\u2192\u27f6\u2014\u2013,;/]|\b(?:then|to|through|into)\b)\s*", re.IGNORECASE
)
AFTER_NAME = re.compile(r"\s*[,(;:|\u2014\u2013]\s*|\s+-\s+|\s+(?=\d)|\s+(?:is|who|aged)\s+")
TIERS = {"scenario": "scenario", "edge_case": "edge_case", "edgecase": "edge_case", "edge": "edge_case"}


@dataclass(frozen=True, slots=True)
class Brief:
    name: str | None
    topic: str
    arc: str
    stages: tuple[str, ...]
    tier: str
    exchanges_min: int
    exchanges_max: int


def read_brief(prompt: str) -> Brief:
    """The last line of a kind wins: what all conversations share comes first in a prompt."""
    said: dict[str, str] = {}
    for match in _labelled(prompt):
        label = match["label"].lower()
        value = match["said"].strip(' \t\r*_`"')
        if value:
            said[MEANINGS.get(label, label)] = value
    arc = said.get("emotional arc", "unease to relief")
    fewest, most = _exchanges(prompt)
    return Brief(
        name=_name(said.get("persona")),
        topic=_words(said.get("topic", "what has been on my mind")),
        arc=arc,
        stages=_stages(arc),
        tier=TIERS.get(re.sub(r"[\s-]+", "_", said.get("tier", "").lower()), "template"),
        exchanges_min=fewest,
        exchanges_max=most,
    )


def _labelled(prompt: str) -> Iterator[re.Match[str]]:
    """Goes from colon to colon, for a prompt has few of them and hundreds of lines."""
    at = prompt.find(":")
    while at >= 0:
        line_at = prompt.rfind("\n", 0, at) + 1
        match = LABELLED.match(prompt, line_at) if at - line_at <= LABEL_MAX_CHARS else None
        if match:
            yield match
        at = prompt.find(":", match.end() if match else at + 1)


def _exchanges(prompt: str) -> tuple[int, int]:
    lowered = prompt.lower()
    at = lowered.rfind("exchanges")
    while at >= 0:
        # Looked for backwards from the word: trying a pattern all along a long prompt costs ten times this.
        found = RANGE_BEFORE.search(lowered, max(0, at - RANGE_MAX_CHARS), at)
        if found:
            first, second = found[1] or found[2], found[2]
            ends = sorted(min(max(int(end), 1), EXCHANGES_MAX) for end in (first, second))
            return ends[0], ends[1]
        at = lowered.rfind("exchanges", 0, at)
    return EXCHANGES_DEFAULT


def _name(persona: str | None) -> str | None:
    if persona is None:
        return None
    name = AFTER_NAME.split(persona, maxsplit=1)[0].strip(" *_.")
    return name[:60] or None


def _stages(arc: str) -> tuple[str, ...]:
    stages = [_words(stage).lower() for stage in BETWEEN_STAGES.split(arc)]
    return tuple(stage for stage in stages if stage)[:STAGES_MAX] or ("unease", "relief")


def _words(text: str) -> str:
    """Short enough to stand in a sentence, cut at a word, without what would end the sentence early."""
    text = text.strip(" .*_")
    if len(text) > WORDS_MAX_CHARS:
        text = text[:WORDS_MAX_CHARS].rsplit(" ", 1)[0].rstrip(" ,;:-")
    return text
