"""Where a running batch is heading: what is spent, plus the rest at the mean of quote and experience."""

from __future__ import annotations

from dataclasses import dataclass

# The quote's mean counts as much as this many conversations that were made.
QUOTE_WEIGHT = 5.0
# A call in flight has half of its time before it, on average.
IN_FLIGHT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Progress:
    total: int
    pending: int
    running: int
    # Generated or failed, over all runs, as the money is.
    made: int
    # Confirmed and possibly spent.
    committed_nanos: int
    confirmed_nanos: int
    answered: int
    # Seconds of the calls that were answered.
    answered_s: float
    concurrency: int
    quoted_cost_nanos: int | None
    quoted_duration_s: float | None


@dataclass(frozen=True)
class Projection:
    cost_nanos: int
    # None while nothing is known of the speed.
    time_left_s: float | None
    basis: str


def project(progress: Progress) -> Projection:
    """Cost: committed + remaining x mean. Time: remaining calls, one after the other, over the concurrency."""
    remaining = progress.pending + progress.running
    each_nanos = _mean(progress.quoted_cost_nanos, progress.total, progress.confirmed_nanos, progress.made)
    quoted_s = None if progress.quoted_duration_s is None else progress.quoted_duration_s * progress.concurrency
    each_s = _mean(quoted_s, progress.total, progress.answered_s, progress.answered)
    cost = progress.committed_nanos + round((each_nanos or 0.0) * remaining)
    calls_left = progress.pending + IN_FLIGHT_SHARE * progress.running
    time_left_s = None if each_s is None else each_s * calls_left / min(progress.concurrency, max(1, remaining))
    return Projection(cost, time_left_s, _basis(progress))


def _mean(quoted: float | None, total: int, seen: float, n: int) -> float | None:
    """The mean per conversation, from the quote and what was seen."""
    if quoted is None or not total:
        return seen / n if n else None
    return (QUOTE_WEIGHT * quoted / total + seen) / (QUOTE_WEIGHT + n)


def _basis(progress: Progress) -> str:
    quoted = "the quote" if progress.quoted_cost_nanos is not None else ""
    seen = f"{progress.made} made" if progress.made else ""
    return " and ".join(part for part in (quoted, seen) if part) or "nothing yet"
