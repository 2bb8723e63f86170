"""Everything that a sandbox can be told, at its start or while it runs, and the check of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from orchestrator_service.sandbox.faults import FAULTS

# What a sandbox that waits for nothing announces as its speed-up, and the pace of its limits unless told.
SPEED_UP_ZERO_LATENCY = 1_000_000.0
COUNT_MAX = 1_000_000_000_000
TOKENS_PER_S_MAX = 100_000
FIRST_TOKEN_MAX_S = 600
BURST_MAX_S = 3_600


class SettingError(ValueError):
    """A setting that cannot be used; the text is one line that names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    seed: int = 1
    # How many real seconds pass in one second here: the pace of answers, limits and cache lifetimes.
    speed_up: float = 40.0
    zero_latency: bool = False
    tokens_mean: int = 2_292
    # Medians at real speed; a call's own differ from them by chance.
    tokens_per_s: float = 36.0
    first_token_s: float = 1.0
    faults: Mapping[str, float] = field(default_factory=dict[str, float])
    # Faults hit only the first so many attempts of a prompt; None means every attempt.
    fault_max_attempt: int | None = None
    requests_per_minute: int = 4_000
    input_tokens_per_minute: int = 2_000_000
    output_tokens_per_minute: int = 400_000
    # How many real seconds' worth of a limit may be used at once.
    burst_s: float = 60.0
    # None accepts any key that is not empty.
    api_key: str | None = None
    # Generation does not begin while paused; what the front door refuses is still refused at once.
    paused: bool = False

    @property
    def speed_up_announced(self) -> float:
        speed_up = SPEED_UP_ZERO_LATENCY if self.zero_latency else self.speed_up
        # Read by people too: 40, not 40.0.
        return int(speed_up) if speed_up.is_integer() else speed_up

    @property
    def speed_up_of_cache(self) -> float:
        # Where calls take no time, a lifetime shortened a million times would make every cache read a miss.
        return 1.0 if self.zero_latency else self.speed_up


def changed(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """`settings` with `changes` (names as in Settings), every one of them checked."""
    checked: dict[str, object] = {}
    for name, value in changes.items():
        check = CHECKS.get(name)
        if check is None:
            raise SettingError(f"{name}: no such setting; known are {', '.join(sorted(CHECKS))}")
        checked[name] = check(name, value)
    return replace(settings, **cast("dict[str, Any]", checked))


def as_json(settings: Settings) -> dict[str, object]:
    """What `GET /settings` shows: everything but the key itself."""
    return {
        "seed": settings.seed,
        "speed_up": settings.speed_up,
        "speed_up_announced": settings.speed_up_announced,
        "zero_latency": settings.zero_latency,
        "tokens_mean": settings.tokens_mean,
        "tokens_per_s": settings.tokens_per_s,
        "first_token_s": settings.first_token_s,
        "faults": dict(settings.faults),
        "fault_max_attempt": settings.fault_max_attempt,
        "requests_per_minute": settings.requests_per_minute,
        "input_tokens_per_minute": settings.input_tokens_per_minute,
        "output_tokens_per_minute": settings.output_tokens_per_minute,
        "burst_s": settings.burst_s,
        "api_key_set": settings.api_key is not None,
        "paused": settings.paused,
    }


def _whole(name: str, value: object, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= COUNT_MAX:
        raise SettingError(f"{name}: {value!r} is not a whole number from {at_least} to {COUNT_MAX}")
    return value


def _seed(name: str, value: object) -> int:
    return _whole(name, value, at_least=0)


def _count(name: str, value: object) -> int:
    return _whole(name, value, at_least=1)


def _count_or_none(name: str, value: object) -> int | None:
    return None if value is None else _whole(name, value, at_least=0)


def _number(name: str, value: object, *, at_least: float, at_most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value <= at_most:
        raise SettingError(f"{name}: {value!r} is not a number from {at_least} to {at_most:.0f}")
    return float(value)


def _pace(name: str, value: object) -> float:
    return _number(name, value, at_least=0.001, at_most=SPEED_UP_ZERO_LATENCY)


def _burst(name: str, value: object) -> float:
    return _number(name, value, at_least=0, at_most=BURST_MAX_S)


def _tokens_per_s(name: str, value: object) -> float:
    return _number(name, value, at_least=0.001, at_most=TOKENS_PER_S_MAX)


def _first_token_s(name: str, value: object) -> float:
    return _number(name, value, at_least=0, at_most=FIRST_TOKEN_MAX_S)


def _yes_or_no(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"{name}: {value!r} is not true or false")
    return value


def _key(name: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise SettingError(f"{name}: must be a text that is not empty, or null for any key")
    return value


def _probabilities(name: str, value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise SettingError(f"{name}: {value!r} is not an object of fault names and probabilities")
    drawn: dict[str, float] = {}
    for fault, chance in cast("dict[str, object]", value).items():
        if fault not in FAULTS:
            raise SettingError(f"{name}: no fault is called {fault!r}; known are {', '.join(FAULTS)}")
        if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
            raise SettingError(f"{name}: {fault}={chance!r} is not a probability from 0 to 1")
        drawn[fault] = float(chance)
    # A call has at most one fault, so their probabilities share one whole; 0.1 ten times may be a hair over.
    if math.fsum(drawn.values()) > 1 + 1e-9:
        raise SettingError(f"{name}: the probabilities add up to {math.fsum(drawn.values()):g}, over 1")
    return drawn


CHECKS: Mapping[str, Callable[[str, object], object]] = {
    "seed": _seed,
    "speed_up": _pace,
    "zero_latency": _yes_or_no,
    "tokens_mean": _count,
    "tokens_per_s": _tokens_per_s,
    "first_token_s": _first_token_s,
    "faults": _probabilities,
    "fault_max_attempt": _count_or_none,
    "requests_per_minute": _count,
    "input_tokens_per_minute": _count,
    "output_tokens_per_minute": _count,
    "burst_s": _burst,
    "api_key": _key,
    "paused": _yes_or_no,
}
