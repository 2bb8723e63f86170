"""The circuit breaker: when so many conversations fail that the rest of the list must not burn with them."""

from __future__ import annotations

from dataclasses import dataclass

# How many of the last ends are remembered.
WINDOW = 20
# No end yet: a one in front of no bits. Each end adds a bit behind it, 1 for a failure, 0 otherwise; the oldest of
# more than WINDOW falls out. Storage does the same in SQL.
NO_ENDS = 1
FULL = 1 << WINDOW


@dataclass(frozen=True, kw_only=True)
class Breaker:
    # 0 for never.
    failures_in_a_row: int = 10
    # Of the last WINDOW ends, once there are so many; 1 for never.
    failure_share: float = 0.5


def after_end(ends: int, *, failed: bool) -> int:
    longer = 2 * ends + failed
    return longer if longer < 2 * FULL else longer % FULL + FULL


def trips(breaker: Breaker, ends: int) -> str | None:
    """Why the batch holds, in one sentence; None where it goes on."""
    bits = f"{ends:b}"[1:]
    in_a_row = len(bits) - len(bits.rstrip("1"))
    if 0 < breaker.failures_in_a_row <= in_a_row:
        return f"The last {in_a_row} conversations failed, one after the other."
    failed = bits.count("1")
    if len(bits) == WINDOW and failed > breaker.failure_share * WINDOW:
        return f"{failed} of the last {WINDOW} conversations failed."
    return None
