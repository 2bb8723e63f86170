"""The command on a terminal: it asks before it spends, and draws in place."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import sys
import termios
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from client_fixtures import (
    NAME,
    QUOTE,
    Told,
    batch,
    call,
    lost_call,
    plain_environment,
    quoted,
    serving,
    watched,
)
from estimator_answers import QUOTE as COMPARED
from estimator_answers import Answers, accuracy_slice, answering, compared, history_slice, outcome
from parley.v1 import batch_pb2, conversation_pb2, orchestrator_pb2

pytestmark = pytest.mark.anyio

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLUMNS = 80
WAIT_MAX_S = 20.0
# Ctrl-C reaches whoever has the terminal: the first one that a new session opens is its own. Python code between fork
# and exec could do the same, and would now and then wait for a lock that one of gRPC's threads held at the fork.
TAKE_TERMINAL = 'terminal=$1; shift; exec "$@" <"$terminal" >"$terminal" 2>&1'


class Terminal:
    """The command with a terminal of 80 columns before it."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self._readable = asyncio.Event()
        self.raw = b""
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        self.raw += os.read(self._master, 65_536)
        self._readable.set()

    @property
    def text(self) -> str:
        # A letter may come in two reads.
        return ESCAPES.sub("", self.raw.decode(errors="ignore")).replace("\r\n", "\n")

    async def shows(self, text: str) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while text not in self.text:
                self._readable.clear()
                await self._readable.wait()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_MAX_S):
            return await self.process.wait()


@asynccontextmanager
async def terminal(*arguments: str, target: str = "127.0.0.1:1", **environment: str) -> AsyncGenerator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", TAKE_TERMINAL, "sh", os.ttyname(slave), sys.executable, "-m", "parley.cli", *arguments),
        start_new_session=True,
        env=plain_environment(PARLEY_ORCHESTRATOR=target, **environment),
    )
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        # Not earlier: a terminal that nobody has open ends.
        os.close(slave)
        os.close(master)


