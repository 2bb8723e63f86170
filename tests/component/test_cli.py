"""The command in a process of its own, without a terminal, against an orchestrator that says what the test wants."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path

import pytest
from client_fixtures import (
    NAME,
    QUOTE,
    Break,
    Told,
    batch,
    conversation,
    exported,
    parley,
    plain_environment,
    quoted,
    serving,
    unavailable,
    watched,
)
from estimator_answers import quote
from parley import money
from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2
from parley.wire.errors import Refusal

pytestmark = pytest.mark.anyio

DONE = batch(batch_pb2.BATCH_STATE_SUCCEEDED, done=90)
PARTLY = batch(batch_pb2.BATCH_STATE_PARTIALLY_SUCCEEDED, done=90, failed=4)
HELD = batch(
    batch_pb2.BATCH_STATE_PAUSED,
    holds=[
        batch_pb2.Hold(
            reason=batch_pb2.HOLD_REASON_BUDGET,
            message="The next call does not fit the budget of $5.00.",
            next_step="Raise the budget.",
        )
    ],
)


@pytest.fixture(name="spec")
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text("name: Plants\ntiers:\n  - id: scenario\n    count: 90\n")
    return str(path)


def ready(*, sandbox: bool = True, end: batch_pb2.Batch = DONE) -> Told:
    return Told(
        quotes=deque([quoted(sandbox=sandbox)]), watches=deque([[watched(batch(), 1, 2), watched(end, 3, last=True)]])
    )


async def test_start_on_the_sandbox_asks_nothing_and_watches_to_the_end(spec: str) -> None:
    told = ready()
    async with serving(told) as target:
        done = await parley("start", spec, target=target)
    assert (done.code, "next: parley export plants1" in done.err) == (0, True), done
    (created,) = told.asked(orchestrator_pb2.CreateBatchRequest)
    assert (created.quote, bool(created.request_id), created.spec.tiers[0].count) == (QUOTE, True, 90)
    assert "running  34/90 done  0 failed  3 in flight  spent $1.24  projected $3.28  left 0:31" in done.out
    assert "succeeded  90/90 done" in done.out


async def test_what_goes_into_a_pipe_is_plain(spec: str) -> None:
    async with serving(ready()) as target:
        done = await parley("start", spec, target=target)
    assert "\x1b" not in done.out + done.err
    assert not any(0x2500 <= ord(letter) <= 0x259F for letter in done.out + done.err)
    assert "cost\t$3.28\tp10\t$2.90\tp90\t$3.70\twithin 10 %\t62 %" in done.out
    assert "budget\t$5.00\tkept\t97 %" in done.out
    assert "time\t50 s\tp10\t44 s\tp90\t61 s\twithin 20 %\tover 99 %" in done.out
    assert "rests on\tthe built-in prior of 47 real calls" in done.out
    assert "33 min at real speed; the sandbox runs 40 x as fast and bills nothing" in done.out


async def test_a_quote_is_told_by_group_with_what_each_rests_on(spec: str) -> None:
    several = quoted()
    several.quote.CopyFrom(quote(tiers=("template", "scenario")))
    several.quote.groups[0].basis.CopyFrom(quote_pb2.Basis(source=quote_pb2.Basis.SOURCE_PILOT, observations=3))
    several.quote.groups[1].basis.source = quote_pb2.Basis.SOURCE_PRIOR
    several.quote.basis.observations = 210
    several.quote.cost_calibration = 1.2
    async with serving(Told(quotes=deque([several]))) as target:
        done = await parley("quote", spec, target=target)
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert lines[:2] == [
        ["tier", tier, "45", "$1.64", "p10", "$1.45", "p90", "$1.85"] for tier in ("template", "scenario")
    ]
    assert [line[1:] for line in lines if line[0] in ("rests on", "ranges")] == [
        ["210 observed calls"],
        ["the pilot of this batch, 3 observed calls", "template"],
        ["built-in prior", "scenario"],
        ["cost 1.20 x as wide, by the record of past quotes"],
    ]


async def test_a_pilot_is_watched_until_its_quote_is_refined(spec: str) -> None:
    hold = batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_CHECKPOINT, message="3 were started.", next_step="Resume.")
    held = batch(batch_pb2.BATCH_STATE_PAUSED, done=3, holds=[hold])
    held.quote = QUOTE
    refined = batch(batch_pb2.BATCH_STATE_PAUSED, done=3, holds=[hold])
    refined.quote, refined.refined_quote = QUOTE, "quotes/refined1"
    refined.forecast.projected_cost.CopyFrom(money.from_nanos(2_380_000_000))
    told = Told(quotes=deque([quoted()]))
    told.watches = deque([[watched(batch(), 1), watched(held, 2, last=True)], [watched(held), watched(refined, 3)]])
    async with serving(told) as target:
        done = await parley("start", spec, "--hold-after", "3", target=target)
    assert (done.code, "next: parley resume plants1 && parley watch plants1" in done.err) == (5, True)
    told_rest = "pilot    spent $1.24, the rest is expected to cost $1.14"
    assert done.out.splitlines()[-1].startswith(told_rest), done.out
    first, second = told.asked(orchestrator_pb2.WatchBatchRequest)
    assert (first.until, second.until) == (orchestrator_pb2.WATCH_UNTIL_SETTLED, orchestrator_pb2.WATCH_UNTIL_ENDED)
    assert second.resume_token == "token-2"


async def test_a_pilot_that_goes_on_meanwhile_is_not_waited_for(spec: str) -> None:
    hold = batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_CHECKPOINT, message="3 were started.", next_step="Resume.")
    held = batch(batch_pb2.BATCH_STATE_PAUSED, done=3, holds=[hold])
    held.quote = QUOTE
    told = ready(end=held)
    told.watches.append([watched(batch(done=4), 4)])
    async with serving(told) as target:
        done = await parley("start", spec, target=target)
    assert (done.code, "running  4/90" in done.out) == (5, False)


async def test_start_does_not_spend_where_nobody_can_be_asked(spec: str) -> None:
    told = ready(sandbox=False)
    async with serving(told) as target:
        done = await parley("start", spec, target=target)
    assert done.code == 2
    assert "error: This would spend about $3.28 and nobody is here to be asked." in done.err
    assert "next: Say --yes" in done.err
    assert told.asked(orchestrator_pb2.CreateBatchRequest) == []


async def test_start_with_yes_spends_without_a_question(spec: str) -> None:
    told = ready(sandbox=False)
    async with serving(told) as target:
        done = await parley("start", spec, "--yes", "--no-watch", target=target)
    assert (done.code, done.out.splitlines()[-1]) == (0, f"started\t{NAME}")


async def test_options_win_over_the_file(spec: str) -> None:
    told = ready()
    options = ("--hold-after", "3", "--budget", "$5", "--concurrency", "7", "--seed", "9", "--model", "m1")
    async with serving(told) as target:
        done = await parley("start", spec, *options, "--label", "team=plants", "--no-watch", target=target)
    assert done.code == 0, done.err
    created = told.asked(orchestrator_pb2.CreateBatchRequest)[0].spec
    assert (created.hold_after, created.concurrency, created.seed, created.model) == (3, 7, 9, "m1")
    assert (money.to_nanos(created.budget), dict(created.labels)) == (5 * 10**9, {"team": "plants"})


async def test_a_quote_that_goes_stale_is_shown_anew_before_the_start(spec: str) -> None:
    fresh = quoted()
    fresh.quote.name = "quotes/fresh1"
    told = ready()
    told.quotes = deque([quoted(), fresh])
    stale = Refusal("QUOTE_STALE", "The quote is stale.")
    stale.attachment = quote_pb2.Quote(name="quotes/fresh1")
    told.refuse("CreateBatch", stale)
    async with serving(told) as target:
        done = await parley("start", spec, "--no-watch", target=target)
    first, second = told.asked(orchestrator_pb2.CreateBatchRequest)
    assert (done.code, first.quote, second.quote) == (0, QUOTE, "quotes/fresh1")
    assert first.request_id != second.request_id


async def test_start_without_an_estimator_needs_to_be_wanted(spec: str) -> None:
    down = Refusal("ESTIMATOR_UNAVAILABLE", "The estimator can't be reached.")
    told = ready()
    told.refuse("QuoteBatch", down, down)
    async with serving(told) as target:
        refused = await parley("start", spec, "--yes", target=target)
        started = await parley("start", spec, "--yes", "--allow-unquoted", "--no-watch", target=target)
    assert (refused.code, started.code) == (4, 0)
    assert told.asked(orchestrator_pb2.CreateBatchRequest)[0].allow_unquoted


@pytest.mark.parametrize(("end", "code"), [(DONE, 0), (PARTLY, 1), (HELD, 5)], ids=["succeeded", "partly", "held"])
async def test_the_exit_code_of_watch_says_how_it_ended(end: batch_pb2.Batch, code: int) -> None:
    told = ready(end=end)
    told.batches[NAME] = end
    async with serving(told) as target:
        done = await parley("watch", "plants1", target=target)
    assert done.code == code
    assert told.asked(orchestrator_pb2.WatchBatchRequest)[0].until == orchestrator_pb2.WATCH_UNTIL_SETTLED


async def test_a_hold_is_told_with_what_to_do() -> None:
    told = ready(end=HELD)
    told.batches[NAME] = HELD
    async with serving(told) as target:
        done = await parley("watch", "plants1", target=target)
    assert "budget: The next call does not fit the budget of $5.00. next: Raise the budget." in done.out
    assert "next: parley set plants1 --budget AMOUNT" in done.err
    # Resume would be refused while the budget is too low.
    assert "parley resume" not in done.err
    assert "left" not in done.out.splitlines()[-1]


async def test_watch_goes_on_over_a_break() -> None:
    told = Told(
        batches={NAME: batch()},
        watches=deque([[watched(batch(), 1), Break(unavailable())], [watched(DONE, 2, last=True)]]),
    )
    async with serving(told) as target:
        done = await parley("watch", NAME, "--json", target=target)
    assert done.code == 0
    numbers = [event["number"] for line in done.out.splitlines() for event in json.loads(line).get("events", ())]
    assert numbers == ["1", "2"]


async def test_ctrl_c_stops_only_the_watching() -> None:
    told = Told(batches={NAME: batch()}, watches=deque([[watched(batch(), 1)]]))
    async with serving(told) as target, asyncio.timeout(20):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "parley.cli", "watch", "plants1"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=plain_environment(PARLEY_ORCHESTRATOR=target),
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        await told.left.wait()
    assert process.returncode == 130
    assert "You stopped watching; the batch plants1 goes on." in err.decode()
    assert "parley cancel plants1" in err.decode()
    assert told.asked(orchestrator_pb2.CancelBatchRequest) == []


async def test_findings_are_told_with_file_and_line(spec: str) -> None:
    reply = orchestrator_pb2.QuoteBatchResponse(
        findings=[
            orchestrator_pb2.Finding(
                severity=orchestrator_pb2.SEVERITY_ERROR,
                reason="PLACEHOLDER_UNRESOLVED",
                field="tiers[0].prompt.text",
                message="The placeholder topic has no value.",
                tier="scenario",
                conversation=3,
            )
        ]
    )
    async with serving(Told(quotes=deque([reply]))) as target:
        done = await parley("quote", spec, target=target)
    assert done.code == 2
    where = f"{spec}:3 tiers[0].prompt.text tier scenario conversation 3"
    assert f"  {where}: The placeholder topic has no value." in done.err


async def test_a_faulty_file_never_reaches_the_server(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: x\ncuont: 3\n")
    done = await parley("start", str(tmp_path / "spec.yaml"))
    assert done.code == 2
    assert f"{tmp_path}/spec.yaml:2 cuont: is not known" in done.err


async def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    done = await parley("list", target="127.0.0.1:1")
    assert done.code == 4
    assert done.err.splitlines()[0] == "error: No orchestrator answers at 127.0.0.1:1."
    assert "next: Start it with `parley up`" in done.err


async def test_errors_are_json_where_json_is_wanted() -> None:
    async with serving(Told()) as target:
        done = await parley("show", "nothere", "--json", target=target)
    error = json.loads(done.err)
    assert (done.code, done.out) == (3, "")
    assert (error["reason"], error["exitCode"]) == ("BATCH_NOT_FOUND", 3)
    assert error["next"] == "List the batches with `parley list`."


async def test_show_names_the_conversations_that_went_wrong() -> None:
    told = Told(batches={NAME: PARTLY}, conversations=[conversation(1), conversation(7, failed=True)])
    async with serving(told) as target:
        plain, as_json = await asyncio.gather(
            parley("show", "plants1", target=target), parley("show", "plants1", "--json", target=target)
        )
    rows = [line.split("\t") for line in plain.out.splitlines()]
    assert ["7", "scenario", "failed", "", "1", "$0.0360", "refusal: The model refused."] in rows
    assert not any(row[0] == "1" for row in rows)
    shown, failed = map(json.loads, as_json.out.splitlines())
    assert (shown["name"], failed["number"]) == (NAME, 7)


async def test_list_is_a_line_for_each_batch() -> None:
    told = Told(batches={NAME: batch()})
    async with serving(told) as target:
        done = await parley("list", "--state", "running", "--label", "team=plants", target=target)
    header, row = (line.split("\t") for line in done.out.splitlines())
    assert (header[0], row[:4]) == ("id", ["plants1", "Questions about houseplants", "running", "34/90"])
    (asked,) = told.asked(orchestrator_pb2.ListBatchesRequest)
    assert list(asked.filter.states) == [batch_pb2.BATCH_STATE_RUNNING]
    assert dict(asked.filter.labels) == {"team": "plants"}


async def test_read_shows_the_first_usable_conversation() -> None:
    told = Told(batches={NAME: DONE}, conversations=[conversation(1, failed=True), conversation(2)])
    async with serving(told) as target:
        done = await parley("read", "plants1", target=target)
    assert done.out.startswith("#2 scenario  passed  $0.0360  persona=nadia\n")
    assert "\nuser:\nmy pothos is yellow again lol\n" in done.out


async def test_verbs_reach_the_server_and_say_what_is_now() -> None:
    told = Told(batches={NAME: batch()})
    async with serving(told) as target:
        paused = await parley("pause", "plants1", target=target)
        retried = await parley("retry", "plants1", "--tier", "scenario", "--reason", "refusal", target=target)
        changed = await parley("set", "plants1", "--budget", "7.50", "--hold-after", "none", target=target)
    assert paused.out.startswith("paused  34/90 done")
    assert retried.out.startswith("4 conversations are made again\n")
    filter = told.asked(orchestrator_pb2.RetryBatchRequest)[0].filter
    assert (list(filter.tiers), len(filter.failure_reasons)) == (["scenario"], 1)
    update = told.asked(orchestrator_pb2.UpdateBatchRequest)[0]
    assert (changed.code, list(update.update_mask.paths)) == (0, ["budget", "hold_after"])


async def test_export_writes_and_tells_what_was_left_out(tmp_path: Path) -> None:
    told = Told(export=exported(b'{"messages": []}\n'))
    async with serving(told) as target:
        done = await parley("export", "plants1", "--out", str(tmp_path), "--validation", "0.1", target=target)
    assert done.code == 0, done.err
    assert f"{tmp_path}/train.jsonl\t1\t17\t" in done.out
    assert "left out: 2 quarantined" in done.err
    assert told.asked(orchestrator_pb2.ExportDatasetRequest)[0].split.validation == pytest.approx(0.1)


async def test_check_tells_what_it_cost() -> None:
    async with serving(Told()) as target:
        done = await parley("check", target=target)
    assert "cost       <$0.0001 for this check (not billed)" in done.out
    assert "limits     4,000 requests, 400,000 output tokens a minute" in done.out


async def test_spend_is_summed_by_what_is_asked() -> None:
    async with serving(Told()) as target:
        done = await parley("spend", "--by", "day", target=target)
    assert done.out.splitlines()[1:] == ["2026-11-23\t34\t$1.24\t$0.00\t0\t0", "all\t34\t$1.24\t$0.00\t0\t0"]


async def test_init_writes_a_spec_that_can_be_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    first, second = await parley("init", str(folder)), await parley("init", str(folder))
    assert first.code == 0
    assert sorted(os.listdir(folder)) == ["parley-spec.schema.json", "prompts", "spec.yaml"]
    assert (second.code, "--force" in second.err) == (3, True)
    told = ready()
    async with serving(told) as target:
        done = await parley("quote", str(folder / "spec.yaml"), target=target)
    assert done.code == 0, done.err
    assert told.asked(orchestrator_pb2.QuoteBatchRequest)[0].spec.tiers[1].prompt.text.startswith("# This conversation")


async def test_help_names_the_exit_codes() -> None:
    done = await parley("--help")
    assert done.code == 0
    assert "5  the watched batch is paused: something holds it" in done.out


async def test_a_wrong_word_is_wrong_usage() -> None:
    done = await parley("list", "--state", "busy")
    assert done.code == 2
    assert "--state busy is not known; there are preparing, queued, running" in done.err
