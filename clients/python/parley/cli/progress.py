"""Progress of a batch: redrawn in place on a terminal, a line now and then in a pipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parley import money
from parley.cli import calls, forecasts, holds, words
from parley.cli.output import Output, table
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.wire import clock

PLAIN_EVERY_S = 3.0
NAME_MIN = 8
# Below, the range of the time left has no room beside the bar.
RANGED_WIDTH_MIN = 72
EVENTS_SHOWN = 5
# Told also in a pipe, and not at once driven off a terminal by the conversations that end meanwhile.
NOTABLE = {"budget_mark", "rates_changed", "call_settled", "recovered", "quote_refined"}
NOTABLE_KEPT = 2
STATE_STYLES = {
    batch_pb2.BATCH_STATE_RUNNING: "cyan",
    batch_pb2.BATCH_STATE_SUCCEEDED: "green",
    batch_pb2.BATCH_STATE_PARTIALLY_SUCCEEDED: "yellow",
    batch_pb2.BATCH_STATE_PAUSED: "yellow",
    batch_pb2.BATCH_STATE_PAUSING: "yellow",
    batch_pb2.BATCH_STATE_FAILED: "red",
}


class LiveProgress:
    """Redraws itself with every message; what it shows last stays on the screen."""

    def __init__(self, output: Output, utc_now: Callable[[], datetime] = clock.utc_now) -> None:
        self._live = Live(console=output.out, auto_refresh=False, transient=False)
        self._utc_now = utc_now
        self._events = LatestEvents()
        self._refined = batch_pb2.QuoteRefined()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def take(self, message: orchestrator_pb2.WatchBatchResponse) -> None:
        if message.reset:
            self._events.clear()
        self._events.take(message.events)
        self._refined = latest_refined(message, self._refined)
        batch = forecasts.refined(message.batch, self._refined)
        drawn = panel(batch, self._events.shown(), width=self._live.console.width, now=self._utc_now())
        self._live.update(drawn, refresh=True)


class LatestEvents:
    """The last few events of a log; notable ones among them stay longer than the others."""

    def __init__(self) -> None:
        self._latest: deque[batch_pb2.BatchEvent] = deque(maxlen=EVENTS_SHOWN)
        self._notable: deque[batch_pb2.BatchEvent] = deque(maxlen=NOTABLE_KEPT)

    def clear(self) -> None:
        self._latest.clear()
        self._notable.clear()

    def take(self, events: Iterable[batch_pb2.BatchEvent]) -> None:
        for event in events:
            (self._notable if is_notable(event) else self._latest).append(event)

    def shown(self) -> list[batch_pb2.BatchEvent]:
        """In the order of the log."""
        too_many = max(0, len(self._notable) + len(self._latest) - EVENTS_SHOWN)
        latest = list(self._latest)[too_many:]
        return sorted([*self._notable, *latest], key=lambda event: event.number)


def latest_refined(
    message: orchestrator_pb2.WatchBatchResponse, before: batch_pb2.QuoteRefined
) -> batch_pb2.QuoteRefined:
    told = [event.quote_refined for event in message.events if event.HasField("quote_refined")]
    return told[-1] if told else before


def is_notable(event: batch_pb2.BatchEvent) -> bool:
    return event.WhichOneof("detail") in NOTABLE


class PlainProgress:
    """A line at every change of state or holds and at every failure, and else at most every few seconds."""

    def __init__(
        self,
        output: Output,
        monotonic_s: Callable[[], float] = clock.monotonic_s,
        utc_now: Callable[[], datetime] = clock.utc_now,
    ) -> None:
        self._output = output
        self._monotonic_s = monotonic_s
        self._utc_now = utc_now
        self._told: tuple[object, ...] | None = None
        self._told_at_s = 0.0
        self._rest = ""
        self._refined = batch_pb2.QuoteRefined()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def take(self, message: orchestrator_pb2.WatchBatchResponse) -> None:
        for event in message.events:
            if event.conversation_ended.state == conversation_pb2.CONVERSATION_STATE_FAILED:
                self._output.text(f"failed   {words.event(event)}")
            elif is_notable(event):
                self._output.text(f"note     {words.event(event)}")
        self._refined = latest_refined(message, self._refined)
        batch = forecasts.refined(message.batch, self._refined)
        changed = (batch.state, tuple(hold.reason for hold in batch.holds))
        now_s = self._monotonic_s()
        quiet = changed == self._told and now_s - self._told_at_s < PLAIN_EVERY_S and not message.last
        if not quiet:
            self._sum_up(batch, with_holds=changed != self._told)
            self._told, self._told_at_s = changed, now_s
        # What a pilot says comes a moment after the batch has held.
        if (rest := forecasts.rest(batch)) != self._rest:
            self._rest = rest
            if rest:
                self._output.text(f"pilot    {rest}")

    def _sum_up(self, batch: batch_pb2.Batch, *, with_holds: bool) -> None:
        self._output.text(summary(batch))
        for hold in batch.holds if with_holds else ():
            self._output.text(f"held     {holds.line(batch, hold, self._utc_now())}")


class JsonProgress:
    """Every message of the stream, as it came."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def take(self, message: orchestrator_pb2.WatchBatchResponse) -> None:
        self._output.message(message)


