"""Whatever people, provider, clocks and faults do to batches, in whatever order: engine and model agree on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_play import DAY_S, Action, Play, playing
from engine_watch import AtOnce
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from model_terms import Answer, Terms
from played_world import Process
from structlog.testing import capture_logs

from orchestrator_service.storage.database import Database, open_database
from orchestrator_service.storage.writer import Transaction

pytestmark = pytest.mark.anyio

EXAMPLES = int(os.environ.get("PARLEY_MODEL_EXAMPLES", "65"))
BATCHES_MAX, STEPS_MAX = 3, 40
UNMADE = ("CANCELLED", "FAILED", "PARTIALLY_SUCCEEDED")

MADE = [Answer("MADE", 20), Answer("MADE", 60), Answer("MADE", 100)]
ANSWERS = [
    *MADE,
    Answer("QUARANTINED", 20),
    Answer("REFUSED", 20),
    Answer("REFUSED"),
    Answer("REQUEST_REFUSED"),
    Answer("TOO_LONG"),
    Answer("UNKNOWN_STOP", 20),
    Answer("MALFORMED", 20),
    Answer("CUT", 100),
    Answer("SERVER_ERROR"),
    Answer("SERVER_ERROR", lost=True),
    Answer("SERVER_ERROR", delay_s=7.0),
    Answer("CONNECTION_LOST"),
    Answer("CONNECTION_LOST", lost=True),
    Answer("UNREADABLE", lost=True),
    Answer("TIMEOUT", lost=True),
    Answer("RATE_LIMITED", delay_s=5.0),
    Answer("RATE_LIMITED"),
    Answer("OVERLOADED", delay_s=90.0),
    Answer("OVERLOADED"),
    Answer("CREDENTIALS"),
    Answer("PROVIDER_LIMIT"),
    Answer("PROVIDER_LIMIT", delay_s=100.0),
    Answer("PROVIDER_LIMIT", delay_s=2 * DAY_S),
]
WHICH = st.integers(0, 11)
BATCH = st.integers(0, BATCHES_MAX - 1)
BUDGETS = st.sampled_from([None, None, 0, 1_500, 2_400, 3_200, 5_000, 9_000])
PROCESS = st.builds(
    Process,
    owner_day=st.sampled_from([None, None, None, 4_500, 9_000]),
    server_day=st.sampled_from([None, None, None, None, 8_000]),
    requests=st.sampled_from([1_000_000, 1_000_000, 1_000_000, 40]),
)
TERMS = st.builds(
    Terms,
    owner=st.sampled_from(["ann", "ann", "bea"]),
    tiers=st.fixed_dictionaries({"template": st.integers(1, 6), "scenario": st.integers(0, 6)}),
    concurrency=st.integers(1, 4),
    budget=st.sampled_from([None, None, None, None, 0, 1_500, 2_400, 5_000, 9_000]),
    hold_after=st.sampled_from([None, None, None, None, None, 0, 1, 3]),
    stop_on_error=st.sampled_from([False, False, False, True]),
    failures_in_a_row=st.sampled_from([10, 2, 3, 0]),
    failure_share=st.sampled_from([0.5, 0.2, 1.0]),
)
FILTERS = st.sampled_from(
    [
        {},
        {},
        {"states": ("FAILED",)},
        {"states": ("CANCELLED",)},
        {"reviews": ("QUARANTINED",)},
        {"states": ("FAILED", "GENERATED")},
    ]
)
CHANGES = st.one_of(
    st.fixed_dictionaries({"budget": BUDGETS}),
    st.fixed_dictionaries({"budget": BUDGETS}),
    st.fixed_dictionaries({"hold_after": st.sampled_from([None, 0, 2, 5])}),
    st.fixed_dictionaries({"concurrency": st.integers(1, 4)}),
    st.fixed_dictionaries({"budget": BUDGETS, "hold_after": st.sampled_from([None, 4])}),
)
VERBS: dict[str, list[st.SearchStrategy[Any]]] = {
    "pause": [BATCH],
    "resume": [BATCH],
    "cancel": [BATCH],
    "retry": [BATCH, FILTERS],
    "update": [BATCH, CHANGES],
    # What a possibly spent call cost.
    "correct": [WHICH, st.sampled_from([0, 200, 1_000, 2_500])],
    # What a worker does that was thought dead.
    "answer_late": [WHICH, st.sampled_from([20, 100])],
    "claim_late": [BATCH],
}
EVENTS: dict[str, list[st.SearchStrategy[Any]]] = {
    "create": [TERMS],
    "pass": [st.sampled_from([0.5, 3.0, 30.0, 130.0, 700.0])],
    "jump": [st.sampled_from([-DAY_S, -60.0, 60.0, 3_600.0, DAY_S])],
    "crash": [WHICH],
}


@st.composite
def plays(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Steps of some kinds only: what happens again and again in one play would be rare if all were mixed."""
    answers = [
        *draw(st.lists(st.sampled_from(ANSWERS), min_size=4, max_size=8, unique=True)),
        draw(st.sampled_from(MADE)),
    ]
    answer = st.tuples(st.just("answer"), WHICH, st.sampled_from(answers))
    verbs = draw(st.lists(st.sampled_from(list(VERBS)), min_size=1, max_size=4, unique=True))
    action = st.one_of(answer, answer, *[st.tuples(st.just(verb), *VERBS[verb]) for verb in verbs])
    burst = st.lists(action, min_size=1, max_size=3)
    events = draw(st.lists(st.sampled_from(list(EVENTS)), max_size=3, unique=True))
    kinds = [
        *[st.tuples(st.just("answer"), st.lists(st.sampled_from(answers), min_size=1, max_size=3))] * 3,
        st.tuples(st.just("burst"), st.lists(action, min_size=1, max_size=1)),
        st.tuples(st.just("burst"), burst),
        # Whatever stops a batch, somebody lets it go on.
        *[st.just(("let_go",)), st.just(("pass", 200.0))] * 2,
        *[st.tuples(st.just(event), *EVENTS[event]) for event in events],
    ]
    if draw(st.booleans()):
        kinds.append(st.tuples(st.just("kill"), st.lists(action, max_size=2), st.integers(0, 12), PROCESS))
    if draw(st.booleans()):
        kinds.append(st.tuples(st.just("stop"), st.lists(st.sampled_from(answers), min_size=1, max_size=2), PROCESS))
    if draw(st.booleans()):
        kinds.append(st.tuples(st.just("lock"), burst, st.sampled_from([0.0, 0.5, 2.5])))
    return draw(st.lists(st.one_of(kinds), min_size=STEPS_MAX - 15, max_size=STEPS_MAX))


