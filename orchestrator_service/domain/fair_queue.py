"""Who is next for a shared limit: owners evenly, an owner's batches by weight, first come first in a batch."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator_service.domain.rate_limit import NOTHING, Amounts

# A batch's weight in its owner's share, by priority: low, normal, high.
WEIGHTS = {1: 1.0, 2: 3.0, 3: 9.0}
WEIGHT_MAX = max(WEIGHTS.values())
# Starts are sums of many costs; those that differ by less are equal.
ROUNDING = 1e-9
# Those who left a batch's row are dropped once they outnumber those who wait by this.
LEFT_MAX = 16

T = TypeVar("T")
# What amounts cost in the order: a share of the limit.
Cost = Callable[[Amounts], float]


@dataclass(slots=True, eq=False, kw_only=True)
class Flow:
    """An owner or a batch: its next turn is at `start`, and each turn moves that on by the cost over the weight."""

    start: float
    # Among equal starts who came first goes first.
    number: int
    weight: float = 1.0
    waiting: int = 0
    # Of all who wait.
    amounts: Amounts = NOTHING

    def count(self, amounts: Amounts, *, sign: int) -> None:
        self.waiting += sign
        requests, input_tokens, output_tokens = self.amounts
        more, more_input, more_output = amounts
        self.amounts = (requests + sign * more, input_tokens + sign * more_input, output_tokens + sign * more_output)
        if self.waiting == 0:
            # What rounding left over must not add up.
            self.amounts = NOTHING

    def before(self, start: float, number: int, *, cost: Cost) -> Amounts:
        """What is let through of this flow until one with that start and number has its turn."""
        if self.waiting == 0 or start < self.start - ROUNDING:
            return NOTHING
        turn = cost(self.amounts) / self.waiting / self.weight
        turns = (start - self.start) / turn
        whole = math.floor(turns + ROUNDING) + 1 if self.number < number else math.ceil(turns - ROUNDING)
        part = min(1.0, whole / self.waiting)
        requests, input_tokens, output_tokens = self.amounts
        return requests * part, input_tokens * part, output_tokens * part


@dataclass(slots=True, eq=False, kw_only=True)
class _Owner(Flow, Generic[T]):
    id: str
    turns: list[tuple[float, int, _Batch[T]]] = field(default_factory=list)  # pyright: ignore[reportUnknownVariableType]


@dataclass(slots=True, eq=False, kw_only=True)
class _Batch(Flow, Generic[T]):
    id: str
    owner: _Owner[T]
    row: deque[Place[T]] = field(default_factory=deque)  # pyright: ignore[reportUnknownVariableType]

    def first(self) -> Place[T]:
        while self.row[0].left:
            self.row.popleft()
        return self.row[0]


@dataclass(slots=True, eq=False)
class Place(Generic[T]):
    """Somebody's place in the row of a batch."""

    batch: _Batch[T]
    amounts: Amounts
    who: T
    # Let through, or not waiting any more.
    left: bool = False