def new_progress(output: Output) -> LiveProgress | PlainProgress | JsonProgress:
    if output.as_json:
        return JsonProgress(output)
    return LiveProgress(output) if output.live else PlainProgress(output)


def summary(batch: batch_pb2.Batch) -> str:
    """One line that says how far a batch is."""
    counts = batch.counts
    parts = [
        words.state(batch.state),
        f"{words.done(counts)}/{counts.total} done",
        f"{counts.failed} failed",
        *([f"{counts.quarantined} quarantined"] if counts.quarantined else []),
        *([f"{counts.cancelled} cancelled"] if counts.cancelled else []),
        f"{counts.in_flight} in flight",
        f"spent {money.show(batch.spend.confirmed)}",
    ]
    if possibly := words.possibly_spent(batch.spend):
        parts.append(f"possibly spent {possibly}")
    if projected := forecasts.projected(batch):
        parts.append(projected)
    if left := forecasts.time_left(batch):
        parts.append(f"left {left}")
    if waiting := words.waiting(batch):
        parts.append(waiting)
    return "  ".join(parts)


def panel(
    batch: batch_pb2.Batch, events: Iterable[batch_pb2.BatchEvent], *, width: int, now: datetime
) -> RenderableType:
    parts: list[RenderableType] = [
        _title(batch, width=width),
        _bar(batch, width=width),
        *_money(batch, width=width),
        Text(),
        tiers(batch),
    ]
    for hold in batch.holds:
        parts += [Text(), *held(batch, hold, now)]
    parts += pilot(batch)
    if possibly := words.possibly_spent(batch.spend):
        told = Text.assemble(("possibly spent: ", "bold yellow"), possibly, " whose outcome nobody saw")
        parts += [Text(), told, Text(f"next: {calls.look_command(batch.name)}, then parley settle")]
    logged = [_event(event) for event in events]
    if logged:
        parts += [Text(), *logged]
    return Group(*parts)


def held(batch: batch_pb2.Batch, hold: batch_pb2.Hold, now: datetime) -> list[Text]:
    cause = Text.assemble(("held: ", "bold yellow"), holds.cause(hold, now))
    return [cause, Text(f"next: {holds.next_step(batch, hold)}")]


def _title(batch: batch_pb2.Batch, *, width: int) -> Text:
    """What it is and how it is; a long name gives way, for the state says more."""
    facts = Text.assemble("  ", (words.bare_id(batch.name), "dim"), "  ")
    facts.append(words.state(batch.state), style=f"bold {STATE_STYLES.get(batch.state, 'bold')}")
    if waiting := words.waiting(batch):
        facts.append(f"  {waiting}", style="yellow")
    title = Text(batch.display_name, style="bold")
    title.truncate(max(NAME_MIN, width - facts.cell_len), overflow="ellipsis")
    title.append_text(facts)
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _bar(batch: batch_pb2.Batch, *, width: int) -> RenderableType:
    counts = batch.counts
    done = words.done(counts)
    grid = Table.grid(padding=(0, 2, 0, 0))
    cancelled = f"  {counts.cancelled} cancelled" if counts.cancelled else ""
    facts = f"{done}/{counts.total}  {counts.failed} failed{cancelled}  {counts.in_flight} in flight"
    if left := forecasts.left(batch, ranged=width >= RANGED_WIDTH_MIN):
        facts += f"  {left}"
    bar = ProgressBar(total=max(1, counts.total), completed=done, width=max(10, min(40, width - len(facts) - 4)))
    grid.add_row(bar, Text(facts, no_wrap=True))
    return grid


def _money(batch: batch_pb2.Batch, *, width: int) -> list[Text]:
    """On as many lines as it takes, for an amount is never torn from its word."""
    quoted = f"quoted {money.show(batch.quoted_cost)}" if batch.HasField("quoted_cost") else ""
    parts = (f"spent {money.show(batch.spend.confirmed)}", forecasts.projected(batch), quoted, forecasts.budget(batch))
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return [Text(line) for line in lines]


def pilot(batch: batch_pb2.Batch) -> list[Text]:
    """What the rest is expected to take, where a pilot has told; empty elsewhere."""
    rest = forecasts.rest(batch)
    return [Text.assemble(("pilot: ", "bold cyan"), rest)] if rest else []


def tiers(batch: batch_pb2.Batch) -> Table:
    columns = ("tier", "done", "total", "failed", "kept back", "in flight", "spent")
    costs = money.show_column([money.to_nanos(tier.cost) for tier in batch.tiers])
    rows = [
        (
            tier.tier,
            words.done(tier.counts),
            tier.counts.total,
            tier.counts.failed,
            tier.counts.quarantined,
            tier.counts.in_flight,
            cost,
        )
        for tier, cost in zip(batch.tiers, costs, strict=True)
    ]
    return table(columns, rows, right=columns[1:])


def _event(event: batch_pb2.BatchEvent) -> Text:
    at = event.create_time.ToDatetime().strftime("%H:%M:%S")
    return Text(f"{at}  {words.event(event)}", style="dim", no_wrap=True, overflow="ellipsis")
