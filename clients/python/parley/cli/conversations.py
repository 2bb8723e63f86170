"""Conversations: one of a batch, as a chat."""

from __future__ import annotations

from dataclasses import dataclass

from rich.padding import Padding
from rich.text import Text

from parley import money
from parley.cli import words
from parley.cli.failures import NOT_POSSIBLE, OK, CommandError
from parley.cli.output import Output
from parley.cli.session import Session
from parley.client import BatchClient
from parley.v1 import conversation_pb2

SPEAKERS = {conversation_pb2.ROLE_USER: "user", conversation_pb2.ROLE_ASSISTANT: "assistant"}
STYLES = {"user": "bold cyan", "assistant": "bold green"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """How much of a conversation is enough to see what it is like."""

    turns: int
    characters: int

    def of(self, content: str) -> str:
        return content if len(content) <= self.characters else f"{content[: self.characters].rsplit(' ', 1)[0]} ..."


async def read(session: Session, name: str, number: int | None) -> int:
    """A conversation; the first one that may be exported where no number is given."""
    async with session.client() as client:
        conversation = await client.conversation(name, number or await first_number(client, name))
    if session.output.as_json:
        session.output.message(conversation)
        return OK
    show(session.output, conversation)
    return OK


async def first_number(client: BatchClient, name: str) -> int:
    generated = conversation_pb2.ConversationFilter(states=[conversation_pb2.CONVERSATION_STATE_GENERATED])
    passed = conversation_pb2.ConversationFilter(
        reviews=[conversation_pb2.REVIEW_PASSED, conversation_pb2.REVIEW_ACCEPTED, conversation_pb2.REVIEW_EDITED]
    )
    for filter in (passed, generated):
        async for conversation in client.conversations(name, filter, page_size=1):
            return conversation.number
    raise CommandError(
        f"The batch {words.bare_id(name)} has no conversation to read yet.",
        exit_code=NOT_POSSIBLE,
        next_step=f"parley watch {words.bare_id(name)}",
    )


def show(output: Output, conversation: conversation_pb2.Conversation, *, excerpt: Excerpt | None = None) -> None:
    _show_head(output, conversation)
    shown = conversation.turns[: excerpt.turns] if excerpt else conversation.turns
    for turn in shown:
        _show_turn(output, SPEAKERS.get(turn.role, "?"), excerpt.of(turn.content) if excerpt else turn.content)
    if len(shown) < len(conversation.turns):
        output.text(f"\n... and {len(conversation.turns) - len(shown)} more turns")


def _show_turn(output: Output, speaker: str, content: str) -> None:
    if not output.live:
        output.text(f"\n{speaker}:\n{content}")
        return
    output.show()
    output.show(Text(speaker, style=STYLES.get(speaker, "bold")))
    output.show(Padding(Text(content), (0, 0, 0, 2)))


def _show_head(output: Output, conversation: conversation_pb2.Conversation) -> None:
    drawn = "  ".join(f"{axis}={value}" for axis, value in sorted(conversation.axis_values.items()))
    verdict = words.review(conversation.review) or words.conversation_state(conversation.state)
    head = f"#{conversation.number} {conversation.tier}  {verdict}  {money.show(conversation.cost)}  {drawn}".rstrip()
    if output.live:
        output.show(Text(head, style="dim"))
    else:
        output.text(head)
    if conversation.HasField("failure"):
        output.text(f"failed: {words.failure_reason(conversation.failure.reason)}: {conversation.failure.message}")
    for check in conversation.checks:
        if check.outcome != conversation_pb2.CHECK_OUTCOME_PASS:
            word = "warning" if check.outcome == conversation_pb2.CHECK_OUTCOME_WARN else "kept back"
            output.text(f"{word}: {check.check}: {check.message}")
