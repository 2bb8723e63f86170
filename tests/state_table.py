"""The state table of DESIGN.md, written out by hand, cell by cell, for the tests of the domain and of storage."""

from __future__ import annotations

STATES = (
    "QUEUED",
    "RUNNING",
    "PAUSING",
    "PAUSED",
    "CANCELLING",
    "CANCELLED",
    "SUCCEEDED",
    "PARTIALLY_SUCCEEDED",
    "FAILED",
)

# "=" succeeds and leaves the state as it is, "x" is refused, "-" does not come up and changes nothing, "verdict" ends
# it; a state is the new one. PAUSING and CANCELLING settle at once where nothing is in flight. The last column, ENDED,
# holds for three states. "raise" stands for a change that drops the last hold, where there is one.
_ROWS = """
PAUSE               PAUSED     PAUSING     =           =          x          x          x
RESUME              =          =           RUNNING     QUEUED     x          x          x
CANCEL              CANCELLED  CANCELLING  CANCELLING  CANCELLED  =          =          x
RETRY               =          =           =           =          x          QUEUED     QUEUED
RAISE_LIMIT         =          =           RUNNING     QUEUED     x          =          =
LOWER_BUDGET        =          =           =           =          x          =          =
CHANGE_CONCURRENCY  =          =           =           =          x          =          =
HOLD                PAUSED     PAUSING     =           =          =          -          -
CLAIM               RUNNING    =           -           -          -          -          -
IDLE                -          =           PAUSED      =          CANCELLED  -          -
DRAINED             -          verdict     verdict     verdict    verdict    -          -
RESTART             =          QUEUED      PAUSED      =          CANCELLED  =          =
"""


def _cells() -> dict[tuple[str, str], str]:
    cells: dict[tuple[str, str], str] = {}
    for line in _ROWS.strip().splitlines():
        event, *row = line.split()
        for state, cell in zip(STATES, [*row, row[-1], row[-1]], strict=True):
            cells[event, state] = cell
    return cells


# (event, state) to its cell.
CELLS = _cells()
