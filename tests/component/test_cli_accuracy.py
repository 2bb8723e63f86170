"""The commands that ask the estimator, without a terminal: how good quotes were, and what calls took."""

from __future__ import annotations

import json

import pytest
from client_fixtures import NAME, Done, Told, batch, parley, serving
from estimator_answers import (
    MODEL,
    QUOTE,
    Answers,
    accuracy_slice,
    answering,
    compared,
    history_slice,
    outcome,
)
from google.protobuf import timestamp_pb2
from parley.v1 import batch_pb2, estimator_pb2
from parley.wire.errors import Refusal

pytestmark = pytest.mark.anyio


def recorded() -> Answers:
    answers = Answers(comparisons={QUOTE: compared()})
    answers.accuracy.slices.extend([accuracy_slice(""), accuracy_slice(f"model={MODEL}", count=8)])
    answers.accuracy.outcomes.extend([outcome(1, 1.04), outcome(2, 1.31, time_ratio=0.7)])
    answers.history.slices.extend([history_slice(streamed=True), history_slice("scenario")])
    return answers


def rows(done: Done) -> list[list[str]]:
    return [line.split("\t") for line in done.out.splitlines()]


async def test_the_record_is_a_line_for_cost_and_time_of_each_slice_and_one_for_each_batch() -> None:
    async with answering(recorded()) as estimator:
        done = await parley("accuracy", "--by", "model", PARLEY_ESTIMATOR=estimator)
    assert done.code == 0, done.err
    header, *lines = rows(done)
    assert header[:6] == ["slice", "of", "n", "bias", "MAPE", "near"]
    assert lines[0] == [
        *("all", "cost", "12", "+1.2 %", "4.3 %", "92 %", "83 %", "52", "98", "100 %", "$0.0212"),
        "$0.31",
    ]
    assert lines[1] == [
        *("all", "time", "12", "-3.0 %", "9.1 %", "75 %", "75 %", "43", "94", "92 %", "12 s"),
        "2:43 min",
    ]
    assert [line[:3] for line in lines[2:4]] == [[f"model={MODEL}", of, "8"] for of in ("cost", "time")]
    assert lines[4][:3] == ["quote", "batch", "ended"]
    assert lines[6] == [
        *("quotes/quote2", "batches/plants2", "2026-10-22 00:00", "1.3100", "0.9000", "1.1200", "no", "0.7000", "no")
    ]
    assert done.out.isascii()


async def test_what_could_not_be_scored_has_no_figures() -> None:
    answers = Answers()
    answers.accuracy.slices.add(count=2, time_bias=0.1, time_coverage_80=1, time_coverage_80_high=1)
    async with answering(answers) as estimator:
        done = await parley("accuracy", PARLEY_ESTIMATOR=estimator)
    assert [row[:2] for row in rows(done)[:3]] == [["slice", "of"], ["all", "time"], ["quote", "batch"]]


async def test_slices_days_and_providers_are_asked_for_as_said() -> None:
    answers = recorded()
    options = ("--by", "tier,month", "--by", "tier", "--since", "2026-11-01", "--provider", "http://here:1")
    async with answering(answers) as estimator:
        done = await parley("accuracy", *options, "--json", "--estimator", estimator)
    (asked,) = answers.asked(estimator_pb2.SummarizeAccuracyRequest)
    assert (list(asked.group_by), asked.provider) == (["tier", "month"], "http://here:1")
    assert asked.start_time.ToJsonString() == "2026-11-01T00:00:00Z"
    shown = json.loads(done.out)
    assert (shown["slices"][0]["count"], shown["outcomes"][1]["costRatio"]) == ("12", 1.31)


async def test_a_record_without_outcomes_says_what_to_do_next() -> None:
    nothing = Answers()
    nothing.accuracy.slices.append(estimator_pb2.SummarizeAccuracyResponse().slices.add())
    async with answering(nothing) as estimator:
        done = await parley("accuracy", PARLEY_ESTIMATOR=estimator)
        since = await parley("accuracy", "--since", "2026-11-01", PARLEY_ESTIMATOR=estimator)
        calls = await parley("history", PARLEY_ESTIMATOR=estimator)
        of_model = await parley("history", "--model", "m1", "--provider", "http://here:1", PARLEY_ESTIMATOR=estimator)
    assert [each.code for each in (done, since, calls, of_model)] == [0, 0, 0, 0]
    assert [each.out for each in (done, since, calls, of_model)] == [""] * 4
    assert done.err == (
        "No quoted batch has ended yet. next: parley start spec.yaml, and this again when it has ended\n"
    )
    assert since.err.startswith("No quoted batch has ended since 2026-11-01. next: parley accuracy")
    assert calls.err.startswith("No call was observed yet. next: parley start spec.yaml")
    assert of_model.err.startswith("No call of m1 at http://here:1 was observed. next: parley history")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--by modle", "error: --by modle is not known; there are model, tier, month."),
        ("--by tier,day", "error: --by day is not known; there are model, tier, month."),
        ("--since yesterday", "error: --since yesterday is not a date such as 2026-11-23."),
        ("--since 2026-13-01", "error: --since 2026-13-01 is not a date such as 2026-11-23."),
        ("--since 1969-12-31", "error: --since 1969-12-31 is not a date such as 2026-11-23."),
        ("quotes/quote1 --by tier", "error: --by, --since and --provider are for all quotes, not for one."),
    ],
)
async def test_a_wrong_option_is_one_line_that_says_what_is_allowed(arguments: str, said: str) -> None:
    answers = recorded()
    async with answering(answers) as estimator:
        done = await parley("accuracy", *arguments.split(), PARLEY_ESTIMATOR=estimator)
    assert (done.code, done.out, done.err) == (2, "", f"{said}\n")
    assert answers.requests == []


