"""The conversations themselves: a brief and chance in, turns out."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from random import Random
from typing import TypeVar

from orchestrator_service.sandbox import phrases
from orchestrator_service.sandbox.brief import Brief
from orchestrator_service.sandbox.phrases import Pool

SANDBOX_MARK = "[sandbox]"
# A turn stops growing when the next sentence would more likely overshoot its share than fall short.
SENTENCE_HALF_CHARS = 36
SENTENCES_A_PARAGRAPH = 4

Shape = tuple[str | Pool, ...]
Dealt = TypeVar("Dealt")

USER_SHAPES: tuple[Shape, ...] = (
    (phrases.WHEN, " ", phrases.DID, ", ", phrases.AND_SO, "."),
    (phrases.WORRY, ", ", phrases.OF_WORRY, "."),
    (phrases.WONDER, " ", phrases.OF_WONDER, "?"),
    ("It came to ", phrases.COUNT, ", ", phrases.SO_MUCH, "."),
    (phrases.DID, " ", phrases.AROUND, "."),
)
ASSISTANT_SHAPES: tuple[Shape, ...] = (
    (phrases.HEAR, " ", phrases.OF_HEARING, "."),
    (phrases.SUGGEST, " ", phrases.HOW, "."),
    (phrases.REASON, " ", phrases.OF_REASON, "."),
    (phrases.ASK, " ", phrases.OF_ASKING, "?"),
    ("Allow it ", phrases.SPELL, ", ", phrases.NO_MORE, "."),
)


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    content: str


class Decks:
    """Deals from each pool in an order of its own: nothing comes twice before all of the pool came once."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._dealt: dict[int, list[int]] = {}

    def deal(self, pool: tuple[Dealt, ...]) -> Dealt:
        size = len(pool)
        deck = self._dealt.get(id(pool))
        if deck is None:
            deck = self._dealt[id(pool)] = [int(self._rng.random() * size), self._stride(size)]
        at, stride = deck
        deck[0] = (at + stride) % size
        return pool[at]

    def sentence(self, shape: Shape) -> str:
        return "".join([part if isinstance(part, str) else self.deal(part) for part in shape])

    def _stride(self, size: int) -> int:
        # Steps of a size that shares no factor with the pool's visit all of it.
        stride = 1 + int(self._rng.random() * (size - 1))
        while gcd(stride, size) != 1:
            stride = stride % size + 1
        return stride


def write_conversation(brief: Brief, *, exchanges: int, content_chars: int, rng: Random) -> list[Turn]:
    """Alternating turns, the user's first, of about `content_chars` in all and a sentence each at least."""
    decks = Decks(rng)
    weights = [(0.7 if turn % 2 == 0 else 1.5) + 0.8 * rng.random() for turn in range(exchanges * 2)]
    chars_a_weight = content_chars / sum(weights)
    turns: list[Turn] = []
    for exchange in range(exchanges):
        stage = brief.stages[exchange * len(brief.stages) // exchanges]
        opening = _greeting(brief, decks) if exchange == 0 else ""
        user = _Paragraphs(opening)
        user.fill(_user_sentences(stage, decks), chars=int(weights[exchange * 2] * chars_a_weight))
        assistant = _Paragraphs(_welcome(brief, decks) if exchange == 0 else "")
        closing = _closing(brief, decks) if exchange == exchanges - 1 else ""
        room = int(weights[exchange * 2 + 1] * chars_a_weight) - len(closing)
        assistant.fill(_assistant_sentences(stage, decks), chars=room)
        assistant.add(closing)
        turns += (Turn("user", user.text()), Turn("assistant", assistant.text()))
    return turns


def write_prose(*, chars: int, rng: Random) -> str:
    """An answer to a prompt that asked for no conversation."""
    paragraphs = _Paragraphs(SANDBOX_MARK)
    paragraphs.fill(_endless(ASSISTANT_SHAPES, Decks(rng)), chars=chars)
    return paragraphs.text()


class _Paragraphs:
    def __init__(self, opening: str) -> None:
        self._pieces = [opening] if opening else []
        self._chars = len(opening)

    def fill(self, sentences: Iterator[str], *, chars: int) -> None:
        for count, sentence in enumerate(sentences, start=1):
            self.add(sentence, new_paragraph=count % SENTENCES_A_PARAGRAPH == 0)
            if self._chars + SENTENCE_HALF_CHARS >= chars:
                return

    def add(self, sentence: str, *, new_paragraph: bool = False) -> None:
        if not sentence:
            return
        if self._pieces:
            self._pieces.append("\n\n" if new_paragraph else " ")
        self._pieces.append(sentence)
        # A line break takes four characters in the JSON that carries it.
        self._chars += len(sentence) + (4 if new_paragraph else 1)

    def text(self) -> str:
        return "".join(self._pieces)


def _user_sentences(stage: str, decks: Decks) -> Iterator[str]:
    yield f"{decks.deal(phrases.FEEL)} {stage}."
    yield from _endless(USER_SHAPES, decks)


def _assistant_sentences(stage: str, decks: Decks) -> Iterator[str]:
    yield decks.deal(phrases.SHIFT).format(stage=stage)
    yield from _endless(ASSISTANT_SHAPES, decks)


def _endless(shapes: tuple[Shape, ...], decks: Decks) -> Iterator[str]:
    while True:
        yield decks.sentence(decks.deal(shapes))


def _greeting(brief: Brief, decks: Decks) -> str:
    greeting = f"{decks.deal(phrases.GREETING)} {_inside(brief.topic)}."
    return f"Hello, {brief.name} here. {greeting}" if brief.name else greeting


def _welcome(brief: Brief, decks: Decks) -> str:
    welcome = decks.deal(phrases.WELCOME)
    if brief.name is None:
        return f"{SANDBOX_MARK} {welcome[0].upper()}{welcome[1:]}."
    return f"{SANDBOX_MARK} {brief.name.split()[0]}, {welcome}."


def _closing(brief: Brief, decks: Decks) -> str:
    return decks.deal(phrases.CLOSING).format(first=brief.stages[0], last=brief.stages[-1])


def _inside(topic: str) -> str:
    """A topic as it stands inside a sentence: "Debt after divorce" loses its capital, "IRA rules" keeps them."""
    if topic[1:2].isupper():
        return topic
    return topic[:1].lower() + topic[1:]
