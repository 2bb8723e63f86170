"""The model's server as this process knows it: its calls, and what it announced of speed, limits and models."""

from __future__ import annotations

from urllib.parse import urlsplit

import structlog

from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.limiter import Limiter, PerMinute
from orchestrator_service.generation.claude import Announcement, Claude, Probe, Reply, Request

MINUTE_S = 60.0
FRESH_S = 60.0

log = structlog.get_logger()


class Provider:
    """Keeps the limiter at the pace of what the server announces: a sandbox's minutes are shorter."""

    def __init__(self, claude: Claude, *, base_url: str, limiter: Limiter, clock: Clock) -> None:
        self.base_url = _shown(base_url)
        self._claude = claude
        self._limiter = limiter
        self._clock = clock
        self._announced = Announcement()
        self._asked_s: float | None = None
        # When it could not count tokens.
        self._uncounted_s: float | None = None

    async def send(self, request: Request) -> Reply:
        return await self._claude.send(request)

    async def count_tokens(self, request: Request) -> int | None:
        """None where the server can't tell; it is then not asked again for a minute."""
        now_s = self._clock.monotonic_s()
        if self._uncounted_s is not None and now_s - self._uncounted_s < FRESH_S:
            return None
        counted = await self._claude.count_tokens(request)
        self._uncounted_s = now_s if counted is None else None
        return counted

    async def announcement(self) -> Announcement:
        """What the server says of itself; asked again after a minute, or at once where it did not answer."""
        now_s = self._clock.monotonic_s()
        if self._asked_s is not None and now_s - self._asked_s < FRESH_S and self._announced.failure is None:
            return self._announced
        announced = await self._claude.announcement()
        # A server that is down for a moment has not changed its speed.
        if announced.failure is None or self._announced.failure is not None or self._asked_s is None:
            self._take(announced)
        self._asked_s = now_s
        return self._announced

    async def allowed(self, model: str) -> PerMinute:
        """The limits that hold for the model, in real minutes, as far as they are known."""
        announced = await self.announcement()
        if announced.limits is not None:
            self._limiter.learn(model, announced.limits)
        return self._limiter.limits(model)

    async def probe(self, model: str) -> Probe:
        probe = await self._claude.probe(model)
        if probe.limits is not None:
            self._limiter.learn(model, probe.limits)
        return probe

    async def close(self) -> None:
        await self._claude.aclose()

    def _take(self, announced: Announcement) -> None:
        self._announced = announced
        self._limiter.rescale(window_s=MINUTE_S / announced.speed_up)
        log.info("provider", base_url=self.base_url, sandbox=announced.sandbox, speed_up=announced.speed_up)


def _shown(base_url: str) -> str:
    """Without the credentials that a URL may carry."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"