@pytest.fixture(name="spec")
def spec_file(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text("name: Plants\ntiers:\n  - id: scenario\n    count: 90\n")
    return str(path)


def ready() -> Told:
    end = watched(batch(batch_pb2.BATCH_STATE_SUCCEEDED, done=90), 2, last=True)
    return Told(quotes=deque([quoted(sandbox=False)]), watches=deque([[watched(batch(), 1), end]]))


async def test_start_asks_before_it_spends_and_takes_a_no(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("Spend about $3.28 and start it? [y/N]")
        shown.type("n\n")
        assert await shown.ended() == 0
        await shown.shows("Nothing was started.")
    assert told.asked(orchestrator_pb2.CreateBatchRequest) == []


async def test_a_yes_starts_the_quoted_batch_and_draws_it_in_place(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("[y/N]")
        shown.type("y\n")
        await shown.shows("next: parley export plants1")
        assert await shown.ended() == 0
    assert told.asked(orchestrator_pb2.CreateBatchRequest)[0].quote == QUOTE
    assert "90/90  0 failed  0 in flight" in shown.text
    # In place: the cursor goes up before the panel is drawn again.
    assert b"\x1b[1A" in shown.raw
    assert max(len(line) for line in re.split("[\r\n]", shown.text)) <= COLUMNS


async def test_ctrl_c_at_the_question_starts_nothing(spec: str) -> None:
    told = ready()
    async with serving(told) as target, terminal("start", spec, target=target) as shown:
        await shown.shows("[y/N]")
        shown.type("\x03")
        assert await shown.ended() == 130
        await shown.shows("Nothing was started.")
    assert told.asked(orchestrator_pb2.CreateBatchRequest) == []


async def test_ctrl_c_while_watching_says_how_to_go_on(spec: str) -> None:
    told = ready()
    told.watches = deque([[watched(batch(), 1)]])
    async with serving(told) as target, terminal("start", spec, "--yes", target=target) as shown:
        await shown.shows("34/90")
        shown.type("\x03")
        await shown.shows("You stopped watching; the batch plants1 goes on.")
        assert await shown.ended() == 130
    assert told.asked(orchestrator_pb2.CancelBatchRequest) == []


async def test_settling_all_asks_with_count_and_sum_and_takes_a_no() -> None:
    told = Told(batches={NAME: batch()}, calls=[call(1), lost_call(2), lost_call(3)])
    async with serving(told) as target, terminal("settle", "plants1", "--all", "--not-billed", target=target) as shown:
        await shown.shows("Settle 2 calls (possibly spent: up to $0.17) as not billed? [y/N]")
        shown.type("\n")
        assert await shown.ended() == 0
        await shown.shows("Nothing was settled.")
    assert told.asked(orchestrator_pb2.SettleCallRequest) == []


async def test_a_yes_settles_them_all() -> None:
    told = Told(batches={NAME: batch()}, calls=[call(1), lost_call(2), lost_call(3)])
    async with (
        serving(told) as target,
        terminal("settle", "plants1", "--all", "--cost", "0.02", target=target) as shown,
    ):
        await shown.shows("at $0.0200 each? [y/N]")
        shown.type("yes\n")
        await shown.shows("settled  call 3  $0.0200")
        assert await shown.ended() == 0
    assert len(told.asked(orchestrator_pb2.SettleCallRequest)) == 2


async def test_ctrl_c_at_the_question_settles_nothing() -> None:
    told = Told(batches={NAME: batch()}, calls=[lost_call(2)])
    async with serving(told) as target, terminal("settle", "plants1", "--all", "--not-billed", target=target) as shown:
        await shown.shows("[y/N]")
        shown.type("\x03")
        assert await shown.ended() == 130
        await shown.shows("Nothing was settled.")
    assert told.asked(orchestrator_pb2.SettleCallRequest) == []


async def test_what_went_wrong_stands_beneath_its_call() -> None:
    # As wide as a row of the ledger gets.
    wide = lost_call(1_234_567, conversation=100_000)
    wide.outcome = conversation_pb2.CALL_OUTCOME_CONNECTION_LOST
    wide.usage.CopyFrom(conversation_pb2.Usage(input_tokens=123_456, output_tokens=98_765))
    wide.duration.FromSeconds(1_234)
    told = Told(calls=[call(1), wide, call(1_234_568)])
    async with serving(told) as target, terminal("calls", "plants1", target=target) as shown:
        assert await shown.ended() == 0
        await shown.shows("3 calls")
    header, first, lost, why, last, *_ = (line.rstrip() for line in shown.text.splitlines())
    assert header.split() == ["call", "conv", "try", "purpose", "outcome", "in", "out", "cost", "s"]
    assert first.split()[-2:] == ["$0.0360", "62.1"]
    # The outcome gives way; figures never do.
    assert " ".join(lost.split()) == "1234567 100000 1 generate connect… 123,456 98,765 up to $0.0841 1234.0"
    assert why == "      possibly spent: The orchestrator ended before the answer came."
    assert last.split()[0] == "1234568"
    assert max(len(line) for line in shown.text.splitlines()) <= COLUMNS


async def test_a_list_says_beneath_a_batch_what_holds_it() -> None:
    low = batch_pb2.Hold(reason=batch_pb2.HOLD_REASON_USER, message="Somebody paused it.", next_step="Resume goes on.")
    paused = batch(batch_pb2.BATCH_STATE_PAUSED, holds=[low])
    running = batch(name="batches/plants2")
    told = Told(batches={NAME: paused, running.name: running})
    async with serving(told) as target, terminal("list", target=target) as shown:
        assert await shown.ended() == 0
        await shown.shows("plants2")
    _, first, note, second, *_ = (line.rstrip() for line in shown.text.splitlines())
    assert (first.split()[0], note, second.split()[0]) == ("plants1", "      held: user: Resume goes on.", "plants2")
    assert max(len(line) for line in shown.text.splitlines()) <= COLUMNS


def recorded() -> Answers:
    answers = Answers(comparisons={COMPARED: compared()})
    answers.accuracy.slices.append(accuracy_slice(""))
    answers.accuracy.outcomes.extend(
        [*(outcome(number, 1.0 + number / 200) for number in range(1, 16)), outcome(16, 1.3)]
    )
    answers.history.slices.extend([history_slice(streamed=True), history_slice("edge_case")])
    return answers


async def test_the_record_and_its_plot_fit_a_terminal_of_80_columns() -> None:
    async with answering(recorded()) as estimator, terminal("accuracy", PARLEY_ESTIMATOR=estimator) as shown:
        assert await shown.ended() == 0
        await shown.shows("the newest 10 of 16")
    lines = [line.rstrip() for line in shown.text.splitlines()]
    assert lines[:4] == [
        "          bias   MAPE  near       80 % range   95 %  pinball     score",
        "all: 12 quotes",
        "  cost  +1.2 %  4.3 %  92 %  83 % (52 to 98)  100 %  $0.0212     $0.31",
        "  time  -3.0 %  9.1 %  75 %  75 % (43 to 94)   92 %     12 s  2:43 min",
    ]
    plotted = [line for line in lines if line.startswith("plants")]
    assert [line.split()[0] for line in plotted] == [f"plants{number}" for number in range(7, 17)]
    assert all("●" in line for line in plotted[:-1])
    assert plotted[-1].index("┤") < plotted[-1].index("X")
    assert max(map(len, lines)) <= COLUMNS


async def test_a_terminal_without_colours_and_letters_gets_plain_ascii() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "NO_COLOR": "1"}
    async with answering(recorded()) as estimator, terminal("accuracy", PARLEY_ESTIMATOR=estimator, **plain) as shown:
        assert await shown.ended() == 0
        await shown.shows("the newest 10 of 16")
    assert shown.raw.isascii()
    assert b"\x1b" not in shown.raw
    assert "o held, X missed" in shown.text


async def test_the_history_fits_a_terminal_of_80_columns() -> None:
    async with answering(recorded()) as estimator, terminal("history", PARLEY_ESTIMATOR=estimator) as shown:
        assert await shown.ended() == 0
        await shown.shows("edge_case by")
    lines = [line.rstrip() for line in shown.text.splitlines()]
    assert lines[:4] == [
        "                         mean    sd    p10    p50    p90    p99",
        "template by claude-sonnet-5-5",
        "210 calls of 6 batches, 3 more failed (1.4 %), batches drift by 3.1 %",
        "  input tokens          2,312   441  1,801  2,178  3,026  3,038",
    ]
    assert lines[9] == "edge_case by claude-sonnet-5-5"
    assert max(map(len, lines)) <= COLUMNS


async def test_a_comparison_fits_a_terminal_of_80_columns() -> None:
    async with answering(recorded()) as estimator, terminal("accuracy", COMPARED, PARLEY_ESTIMATOR=estimator) as shown:
        assert await shown.ended() == 0
        await shown.shows("scenario ")
    lines = [line.rstrip() for line in shown.text.splitlines()]
    assert lines[0] == "batches/plants1 on quotes/quote1, 90 conversations"
    assert lines[2] == "cost   $3.28    $2.90 to $3.70   $3.41     +$0.13 (+4.0 %)  held"
    assert "fewer calls failed than expected  -$0.0300      -15 s" in lines
    assert max(map(len, lines)) <= COLUMNS
