"""What calls took, by tier and model: mean, spread and quantiles, and how far batches differ from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_QUANTILES = (0.10, 0.50, 0.90, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsTaken:
    """The answered calls of one tier and model, a value each; seconds at real speed."""

    tier: str
    model: str
    # Of all that were paid for nothing.
    failed_calls: int = 0
    # Empty where the call belongs to none.
    batches: list[str] = field(default_factory=list[str])
    input_tokens: list[float] = field(default_factory=list[float])
    output_tokens: list[float] = field(default_factory=list[float])
    thinking_tokens: list[float] = field(default_factory=list[float])
    # NaN where they tell nothing.
    seconds: list[float] = field(default_factory=list[float])
    # NaN where the call was not streamed.
    first_token_s: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    mean: float
    sd: float
    p10: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsSummary:
    """The same, summarized. A distribution is None where no call tells of it."""

    tier: str
    model: str
    calls: int
    batches: int
    failed_calls: int
    input_tokens: Distribution | None
    output_tokens: Distribution | None
    thinking_tokens: Distribution | None
    seconds: Distribution | None
    first_token_s: Distribution | None
    tokens_per_second: Distribution | None
    drift_log_sd: float


def summarize_calls(taken: CallsTaken) -> CallsSummary:
    output, seconds = np.asarray(taken.output_tokens, dtype=np.float64), np.asarray(taken.seconds, dtype=np.float64)
    timed = seconds > 0
    return CallsSummary(
        tier=taken.tier,
        model=taken.model,
        calls=len(output),
        batches=len(set(taken.batches) - {""}),
        failed_calls=taken.failed_calls,
        input_tokens=distribution(taken.input_tokens),
        output_tokens=distribution(taken.output_tokens),
        thinking_tokens=distribution(taken.thinking_tokens),
        seconds=distribution(taken.seconds),
        first_token_s=distribution(taken.first_token_s),
        tokens_per_second=distribution((output[timed] / seconds[timed]).tolist()),
        drift_log_sd=drift_log_sd(taken.output_tokens, taken.batches),
    )


def distribution(values: Sequence[float]) -> Distribution | None:
    """NaN values are left out; the standard deviation of a single value is 0."""
    told: Array = np.asarray(values, dtype=np.float64)
    told = told[~np.isnan(told)]
    if not told.size:
        return None
    p10, p50, p90, p99 = np.quantile(told, _QUANTILES).tolist()
    sd = float(told.std(ddof=1)) if told.size > 1 else 0.0
    return Distribution(mean=float(told.mean()), sd=sd, p10=p10, p50=p50, p90=p90, p99=p99)


def drift_log_sd(output_tokens: Sequence[float], batches: Sequence[str]) -> float:
    """How far batches differ in log output tokens beyond what the spread within them explains; 0 where none is seen.

    Method of moments of the one-way random effects model with batches of unequal size (Searle, Casella and McCulloch
    1992, section 3.6): drift variance = (MS between - MS within) / n0, n0 = (N - sum n_b^2 / N) / (k - 1). Calls of no
    batch and without tokens are left out; two batches and a call more than batches are the least that tells anything.
    """
    tokens: Array = np.asarray(output_tokens, dtype=np.float64)
    names, of = np.unique(np.asarray(batches, dtype=np.str_), return_inverse=True)
    counted = (tokens > 0) & (names[of] != "") if names.size else tokens > 0
    logs, of = np.log(tokens[counted]), of[counted]
    sizes = np.bincount(of, minlength=names.size)
    calls, many = int(sizes.sum()), int((sizes > 0).sum())
    if many < 2 or calls <= many:
        return 0.0
    means = np.bincount(of, weights=logs, minlength=names.size) / np.maximum(sizes, 1)
    within = float(((logs - means[of]) ** 2).sum()) / (calls - many)
    between = float((sizes * (means - logs.mean()) ** 2).sum()) / (many - 1)
    effective = (calls - float((sizes.astype(np.float64) ** 2).sum()) / calls) / (many - 1)
    return float(np.sqrt(max((between - within) / effective, 0.0)))
