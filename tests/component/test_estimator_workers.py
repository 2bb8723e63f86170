"""The worker process: what comes back from it, what its death costs, and who answers meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psutil
import pytest
import work_pieces
from estimator_fixtures import as_caller, ask, estimator, named
from grpc_health.v1 import health_pb2
from parley.v1 import estimator_pb2
from test_estimator_process import call, running

from estimator_service.domain.errors import EstimatorError, InvalidRequest
from estimator_service.workers import WorkerFailed, WorkerLost, Workers

pytestmark = pytest.mark.anyio

END_MAX_S = 10


@pytest.fixture(autouse=True)
def found_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
async def workers() -> AsyncGenerator[Workers]:
    async with Workers() as opened:
        yield opened


class Begun:
    """Where `hang` tells that it runs, and as which process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "begun"
        os.mkfifo(self.path)
        self._pipe = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    async def process(self) -> int:
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pipe, readable.set)
        async with asyncio.timeout(END_MAX_S):
            await readable.wait()
        asyncio.get_running_loop().remove_reader(self._pipe)
        return int(os.read(self._pipe, 100))

    def close(self) -> None:
        os.close(self._pipe)


@pytest.fixture
def begun(tmp_path: Path) -> Generator[Begun]:
    pipe = Begun(tmp_path)
    yield pipe
    pipe.close()


async def test_the_same_other_process_does_all_of_it(workers: Workers) -> None:
    first = await workers.run(os.getpid)
    assert first != os.getpid()
    assert await asyncio.gather(*(workers.run(os.getpid) for _ in range(5))) == [first] * 5


async def test_large_arguments_and_results_come_through(workers: Workers) -> None:
    assert await workers.run(bytes.upper, b"a" * 5_000_000) == b"A" * 5_000_000


async def test_what_is_printed_there_does_not_get_between_the_replies(workers: Workers) -> None:
    assert await workers.run(print, "noise") is None
    assert await workers.run(len, "four") == 4


async def test_a_domain_error_comes_back_as_itself(workers: Workers) -> None:
    with pytest.raises(EstimatorError) as refused:
        await workers.run(work_pieces.refuse)
    error = refused.value
    assert (error.reason, error.message, error.retry_after_s) == ("QUOTE_NOT_FOUND", "There is none.", 2.0)
    assert (error.metadata, str(error)) == ({"quote": "quotes/a"}, "There is none.")
    with pytest.raises(InvalidRequest) as invalid:
        await workers.run(work_pieces.refuse_a_field)
    assert (invalid.value.field, invalid.value.violations[0].message) == ("workload.groups", "must not be negative")


async def test_a_mistake_comes_back_with_its_traceback_and_the_process_goes_on(workers: Workers) -> None:
    process = await workers.run(os.getpid)
    with pytest.raises(WorkerFailed, match="ZeroDivisionError"):
        await workers.run(divmod, 1, 0)
    assert await workers.run(os.getpid) == process


async def test_a_killed_process_is_replaced_and_its_work_done_by_the_next(workers: Workers, tmp_path: Path) -> None:
    assert await workers.run(work_pieces.die_the_first_times, tmp_path, 1) == "done after 1"


