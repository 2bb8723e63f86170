"""What calls really took, as columns: the newest of some models at one provider, oldest first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from estimator_service.domain.observation import Observation, Outcome, Purpose

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Ours, of every call: it does not get shorter where a sandbox is faster.
OVERHEAD_CALL_S = 0.005
# Faster than this a sandbox shows our own overhead, multiplied, and not a model's speed.
LEARNED_SPEED_UP_MAX = 1_000.0
LEARNED_PURPOSES = (Purpose.GENERATE, Purpose.TURN, Purpose.REPAIR)


class Kind(IntEnum):
    ANSWERED = 0
    # Paid; its tokens are a lower bound of what the answer would have had.
    CUT = 1
    # Paid for nothing: malformed, refused and the like.
    PAID_FAILURE = 2
    # Not paid: it only took time.
    FREE_FAILURE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CallKey:
    """Calls that are alike for their size."""

    tier: str
    model: str
    effort: str = ""
    prompt_fingerprint: str = ""
    turn_by_turn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSeen:
    """One call as it is learned from; seconds at real speed, our overhead taken off, NaN where they tell nothing."""

    key: CallKey
    batch: str
    kind: Kind
    input_tokens: float
    output_tokens: float
    thinking_tokens: float
    # 0 where it was not told.
    prompt_characters: float = 0.0
    seconds: float
    first_token_s: float
    # Seconds since 1970, UTC; NaN where it was not told.
    ended_s: float


def _integers() -> Integers:
    return np.zeros(0, dtype=np.int64)


def _floats() -> Array:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A row a call. `key` and `batch` are indices of `keys` and of `batches`, which are in the order of their begin."""

    keys: tuple[CallKey, ...]
    batches: tuple[str, ...]
    key: Integers
    batch: Integers
    kind: Integers
    input_tokens: Array
    output_tokens: Array
    thinking_tokens: Array
    prompt_characters: Array
    seconds: Array
    first_token_s: Array
    ended_s: Array

    def rows(self, chosen: NDArray[np.bool_]) -> History:
        """Those rows alone; keys and batches stay as they are."""
        return History(
            keys=self.keys,
            batches=self.batches,
            **{name: getattr(self, name)[chosen] for name in ("key", "batch", "kind", *COLUMNS)},
        )

    def of_model(self, model: str) -> History:
        wanted = np.array([key.model == model for key in self.keys], dtype=np.bool_)
        return self.rows(wanted[self.key]) if len(self.key) else self

    def __len__(self) -> int:
        return len(self.key)


COLUMNS = (
    "input_tokens",
    "output_tokens",
    "thinking_tokens",
    "prompt_characters",
    "seconds",
    "first_token_s",
    "ended_s",
)
NOTHING_SEEN = History(
    keys=(),
    batches=(),
    key=_integers(),
    batch=_integers(),
    kind=_integers(),
    input_tokens=_floats(),
    output_tokens=_floats(),
    thinking_tokens=_floats(),
    prompt_characters=_floats(),
    seconds=_floats(),
    first_token_s=_floats(),
    ended_s=_floats(),
)


def columns_of(calls: Sequence[CallSeen]) -> History:
    """`calls`: oldest first."""
    keys: dict[CallKey, int] = {}
    batches: dict[str, int] = {}
    key = [keys.setdefault(call.key, len(keys)) for call in calls]
    batch = [batches.setdefault(call.batch, len(batches)) for call in calls]
    return History(
        keys=tuple(keys),
        batches=tuple(batches),
        key=np.array(key, dtype=np.int64),
        batch=np.array(batch, dtype=np.int64),
        kind=np.array([call.kind for call in calls], dtype=np.int64),
        **{name: np.array([getattr(call, name) for call in calls], dtype=np.float64) for name in COLUMNS},
    )


def joined(older: History, newer: History) -> History:
    """Both, with what they name alike as one."""
    keys = {key: at for at, key in enumerate(dict.fromkeys((*older.keys, *newer.keys)))}
    batches = {batch: at for at, batch in enumerate(dict.fromkeys((*older.batches, *newer.batches)))}
    key = np.array([keys[each] for each in newer.keys], dtype=np.int64)
    batch = np.array([batches[each] for each in newer.batches], dtype=np.int64)
    return History(
        keys=tuple(keys),
        batches=tuple(batches),
        # Those of the older one come first, so its numbers stay.
        key=np.concatenate([older.key, key[newer.key]]),
        batch=np.concatenate([older.batch, batch[newer.batch]]),
        kind=np.concatenate([older.kind, newer.kind]),
        **{name: np.concatenate([getattr(older, name), getattr(newer, name)]) for name in COLUMNS},
    )


def history_of(observations: Iterable[Observation]) -> History:
    """Of observations in any order; those that nothing is learned from are left out."""
    dated = sorted(observations, key=lambda each: each.end_time.timestamp() if each.end_time else 0.0)
    seen = (call_seen(each) for each in dated)
    return columns_of([call for call in seen if call is not None])


def call_seen(each: Observation) -> CallSeen | None:
    """None for what is no attempt at a conversation, and for calls that were only told to wait."""
    if each.purpose not in LEARNED_PURPOSES or each.outcome is Outcome.LIMITED:
        return None
    prompt = each.input_tokens + each.cache_write_5m_tokens + each.cache_write_1h_tokens + each.cache_read_tokens
    first = each.first_token_delay
    return CallSeen(
        key=CallKey(
            tier=each.tier,
            model=each.model,
            effort=each.effort,
            prompt_fingerprint=each.prompt_fingerprint,
            turn_by_turn=each.purpose is Purpose.TURN,
        ),
        batch=each.batch or day_of(each.end_time),
        kind=kind_of(each.outcome, paid=prompt + each.output_tokens > 0, answered=each.output_tokens > 0),
        input_tokens=prompt,
        output_tokens=each.output_tokens,
        thinking_tokens=each.thinking_tokens,
        prompt_characters=each.prompt_characters,
        seconds=real_seconds(each.duration.total_seconds(), each.speed_up),
        first_token_s=np.nan if first is None else real_seconds(first.total_seconds(), each.speed_up),
        ended_s=each.end_time.timestamp() if each.end_time else np.nan,
    )


def day_of(time: datetime | None) -> str:
    """Calls of no batch are taken together by their day."""
    return "" if time is None else f"{time:%Y-%m-%d}"


def kind_of(outcome: Outcome, *, paid: bool, answered: bool) -> Kind:
    if outcome is Outcome.ANSWERED and answered:
        return Kind.ANSWERED
    if outcome is Outcome.CUT and answered:
        return Kind.CUT
    return Kind.PAID_FAILURE if paid else Kind.FREE_FAILURE


def real_seconds(measured_s: float, speed_up: float) -> float:
    """NaN where the measurement says nothing about the model."""
    seconds = (measured_s - OVERHEAD_CALL_S) * speed_up
    return seconds if measured_s > OVERHEAD_CALL_S and speed_up <= LEARNED_SPEED_UP_MAX else np.nan
