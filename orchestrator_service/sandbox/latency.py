"""How long an answer takes and how long it gets, from the original product's own logs."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from statistics import NormalDist

TTFT_LOG_SD = 0.25
TOKENS_PER_S_LOG_SD = 0.05

# 47 template calls: mean 2,292 tokens, sd 865, so a log SD of 0.365; most of it belongs to the emotional arc.
LENGTH_LOG_SD_OF_ARC = 0.31
LENGTH_LOG_SD_OF_CALL = 0.19
TIER_FACTORS = {"template": 1.0, "scenario": 1.25, "edge_case": 0.9}
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Pace:
    """Real time of one call; `speed_up` brings it down to the time it takes here, none at 0."""

    ttft_s: float
    tokens_per_s: float
    speed_up: float

    def reached_s(self, tokens: float) -> float:
        """Seconds here from the start of generation until so many tokens are out."""
        return (self.ttft_s + tokens / self.tokens_per_s) / self.speed_up if self.speed_up else 0.0


def draw_pace(rng: Random, *, first_token_s: float, tokens_per_s: float, speed_up: float) -> Pace:
    """Both given as medians at real speed."""
    ttft_s = first_token_s * math.exp(TTFT_LOG_SD * normal(rng))
    return Pace(ttft_s, tokens_per_s * math.exp(TOKENS_PER_S_LOG_SD * normal(rng)), speed_up)


def draw_length_tokens(rng: Random, *, mean_tokens: float, tier: str, arc: str) -> int:
    """Lognormal about the tier's mean; an arc lengthens or shortens all its conversations alike."""
    deviation = LENGTH_LOG_SD_OF_ARC * _arc_normal(arc) + LENGTH_LOG_SD_OF_CALL * normal(rng)
    variance = LENGTH_LOG_SD_OF_ARC**2 + LENGTH_LOG_SD_OF_CALL**2
    # The longest of the 47 was 1.9 times the mean, so the tail is cut at twice.
    factor = min(2.0, math.exp(deviation - variance / 2))
    return max(1, round(mean_tokens * TIER_FACTORS.get(tier, 1.0) * factor))


def normal(rng: Random) -> float:
    """One uniform gives one normal, so every call uses up the same number of draws."""
    return NORMAL.inv_cdf(min(max(rng.random(), 1e-9), 1 - 1e-9))


@lru_cache(maxsize=4096)
def _arc_normal(arc: str) -> float:
    digest = hashlib.blake2b(arc.lower().encode(), digest_size=8).digest()
    return NORMAL.inv_cdf((int.from_bytes(digest) + 0.5) / 2**64)