async def test_one_quote_is_compared_with_what_happened_by_cause_and_tier() -> None:
    async with answering(recorded()) as estimator:
        done = await parley("accuracy", QUOTE, PARLEY_ESTIMATOR=estimator)
    assert (done.code, rows(done)) == (
        0,
        [
            ["quote", QUOTE],
            ["batch", NAME],
            ["conversations", "90"],
            ["cost", "$3.28", "$2.90 to $3.70", "$3.41", "+$0.13 (+4.0 %)", "held"],
            ["time", "33 min", "30 min to 36 min", "31 min", "-2:00 min (-6.1 %)", "held"],
            ["why", "more tokens than quoted", "+$0.1600", "+70 s"],
            ["why", "fewer calls failed than expected", "-$0.0300", "-15 s"],
            ["why", "the model was faster", "$0.0000", "-2:55 min"],
            ["why", "prices", "$0.0000", "0 s"],
            ["why", "waiting", "$0.0000", "0 s"],
            ["why", "all", "+$0.1300", "-2:00 min"],
            ["tier", "template", "$1.64", "$1.45 to $1.85", "$1.59", "-$0.0500", ""],
            ["tier", "scenario", "$1.64", "$1.45 to $1.85", "$1.82", "+$0.1800", ""],
        ],
    )


async def test_a_cause_of_two_signs_and_an_unknown_one_are_named_plainly() -> None:
    answers = recorded()
    answers.comparisons[QUOTE].by_cause[0].seconds = -5
    answers.comparisons[QUOTE].by_cause[1].cause = "weather"
    async with answering(answers) as estimator:
        done = await parley("accuracy", QUOTE, PARLEY_ESTIMATOR=estimator)
    assert {"tokens", "weather"} < {row[1] for row in rows(done) if row[0] == "why"}


@pytest.mark.parametrize("name", ["batches/plants1", "plants1"])
async def test_a_batch_is_compared_by_its_quote(name: str) -> None:
    ended = batch(batch_pb2.BATCH_STATE_SUCCEEDED, done=90)
    ended.quote = QUOTE
    ended.end_time.CopyFrom(timestamp_pb2.Timestamp(seconds=1_795_478_400))
    async with answering(recorded()) as estimator, serving(Told(batches={NAME: ended})) as target:
        done = await parley("accuracy", name, "--json", target=target, PARLEY_ESTIMATOR=estimator)
    assert (done.code, json.loads(done.out)["quote"]["name"]) == (0, QUOTE)


async def test_a_batch_that_can_not_be_compared_says_why() -> None:
    running = batch()
    running.quote = QUOTE
    unquoted = batch(batch_pb2.BATCH_STATE_SUCCEEDED, name="batches/plants2")
    told = Told(batches={each.name: each for each in (running, unquoted)})
    async with answering(recorded()) as estimator, serving(told) as target:
        too_early, without, neither, no_batch = [
            await parley("accuracy", name, target=target, PARLEY_ESTIMATOR=estimator)
            for name in (NAME, "plants2", "nothing1", "batches/nothing1")
        ]
    assert [each.code for each in (too_early, without, neither, no_batch)] == [3, 3, 3, 3]
    assert too_early.err.splitlines() == [
        "error: batches/plants1 is running: its quote is compared when it has ended.",
        "next: parley watch plants1",
    ]
    assert without.err == "error: batches/plants2 was started without a quote.\n"
    assert neither.err.startswith("error: There is neither a quote nor a batch nothing1.\n")
    assert no_batch.err.startswith("error: There is no batch batches/nothing1.\n")


async def test_an_unknown_outcome_is_told_with_the_next_step() -> None:
    answers = recorded()
    answers.refuse("CompareQuote", Refusal("OUTCOME_NOT_FOUND", "No outcome of quotes/quote1 is known."))
    async with answering(answers) as estimator:
        done = await parley("accuracy", QUOTE, PARLEY_ESTIMATOR=estimator)
    assert done.code == 3
    assert done.err.splitlines()[0] == "error: No outcome of quotes/quote1 is known."
    assert done.err.splitlines()[1].startswith("next: Wait until its batch has ended")


async def test_the_history_is_a_line_for_each_figure_of_a_tier() -> None:
    answers = recorded()
    async with answering(answers) as estimator:
        done = await parley("history", "--model", MODEL, "--model", "m2", PARLEY_ESTIMATOR=estimator)
    header, *lines = rows(done)
    assert header == [
        *("tier", "model", "calls", "batches", "failed", "drift", "of"),
        *("mean", "sd", "p10", "p50", "p90", "p99"),
    ]
    assert lines[0] == [
        *("template", MODEL, "210", "6", "1.4 %", "3.1 %", "input tokens"),
        *("2,312", "441", "1,801", "2,178", "3,026", "3,038"),
    ]
    usual = ["input tokens", "output tokens", "seconds", "tokens a second"]
    assert [line[6] for line in lines if line[0] == "scenario"] == usual
    assert {line[6] for line in lines if line[0] == "template"} == {*usual, "thinking tokens", "first token, seconds"}
    assert list(answers.asked(estimator_pb2.SummarizeHistoryRequest)[0].models) == [MODEL, "m2"]


async def test_an_estimator_that_is_away_is_named_and_not_the_orchestrator() -> None:
    done = await parley("history", "--json", "--estimator", "127.0.0.1:1")
    said = json.loads(done.err)
    assert (done.code, said["error"]) == (4, "No estimator answers at 127.0.0.1:1.")
    assert "PARLEY_ESTIMATOR" in said["next"]
