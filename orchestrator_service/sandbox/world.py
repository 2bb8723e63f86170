"""What one sandbox process knows while it runs: its settings, counts, limits and warm prefixes."""

import asyncio
from collections.abc import Mapping

from orchestrator_service.sandbox.cache import PromptCache
from orchestrator_service.sandbox.clock import Clock
from orchestrator_service.sandbox.limits import Limits
from orchestrator_service.sandbox.settings import Settings, changed
from orchestrator_service.sandbox.stats import Stats

SHAPING_LIMITS = (
    "speed_up",
    "requests_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "burst_s",
)


class World:
    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.stats = Stats()
        self.cache = PromptCache()
        self.limits = Limits(settings, now_s=clock.now_s())
        self._may_generate = asyncio.Event()
        self._open_gate()

    def change(self, changes: Mapping[str, object]) -> None:
        """All changes or, by SettingError, none. A change to any limit fills all three buckets."""
        self.settings = changed(self.settings, changes)
        if any(name in changes for name in SHAPING_LIMITS):
            self.limits = Limits(self.settings, now_s=self.clock.now_s())
        self._open_gate()

    def reset_stats(self) -> None:
        self.stats = self.stats.emptied()

    async def until_unpaused(self) -> None:
        await self._may_generate.wait()

    def announced(self) -> dict[str, str]:
        """The headers that every answer under /v1 carries."""
        told = self.limits.headers(now_s=self.clock.now_s(), utc_now=self.clock.utc_now())
        told["parley-sandbox-speed-up"] = str(self.settings.speed_up_announced)
        return told

    def _open_gate(self) -> None:
        if self.settings.paused:
            self._may_generate.clear()
        else:
            self._may_generate.set()
