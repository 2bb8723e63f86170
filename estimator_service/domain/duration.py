"""How long one call takes: time to the first token, then output tokens over speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimator_service.domain import learning
from estimator_service.domain.history import Array, History, Kind
from estimator_service.domain.learning import Learned, Sample

# At real speed. The product's log has 62 s for 2,292 tokens, very steady at 36 tokens/s after about a second.
FIRST_TOKEN_S = 1.0
TOKENS_PER_S = 36.0
# As log-SD of a call's seconds about their expectation. In the LLMPerf trace a steady endpoint's speed varies by 0.03
# to 0.22.
CALL_LOG_SD = 0.12
# How far the speed of a model that was never seen is from the prior: models of today give 30 to 150 tokens a second.
SPEED_LOG_SD = 0.55
# The line through the calls is pulled to the prior's as by so many of them; a first token of its own by so many.
LINE_PRIOR_CALLS = 1.0
FIRST_TOKEN_PRIOR_CALLS = 5
FIRST_TOKEN_MIN_S = 0.01
# Newest calls that the line is drawn through.
LINE_CALLS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Expected seconds of a call at real speed: a straight line in its output tokens."""

    first_token_s: float = FIRST_TOKEN_S
    tokens_per_s: float = TOKENS_PER_S

    def seconds(self, output_tokens: Array) -> Array:
        return self.first_token_s + output_tokens / self.tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Of one model at one provider, for one batch: seconds of a call are the line x the level x the shape."""

    line: Line
    # Of one node: seconds over the line's.
    factor: Learned

    @property
    def observations(self) -> int:
        return int(self.factor.observations[0])

    @property
    def factor_mean(self) -> float:
        return self.factor.mean(0)

    def tokens_by(self, age_s: Array) -> Array:
        """Output tokens that a call of this age surely has, at the expected pace."""
        tokens: Array = (age_s / self.factor_mean - self.line.first_token_s) * self.line.tokens_per_s
        return tokens.clip(min=0.0)


def estimate_pace(history: History, *, batch: str = "") -> Pace:
    """`history` is of one model; `batch` the one at hand, if any."""
    told = history.rows((history.kind == Kind.ANSWERED) & (history.output_tokens > 0) & (history.seconds > 0))
    line = _line(told)
    prior = learning.Prior(means=np.ones(1), covariance=np.array([[SPEED_LOG_SD**2]]), log_sd=CALL_LOG_SD)
    sample = Sample(
        values=told.seconds / line.seconds(told.output_tokens),
        node=np.zeros(len(told), dtype=np.int64),
        batch=told.batch,
        censored=np.zeros(len(told), dtype=np.bool_),
        ended_s=told.ended_s,
    )
    current = history.batches.index(batch) if batch in history.batches else None
    return Pace(line=line, factor=learning.learn(sample, prior, current=current))


def _line(told: History) -> Line:
    """Least squares on relative errors, pulled to the prior's line; the first token from streamed calls where known."""
    newest = slice(-LINE_CALLS_MAX, None)
    seconds, tokens = told.seconds[newest], told.output_tokens[newest]
    if not len(seconds):
        return Line()
    first = told.first_token_s[newest]
    streamed = first[~np.isnan(first)]
    # Both unknowns as factors of the prior's, so that one pull fits both.
    columns = np.stack([np.full(len(seconds), FIRST_TOKEN_S), tokens / TOKENS_PER_S], axis=1) / seconds[:, None]
    scale = float(np.median(seconds / (FIRST_TOKEN_S + tokens / TOKENS_PER_S)))
    pull = LINE_PRIOR_CALLS * np.eye(2) * CALL_LOG_SD**2
    if len(streamed) >= FIRST_TOKEN_PRIOR_CALLS:
        first_factor = float(streamed.mean()) / FIRST_TOKEN_S
        left = 1.0 - columns[:, 0] * first_factor
        slope = (columns[:, 1] @ left + pull[1, 1] * scale) / (columns[:, 1] @ columns[:, 1] + pull[1, 1])
    else:
        wanted = columns.T @ np.ones(len(seconds)) + pull @ np.full(2, scale)
        first_factor, slope = np.linalg.solve(columns.T @ columns + pull, wanted).tolist()
    return Line(
        first_token_s=max(first_factor * FIRST_TOKEN_S, FIRST_TOKEN_MIN_S),
        tokens_per_s=TOKENS_PER_S / max(float(slope), 1e-3),
    )
