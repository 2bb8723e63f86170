"""How many calls a conversation takes: those that are paid for nothing are made again, and so are those never paid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimator_service.domain.history import Array, History, Kind

# Beta prior of the share that is paid for nothing: 0.5 % on average, worth 30 calls, and most likely next to none. A
# choice: with structured output few answers are malformed or refused, and where many are it soon shows.
PRIOR_FAILED, PRIOR_FINE = 0.15, 29.85
# Of those that are not paid, only time is lost: rarer, and learned in the same way.
PRIOR_LOST, PRIOR_KEPT = 0.03, 29.97
# Older calls say less: so many newest ones count.
CALLS_MAX = 1_000
# Until some were seen, a call that is lost takes as long as one that is answered; or so long.
LOST_S = 10.0
# The wait before the next.
BACK_OFF_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Of the calls to one model. Beta posteriors; `certain` where the share is not estimated."""

    failed: float = PRIOR_FAILED
    fine: float = PRIOR_FINE
    lost: float = PRIOR_LOST
    kept: float = PRIOR_KEPT
    # Seconds at real speed that a call which is not paid takes, back-off included.
    lost_s: float = LOST_S + BACK_OFF_S
    certain: float | None = None

    @property
    def share(self) -> float:
        """Expected share of the calls that are paid for nothing."""
        return self.failed / (self.failed + self.fine) if self.certain is None else self.certain

    @property
    def calls_mean(self) -> float:
        """Expected paid calls for one that is fine: E[1 / (1 - p)] of a beta p."""
        if self.certain is not None:
            return 1 / (1 - self.certain)
        return (self.failed + self.fine - 1) / (self.fine - 1)

    @property
    def lost_mean(self) -> float:
        """Expected unpaid calls for one that is paid."""
        return self.lost / (self.kept - 1) if self.certain is None else 0.0

    def draw_shares(self, draws: int, rng: np.random.Generator) -> Array:
        """One share for all calls of a draw."""
        if self.certain is not None:
            return np.full(draws, self.certain)
        return rng.beta(self.failed, self.fine, draws)

    def draw_lost(self, draws: int, rng: np.random.Generator) -> Array:
        """Unpaid calls for one that is paid."""
        if self.certain is not None:
            return np.zeros(draws)
        shares = rng.beta(self.lost, self.kept, draws)
        lost: Array = shares / (1 - shares)
        return lost


def estimate_failures(history: History) -> Failures:
    """`history`: of one model."""
    kinds = history.kind[-CALLS_MAX:]
    counts = np.bincount(kinds, minlength=len(Kind)).tolist()
    # An answer that was cut is no failure of this sort: what follows from a maximum is known when it is reached.
    answered = counts[Kind.ANSWERED] + counts[Kind.CUT]
    failed, lost = counts[Kind.PAID_FAILURE], counts[Kind.FREE_FAILURE]
    seconds = history.seconds[-CALLS_MAX:][kinds == Kind.FREE_FAILURE]
    told = seconds[~np.isnan(seconds)]
    fine = history.seconds[history.kind == Kind.ANSWERED][-CALLS_MAX:]
    usual_s = float(np.nanmean(fine)) if (fine > 0).any() else LOST_S
    # What is usual counts as three.
    lost_s = (3 * usual_s + float(told.sum())) / (3 + len(told))
    return Failures(
        failed=PRIOR_FAILED + failed,
        fine=PRIOR_FINE + answered,
        lost=PRIOR_LOST + lost,
        kept=PRIOR_KEPT + answered + failed,
        lost_s=lost_s + BACK_OFF_S,
    )
