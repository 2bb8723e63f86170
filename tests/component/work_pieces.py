"""What the tests of the worker process let it do."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from estimator_service.domain.errors import EstimatorError, InvalidRequest


def die_the_first_times(marks: Path, times: int) -> str:
    """Killed as often as that, each time leaving a mark."""
    made = len(list(marks.iterdir()))
    if made < times:
        (marks / str(made)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done after {made}"


def eat_all_memory() -> None:
    raise MemoryError


def refuse() -> None:
    raise EstimatorError("QUOTE_NOT_FOUND", "There is none.", metadata={"quote": "quotes/a"}, retry_after_s=2.0)


def refuse_a_field() -> None:
    raise InvalidRequest("workload.groups", "must not be negative")


def hang(begun: Path) -> None:
    """Writes its process id into the pipe, and then does nothing for ever."""
    begun.write_text(str(os.getpid()))
    threading.Event().wait()
