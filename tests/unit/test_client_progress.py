"""What the command shows of a running batch, on a terminal of any width and in a pipe."""

from __future__ import annotations

import io

import pytest
from google.protobuf import duration_pb2
from parley import money
from parley.cli import progress, words
from parley.cli.app import hoisted
from parley.cli.output import Output
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from rich.console import Console


def batch(done: int = 34, *, holds: tuple[batch_pb2.Hold, ...] = ()) -> batch_pb2.Batch:
    counts = batch_pb2.Counts(total=90, generated=done, in_flight=0 if holds else 3)
    return batch_pb2.Batch(
        name="batches/plants1",
        display_name="A name that is really far too long for one line of a terminal, whatever its width may be today",
        state=batch_pb2.BATCH_STATE_PAUSED if holds else batch_pb2.BATCH_STATE_RUNNING,
        holds=holds,
        counts=counts,
        tiers=[batch_pb2.TierProgress(tier="scenario", counts=counts, cost=money.from_nanos(1_240_000_000))],
        spend=batch_pb2.Spend(confirmed=money.from_nanos(1_240_000_000)),
        forecast=batch_pb2.Forecast(
            projected_cost=money.from_nanos(3_280_000_000), time_left=duration_pb2.Duration(seconds=31)
        ),
        waiting_for_limit=True,
    )


def hold() -> batch_pb2.Hold:
    return batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_USER, message="Somebody paused it.", next_step="Resume it.")


def message(of: batch_pb2.Batch, *, last: bool = False) -> orchestrator_pb2.WatchBatchResponse:
    return orchestrator_pb2.WatchBatchResponse(batch=of, last=last)


class Pipe:
    """What a plain progress wrote, by a clock that the test moves."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.now_s = 0.0
        output = Output(Console(file=self._file), Console(file=io.StringIO()), as_json=False)
        self.progress = progress.PlainProgress(output, lambda: self.now_s)

    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


def test_a_pipe_gets_a_line_every_few_seconds() -> None:
    pipe = Pipe()
    for tick in range(12):
        pipe.now_s = tick * 0.5
        pipe.progress.take(message(batch(tick)))
    assert [line.split("  ")[1] for line in pipe.lines()] == ["0/90 done", "6/90 done"]


def test_a_pipe_is_told_of_a_new_state_and_of_the_end_at_once() -> None:
    pipe = Pipe()
    pipe.progress.take(message(batch(1)))
    pipe.progress.take(message(batch(2, holds=(hold(),))))
    pipe.progress.take(message(batch(2, holds=(hold(),)), last=True))
    assert [line.split("  ")[0] for line in pipe.lines()] == ["running", "paused", "held", "paused"]


def test_a_pipe_is_told_of_every_failure() -> None:
    pipe = Pipe()
    failed = message(batch(1))
    failed.events.add(number=1).conversation_ended.CopyFrom(
        batch_pb2.ConversationEnded(
            number=7,
            tier="scenario",
            state=conversation_pb2.CONVERSATION_STATE_FAILED,
            failure=conversation_pb2.Failure(reason=conversation_pb2.FAILURE_REASON_REFUSAL, message="It refused."),
        )
    )
    pipe.progress.take(failed)
    assert pipe.lines()[0] == "failed   #7 scenario failed: refusal: It refused."


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_panel_keeps_to_the_width_of_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    events = [batch_pb2.BatchEvent(number=1, hold_added=batch_pb2.HoldAdded(hold=hold()))] * 5
    console.print(progress.panel(batch(holds=(hold(),)), events, width=width))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any("Somebody paused it." in line for line in lines)


@pytest.mark.parametrize(
    ("total_s", "clock_time", "span"),
    [
        (0, "0:00", "0.0 s"),
        (31, "0:31", "31 s"),
        (118, "1:58", "1:58 min"),
        (1980, "33:00", "33 min"),
        (7500, "2:05:00", "2 h 5 min"),
    ],
)
def test_durations_read_as_people_say_them(total_s: float, clock_time: str, span: str) -> None:
    assert (words.clock_time(total_s), words.span(total_s)) == (clock_time, span)


def test_every_event_of_the_contract_has_words() -> None:
    details = batch_pb2.BatchEvent.DESCRIPTOR.oneofs_by_name["detail"].fields
    for field in details:
        event = batch_pb2.BatchEvent()
        getattr(event, field.name).SetInParent()
        assert words.event(event) not in ("", words.UNKNOWN_EVENT), field.name
    assert words.event(batch_pb2.BatchEvent()) == words.UNKNOWN_EVENT


def test_probabilities_never_promise() -> None:
    assert [words.share(of_one) for of_one in (0.0, 0.5, 0.97, 1.0)] == ["under 1 %", "50 %", "97 %", "over 99 %"]


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        (["list", "--json"], ["--json", "list"]),
        (["list", "--server", "a:1", "--limit", "3"], ["--server", "a:1", "list", "--limit", "3"]),
        (["show", "x", "--token=t"], ["--token=t", "show", "x"]),
        (["list", "--", "--json"], ["list", "--", "--json"]),
        (["list", "--server"], ["--server", "list"]),
    ],
)
def test_some_options_may_stand_anywhere(arguments: list[str], parsed: list[str]) -> None:
    assert hoisted(arguments) == parsed
