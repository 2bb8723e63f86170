"""How a run went in wall time: how long it really ran, and what the estimator has been told of its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator_service.domain.batch import ACTIVE, BatchState


class OutcomeState(StrEnum):
    """What became of telling the estimator how the first run of a batch ended."""

    # The run has not ended, or the estimator has not taken its outcome yet.
    WAITING = "WAITING"
    # The estimator has it.
    SENT = "SENT"
    # The estimator will never take it; the log says why.
    REFUSED = "REFUSED"
    # There is nothing to tell: no quote, nothing made, cancelled.
    NONE = "NONE"


# Calls may be under way.
WORKING = ACTIVE - {BatchState.QUEUED}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Of a batch's log: a change of state, or that the orchestrator was started again."""

    time_us: int
    # None where the orchestrator was started again.
    to: BatchState | None
    # The last sign of life before it, where the time until it was not spent running: the server was down.
    alive_us: int | None = None


def running_s(changes: Sequence[Change], *, until_us: int) -> float:
    """Wall time without holds: from each claim on, until nothing is in flight any more, or the server went down."""
    total_us, since_us = 0, None
    for change in changes:
        if change.to in WORKING:
            since_us = change.time_us if since_us is None else since_us
        elif since_us is not None:
            end_us = change.time_us if change.alive_us is None else min(change.alive_us, change.time_us)
            # Wall time may jump backwards; no span is less than nothing.
            total_us += max(0, end_us - since_us)
            since_us = None
    if since_us is not None:
        total_us += max(0, until_us - since_us)
    return total_us / 1e6


def first_end(changes: Sequence[Change]) -> int | None:
    """Where in the log the first run ended; None while it goes on."""
    working = (*ACTIVE, BatchState.PREPARING, BatchState.PAUSED, None)
    return next((index for index, change in enumerate(changes) if change.to not in working), None)
