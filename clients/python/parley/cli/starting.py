"""Starting a batch: quote, question, start, and the watch that follows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parley import money, requests
from parley.cli import quoting, spec_file, watching
from parley.cli.failures import BAD_USAGE, NOT_POSSIBLE, OK, CommandError
from parley.cli.session import Session
from parley.cli.spec_file import SpecFile
from parley.client import BatchClient
from parley.exceptions import QuoteStale, Unavailable
from parley.v1 import batch_pb2, orchestrator_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    yes: bool = False
    watch: bool = True
    allow_unquoted: bool = False
    hold_after: int | None = None
    budget: str | None = None
    concurrency: int | None = None
    seed: int | None = None
    model: str | None = None
    labels: Sequence[str] = ()


async def start(session: Session, path: Path, options: StartOptions) -> int:
    file = spec_file.load(path)
    apply(options, file.spec)
    async with session.client() as client:
        batch = await start_batch(session, client, file, options)
        if batch is None:
            session.output.note("Nothing was started.")
            return OK
        if not options.watch:
            _tell_started(session, batch)
            return OK
        return await watching.watch_batch(session, client, batch.name)


async def start_batch(
    session: Session, client: BatchClient, file: SpecFile, options: StartOptions
) -> batch_pb2.Batch | None:
    """The batch, or None where the person said no. Quotes a second time where the first quote went stale meanwhile."""
    # One id for all tries: whatever is repeated, one batch is started.
    request_id = requests.new_request_id()
    for _ in range(2):
        quoted = await _quote(session, client, file, options)
        if not await _agreed(session, quoted, options):
            return None
        try:
            return await client.create(
                file.spec,
                request_id=request_id,
                quote=quoted.quote.name if quoted else "",
                allow_unquoted=options.allow_unquoted,
            )
        except QuoteStale:
            # A refused request leaves no batch, but its id belongs to the body that named the stale quote.
            request_id = requests.new_request_id()
            session.output.note("The quote went stale while you looked at it. This is the fresh one:")
    raise CommandError(
        "The quote went stale twice.",
        exit_code=NOT_POSSIBLE,
        next_step="Run this again in a moment.",
        reason="QUOTE_STALE",
    )


def apply(options: StartOptions, spec: batch_pb2.BatchSpec) -> None:
    """What was said on the command line wins over the file."""
    if options.hold_after is not None:
        spec.hold_after = options.hold_after
    if options.concurrency is not None:
        spec.concurrency = options.concurrency
    if options.seed is not None:
        spec.seed = options.seed
    if options.model is not None:
        spec.model = options.model
    if options.budget is not None:
        spec.budget.CopyFrom(amount(options.budget, option="--budget"))
    for key, value in labels(options.labels).items():
        spec.labels[key] = value


def amount(text: str, *, option: str) -> money.money_pb2.Money:
    try:
        return money.parse(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}.", exit_code=BAD_USAGE) from error


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """key=value, as often as given."""
    split = {key: value for key, equals, value in (pair.partition("=") for pair in pairs) if equals and key}
    if len(split) != len(pairs):
        raise CommandError("--label is written as key=value, each key once.", exit_code=BAD_USAGE)
    return split


async def _quote(
    session: Session, client: BatchClient, file: SpecFile, options: StartOptions
) -> orchestrator_pb2.QuoteBatchResponse | None:
    try:
        quoted = await client.quote(file.spec)
    except Unavailable as error:
        if error.reason != "ESTIMATOR_UNAVAILABLE" or not options.allow_unquoted:
            raise
        session.output.note("warning: the estimator can't be reached; this batch has no quote.")
        return None
    if not session.output.as_json:
        quoting.show(session.output, quoted, file)
    quoting.refuse_errors(quoted, file)
    return quoted


async def _agreed(session: Session, quoted: orchestrator_pb2.QuoteBatchResponse | None, options: StartOptions) -> bool:
    if options.yes or (quoted is not None and quoted.provider.sandbox):
        return True
    price = money.show(quoted.quote.cost.mean) if quoted else "an unknown sum"
    if not session.output.can_ask:
        raise CommandError(
            f"This would spend about {price} and nobody is here to be asked.",
            exit_code=BAD_USAGE,
            next_step="Say --yes to start without a question.",
        )
    try:
        answer = await session.output.ask(f"Spend about {price} and start it? [y/N]")
    except asyncio.CancelledError:
        session.output.note("\nNothing was started.")
        raise
    return answer.lower() in ("y", "yes")


def _tell_started(session: Session, batch: batch_pb2.Batch) -> None:
    if session.output.as_json:
        session.output.message(batch)
    else:
        session.output.line("started", batch.name)
        session.output.note(f"next: {watching.watch_command(batch.name)}")
