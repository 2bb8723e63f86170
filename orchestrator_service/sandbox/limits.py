"""The rate limits: three token buckets that refill all the time, and the headers that tell of them."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator_service.sandbox.settings import Settings


@dataclass(slots=True)
class Bucket:
    """Refills at the limit times the speed-up, up to a minute's worth or what else the setting says."""

    per_minute: int
    speed_up: float
    full: float
    level: float
    at_s: float

    @property
    def per_second_here(self) -> float:
        return self.per_minute * self.speed_up / 60

    def refill(self, *, now_s: float) -> None:
        self.level = min(self.full, self.level + (now_s - self.at_s) * self.per_second_here)
        self.at_s = now_s

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken. More than a full bucket holds can be taken from a full one."""
        return max(0.0, min(amount, self.full) - self.level) / self.per_second_here


@dataclass(frozen=True, slots=True)
class Exceeded:
    bucket: str
    per_minute: int
    wait_s: float


class Limits:
    def __init__(self, settings: Settings, *, now_s: float) -> None:
        def full(per_minute: int) -> Bucket:
            # However short the burst is, one request always fits.
            holds = max(1.0, per_minute * settings.burst_s / 60)
            return Bucket(per_minute, settings.speed_up, holds, holds, now_s)

        self._requests = full(settings.requests_per_minute)
        self._input = full(settings.input_tokens_per_minute)
        self._output = full(settings.output_tokens_per_minute)

    def admit(self, *, input_tokens: int, now_s: float) -> Exceeded | None:
        """Takes one request and its input tokens, or nothing at all.

        How long an answer gets is not known yet, so output needs only something left: `charge_output`
        takes the true number at the end, and the bucket may go below zero until it has refilled.
        """
        wanted = (("requests", self._requests, 1), ("input tokens", self._input, input_tokens))
        for name, bucket, amount in (*wanted, ("output tokens", self._output, 1)):
            bucket.refill(now_s=now_s)
            wait_s = bucket.wait_s(amount)
            if wait_s > 0:
                return Exceeded(name, bucket.per_minute, wait_s)
        for _, bucket, amount in wanted:
            bucket.level -= amount
        return None

    def charge_output(self, *, output_tokens: int, now_s: float) -> None:
        self._output.refill(now_s=now_s)
        self._output.level -= output_tokens

    def headers(self, *, now_s: float, utc_now: datetime) -> dict[str, str]:
        """`limit` is what refills in a minute here; `remaining` is what may be sent this instant.

        As with the real API, the combined `tokens` is whichever of the two is nearer its end.
        """
        for bucket in (self._requests, self._input, self._output):
            bucket.refill(now_s=now_s)
        nearer = min(self._input, self._output, key=lambda bucket: bucket.level / bucket.full)
        told: dict[str, str] = {}
        for name, bucket in (
            ("requests", self._requests),
            ("input-tokens", self._input),
            ("output-tokens", self._output),
            ("tokens", nearer),
        ):
            full_at = utc_now + timedelta(seconds=bucket.wait_s(bucket.full))
            told[f"anthropic-ratelimit-{name}-limit"] = str(int(bucket.per_minute * bucket.speed_up))
            told[f"anthropic-ratelimit-{name}-remaining"] = str(max(0, int(bucket.level)))
            told[f"anthropic-ratelimit-{name}-reset"] = full_at.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
        return told
