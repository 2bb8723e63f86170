"""A spec made ready: planned, its templates compiled, everything wrong with it found before a cent is spent."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from orchestrator_service.domain.plan import Item, Plan
from orchestrator_service.domain.spec import Builtins, Finding, Spec, Tier, content_sha256, findings, with_builtin_axes
from orchestrator_service.generation.prompts import Filled, Prompts

MAX_OUTPUT_TOKENS = 8_192
# What an answer cut at its limit may have the second time, at the most.
MORE_OUTPUT_TOKENS = 32_000


class Planned:
    """The plan and prompts of one spec. Nothing in it is per conversation, so its size does not grow with the count."""

    def __init__(self, spec: Spec, builtins: Builtins) -> None:
        self.spec = with_builtin_axes(spec, builtins)
        self.sha256 = content_sha256(spec)
        self._builtins = builtins

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.spec)

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.spec, self._builtins)

    def findings(self, is_left: Callable[[], bool] = lambda: False) -> list[Finding]:
        """Errors first. Fills every prompt where the spec's shape allows it: seconds of CPU for 100,000.

        `is_left` says that nobody waits for them any more.
        """
        found = findings(self.spec)
        if not any(finding.severity == "ERROR" for finding in found):
            found += self.prompts.check(self.plan, is_left) + self.plan.findings()
        return sorted(found, key=lambda finding: finding.severity)

    def filled(self, number: int) -> Filled:
        return self.prompts.render(self.plan.item(number))

    def item(self, number: int) -> Item:
        return self.plan.item(number)

    def ready(self) -> Planned:
        """Itself, with every template compiled and every draw made: tens of milliseconds, so not on the loop."""
        for tier, total in self.plan.tier_totals.items():
            if total:
                self.filled(self.plan.numbers(tier)[0])
        return self


def max_tokens(tier: Tier, *, more: bool = False) -> int:
    """The most output tokens of one call; doubled for an answer that was cut."""
    asked = tier.max_output_tokens or MAX_OUTPUT_TOKENS
    return max(asked, min(2 * asked, MORE_OUTPUT_TOKENS)) if more else asked
