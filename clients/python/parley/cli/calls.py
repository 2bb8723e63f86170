"""Calls: the ledger of a batch, a paid request a row."""

from __future__ import annotations

from collections.abc import Callable

from parley import money
from parley.cli import words
from parley.cli.failures import OK
from parley.cli.output import Output
from parley.cli.session import Session
from parley.client import BatchClient
from parley.v1 import conversation_pb2

COLUMNS = (
    *("call", "conversation", "attempt", "purpose", "outcome", "input tokens", "output tokens", "cost", "seconds"),
    "error",
)
# Of a terminal of 80 columns.
NARROW = ("call", "conv", "try", "purpose", "outcome", "in", "out", "cost", "s", "error")
NUMBERS = ("call", "conv", "try", "in", "out", "cost", "s")


async def calls(session: Session, name: str, *, possibly_spent: bool, conversation: int | None) -> int:
    """The ledger of a batch, or the rows of it that the options name."""

    def wanted(call: conversation_pb2.Call) -> bool:
        return (is_possibly_spent(call) or not possibly_spent) and conversation in (None, call.conversation)

    async with session.client() as client:
        found = await fetch(client, name, wanted)
    if session.output.as_json:
        for call in found:
            session.output.message(call)
        return OK
    _show(session.output, found)
    _sum_up(session.output, name, found)
    return OK


async def fetch(
    client: BatchClient, name: str, wanted: Callable[[conversation_pb2.Call], bool]
) -> list[conversation_pb2.Call]:
    return [call async for call in client.calls(name) if wanted(call)]


def is_possibly_spent(call: conversation_pb2.Call) -> bool:
    return call.state == conversation_pb2.CALL_STATE_POSSIBLY_SPENT


def look_command(name: str) -> str:
    return f"parley calls {words.bare_id(name)} --possibly-spent"


def reserved_nanos(calls: list[conversation_pb2.Call]) -> int:
    return sum(money.to_nanos(call.reserved_cost) for call in calls)


def _show(output: Output, calls: list[conversation_pb2.Call]) -> None:
    rows = [
        (
            words.bare_id(call.name),
            str(call.conversation or ""),
            str(call.attempt or ""),
            words.purpose(call.purpose),
            words.outcome(call.outcome),
            f"{words.input_tokens(call.usage):,}",
            f"{call.usage.output_tokens:,}",
            _cost(call, with_state=not output.live),
            f"{words.seconds(call.duration):.1f}" if call.HasField("duration") else "",
            _note(call, with_state=output.live),
        )
        for call in calls
    ]
    output.noted_table(NARROW if output.live else COLUMNS, rows, right=NUMBERS, elastic="outcome")


def _cost(call: conversation_pb2.Call, *, with_state: bool) -> str:
    if call.HasField("cost"):
        return money.show(call.cost)
    state = f", {words.call_state(call.state)}" if with_state else ""
    return f"up to {money.show(call.reserved_cost)}{state}"


def _note(call: conversation_pb2.Call, *, with_state: bool) -> str:
    """What went wrong, and who settled it. On a terminal a cost that is not known yet says so here."""
    state = words.call_state(call.state) if with_state and not call.HasField("cost") else ""
    why = ": ".join(part for part in (state, call.error) if part)
    if not call.settled_by:
        return why
    said = f": {call.note}" if call.note else "."
    return f"{why} Settled by {call.settled_by}{said}".lstrip()


def _sum_up(output: Output, name: str, calls: list[conversation_pb2.Call]) -> None:
    open_calls = [call for call in calls if is_possibly_spent(call)]
    spent = money.show_nanos(sum(money.to_nanos(call.cost) for call in calls))
    possibly = f", {len(open_calls):,} possibly spent (up to {money.show_nanos(reserved_nanos(open_calls))})"
    output.note(f"{words.counted(len(calls), 'call')}, {spent} spent{possibly if open_calls else ''}")
    if open_calls:
        id = words.bare_id(name)
        output.note(f"next: parley settle {id} CALL --cost USD  (by the provider's bill)")
        output.note(f"next: parley settle {id} --all --not-billed  (where none is on it)")