@pytest.fixture(scope="module")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[tuple[Database, Path]]:
    path = tmp_path_factory.mktemp("model") / "o.db"
    loop = asyncio.get_running_loop()
    loop.set_default_executor(AtOnce())
    try:
        async with open_database(path, committed=lambda touched: None) as database:
            await database.write(hurried)
            yield database, path
    finally:
        # The loop is that of all tests.
        loop.set_default_executor(ThreadPoolExecutor())


def hurried(tx: Transaction) -> None:
    """Processes are killed here, never the machine: nothing has to reach the disk."""
    for sql in ("COMMIT", "PRAGMA synchronous = OFF", "BEGIN IMMEDIATE"):
        tx.connection.exec_driver_sql(sql)


async def take(play: Play, step: tuple[Any, ...]) -> None:
    match step:
        case ("burst", actions):
            await play.burst(acts(play, actions))
        case ("create", terms) if len(play.house.batches) < BATCHES_MAX:
            await play.burst([partial(play.create, terms)])
        case ("answer", answers):
            play.answer_all(answers)
            await play.rest()
        case ("let_go",):
            stopped = [batch for batch in play.house.batches.values() if batch.holds or batch.state in UNMADE]
            await play.burst([partial(play.let_go, batch) for batch in stopped])
            if any(hold.clears_us for batch in stopped for hold in batch.holds.values()):
                play.clock.jumped_s += DAY_S
                await play.sweep()
        case ("pass", seconds):
            await play.pass_s(seconds)
            await play.sweep()
        case ("jump", seconds):
            play.clock.jumped_s += seconds
            await play.sweep()
        case ("kill", actions, checkpoints, process):
            await play.kill(process, acts(play, actions), checkpoints=checkpoints)
        case ("stop", answers, process):
            await play.stop(answers, process)
        case ("lock", actions, seconds):
            await play.lock(acts(play, actions), seconds=seconds)
        case ("crash", int(which)):
            if calls := play.in_flight():
                await play.crash(calls[which % len(calls)])
        case _:
            pass


