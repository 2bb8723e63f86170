"""Money: tokens times prices, in whole nano-dollars, and the words for what is known of a paid call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

TOKENS_PER_PRICE = 1_000_000
ASCII_CHARS_PER_TOKEN_MIN = 2.5
TOKENS_PER_CHAR_MAX = 2
COUNT_MARGIN = 1.02
COUNT_MARGIN_TOKENS = 20


class CallPurpose(StrEnum):
    """What a paid call is for."""

    # Makes a whole conversation.
    GENERATE = "GENERATE"
    # Makes one turn.
    TURN = "TURN"
    # Asks again with what was wrong.
    REPAIR = "REPAIR"
    # Judges a conversation.
    JUDGE = "JUDGE"
    # Warms the prompt cache.
    WARM = "WARM"
    # Proves key, model and limits.
    PREFLIGHT = "PREFLIGHT"


class CallState(StrEnum):
    """What is known of a call's money."""

    # Journalled before it is made; its worst case is reserved.
    RESERVED = "RESERVED"
    # Answered; the cost is the provider's own usage times the rate card.
    SETTLED = "SETTLED"
    # A crash or a cut connection hid the outcome; counts at its reserve until settled.
    POSSIBLY_SPENT = "POSSIBLY_SPENT"


class CallOutcome(StrEnum):
    """How a call ended."""

    # A usable answer.
    ANSWERED = "ANSWERED"
    # The model refused.
    REFUSED = "REFUSED"
    # Cut at max_tokens.
    CUT = "CUT"
    # Answered, and not in the asked-for form.
    MALFORMED = "MALFORMED"
    # The provider answered with an error.
    PROVIDER_ERROR = "PROVIDER_ERROR"
    # Refused for now: rate limit or overload.
    LIMITED = "LIMITED"
    # No answer within the deadline.
    TIMEOUT = "TIMEOUT"
    # The connection broke before the answer was whole.
    CONNECTION_LOST = "CONNECTION_LOST"
    # The orchestrator ended before the answer came.
    INTERRUPTED = "INTERRUPTED"
    # Answered, with a stop reason that this server does not know.
    UNKNOWN_STOP = "UNKNOWN_STOP"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens by the classes that are priced apart; input_tokens has none of the cached ones."""

    input_tokens: int = 0
    # Thinking included.
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    # A part of output_tokens, where the provider says so.
    thinking_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        cached = self.cache_write_5m_tokens + self.cache_write_1h_tokens + self.cache_read_tokens
        return self.input_tokens + cached

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_write_5m_tokens=self.cache_write_5m_tokens + other.cache_write_5m_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            thinking_tokens=self.thinking_tokens + other.thinking_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Prices of one model in nano-dollars per million tokens."""

    input_nanos_per_mtok: int
    output_nanos_per_mtok: int
    cache_write_5m_nanos_per_mtok: int = 0
    cache_write_1h_nanos_per_mtok: int = 0
    cache_read_nanos_per_mtok: int = 0
    # Above so many prompt tokens `long_prompt` holds for the whole call; 0 for none.
    long_prompt_threshold_tokens: int = 0
    long_prompt: Rate | None = None

    def at(self, prompt_tokens: int) -> Rate:
        if self.long_prompt and 0 < self.long_prompt_threshold_tokens < prompt_tokens:
            return self.long_prompt
        return self


# A local server's model, or a sandbox's.
FREE = Rate(input_nanos_per_mtok=0, output_nanos_per_mtok=0)


@dataclass(frozen=True)
class RateCard:
    """The prices that a quote used; a batch is priced by the card of its quote."""

    version: str
    rates: Mapping[str, Rate]


def cost_nanos(usage: Usage, rate: Rate) -> int:
    """What a call costs: every class at its price, rounded half up once, at the end."""
    price = rate.at(usage.prompt_tokens)
    product = (
        usage.input_tokens * price.input_nanos_per_mtok
        + usage.output_tokens * price.output_nanos_per_mtok
        + usage.cache_write_5m_tokens * price.cache_write_5m_nanos_per_mtok
        + usage.cache_write_1h_tokens * price.cache_write_1h_nanos_per_mtok
        + usage.cache_read_tokens * price.cache_read_nanos_per_mtok
    )
    return (product + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE


def most_input_tokens(text: str) -> int:
    """How many tokens a text has at the most: 2.5 ASCII characters make one, and any other character makes two."""
    ascii_chars = len(text.encode("ascii", "ignore"))
    return math.ceil(ascii_chars / ASCII_CHARS_PER_TOKEN_MIN) + TOKENS_PER_CHAR_MAX * (len(text) - ascii_chars)


def counted_input_tokens(counted: int) -> int:
    """What a provider's own count comes to at the most: it may differ a little from what is billed."""
    return math.ceil(counted * COUNT_MARGIN) + COUNT_MARGIN_TOKENS


def reserve_nanos(input_tokens: int, max_tokens: int, rate: Rate, *, prompt_cache: str = "off") -> int:
    """The most that a call can cost: all input at the dearest price that applies, output to its limit; rounded up."""
    price = rate.at(input_tokens)
    input_prices = {
        "off": price.input_nanos_per_mtok,
        "5m": price.cache_write_5m_nanos_per_mtok,
        "1h": price.cache_write_1h_nanos_per_mtok,
    }
    input_price = max(price.input_nanos_per_mtok, input_prices[prompt_cache])
    product = input_tokens * input_price + max_tokens * price.output_nanos_per_mtok
    return -(-product // TOKENS_PER_PRICE)
