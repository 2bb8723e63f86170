"""Batches that have ended, in the order of time, and what was known of one of them at a stage of its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from estimator_service.domain.observation import Observation, Outcome, Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One conversation of one call. Seconds are wall time since its batch began."""

    tier: str
    input_tokens: int
    output_tokens: int
    start_s: float
    end_s: float
    # None where it was not streamed.
    first_token_s: float | None = None
    cost_nanos: float = 0.0
    max_output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far a batch differs from its series, as logarithms of factors that all its calls share."""

    tokens: float
    speed: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    name: str
    began: datetime
    # In the order of their start.
    calls: tuple[Call, ...]
    # Wall time of the whole; 0 where the series tells no time.
    time_s: float
    # None where nobody knows.
    drift: Drift | None = None

    @cached_property
    def cost_nanos(self) -> float:
        return sum(call.cost_nanos for call in self.calls)


@dataclass(frozen=True, kw_only=True)
class Series:
    """The batches of one model at one provider."""

    name: str
    # Rows are of all series of one kind.
    kind: str
    model: str
    concurrency: int
    speed_up: float = 1.0
    # Each lane is a run through the series from its beginning to its end; lanes overlap, batches of a lane do not.
    lanes: tuple[tuple[Batch, ...], ...]
    # What is scored: "cost", "time".
    measures: tuple[str, ...]
    # Whether the calls have durations.
    is_timed: bool = True
    # Whether a few prompts are counted before every batch, as the orchestrator does, or only where nothing was seen.
    counts_prompts: bool = False

    @property
    def batches(self) -> tuple[Batch, ...]:
        return tuple(batch for lane in self.lanes for batch in lane)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(call for batch in self.batches for call in batch.calls)


@dataclass(frozen=True, kw_only=True)
class InFlight:
    tier: str
    age_s: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """All that may be used to say what a batch will take. Nothing in here happened after `now`."""

    now: datetime
    # Of earlier batches, then what finished of this one.
    observations: tuple[Observation, ...]
    batch: str
    # Nobody has started these; every tier of the batch is named.
    waiting: dict[str, int]
    max_output_tokens: dict[str, int]
    # Mean input tokens by tier of a few prompts, counted before the start; empty where past batches tell.
    counted: dict[str, float]
    in_flight: tuple[InFlight, ...] = ()
    finished: tuple[Call, ...] = ()
    # Since the batch began; 0 before.
    elapsed_s: float = 0.0

    @property
    def has_begun(self) -> bool:
        return bool(self.finished)

    @property
    def spent_nanos(self) -> float:
        return sum(call.cost_nanos for call in self.finished)


SAMPLE_PROMPTS = 5


def known(series: Series, lane: int, at: int, *, past: int, done: float) -> Known:
    """Of batch `at` after `past` earlier ones, at the moment when a share of `done` of its conversations has ended."""
    batches = series.lanes[lane]
    batch = batches[at]
    earlier = batches[at - past : at]
    observations = [seen for each in earlier for seen in _observations(series, each, each.calls)]
    tiers = {call.tier: call.max_output_tokens for call in batch.calls}
    counted = _counted(batch.calls) if series.counts_prompts or not earlier else {}
    if not done:
        return Known(
            now=batch.began,
            observations=tuple(observations),
            batch=batch.name,
            waiting=_by_tier(tiers, batch.calls),
            max_output_tokens=tiers,
            counted=counted,
        )
    finished, in_flight, waiting, elapsed_s = _cut(series, batch, round(done * len(batch.calls)))
    return Known(
        now=batch.began + timedelta(seconds=elapsed_s),
        observations=(*observations, *_observations(series, batch, finished)),
        batch=batch.name,
        waiting=_by_tier(tiers, waiting),
        max_output_tokens=tiers,
        counted=counted,
        in_flight=tuple(InFlight(tier=call.tier, age_s=elapsed_s - call.start_s) for call in in_flight),
        finished=tuple(finished),
        elapsed_s=elapsed_s,
    )


def _cut(series: Series, batch: Batch, finished: int) -> tuple[Sequence[Call], Sequence[Call], Sequence[Call], float]:
    """What had finished, what was in flight and what waited when so many had finished, and when that was."""
    if not series.is_timed:
        # Nobody knows what overlapped: in the order of their start, none in flight.
        return batch.calls[:finished], (), batch.calls[finished:], batch.calls[finished - 1].end_s
    by_end = sorted(range(len(batch.calls)), key=lambda at: batch.calls[at].end_s)
    elapsed_s = batch.calls[by_end[finished - 1]].end_s
    # In the order of their start: that of their end would tell what nobody knows yet.
    others = [batch.calls[at] for at in sorted(by_end[finished:])]
    under_way = [call for call in others if call.start_s <= elapsed_s]
    waiting = [call for call in others if call.start_s > elapsed_s]
    return [batch.calls[at] for at in by_end[:finished]], under_way, waiting, elapsed_s


def _by_tier(tiers: dict[str, int], calls: Sequence[Call]) -> dict[str, int]:
    return {tier: sum(call.tier == tier for call in calls) for tier in tiers}


def _counted(calls: Sequence[Call]) -> dict[str, float]:
    """The prompts of a batch are known before it starts, and a few of each tier are counted."""
    samples: dict[str, list[int]] = {}
    for call in calls:
        samples.setdefault(call.tier, []).append(call.input_tokens)
    return {tier: sum(each[:SAMPLE_PROMPTS]) / len(each[:SAMPLE_PROMPTS]) for tier, each in samples.items()}


def _observations(series: Series, batch: Batch, calls: Sequence[Call]) -> list[Observation]:
    return [_observation(series, batch, call, number) for number, call in enumerate(calls)]


def _observation(series: Series, batch: Batch, call: Call, number: int) -> Observation:
    delay_s = call.first_token_s
    return Observation(
        call=f"{batch.name}/calls/{number}",
        tier=call.tier,
        model=series.model,
        provider=series.name,
        outcome=Outcome.ANSWERED,
        purpose=Purpose.GENERATE,
        input_tokens=call.input_tokens,
        output_tokens=call.output_tokens,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        cache_read_tokens=0,
        thinking_tokens=0,
        # 0 says that it was not told.
        duration=timedelta(seconds=call.end_s - call.start_s if series.is_timed else 0.0),
        first_token_delay=None if delay_s is None else timedelta(seconds=delay_s),
        speed_up=series.speed_up,
        prompt_fingerprint="",
        batch=batch.name,
        effort="",
        max_output_tokens=call.max_output_tokens,
        end_time=batch.began + timedelta(seconds=call.end_s),
    )