async def test_work_that_kills_two_processes_is_given_up_and_the_next_is_done(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(WorkerLost):
        await workers.run(work_pieces.die_the_first_times, tmp_path, 3)
    assert len(os.listdir(tmp_path)) == 2
    assert await workers.run(len, "four") == 4


async def test_a_process_that_dies_between_two_runs_is_replaced(workers: Workers) -> None:
    first = await workers.run(os.getpid)
    os.kill(first, signal.SIGKILL)
    assert await workers.run(os.getpid) != first


async def test_no_memory_left_costs_the_process_and_not_the_service(workers: Workers) -> None:
    first = await workers.run(os.getpid)
    with pytest.raises(WorkerLost):
        await workers.run(work_pieces.eat_all_memory)
    assert await workers.run(os.getpid) != first


async def test_work_without_end_is_ended(begun: Begun) -> None:
    async with Workers(run_max_s=0.5) as hurried:
        with pytest.raises(WorkerLost):
            await hurried.run(work_pieces.hang, begun.path)
        assert await hurried.run(len, "four") == 4


async def test_a_caller_that_leaves_ends_its_own_work_and_nobody_elses(workers: Workers, begun: Begun) -> None:
    leaving = asyncio.create_task(workers.run(work_pieces.hang, begun.path))
    staying = asyncio.create_task(workers.run(len, "four"))
    process = await begun.process()
    leaving.cancel()
    assert await staying == 4
    assert leaving.cancelled()
    assert not psutil.pid_exists(process)


async def test_only_so_many_wait_and_who_leaves_makes_room(begun: Begun) -> None:
    async with Workers(waiting_max=1) as workers:
        busy = asyncio.create_task(workers.run(work_pieces.hang, begun.path))
        await begun.process()
        waiting = asyncio.create_task(workers.run(len, "four"))
        await asyncio.wait([waiting], timeout=0)
        with pytest.raises(EstimatorError, match="busy: 1 calls wait") as refused:
            await workers.run(len, "four")
        assert refused.value.retry_after_s is not None
        waiting.cancel()
        await asyncio.wait([waiting])
        another = asyncio.create_task(workers.run(len, "five!"))
        await asyncio.wait([another], timeout=0)
        busy.cancel()
        assert await another == 5


async def test_nothing_is_left_of_it_afterwards() -> None:
    async with Workers() as workers:
        workers.warm("estimator_service.domain.quote")
        process = psutil.Process(await workers.run(os.getpid))
    assert not process.is_running()


async def test_closing_does_not_wait_for_the_warming() -> None:
    async with Workers() as workers:
        workers.warm("estimator_service.domain.quote")


async def test_a_module_that_can_not_be_warmed_leaves_the_process_usable(workers: Workers) -> None:
    workers.warm("estimator_service.nowhere")
    assert await workers.run(len, "four") == 4


async def test_ctrl_c_and_sigterm_are_left_to_the_parent(workers: Workers) -> None:
    process = await workers.run(os.getpid)
    assert os.getpgid(process) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process, number)
    assert await workers.run(os.getpid) == process


async def test_the_parents_death_is_the_workers_even_in_the_middle_of_work(begun: Begun) -> None:
    program = (
        "import asyncio, pathlib, sys, work_pieces\n"
        "from estimator_service.workers import Workers\n"
        "asyncio.run(Workers().run(work_pieces.hang, pathlib.Path(sys.argv[1])))"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(begun.path))
    child = psutil.Process(await begun.process())
    parent.kill()
    await parent.wait()
    child.wait(END_MAX_S)


async def test_a_killed_estimator_leaves_no_process_behind(tmp_path: Path) -> None:
    with running(tmp_path / "e.db") as served:
        async with as_caller(served.address) as client:
            await client.stub.CreateQuote(ask())
        (child,) = psutil.Process(served.process.pid).children()
        served.end(signal.SIGKILL)
        child.wait(END_MAX_S)


async def test_quotes_go_on_after_their_process_was_killed(tmp_path: Path) -> None:
    with running(tmp_path / "e.db") as served:
        async with as_caller(served.address) as client:
            first = await client.stub.CreateQuote(ask())
            (child,) = psutil.Process(served.process.pid).children()
            child.kill()
            assert (await client.stub.CreateQuote(ask())).cost == first.cost


async def test_others_are_answered_while_large_quotes_are_made(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        quotes = [asyncio.ensure_future(served.stub.CreateQuote(ask(10_000, request_id=str(n)))) for n in range(6)]
        health = health_pb2.HealthCheckRequest().SerializeToString()
        for _ in range(10):
            await call(served.address, "/grpc.health.v1.Health/Check", health)
            await served.stub.GetQuote(named(made.name))
            await served.stub.ListRates(estimator_pb2.ListRatesRequest())
        # Had each kept the others waiting, all six would be done after as many answers.
        assert not all(quote.done() for quote in quotes)
        assert len({quote.name for quote in await asyncio.gather(*quotes)}) == 6
