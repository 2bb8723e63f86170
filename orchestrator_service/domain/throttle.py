"""How much of the limits is used after refusals: lowered by their share, raised back slowly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# "rate": 429, we are too fast. "overload": 529, the provider has no capacity, which may have nothing to do with us.
RefusalKind = Literal["rate", "overload"]

SHARE_MIN = 0.05
SHARE_RAISE = 0.025
# Fewer calls prove little: one refused of one is not all of them.
CALLS_MIN = 5


@dataclass(slots=True, kw_only=True)
class Throttle:
    """Judges period by period. In the long run a share s of 429 means a rate lower by that; of 529 SHARE_RAISE / (s/2).

    So 5 % of calls that meet an overload at random change nothing: every period is raised by what they lower it.
    """

    period_s: float
    begun_s: float
    share: float = 1.0
    # Of this period.
    granted: int = 0
    replies: int = 0
    limited: int = 0
    overloaded: int = 0
    lowered_s: float = -math.inf

    def reply(self, kind: RefusalKind | None, *, granted_s: float) -> None:
        self.replies += 1
        # Calls granted at the old rate say nothing of the new one.
        if granted_s <= self.lowered_s:
            return
        self.limited += kind == "rate"
        self.overloaded += kind == "overload"

    def tick(self, now_s: float) -> bool:
        """Ends the period where it is over. Whether the share is another now."""
        elapsed_s = now_s - self.begun_s
        if elapsed_s < self.period_s:
            return False
        before, self.share = self.share, self._next(periods=elapsed_s / self.period_s)
        if self.share < before:
            self.lowered_s = now_s
        self.begun_s = now_s
        self.granted = self.replies = self.limited = self.overloaded = 0
        return self.share != before

    def _next(self, *, periods: float) -> float:
        # Refusals come at once and answers after a minute: of the replies alone nearly all would be refusals.
        calls = max(self.granted, self.replies, CALLS_MIN)
        share = self.share * (1 - self.limited / calls) * (1 - self.overloaded / calls / 2)
        if not self.limited:
            # Quiet time counts in full, so that an hour later nothing is held against anybody.
            share += SHARE_RAISE * (1.0 if self.overloaded else periods)
        return min(1.0, max(SHARE_MIN, share))
