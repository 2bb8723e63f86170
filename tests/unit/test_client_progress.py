"""What the command shows of a running batch, on a terminal of any width and in a pipe."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Literal

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from parley import money
from parley.cli import holds, progress, watching, words
from parley.cli.arguments import hoisted
from parley.cli.output import Output
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2, quote_pb2
from rich.console import Console

NOW = datetime(2026, 11, 23, 20, 48, tzinfo=UTC)


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


def drawn(of: batch_pb2.Batch, *, width: int = 100) -> list[str]:
    """The panel's lines on a terminal, at NOW."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    console.print(progress.panel(of, (), width=width, now=NOW))
    return [line.rstrip() for line in console.export_text().splitlines()]


def forecast(*, stale: bool = False) -> batch_pb2.Forecast:
    """$2.38 and 12 min, with ranges."""
    cost, time = quote_pb2.CostRange, quote_pb2.TimeRange
    return batch_pb2.Forecast(
        projected_cost=money.from_nanos(2_380_000_000),
        cost=cost(
            quantiles=[
                cost.Quantile(p=p, value=money.from_nanos(nanos))
                for p, nanos in ((0.1, 2_310_000_000), (0.5, 2_370_000_000), (0.9, 2_470_000_000))
            ]
        ),
        time_left=duration_pb2.Duration(seconds=720),
        time=time(
            quantiles=[
                time.Quantile(p=p, value=duration_pb2.Duration(seconds=seconds))
                for p, seconds in ((0.1, 660), (0.9, 850))
            ]
        ),
        stale=stale,
    )


def heading_for(of: batch_pb2.Forecast) -> batch_pb2.Batch:
    running = batch()
    running.forecast.CopyFrom(of)
    return running


def held_at_checkpoint() -> batch_pb2.Batch:
    checkpoint = batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_CHECKPOINT, message="3 were started.", next_step="Resume.")
    pilot = batch(3, holds=(checkpoint,))
    pilot.forecast.CopyFrom(forecast())
    pilot.spend.confirmed.CopyFrom(money.from_nanos(100_000_000))
    pilot.spend.possibly_spent.CopyFrom(money.from_nanos(20_000_000))
    pilot.refined_quote = "quotes/refined1"
    return pilot


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
    console.print(progress.panel(batch(holds=(hold(),)), events, width=width, now=NOW))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any("Somebody paused it." in line for line in lines)


@pytest.mark.parametrize(
    ("width", "shown"), [(80, "for the rate limit, about 40 s"), (120, "A name that is really far")]
)
def test_a_long_name_gives_way_to_what_the_batch_waits_for(width: int, shown: str) -> None:
    waiting = batch()
    waiting.limit_wait.FromSeconds(40)
    (title, *_) = drawn(waiting, width=width)
    assert title.endswith("plants1  running  waiting for the rate limit, about 40 s")
    assert shown in title
    assert len(title) <= width


def test_a_pipe_is_told_of_the_wait_for_the_limit() -> None:
    waiting = batch()
    waiting.limit_wait.FromMilliseconds(400)
    # Less than a second is over before it is read.
    assert progress.summary(waiting).endswith("left 0:31  waiting for the rate limit")
    waiting.limit_wait.FromMilliseconds(125_000)
    assert progress.summary(waiting).endswith("waiting for the rate limit, about 2:05 min")
    waiting.waiting_for_limit = False
    assert "waiting" not in progress.summary(waiting)


def test_a_low_budget_says_what_is_enough_and_how_to_set_it() -> None:
    needs = batch_pb2.Hold(
        reason=batch_pb2.HOLD_REASON_BUDGET,
        message="The budget is $5.00.",
        next_step="Raise the budget.",
        needed_budget=money.from_nanos(5_031_200_000),
    )
    # Rounded up: what is suggested must be enough.
    held = batch(holds=(needs,))
    assert holds.line(held, needs, NOW) == (
        "budget: The budget is $5.00. next: needs at least $5.04: parley set plants1 --budget 5.04"
    )
    assert "next: needs at least $5.04: parley set plants1 --budget 5.04" in drawn(held)
    assert watching.next_steps(held)[0] == "parley set plants1 --budget 5.04 && parley watch plants1"


def test_a_hold_that_clears_by_itself_says_when() -> None:
    day = batch_pb2.Hold(
        reason=batch_pb2.HOLD_REASON_BUDGET,
        message="The owner's budget is $9.00.",
        next_step="Raise it.",
        clears_at=timestamp_pb2.Timestamp(seconds=int(NOW.timestamp()) + 3 * 3600 + 12 * 60),
    )
    lines = drawn(batch(holds=(day,)))
    assert "held: budget: The owner's budget is $9.00. Clears by itself at 00:00 UTC, in 3 h 12 min." in lines
    (first, *rest) = watching.next_steps(batch(holds=(day,)))
    assert first.startswith("parley spend")
    # A higher budget of the batch would not help, and Resume would be refused.
    assert not any("parley set" in step or "parley resume" in step for step in rest)


