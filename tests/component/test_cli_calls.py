"""The command's view of money: the ledger, its settlement by a person, daily budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from client_fixtures import NAME, Done, Told, batch, call, lost_call, parley, serving
from evidence import last_seen, until
from google.protobuf import timestamp_pb2
from parley import money
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2
from parley.wire.errors import Refusal
from servers import running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

MIDNIGHT = timestamp_pb2.Timestamp(seconds=4_102_444_800)


def ledger(calls: Sequence[conversation_pb2.Call]) -> Told:
    return Told(batches={NAME: batch()}, calls=list(calls))


def rows(done: Done) -> list[list[str]]:
    return [line.split("\t") for line in done.out.splitlines()]


async def test_the_ledger_is_a_line_for_each_call_of_all_pages() -> None:
    in_flight = call(4, conversation=3)
    in_flight.state = conversation_pb2.CALL_STATE_RESERVED
    for known in ("cost", "duration", "usage"):
        in_flight.ClearField(known)
    in_flight.outcome = conversation_pb2.CALL_OUTCOME_UNSPECIFIED
    repair = call(3, conversation=2)
    repair.purpose, repair.attempt = conversation_pb2.CALL_PURPOSE_REPAIR, 2
    repair.settled_by, repair.note = "nadia", "the bill"
    async with serving(ledger([call(1), lost_call(2), repair, in_flight])) as target:
        done = await parley("calls", "plants1", target=target)
    header, *lines = rows(done)
    assert header == [
        *("call", "conversation", "attempt", "purpose", "outcome", "input tokens", "output tokens", "cost", "seconds"),
        "error",
    ]
    why = "The orchestrator ended before the answer came."
    assert lines == [
        ["1", "1", "1", "generate", "answered", "1,234", "2,345", "$0.0360", "62.1", ""],
        ["2", "2", "1", "generate", "interrupted", "0", "0", "up to $0.0841, possibly spent", "", why],
        ["3", "2", "2", "repair", "answered", "1,234", "2,345", "$0.0360", "62.1", "Settled by nadia: the bill"],
        ["4", "3", "1", "generate", "", "0", "0", "up to $0.0840, in flight", "", ""],
    ]
    assert "4 calls, $0.0720 spent, 1 possibly spent (up to $0.0841)" in done.err
    assert "next: parley settle plants1 CALL --cost USD" in done.err


async def test_the_ledger_shows_only_what_is_asked_for() -> None:
    calls = [call(1), lost_call(2), lost_call(3, conversation=1), call(4, conversation=2)]
    async with serving(ledger(calls)) as target:
        lost = await parley("calls", "plants1", "--possibly-spent", target=target)
        theirs = await parley("calls", "plants1", "--conversation", "1", target=target)
        both = await parley("calls", "plants1", "--conversation", "1", "--possibly-spent", "--json", target=target)
    assert [row[0] for row in rows(lost)[1:]] == ["2", "3"]
    assert [row[0] for row in rows(theirs)[1:]] == ["1", "3"]
    assert [json.loads(line)["name"] for line in both.out.splitlines()] == [f"{NAME}/calls/3"]
    assert both.err == ""


async def test_named_calls_are_settled_at_what_each_cost() -> None:
    told = ledger([lost_call(2), lost_call(3), lost_call(4)])
    async with serving(told) as target:
        done = await parley(
            *("settle", "plants1", "2", f"{NAME}/calls/3", "--cost", "$0.03", "--note", "console"), target=target
        )
    assert done.code == 0, done.err
    asked = told.asked(orchestrator_pb2.SettleCallRequest)
    assert [request.name for request in asked] == [f"{NAME}/calls/2", f"{NAME}/calls/3"]
    assert [(money.to_nanos(request.cost), request.note) for request in asked] == [(30_000_000, "console")] * 2
    assert done.out.splitlines()[:2] == ["settled  call 2  $0.0300", "settled  call 3  $0.0300"]
    assert "spent $1.24" in done.out.splitlines()[2]


async def test_all_settles_every_possibly_spent_call_of_all_pages() -> None:
    told = ledger([call(1), *map(lost_call, range(2, 7)), call(7)])
    async with serving(told) as target:
        done = await parley("settle", "plants1", "--all", "--not-billed", "--yes", "--json", target=target)
        again = await parley("settle", "plants1", "--all", "--not-billed", target=target)
    asked = told.asked(orchestrator_pb2.SettleCallRequest)
    assert [request.name.rpartition("/")[2] for request in asked] == ["2", "3", "4", "5", "6"]
    assert not any(request.HasField("cost") for request in asked)
    *settled, shown = map(json.loads, done.out.splitlines())
    assert [one["state"] for one in settled] == ["CALL_STATE_SETTLED"] * 5
    assert (shown["name"], shown["spend"]["confirmed"]["units"]) == (NAME, "1")
    # Nothing is left, so nobody needs to be asked.
    assert (again.code, again.err) == (0, "No call of plants1 is possibly spent.\n")


async def test_all_is_not_settled_where_nobody_can_be_asked() -> None:
    told = ledger([lost_call(2), lost_call(3)])
    async with serving(told) as target:
        done = await parley("settle", "plants1", "--all", "--cost", "0.05", target=target)
    assert done.code == 2
    assert "settle 2 calls (possibly spent: up to $0.17) at $0.0500 each and nobody is here to be asked" in done.err
    assert "next: Say --yes" in done.err
    assert told.asked(orchestrator_pb2.SettleCallRequest) == []


async def test_a_call_whose_answer_came_after_all_does_not_stop_the_others() -> None:
    told = ledger([lost_call(2), lost_call(3)])
    told.refuse("SettleCall", Refusal("STATE_FORBIDS", "The call is SETTLED.", metadata={"state": "SETTLED"}))
    async with serving(told) as target:
        done = await parley("settle", "plants1", "--all", "--not-billed", "--yes", target=target)
    assert done.code == 0
    assert "call 2 was settled meanwhile" in done.err
    assert done.out.startswith("settled  call 3  not billed\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("2", 2, "error: Say either --not-billed or --cost USD."),
        ("2 --not-billed --cost 1", 2, "error: Say either --not-billed or --cost USD."),
        ("2 --cost five", 2, "error: --cost: 'five' is not an amount of US dollars"),
        ("--not-billed", 2, "error: Name the calls to settle, or say --all."),
        ("2 --all --not-billed", 2, "error: Name the calls to settle, or say --all."),
        ("two --not-billed", 2, "error: two is not a call of plants1: a number is expected."),
        ("batches/other1/calls/2 --not-billed", 2, "error: batches/other1/calls/2 is not a call of plants1"),
        ("9 --not-billed", 3, f"error: There is no call {NAME}/calls/9."),
        ("1 --not-billed", 3, "error: Call 1 is not possibly spent: its cost is known."),
        ("4 --not-billed", 3, "error: Call 4 is not possibly spent: it is in flight."),
    ],
)
async def test_a_mistake_gets_a_sentence(arguments: str, code: int, said: str) -> None:
    in_flight = call(4)
    in_flight.state = conversation_pb2.CALL_STATE_RESERVED
    told = ledger([call(1), lost_call(2), in_flight])
    async with serving(told) as target:
        done = await parley("settle", "plants1", *arguments.split(), target=target)
    assert (done.code, done.err.splitlines()[0][: len(said)]) == (code, said)
    assert told.calls[1] == lost_call(2)


async def test_what_was_settled_before_a_mistake_is_told() -> None:
    told = ledger([lost_call(2), lost_call(3)])
    async with serving(told) as target:
        done = await parley("settle", "plants1", "2", "9", "3", "--not-billed", "--json", target=target)
    assert (done.code, json.loads(done.err)["reason"]) == (3, "CALL_NOT_FOUND")
    assert [json.loads(line)["name"] for line in done.out.splitlines()] == [f"{NAME}/calls/2"]


async def test_daily_budgets_stand_beneath_the_sums() -> None:
    told = Told(
        daily_budgets=[
            orchestrator_pb2.DailyBudget(
                owner="nadia",
                budget=money.from_nanos(10 * 10**9),
                committed=money.from_nanos(3_200_000_000),
                resets_at=MIDNIGHT,
            ),
            orchestrator_pb2.DailyBudget(
                budget=money.from_nanos(50 * 10**9), committed=money.from_nanos(4_500_000_000), resets_at=MIDNIGHT
            ),
        ]
    )
    async with serving(told) as target:
        done = await parley("spend", "--by", "day", target=target)
    _, day, total, header, *budgets = rows(done)
    assert (day[0], total[0], header) == ("2026-11-23", "all", ["daily budget", "used", "of", "whole again"])
    assert [row[:3] for row in budgets] == [["nadia", "$3.20", "$10.00"], ["this server", "$4.50", "$50.00"]]
    assert budgets[0][3].startswith("2100-01-01 00:00 UTC, in ")


async def test_list_and_show_say_what_a_batch_waits_for() -> None:
    waiting = batch()
    waiting.waiting_for_limit = True
    waiting.limit_wait.FromSeconds(40)
    waiting.spend.possibly_spent.CopyFrom(money.from_nanos(84_100_000))
    waiting.spend.calls_possibly_spent = 1
    low = batch_pb2.Hold(
        reason=batch_pb2.HOLD_REASON_BUDGET,
        message="The budget is $5.00.",
        needed_budget=money.from_nanos(5_031 * 10**6),
    )
    held = batch(batch_pb2.BATCH_STATE_PAUSED, name="batches/plants2", holds=[low])
    async with serving(Told(batches={NAME: waiting, held.name: held})) as target:
        listed = await parley("list", target=target)
        shown = await parley("show", "plants1", target=target)
        paused = await parley("show", "plants2", target=target)
    assert [row[-1] for row in rows(listed)] == [
        "note",
        "waiting for the rate limit, about 40 s; possibly spent up to $0.0841 in 1 call: "
        "parley calls plants1 --possibly-spent",
        "held: budget: needs at least $5.04: parley set plants2 --budget 5.04",
    ]
    assert ["waits", "waiting for the rate limit, about 40 s"] in rows(shown)
    assert ["possibly", "up to $0.0841 in 1 call (next: parley calls plants1 --possibly-spent)"] in rows(shown)
    line = "budget: The budget is $5.00. next: needs at least $5.04: parley set plants2 --budget 5.04"
    assert ["held", line] in rows(paused)


async def test_what_a_crash_hid_is_found_and_settled(tmp_path: Path) -> None:
    """With the real services: three calls in flight, kill -9, and the bill that shows one of them."""
    async with (
        running_sandbox(tmp_path) as sandbox,
        running_pair(tmp_path, sandbox, PARLEY_OWNER_DAILY_BUDGET="20", PARLEY_DAILY_BUDGET="50") as pair,
        pair.client() as client,
    ):
        await sandbox.change(paused=True)
        created = await client.create(spec(6, concurrency=3))
        await until(sandbox, lambda stats: stats["in_flight"] == 3)
        await pair.orchestrator.kill()
        await sandbox.change(paused=False)
        await pair.restart()
        watched = await parley("watch", created.name, target=pair.address)
        assert "note     the server came back: 3 to make again, 3 calls possibly spent" in watched.out
        assert f"parley calls {created.name[8:]} --possibly-spent, then parley settle" in watched.err
        found = rows(await parley("calls", created.name, "--possibly-spent", target=pair.address))[1:]
        assert [row[4] for row in found] == ["interrupted"] * 3
        before = (await last_seen(client, created.name)).spend
        one = await parley("settle", created.name, found[0][0], "--cost", "0.03", target=pair.address)
        rest = await parley("settle", created.name, "--all", "--not-billed", "--yes", target=pair.address)
        assert (one.code, rest.code) == (0, 0), one.err + rest.err
        assert "in 2 calls" in one.out
        assert "possibly" not in rest.out
        after = (await client.get(created.name)).spend
        spent = await parley("spend", "--batch", created.name, target=pair.address)
    assert money.to_nanos(after.confirmed) == money.to_nanos(before.confirmed) + 30_000_000
    assert (money.to_nanos(after.possibly_spent), after.calls_possibly_spent) == (0, 0)
    assert [row[2] for row in rows(spent)[-2:]] == ["$20.00", "$50.00"]
    assert [row[1] for row in rows(spent)[-2:]] == [money.show(after.confirmed)] * 2
