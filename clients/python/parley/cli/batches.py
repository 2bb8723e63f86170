"""Batches: list them, show one, and the verbs that change one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.descriptor import EnumDescriptor
from rich.text import Text

from parley import money, requests
from parley.cli import calls, forecasts, holds, progress, starting, words
from parley.cli.failures import BAD_USAGE, OK, CommandError
from parley.cli.output import Output
from parley.cli.session import Session
from parley.cli.spec_reader import enum_words
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.wire import clock

LISTED_MAX = 100
TROUBLES_MAX = 50
# On a terminal the panel says these already.
SHOWN_ABOVE = {"title", "state", "done", "possibly", "waits", "budget", "projected", "left", "pilot"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    budget: str | None
    concurrency: int | None
    hold_after: str | None
    priority: str | None
    name: str | None
    labels: Sequence[str]


async def list_batches(
    session: Session, *, states: Sequence[str], owner: str, labels: Sequence[str], limit: int
) -> int:
    filter = orchestrator_pb2.BatchFilter(
        states=[
            batch_pb2.BatchState.ValueType(_number(batch_pb2.BatchState.DESCRIPTOR, state, option="--state"))
            for state in states
        ],
        owner=owner,
        labels=starting.labels(labels),
    )
    found: list[batch_pb2.Batch] = []
    async with session.client() as client:
        async for batch in client.list_batches(filter, page_size=min(limit, requests.PAGE_SIZE)):
            found.append(batch)
            if len(found) >= limit:
                break
    _show_list(session.output, found)
    return OK


def _show_list(output: Output, batches: Sequence[batch_pb2.Batch]) -> None:
    if output.as_json:
        for batch in batches:
            output.message(batch)
        return
    if not batches and output.live:
        output.note("No batches. next: parley init, then parley start spec.yaml")
        return
    columns = ("id", "name", "state", "done", "failed", "spent", "created", "note")
    now = clock.utc_now()
    rows = [
        (
            words.bare_id(batch.name),
            batch.display_name,
            words.state(batch.state),
            f"{words.done(batch.counts)}/{batch.counts.total}",
            str(batch.counts.failed),
            money.show(batch.spend.confirmed),
            words.day_and_time(batch.create_time),
            ("\n" if output.live else "; ").join(_notes(batch, now)),
        )
        for batch in batches
    ]
    output.noted_table(columns, rows, right=("done", "failed", "spent"), elastic="name")


def _notes(batch: batch_pb2.Batch, now: datetime) -> list[str]:
    """What keeps it from going on, and what it may have cost beyond `spent`."""
    notes = [holds.brief(batch, hold, now) for hold in batch.holds]
    if waiting := words.waiting(batch):
        notes.append(waiting)
    if possibly := words.possibly_spent(batch.spend):
        notes.append(f"possibly spent {possibly}: {calls.look_command(batch.name)}")
    return notes


async def show(session: Session, name: str, *, every: bool) -> int:
    """A batch, its tiers and holds, and the conversations that went wrong (or every one)."""
    async with session.client() as client:
        batch = await client.get(name)
        conversations = [conversation async for conversation in _shown_conversations(client, batch, every=every)]
    output = session.output
    if output.as_json:
        for message in (batch, *conversations):
            output.message(message)
        return OK
    _show_batch(output, batch)
    _show_conversations(output, conversations)
    return OK


async def _shown_conversations(client: BatchClient, batch: batch_pb2.Batch, *, every: bool):
    if every:
        filters = [conversation_pb2.ConversationFilter()]
    else:
        filters = [
            conversation_pb2.ConversationFilter(states=[conversation_pb2.CONVERSATION_STATE_FAILED]),
            conversation_pb2.ConversationFilter(
                reviews=[conversation_pb2.REVIEW_QUARANTINED, conversation_pb2.REVIEW_REJECTED]
            ),
        ]
    for filter in filters:
        shown = 0
        async for conversation in client.conversations(batch.name, filter):
            yield conversation
            shown += 1
            if not every and shown >= TROUBLES_MAX:
                break


def _show_batch(output: Output, batch: batch_pb2.Batch) -> None:
    if not output.live:
        for label, value in _facts(batch):
            output.line(label, value)
        for tier in batch.tiers:
            counts = tier.counts
            output.line("tier", tier.tier, words.done(counts), counts.total, counts.failed, money.show(tier.cost))
        for hold in batch.holds:
            output.line("held", holds.line(batch, hold, clock.utc_now()))
        return
    output.show(progress.panel(batch, (), width=output.out.width, now=clock.utc_now()))
    output.show()
    for label, value in _facts(batch):
        if label in SHOWN_ABOVE:
            continue
        output.show(Text.assemble((f"{label:<12}", "dim"), value))


def _facts(batch: batch_pb2.Batch) -> list[tuple[str, str]]:
    counts, spend = batch.counts, batch.spend
    facts = [
        ("name", batch.name),
        ("title", batch.display_name),
        ("state", words.state(batch.state)),
        ("done", f"{words.done(counts)}/{counts.total}"),
        ("usable", f"{counts.deliverable} of {counts.generated} generated"),
        ("spent", f"{money.show(spend.confirmed)} for {spend.calls_settled} calls"),
        ("possibly", _possibly(batch)),
        ("projected", forecasts.projected(batch).removeprefix("projected ")),
        ("left", forecasts.time_left(batch)),
        ("pilot", forecasts.rest(batch)),
        ("forecast", f"rests on {batch.forecast.basis}" if batch.forecast.basis else ""),
        ("waits", words.waiting(batch)),
        ("budget", forecasts.budget(batch).removeprefix("budget ") or "no limit"),
        ("quote", batch.quote),
        ("refined", f"{batch.refined_quote} (of the rest)" if batch.refined_quote else ""),
        ("model", batch.model),
        ("concurrency", str(batch.concurrency)),
        ("owner", batch.owner),
        ("labels", " ".join(f"{key}={value}" for key, value in sorted(batch.labels.items()))),
        ("created", f"{words.day_and_time(batch.create_time)} UTC"),
    ]
    return [(label, value) for label, value in facts if value]


def _possibly(batch: batch_pb2.Batch) -> str:
    possibly = words.possibly_spent(batch.spend)
    return f"{possibly} (next: {calls.look_command(batch.name)})" if possibly else ""


def _show_conversations(output: Output, conversations: Sequence[conversation_pb2.Conversation]) -> None:
    if not conversations:
        return
    if output.live:
        output.show()
    columns = ("number", "tier", "state", "review", "attempts", "cost", "why")
    rows = [
        (
            conversation.number,
            conversation.tier,
            words.conversation_state(conversation.state),
            words.review(conversation.review),
            conversation.attempts,
            money.show(conversation.cost),
            _why(conversation),
        )
        for conversation in conversations
    ]
    output.table(columns, rows, right=("number", "attempts", "cost"))


def _why(conversation: conversation_pb2.Conversation) -> str:
    if conversation.HasField("failure"):
        return f"{words.failure_reason(conversation.failure.reason)}: {conversation.failure.message}"
    failed = [check for check in conversation.checks if check.outcome == conversation_pb2.CHECK_OUTCOME_FAIL]
    return "; ".join(f"{check.check}: {check.message}" for check in failed)


async def pause(session: Session, name: str) -> int:
    async with session.client() as client:
        return told(session, await client.pause(name))


async def resume(session: Session, name: str) -> int:
    async with session.client() as client:
        return told(session, await client.resume(name))


async def cancel(session: Session, name: str) -> int:
    async with session.client() as client:
        return told(session, await client.cancel(name))


async def retry(
    session: Session, name: str, *, tiers: Sequence[str], reasons: Sequence[str], reviews: Sequence[str]
) -> int:
    failure, review = conversation_pb2.FailureReason, conversation_pb2.Review
    filter = conversation_pb2.ConversationFilter(
        tiers=tiers,
        failure_reasons=[failure.ValueType(_number(failure.DESCRIPTOR, word, option="--reason")) for word in reasons],
        reviews=[review.ValueType(_number(review.DESCRIPTOR, word, option="--review")) for word in reviews],
    )
    async with session.client() as client:
        reply = await client.retry(name, filter if tiers or reasons or reviews else None)
    if session.output.as_json:
        session.output.message(reply)
        return OK
    session.output.text(f"{reply.requeued} conversations are made again")
    return told(session, reply.batch)


async def change(session: Session, name: str, changes: Changes) -> int:
    """Changes settings. `none` takes a budget or checkpoint away."""
    fields: requests.Settings = {}
    if changes.budget is not None:
        fields["budget"] = None if changes.budget == "none" else starting.amount(changes.budget, option="--budget")
    if changes.hold_after is not None:
        fields["hold_after"] = _count(changes.hold_after)
    if changes.concurrency is not None:
        fields["concurrency"] = changes.concurrency
    if changes.priority is not None:
        priority = _number(batch_pb2.Priority.DESCRIPTOR, changes.priority, option="--priority")
        fields["priority"] = batch_pb2.Priority.ValueType(priority)
    if changes.name is not None:
        fields["display_name"] = changes.name
    if changes.labels:
        fields["labels"] = starting.labels(changes.labels)
    if not fields:
        raise CommandError("There is nothing to change.", exit_code=BAD_USAGE, next_step="See parley set --help.")
    async with session.client() as client:
        return told(session, await client.update(name, **fields))


def _count(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise CommandError(f"--hold-after is a number or none, not {text!r}.", exit_code=BAD_USAGE)
    return int(text)


def told(session: Session, batch: batch_pb2.Batch) -> int:
    """Says what a batch is after a verb."""
    output, now = session.output, clock.utc_now()
    if output.as_json:
        output.message(batch)
    elif output.live:
        output.show(Text(progress.summary(batch)))
        for line in (line for hold in batch.holds for line in progress.held(batch, hold, now)):
            output.show(line)
        for line in progress.pilot(batch):
            output.show(line)
    else:
        output.text(progress.summary(batch))
        for hold in batch.holds:
            output.text(f"held  {holds.line(batch, hold, now)}")
    return OK


def _number(kind: EnumDescriptor, word: str, *, option: str) -> int:
    known = enum_words(kind)
    number = known.get(word.lower().replace(" ", "_").replace("-", "_"))
    if number is None:
        raise CommandError(f"{option} {word} is not known; there are {', '.join(known)}.", exit_code=BAD_USAGE)
    return number
