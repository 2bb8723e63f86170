"""What figures rest on: nothing but the prior, calls of earlier batches, calls of the batch itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from estimator_service.domain.estimate import GroupEstimate


class Source(Enum):
    PRIOR = auto()
    OBSERVATIONS = auto()
    # Calls of the batch itself.
    PILOT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Observed calls of these very prompts, of other prompts of the same models, and of the batch itself."""

    own: int = 0
    others: int = 0
    of_batch: int = 0

    @property
    def source(self) -> Source:
        if self.of_batch:
            return Source.PILOT
        return Source.OBSERVATIONS if self.own or self.others else Source.PRIOR

    @property
    def observations(self) -> int:
        return self.own + self.others

    @property
    def text(self) -> str:
        earlier = self.own - self.of_batch
        parts = [
            text
            for text, count in (
                (f"{_calls(self.of_batch)} of this batch", self.of_batch),
                (_calls(earlier) + (" of earlier batches" if self.of_batch else ""), earlier),
                (f"{_calls(self.others)} with other prompts", self.others),
            )
            if count
        ]
        return " and ".join(parts) or "built-in prior"


def basis_of(estimates: Iterable[GroupEstimate]) -> Basis:
    """Groups of one prompt rest on the same calls, which count once."""
    by_node = {(each.group.model, each.node): each for each in estimates}
    by_model = {each.group.model: each.learned.tokens.output for each in by_node.values()}
    total = sum(int(learned.observations.sum()) for learned in by_model.values())
    of_batch = sum(int(learned.of_batch.sum()) for learned in by_model.values())
    # Of the batch's own prompts some may have no conversation left: their earlier calls are of other prompts.
    earlier = sum(each.observations - each.of_batch for each in by_node.values())
    return Basis(own=earlier + of_batch, others=total - earlier - of_batch, of_batch=of_batch)


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
