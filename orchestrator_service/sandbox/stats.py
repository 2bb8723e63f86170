"""What this process has done: calls started and paid, in all and for every prompt."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class PromptCount:
    started: int = 0
    paid: int = 0


@dataclass(slots=True)
class Stats:
    """All changes happen on the event loop without an await between, so the counts are exact.

    Grows with the number of distinct prompts; `POST /stats/reset` empties it.
    """

    calls_started: int = 0
    # Turned away by a rate limit before they counted as started, so that the texts do not depend on timing.
    calls_limited: int = 0
    calls_completed: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    paid_faults: Counter[str] = field(default_factory=Counter[str])
    prompts: dict[str, PromptCount] = field(default_factory=dict[str, PromptCount])

    def enter(self, prompt_sha256: str) -> int:
        """Starts a call and says which attempt at this prompt it is, from 1."""
        self.calls_started += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        count = self.prompts.setdefault(prompt_sha256, PromptCount())
        count.started += 1
        return count.started

    def leave(self) -> None:
        self.in_flight -= 1

    def pay(self, prompt_sha256: str, *, tokens_in: int, tokens_out: int, fault: str | None) -> None:
        self.calls_completed += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.prompts.setdefault(prompt_sha256, PromptCount()).paid += 1
        if fault is not None:
            self.paid_faults[fault] += 1

    def emptied(self) -> "Stats":
        """A fresh start that still knows the calls in flight. Attempts count from 1 again."""
        return Stats(in_flight=self.in_flight, in_flight_max=self.in_flight)

    def as_json(self, *, all_prompts: bool) -> dict[str, object]:
        told: dict[str, object] = {
            "calls_started": self.calls_started,
            "calls_limited": self.calls_limited,
            "calls_completed": self.calls_completed,
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "faults": dict(self.faults),
            "paid_faults": dict(self.paid_faults),
            "prompts_distinct": len(self.prompts),
            "prompts_paid_more_than_once": self._listed(paid_at_least=2),
            "paid_by_prompt_max": max((count.paid for count in self.prompts.values()), default=0),
        }
        if all_prompts:
            told["prompts"] = self._listed(paid_at_least=0)
        return told

    def _listed(self, *, paid_at_least: int) -> list[dict[str, object]]:
        return [
            {"prompt_sha256": sha256, "started": count.started, "paid": count.paid}
            for sha256, count in self.prompts.items()
            if count.paid >= paid_at_least
        ]
