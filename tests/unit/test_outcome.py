"""How long a batch ran: from its log, without holds and without the time that the server was down."""

from __future__ import annotations

import pytest

from orchestrator_service.domain.batch import BatchState
from orchestrator_service.domain.outcome import Change, first_end, running_s

QUEUED, RUNNING, PAUSING, PAUSED = BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSING, BatchState.PAUSED
CANCELLING, CANCELLED, SUCCEEDED = BatchState.CANCELLING, BatchState.CANCELLED, BatchState.SUCCEEDED


def at(second: int, to: BatchState | None, *, alive_s: int | None = None) -> Change:
    return Change(time_us=second * 1_000_000, to=to, alive_us=None if alive_s is None else alive_s * 1_000_000)


def ran_s(*changes: Change, until_s: int = 100) -> float:
    return running_s(changes, until_us=until_s * 1_000_000)


def test_what_waits_for_its_turn_does_not_run() -> None:
    assert ran_s(at(0, QUEUED)) == 0


def test_it_runs_from_the_first_claim_to_the_end() -> None:
    assert ran_s(at(0, QUEUED), at(10, RUNNING), at(35, SUCCEEDED)) == 25


def test_what_still_runs_counts_until_now() -> None:
    assert ran_s(at(0, QUEUED), at(10, RUNNING), until_s=12) == 2


def test_a_hold_does_not_count_and_calls_that_end_under_it_do() -> None:
    held = (at(10, RUNNING), at(20, PAUSING), at(24, PAUSED), at(60, QUEUED), at(61, RUNNING), at(70, SUCCEEDED))
    assert ran_s(*held) == 14 + 9


def test_a_hold_that_is_gone_before_its_last_call_ended_is_none() -> None:
    assert ran_s(at(10, RUNNING), at(20, PAUSING), at(22, RUNNING), at(30, SUCCEEDED)) == 20


def test_calls_that_end_while_it_is_cancelled_count() -> None:
    assert ran_s(at(10, RUNNING), at(20, CANCELLING), at(25, CANCELLED)) == 15


def test_the_time_that_the_server_was_down_does_not_count() -> None:
    crashed = (
        at(10, RUNNING),
        at(80, None, alive_s=30),
        at(80, QUEUED, alive_s=30),
        at(81, RUNNING),
        at(90, SUCCEEDED),
    )
    assert ran_s(*crashed) == 20 + 9


def test_a_server_that_went_down_before_anything_was_settled_did_not_run() -> None:
    assert ran_s(at(10, RUNNING), at(80, None, alive_s=0), at(80, QUEUED, alive_s=0)) == 0


def test_a_clock_that_was_set_back_takes_nothing_away() -> None:
    assert ran_s(at(50, RUNNING), at(40, PAUSED), at(60, QUEUED), at(61, RUNNING), at(65, SUCCEEDED)) == 4
    assert ran_s(at(50, RUNNING), until_s=40) == 0
    # Nor does a sign of life behind the restart add any.
    assert ran_s(at(10, RUNNING), at(20, None, alive_s=90)) == 10


@pytest.mark.parametrize("ended", [SUCCEEDED, CANCELLED, BatchState.FAILED, BatchState.PARTIALLY_SUCCEEDED])
def test_the_first_end_is_that_of_the_first_run(ended: BatchState) -> None:
    log = [at(0, QUEUED), at(1, RUNNING), at(2, None), at(2, QUEUED), at(3, RUNNING), at(4, PAUSED), at(5, ended)]
    assert first_end([*log, at(6, QUEUED), at(7, RUNNING), at(8, SUCCEEDED)]) == 6
    assert first_end(log[:-1]) is None