class FairQueue(Generic[T]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) on two levels; a step costs O(log n).

    Each flow has one entry in a heap. Where nobody of it waits any more it stays until its entry comes to the top:
    who leaves and comes back gains nothing by it. Who comes new starts one turn (of the shortest) after the top: idle
    time earns nothing, ever new ones keep nobody waiting, and the one whose turn it is, which may wait for tokens,
    keeps it.
    """

    def __init__(self) -> None:
        self._owners: dict[str, _Owner[T]] = {}
        self._batches: dict[str, _Batch[T]] = {}
        self._turns: list[tuple[float, int, _Owner[T]]] = []
        self._flows = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, *, owner: str, batch: str, weight: float, amounts: Amounts, cost: float, who: T) -> Place[T]:
        flow = self._batches.get(batch)
        if flow is None:
            flow = self._new_batch(batch, self._owners.get(owner) or self._new_owner(owner, cost), cost / WEIGHT_MAX)
        # It may have changed since the last one came.
        flow.weight = weight
        place = Place(flow, amounts, who)
        flow.row.append(place)
        self._count(place, sign=1)
        return place

    def head(self) -> Place[T] | None:
        """Whose turn it is."""
        while self._turns:
            owner = self._turns[0][2]
            if owner.waiting == 0:
                heapq.heappop(self._turns)
                self._forget(owner)
                continue
            batch = owner.turns[0][2]
            if batch.waiting == 0:
                heapq.heappop(owner.turns)
                del self._batches[batch.id]
                continue
            return batch.first()
        return None

    def let_through(self, place: Place[T], *, cost: float) -> None:
        """The head has what it waited for."""
        batch, owner = place.batch, place.batch.owner
        batch.row.popleft()
        batch.start += cost / batch.weight
        heapq.heapreplace(owner.turns, (batch.start, batch.number, batch))
        owner.start += cost
        heapq.heapreplace(self._turns, (owner.start, owner.number, owner))
        self._leave(place)

    def leave(self, place: Place[T]) -> None:
        """Does not wait any more; its entry goes when it would be its turn."""
        if place.left:
            return
        self._leave(place)
        batch = place.batch
        if len(batch.row) > 2 * batch.waiting + LEFT_MAX:
            batch.row = deque(place for place in batch.row if not place.left)

    def ahead(self, batch: str, *, cost: Cost) -> tuple[Amounts, Amounts] | None:
        """What is let through before the batch's first, and what that one wants. None where none of it waits.

        An estimate: within a flow all are taken for equally large. O(owners + the owner's batches).
        """
        flow = self._batches.get(batch)
        if flow is None or flow.waiting == 0:
            return None
        owner = flow.owner
        siblings = (turn[2] for turn in owner.turns if turn[2] is not flow)
        mine = _sum(batch.before(flow.start, flow.number, cost=cost) for batch in siblings)
        start = owner.start + cost(mine)
        others = (other for other in self._owners.values() if other is not owner)
        theirs = _sum(other.before(start, owner.number, cost=cost) for other in others)
        return _sum((mine, theirs)), flow.first().amounts

    def _new_owner(self, id: str, turn: float) -> _Owner[T]:
        start = self._turns[0][0] + turn if self._turns else 0.0
        owner = _Owner[T](id=id, start=start, number=self._next_number())
        self._owners[id] = owner
        heapq.heappush(self._turns, (owner.start, owner.number, owner))
        return owner

    def _new_batch(self, id: str, owner: _Owner[T], turn: float) -> _Batch[T]:
        start = owner.turns[0][0] + turn if owner.turns else 0.0
        batch = _Batch[T](id=id, owner=owner, start=start, number=self._next_number())
        self._batches[id] = batch
        heapq.heappush(owner.turns, (batch.start, batch.number, batch))
        return batch

    def _next_number(self) -> int:
        self._flows += 1
        return self._flows

    def _leave(self, place: Place[T]) -> None:
        place.left = True
        self._count(place, sign=-1)
        if self._waiting == 0:
            # Where nobody waits nobody was kept from anything: the order begins anew.
            self._owners.clear()
            self._batches.clear()
            self._turns.clear()

    def _count(self, place: Place[T], *, sign: int) -> None:
        self._waiting += sign
        place.batch.count(place.amounts, sign=sign)
        place.batch.owner.count(place.amounts, sign=sign)

    def _forget(self, owner: _Owner[T]) -> None:
        del self._owners[owner.id]
        for _, _, batch in owner.turns:
            del self._batches[batch.id]


def _sum(parts: Iterable[Amounts]) -> Amounts:
    requests, input_tokens, output_tokens = NOTHING
    for more, more_input, more_output in parts:
        requests, input_tokens, output_tokens = requests + more, input_tokens + more_input, output_tokens + more_output
    return requests, input_tokens, output_tokens
