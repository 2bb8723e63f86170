"""Settling: a person says what possibly spent calls really cost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from parley import money, requests
from parley.cli import batches, starting, words
from parley.cli.calls import fetch, is_possibly_spent, look_command, reserved_nanos
from parley.cli.failures import BAD_USAGE, NOT_POSSIBLE, OK, CommandError
from parley.cli.session import Session
from parley.client import BatchClient
from parley.exceptions import WrongState
from parley.v1 import conversation_pb2

CALL_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What each of the calls cost; `cost` is None where they were not billed."""

    cost: money.money_pb2.Money | None
    note: str

    @property
    def shown(self) -> str:
        return "not billed" if self.cost is None else money.show(self.cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleOptions:
    calls: Sequence[str]
    every: bool
    not_billed: bool
    cost: str | None
    note: str
    yes: bool


async def settle(session: Session, name: str, options: SettleOptions) -> int:
    verdict = _verdict(options)
    named = [_call_name(name, call) for call in options.calls]
    if bool(named) == options.every:
        raise CommandError("Name the calls to settle, or say --all.", exit_code=BAD_USAGE, next_step=look_command(name))
    async with session.client() as client:
        if not options.every:
            await _settle_named(session, client, named, verdict)
        elif not await _settle_all(session, client, name, verdict, yes=options.yes):
            return OK
        return batches.told(session, await client.get(name))


def _verdict(options: SettleOptions) -> Verdict:
    if options.not_billed == (options.cost is not None):
        raise CommandError("Say either --not-billed or --cost USD.", exit_code=BAD_USAGE)
    cost = None if options.cost is None else starting.amount(options.cost, option="--cost")
    return Verdict(cost=cost, note=options.note)


def _call_name(name: str, call: str) -> str:
    """From 7, or from the whole name as --json shows it."""
    parent = f"{requests.batch_name(name)}/calls/"
    number = call.removeprefix(parent).lstrip("#")
    if not CALL_NUMBER.fullmatch(number):
        raise CommandError(
            f"{call} is not a call of {words.bare_id(name)}: a number is expected.",
            exit_code=BAD_USAGE,
            next_step=look_command(name),
        )
    return parent + number


async def _settle_named(session: Session, client: BatchClient, names: Sequence[str], verdict: Verdict) -> None:
    for name in names:
        try:
            _tell(session, await client.settle_call(name, verdict.cost, verdict.note), verdict)
        except WrongState as error:
            raise _not_open(name, error) from error


async def _settle_all(session: Session, client: BatchClient, name: str, verdict: Verdict, *, yes: bool) -> bool:
    """False where nothing was settled: there was no such call, or the person said no."""
    open_calls = await fetch(client, name, is_possibly_spent)
    if not open_calls:
        session.output.note(f"No call of {words.bare_id(name)} is possibly spent.")
        return False
    if not yes and not await _agreed(session, open_calls, verdict):
        session.output.note("Nothing was settled.")
        return False
    for call in open_calls:
        try:
            _tell(session, await client.settle_call(call.name, verdict.cost, verdict.note), verdict)
        except WrongState:
            # Its answer came after all, or somebody was first: its cost is known.
            session.output.note(f"call {words.bare_id(call.name)} was settled meanwhile")
    return True


async def _agreed(session: Session, open_calls: list[conversation_pb2.Call], verdict: Verdict) -> bool:
    count, reserved = words.counted(len(open_calls), "call"), money.show_nanos(reserved_nanos(open_calls))
    at = f"as {verdict.shown}" if verdict.cost is None else f"at {verdict.shown} each"
    if not session.output.can_ask:
        raise CommandError(
            f"This would settle {count} (possibly spent: up to {reserved}) {at} and nobody is here to be asked.",
            exit_code=BAD_USAGE,
            next_step="Say --yes to settle them without a question.",
        )
    try:
        answer = await session.output.ask(f"Settle {count} (possibly spent: up to {reserved}) {at}? [y/N]")
    except asyncio.CancelledError:
        session.output.note("\nNothing was settled.")
        raise
    return answer.lower() in ("y", "yes")


def _tell(session: Session, call: conversation_pb2.Call, verdict: Verdict) -> None:
    if session.output.as_json:
        session.output.message(call)
    else:
        session.output.text(f"settled  call {words.bare_id(call.name)}  {verdict.shown}")


def _not_open(name: str, error: WrongState) -> CommandError:
    batch, _, call = name.removeprefix("batches/").partition("/calls/")
    why = "it is in flight" if error.metadata.get("state") == "RESERVED" else "its cost is known"
    return CommandError(
        f"Call {call} is not possibly spent: {why}.",
        exit_code=NOT_POSSIBLE,
        next_step=look_command(batch),
        reason=error.reason,
        request_id=error.request_id,
    )