def test_too_many_failures_are_to_be_looked_at_before_it_goes_on() -> None:
    broken = batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_TOO_MANY_FAILURES, message="The last 4 failed.")
    assert [step.partition("  ")[0] for step in watching.next_steps(batch(holds=(broken,)))] == [
        "parley show plants1",
        "parley resume plants1 && parley watch plants1",
    ]


@pytest.mark.parametrize(
    ("in_s", "said"),
    [
        (-5, "20:47 UTC"),
        (45, "20:48 UTC, in 45 s"),
        (3 * 3600 + 12 * 60, "00:00 UTC, in 3 h 12 min"),
        (27 * 3600 + 12 * 60, "2026-11-25 00:00 UTC, in 27 h 12 min"),
    ],
)
def test_a_moment_is_told_with_how_long_it_takes(in_s: int, said: str) -> None:
    at = timestamp_pb2.Timestamp(seconds=int(NOW.timestamp()) + in_s)
    assert words.moment(at, NOW) == said


def test_possibly_spent_money_is_shown_with_the_next_step() -> None:
    lost = batch()
    assert not any("possibly" in line for line in drawn(lost))
    lost.spend.possibly_spent.CopyFrom(money.from_nanos(84_100_000))
    lost.spend.calls_possibly_spent = 1
    lines = drawn(lost)
    assert "possibly spent: up to $0.0841 in 1 call whose outcome nobody saw" in lines
    assert "next: parley calls plants1 --possibly-spent, then parley settle" in lines
    assert "spent $1.24  possibly spent up to $0.0841 in 1 call  projected $3.28" in progress.summary(lost)
    assert watching.next_steps(lost)[-1] == "parley calls plants1 --possibly-spent, then parley settle"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            batch_pb2.BatchEvent(
                budget_mark=batch_pb2.BudgetMark(
                    share=0.8, spent=money.from_nanos(4_010_000_000), budget=money.from_nanos(5 * 10**9)
                )
            ),
            "80 % of the budget is spent: $4.01 of $5.00",
        ),
        (batch_pb2.BatchEvent(budget_mark=batch_pb2.BudgetMark(share=0.8)), "80 % of the budget is spent"),
        (
            batch_pb2.BatchEvent(rates_changed=batch_pb2.RatesChanged(rate_version="2026-11-20")),
            "prices changed to version 2026-11-20",
        ),
        (
            batch_pb2.BatchEvent(
                call_settled=batch_pb2.CallSettled(
                    call="batches/plants1/calls/7", cost=money.from_nanos(31_200_000), by="nadia", note="the bill"
                )
            ),
            "call 7 settled by nadia at $0.0312: the bill",
        ),
        (
            batch_pb2.BatchEvent(call_settled=batch_pb2.CallSettled(call="batches/plants1/calls/7", by="nadia")),
            "call 7 settled by nadia as not billed",
        ),
        (
            batch_pb2.BatchEvent(recovered=batch_pb2.Recovered(calls_possibly_spent=1, conversations_requeued=3)),
            "the server came back: 3 to make again, 1 call possibly spent",
        ),
        (
            batch_pb2.BatchEvent(recovered=batch_pb2.Recovered(conversations_requeued=3)),
            "the server came back: 3 to make again",
        ),
        (
            batch_pb2.BatchEvent(
                quote_refined=batch_pb2.QuoteRefined(
                    quote="quotes/refined1",
                    made=3,
                    projected_cost=money.from_nanos(2_380_000_000),
                    projected_cost_p10=money.from_nanos(2_310_000_000),
                    projected_cost_p90=money.from_nanos(2_470_000_000),
                    time_left=duration_pb2.Duration(seconds=720),
                )
            ),
            "quote refined after 3: $2.38 in all ($2.31 to 2.47), 12 min to go",
        ),
    ],
)
def test_what_happens_to_money_and_server_is_told_also_in_a_pipe(event: batch_pb2.BatchEvent, said: str) -> None:
    pipe, told = Pipe(), message(batch())
    told.events.append(event)
    pipe.progress.take(told)
    assert pipe.lines()[0] == f"note     {said}"


def test_a_forecast_is_shown_with_its_range() -> None:
    running = heading_for(forecast())
    running.forecast.probability_within_budget = 0.97
    running.budget.CopyFrom(money.from_nanos(5 * 10**9))
    lines = drawn(running)
    assert "34/90  0 failed  3 in flight  12 min left (11 to 14 min)" in lines[1]
    assert lines[2] == "spent $1.24  projected $2.38 ($2.31 to 2.47)  budget $5.00 (97 % to keep it)"
    assert "projected $2.38 ($2.31 to 2.47)  left 12 min (11 to 14 min)" in progress.summary(running)


def test_a_forecast_that_could_not_be_renewed_says_so() -> None:
    running = heading_for(forecast(stale=True))
    assert "projected $2.38 ($2.31 to 2.47) (last known)" in progress.summary(running)
    assert any("(last known)" in line for line in drawn(running))


def test_a_forecast_without_a_time_tells_none() -> None:
    running = heading_for(forecast())
    running.forecast.ClearField("time_left")
    assert progress.summary(running).endswith("projected $2.38 ($2.31 to 2.47)  waiting for the rate limit")


