"""The prompt cache: which prefixes are warm, and how a call's input splits into read, written and plain."""

from dataclasses import dataclass

PREFIX_TOKENS_MIN = 1_024
ENTRIES_MAX = 10_000
# The real API looks back at most so many blocks from a breakpoint.
LOOKBACK_BLOCKS = 20
LIFETIMES_S = {"5m": 300.0, "1h": 3_600.0}


@dataclass(frozen=True, slots=True)
class Prefix:
    """The request up to and including one block; `ttl` is set where that block is a breakpoint."""

    digest: bytes
    tokens: int
    ttl: str | None = None


@dataclass(frozen=True, slots=True)
class InputUsage:
    plain_tokens: int
    written_tokens: int = 0
    read_tokens: int = 0
    ttl: str = "5m"

    @property
    def total_tokens(self) -> int:
        return self.plain_tokens + self.written_tokens + self.read_tokens


class PromptCache:
    def __init__(self) -> None:
        self._warm_until_s: dict[bytes, float] = {}

    def split(self, prefixes: tuple[Prefix, ...], *, input_tokens: int, now_s: float) -> InputUsage:
        """What this call reads, writes and pays plainly. Nothing is written until `keep`."""
        last = max((at for at, prefix in enumerate(prefixes) if prefix.ttl), default=None)
        if last is None:
            return InputUsage(input_tokens)
        read_tokens = 0
        for prefix in reversed(prefixes[max(0, last - LOOKBACK_BLOCKS) : last + 1]):
            if self._warm_until_s.get(prefix.digest, 0.0) > now_s:
                read_tokens = prefix.tokens
                break
        end = prefixes[last]
        written_tokens = end.tokens - read_tokens if end.tokens >= PREFIX_TOKENS_MIN else 0
        return InputUsage(input_tokens - written_tokens - read_tokens, written_tokens, read_tokens, end.ttl or "5m")

    def keep(self, prefixes: tuple[Prefix, ...], *, speed_up: float, now_s: float) -> None:
        """For a call that has completed: others read now what it wrote, and reading prolongs the lifetime."""
        for prefix in prefixes:
            if prefix.ttl and prefix.tokens >= PREFIX_TOKENS_MIN:
                self._warm_until_s.pop(prefix.digest, None)
                self._warm_until_s[prefix.digest] = now_s + LIFETIMES_S[prefix.ttl] / speed_up
        while len(self._warm_until_s) > ENTRIES_MAX:
            del self._warm_until_s[next(iter(self._warm_until_s))]