def acts(play: Play, actions: list[tuple[Any, ...]]) -> list[Action]:
    return [partial(act, play, action) for action in actions]


async def act(play: Play, action: tuple[Any, ...]) -> None:
    match action:
        case ("answer", int(which), answer):
            if calls := play.in_flight():
                play.answer(calls[which % len(calls)], answer)
        case ("correct" | "answer_late" as verb, int(which), cost):
            if lost := play.lost(verb):
                batch, call = lost[which % len(lost)]
                await getattr(play, verb)(batch, call, cost)
        case (verb, at, *rest):
            named = list(play.house.batches.values())
            await getattr(play, verb)(named[at % len(named)], *rest)
        case _:
            pass


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="PARLEY_MODEL_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(terms=st.lists(TERMS, min_size=1, max_size=2), process=PROCESS, steps=plays())
async def test_engine_and_model_agree_on_every_fact(
    database: tuple[Database, Path], terms: list[Terms], process: Process, steps: list[tuple[Any, ...]]
) -> None:
    with capture_logs():
        await story(database, terms, process, steps)


async def story(
    database: tuple[Database, Path], terms: list[Terms], process: Process, steps: list[tuple[Any, ...]]
) -> None:
    async with playing(*database, process) as play:
        for of_one in terms:
            await play.burst([partial(play.create, of_one)])
        for step in steps:
            note(f"{step} at {[(batch.state, set(batch.holds)) for batch in play.house.batches.values()]}")
            await take(play, step)
        await play.finish()


# What plays have found, each as the smallest one that shows it.


async def test_a_lowered_concurrency_holds_for_those_that_wait_between_attempts(
    database: tuple[Database, Path],
) -> None:
    async with playing(*database, Process()) as play:
        await play.burst([partial(play.create, Terms(tiers={"template": 3}, concurrency=2))])
        play.answer_all([Answer("SERVER_ERROR")])
        await play.rest()
        (batch,) = play.house.batches.values()
        await play.burst([partial(play.update, batch, {"concurrency": 1})])
        await play.pass_s(60.0)
        assert len(play.in_flight()) == 1
        await play.finish()


async def test_a_batch_that_waits_for_money_of_another_goes_on_when_the_others_runner_fails(
    database: tuple[Database, Path],
) -> None:
    async with playing(*database, Process(owner_day=1_500)) as play:
        for tiers in ({"template": 1}, {"scenario": 1}):
            await play.burst([partial(play.create, Terms(tiers=tiers))])
        waiting = list(play.house.batches.values())[1]
        (call,) = play.in_flight()
        assert waiting.state == "QUEUED"
        await play.crash(call)
        assert (waiting.state, waiting.holds["BUDGET"].scope) == ("PAUSED", "OWNER_DAY")
        await play.finish()


async def test_a_budget_of_nothing_holds_whatever_else_is_changed(database: tuple[Database, Path]) -> None:
    async with playing(*database, Process()) as play:
        await play.burst([partial(play.create, Terms(budget=0))])
        (batch,) = play.house.batches.values()
        await play.burst([partial(play.update, batch, {"concurrency": 1})])
        assert [kind for kind, _ in batch.events].count("hold_added") == 1
        await play.finish()


async def test_a_retry_while_the_batch_runs_counts_failures_anew(database: tuple[Database, Path]) -> None:
    async with playing(*database, Process()) as play:
        await play.burst([partial(play.create, Terms(concurrency=1, failures_in_a_row=2))])
        (batch,) = play.house.batches.values()
        for _ in range(2):
            play.answer_all([Answer("REFUSED")])
            await play.rest()
            await play.burst([partial(play.retry, batch, {})])
        assert (batch.state, batch.holds) == ("RUNNING", {})
        await play.finish()


async def test_money_of_the_day_that_was_not_spent_after_all_lets_the_batch_go_on(
    database: tuple[Database, Path],
) -> None:
    process = Process(owner_day=1_500)
    async with playing(*database, process) as play:
        await play.burst([partial(play.create, Terms(tiers={"template": 1}))])
        await play.kill(process)
        (batch,) = play.house.batches.values()
        assert (batch.state, batch.holds["BUDGET"].scope) == ("PAUSED", "OWNER_DAY")
        ((_, lost),) = play.lost("correct")
        await play.burst([partial(play.correct, batch, lost, 0)])
        await play.sweep()
        assert batch.state == "RUNNING"
        await play.finish()
