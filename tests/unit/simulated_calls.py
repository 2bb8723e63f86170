"""Calls as a made-up provider would have answered them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from estimator_service.domain.history import Array, CallKey, CallSeen, History, Kind, columns_of

MODEL = "m"
DAY_S = 86_400.0
FIRST_S = 1.0
SPEED = 36.0


def key(tier: str = "template", *, fingerprint: str = "", model: str = MODEL, turn_by_turn: bool = False) -> CallKey:
    return CallKey(tier=tier, model=model, prompt_fingerprint=fingerprint, turn_by_turn=turn_by_turn)


def call(
    output_tokens: float = 3_000,
    *,
    of: CallKey | None = None,
    batch: str = "b",
    kind: Kind = Kind.ANSWERED,
    input_tokens: float = 2_000,
    thinking_tokens: float = 0,
    seconds: float | None = None,
    first_token_s: float = math.nan,
    ended_s: float = 0.0,
) -> CallSeen:
    """By default exactly as long as the prior has it."""
    return CallSeen(
        key=of or key(),
        batch=batch,
        kind=kind,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        thinking_tokens=thinking_tokens,
        seconds=FIRST_S + output_tokens / SPEED if seconds is None else seconds,
        first_token_s=first_token_s,
        ended_s=ended_s,
    )


def factors(size: int, *, log_sd: float, rng: np.random.Generator) -> Array:
    """Lognormal with the mean 1."""
    drawn: Array = np.exp(rng.standard_normal(size) * log_sd - log_sd**2 / 2)
    return drawn


def batch(
    name: str,
    *,
    rng: np.random.Generator,
    of: CallKey | None = None,
    mean: float = 3_000,
    calls: int = 30,
    log_sd: float = 0.36,
    factor: float = 1.0,
    call_log_sd: float = 0.05,
    ended_s: float = 0.0,
) -> list[CallSeen]:
    """`factor`: of the seconds, for all calls."""
    tokens = mean * factors(calls, log_sd=log_sd, rng=rng)
    seconds = (FIRST_S + tokens / SPEED) * factor * factors(calls, log_sd=call_log_sd, rng=rng)
    return [
        call(each, of=of, batch=name, seconds=took, ended_s=ended_s)
        for each, took in zip(tokens.tolist(), seconds.tolist(), strict=True)
    ]


def batches(
    count: int,
    *,
    drift: float,
    rng: np.random.Generator,
    mean: float = 3_000,
    calls: int = 30,
    log_sd: float = 0.36,
    of: CallKey | None = None,
) -> list[CallSeen]:
    """One a day, each with a mean of its own."""
    means = mean * factors(count, log_sd=drift, rng=rng)
    return [
        each
        for number, own in enumerate(means.tolist())
        for each in batch(
            f"past-{number}", rng=rng, of=of, mean=own, calls=calls, log_sd=log_sd, ended_s=number * DAY_S
        )
    ]


def history(*parts: Sequence[CallSeen]) -> History:
    return columns_of([each for part in parts for each in part])


def renamed(calls: Sequence[CallSeen], name: str) -> list[CallSeen]:
    return [replace(each, batch=name) for each in calls]