def test_a_narrow_terminal_breaks_the_money_between_amounts() -> None:
    running = heading_for(forecast())
    running.quoted_cost.CopyFrom(money.from_nanos(3_200_000_000))
    running.budget.CopyFrom(money.from_nanos(5 * 10**9))
    assert drawn(running, width=60)[2:4] == [
        "spent $1.24  projected $2.38 ($2.31 to 2.47)  quoted $3.20",
        "budget $5.00",
    ]
    # Beside the bar there is no room for the range of the time.
    assert "12 min left" in drawn(running, width=60)[1]
    assert "(11 to" not in drawn(running, width=60)[1]


def test_a_pilot_says_what_the_rest_takes_and_how_to_go_on() -> None:
    pilot = held_at_checkpoint()
    told = (
        "spent $0.12, the rest is expected to cost $2.26 ($2.19 to 2.35) and to take 12 min (11 to 14 min);"
        " resume to go on: parley resume plants1"
    )
    assert f"pilot: {told}" in drawn(pilot, width=200)
    pipe = Pipe()
    pipe.progress.take(message(pilot))
    pipe.now_s = 60.0
    pipe.progress.take(message(pilot))
    assert [line for line in pipe.lines() if line.startswith("pilot")] == [f"pilot    {told}"]


def test_what_the_pilot_says_wins_over_a_forecast_from_before_it_held() -> None:
    told, pipe = message(held_at_checkpoint()), Pipe()
    told.events.add(number=3).quote_refined.CopyFrom(
        batch_pb2.QuoteRefined(
            quote="quotes/refined1",
            made=3,
            projected_cost=money.from_nanos(700_000_000),
            projected_cost_p10=money.from_nanos(660_000_000),
            projected_cost_p90=money.from_nanos(750_000_000),
            time_left=duration_pb2.Duration(seconds=240),
        )
    )
    pipe.progress.take(told)
    assert "projected $0.70 ($0.66 to 0.75)" in pipe.lines()[1]
    assert "the rest is expected to cost $0.58 ($0.54 to 0.63) and to take 4:00 min;" in pipe.lines()[-1]
    # It goes on with another forecast, which is newer than the pilot.
    pipe.progress.take(message(heading_for(forecast())))
    assert "projected $2.38" in pipe.lines()[-1]


@pytest.mark.parametrize("without", ["holds", "refined_quote", "forecast"])
def test_only_a_refined_quote_at_a_checkpoint_tells_of_the_rest(
    without: Literal["holds", "refined_quote", "forecast"],
) -> None:
    pilot = held_at_checkpoint()
    pilot.ClearField(without)
    assert not any(line.startswith("pilot") for line in drawn(pilot))


@pytest.mark.parametrize(
    ("low_s", "high_s", "said"),
    [
        (660, 850, "11 to 14 min"),
        (50, 70, "50 to 70 s"),
        (50, 118, "50 s to 1:58 min"),
        (6_600, 7_500, "1 h 50 min to 2 h 5 min"),
        (5_000, 7_500, "83 min to 2 h 5 min"),
    ],
)
def test_a_range_of_time_says_its_unit_once_where_it_can(low_s: float, high_s: float, said: str) -> None:
    assert words.span_between(low_s, high_s) == said


def test_differences_have_signs() -> None:
    assert [words.span_change(of) for of in (70, -175, 0.01)] == ["+70 s", "-2:55 min", "0 s"]
    assert [words.percent(of, places=1, signed=True) for of in (0.0121, -0.03, -0.00001)] == [
        "+1.2 %",
        "-3.0 %",
        "+0.0 %",
    ]
    assert words.percent(1.0) == "100 %"


def test_a_mark_stays_on_the_terminal_while_conversations_end() -> None:
    latest = progress.LatestEvents()
    latest.take([batch_pb2.BatchEvent(number=1, budget_mark=batch_pb2.BudgetMark(share=0.8))])
    for number in range(2, 20):
        latest.take([batch_pb2.BatchEvent(number=number, conversation_ended=batch_pb2.ConversationEnded())])
    assert [event.number for event in latest.shown()] == [1, 16, 17, 18, 19]
    latest.take([batch_pb2.BatchEvent(number=20, rates_changed=batch_pb2.RatesChanged())])
    assert [event.number for event in latest.shown()] == [1, 17, 18, 19, 20]
    latest.clear()
    assert latest.shown() == []


def test_few_events_are_all_shown() -> None:
    latest = progress.LatestEvents()
    latest.take([batch_pb2.BatchEvent(number=number) for number in (1, 2, 3)])
    assert [event.number for event in latest.shown()] == [1, 2, 3]
    latest.take([batch_pb2.BatchEvent(number=4, recovered=batch_pb2.Recovered())])
    assert [event.number for event in latest.shown()] == [1, 2, 3, 4]


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
        (["history", "--estimator", "a:2", "--model", "m"], ["--estimator", "a:2", "history", "--model", "m"]),
    ],
)
def test_some_options_may_stand_anywhere(arguments: list[str], parsed: list[str]) -> None:
    assert hoisted(arguments) == parsed
