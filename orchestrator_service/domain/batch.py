"""A batch's states, the table of what may happen in each, the holds, and the verdict at its end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BatchState(StrEnum):
    PREPARING = "PREPARING"  # Being stored; nobody knows its name yet.
    QUEUED = "QUEUED"  # Stored; its first conversation has not been claimed.
    RUNNING = "RUNNING"  # Conversations are being made.
    PAUSING = "PAUSING"  # A hold exists; calls in flight end, no other starts.
    PAUSED = "PAUSED"  # Holds exist and nothing is in flight.
    CANCELLING = "CANCELLING"  # Cancelled; calls in flight end and are kept.
    CANCELLED = "CANCELLED"  # What was made is kept; Retry goes on with the rest.
    SUCCEEDED = "SUCCEEDED"  # Every conversation passed.
    PARTIALLY_SUCCEEDED = "PARTIALLY_SUCCEEDED"  # Some passed.
    FAILED = "FAILED"  # None passed.


class HoldReason(StrEnum):
    USER = "USER"
    CHECKPOINT = "CHECKPOINT"
    BUDGET = "BUDGET"
    STOP_ON_ERROR = "STOP_ON_ERROR"
    PROVIDER_LIMIT = "PROVIDER_LIMIT"
    CREDENTIALS = "CREDENTIALS"
    TOO_MANY_FAILURES = "TOO_MANY_FAILURES"


class Event(StrEnum):
    """What can happen to a batch: the rows of the state table."""

    PAUSE = "Pause"
    RESUME = "Resume"
    CANCEL = "Cancel"
    RETRY = "Retry"
    RAISE_LIMIT = "Update (raise budget or checkpoint)"
    LOWER_BUDGET = "Update (lower budget)"
    CHANGE_CONCURRENCY = "Update (concurrency)"
    HOLD = "hold"
    CLAIM = "claim"
    IDLE = "nothing in flight, some pending"
    DRAINED = "nothing in flight, none pending"
    RESTART = "restart"


class Cell(StrEnum):
    """What the table says where it names no new state."""

    SAME = "succeeds and changes no state"
    REFUSED = "refused, with the state and the next step"
    VERDICT = "ends by the verdict"
    RESUMED_IF_FREE = "goes on if no hold is left"
    NEVER = "does not come up; nothing changes"


@dataclass(frozen=True)
class Refused:
    message: str
    next_step: str


ENDED = frozenset({BatchState.SUCCEEDED, BatchState.PARTIALLY_SUCCEEDED, BatchState.FAILED})
FINAL = ENDED | {BatchState.CANCELLED}
# States in which the engine has something to do.
ACTIVE = frozenset({BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSING, BatchState.CANCELLING})

_COLUMNS = (
    BatchState.QUEUED,
    BatchState.RUNNING,
    BatchState.PAUSING,
    BatchState.PAUSED,
    BatchState.CANCELLING,
    BatchState.CANCELLED,
)
_S, _X, _V, _F, _N = Cell.SAME, Cell.REFUSED, Cell.VERDICT, Cell.RESUMED_IF_FREE, Cell.NEVER
_QUEUED, _RUNNING, _PAUSING, _PAUSED = BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSING, BatchState.PAUSED
_CANCELLING, _CANCELLED = BatchState.CANCELLING, BatchState.CANCELLED

# Each row in the order of _COLUMNS, and last the ended states. PAUSING and CANCELLING settle at once where nothing is
# in flight: storage follows every change with IDLE or DRAINED when that is so.
_ROWS: dict[Event, tuple[BatchState | Cell, ...]] = {
    Event.PAUSE: (_PAUSED, _PAUSING, _S, _S, _X, _X, _X),
    Event.RESUME: (_S, _S, _RUNNING, _QUEUED, _X, _X, _X),
    Event.CANCEL: (_CANCELLED, _CANCELLING, _CANCELLING, _CANCELLED, _S, _S, _X),
    Event.RETRY: (_S, _S, _S, _S, _X, _QUEUED, _QUEUED),
    Event.RAISE_LIMIT: (_S, _S, _F, _F, _X, _S, _S),
    Event.LOWER_BUDGET: (_S, _S, _S, _S, _X, _S, _S),
    Event.CHANGE_CONCURRENCY: (_S, _S, _S, _S, _X, _S, _S),
    Event.HOLD: (_PAUSED, _PAUSING, _S, _S, _N, _N, _N),
    Event.CLAIM: (_RUNNING, _S, _N, _N, _N, _N, _N),
    Event.IDLE: (_N, _S, _PAUSED, _S, _CANCELLED, _N, _N),
    Event.DRAINED: (_N, _V, _V, _V, _V, _N, _N),
    Event.RESTART: (_S, _QUEUED, _PAUSED, _S, _CANCELLED, _S, _S),
}

TRANSITIONS: dict[tuple[BatchState, Event], BatchState | Cell] = {
    (state, event): cell for event, row in _ROWS.items() for state, cell in zip(_COLUMNS, row[:-1], strict=True)
} | {(state, event): row[-1] for event, row in _ROWS.items() for state in ENDED}

_NEXT_STEPS = {
    _CANCELLING: "Wait until it is CANCELLED; then Retry goes on with what was not made.",
    _CANCELLED: "Retry goes on with what was not made.",
}
_RETRY_AFTER_END = "It has ended; Retry makes failed conversations again."

# What a person does about each hold, shown with it everywhere.
NEXT_STEPS = {
    HoldReason.USER: "Resume goes on.",
    HoldReason.CHECKPOINT: "Read what was made; Resume goes on with the rest, a higher hold_after with so many more.",
    HoldReason.BUDGET: "Raise the budget that the message names; the batch then goes on by itself.",
    HoldReason.STOP_ON_ERROR: "Look at the failed conversation; Resume goes on with the others.",
    HoldReason.PROVIDER_LIMIT: "Raise the limit or add credit at the provider, then Resume.",
    HoldReason.CREDENTIALS: "Correct ANTHROPIC_API_KEY or the model (`parley check` proves them), then Resume.",
    HoldReason.TOO_MANY_FAILURES: "Look at the failures; Resume counts them anew and goes on, Cancel gives up.",
}


def decide(state: BatchState, event: Event, *, holds_left: bool = False) -> BatchState | Refused | Cell:
    """What `event` does in `state`: the new state (also the same), a refusal, or VERDICT."""
    cell = TRANSITIONS[state, event]
    match cell:
        case Cell.SAME | Cell.NEVER:
            return state
        case Cell.REFUSED:
            return Refused(
                f"{event.value} is not possible: the batch is {state}.", _NEXT_STEPS.get(state, _RETRY_AFTER_END)
            )
        case Cell.RESUMED_IF_FREE:
            return state if holds_left else _freed(state)
        case _:
            return cell


def _freed(state: BatchState) -> BatchState:
    return BatchState.RUNNING if state is BatchState.PAUSING else BatchState.QUEUED


def verdict(*, total: int, deliverable: int) -> BatchState:
    """How a run ends, by what may be exported: all, none, or some."""
    if deliverable == total:
        return BatchState.SUCCEEDED
    return BatchState.PARTIALLY_SUCCEEDED if deliverable else BatchState.FAILED


def checkpoint_message(hold_after: int) -> str:
    if hold_after == 0:
        return "Waits for approval before the first conversation."
    return f"{hold_after} conversations were started, as hold_after asks."
