"""The sliding window against hand-made cases, the bounds of list scheduling and the orchestrator's own limiter."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_provider import Call, Door, Provider, play

from estimator_service.domain.bucket import Array, Demand, Limit
from estimator_service.domain.long_window import approximated_s
from estimator_service.domain.window import Work, walked_s
from orchestrator_service.domain.rate_limit import RateLimit

NO_LIMIT = 1_000_000_000_000


def work(*seconds: float, demands: tuple[Demand, ...] = ()) -> Work:
    return Work(seconds=np.array([seconds]), demands=demands, sizes=(len(seconds),), scales=(1.0,))


def requests(count: int, *, per_minute: float) -> Demand:
    return Demand(limit=Limit(name="requests", per_minute=per_minute), amounts=np.ones((1, count)))


def test_one_slot_does_one_after_the_other() -> None:
    assert walked_s(work(5, 4, 3), slots=1).tolist() == [12]


def test_a_slot_takes_the_next_as_soon_as_it_is_free() -> None:
    # 6 and 5 start; 4 follows 5, 3 follows 6: never a wave.
    assert walked_s(work(6, 5, 4, 3), slots=2).tolist() == [9]


@pytest.mark.parametrize("slots", [3, 5])
def test_as_many_slots_as_conversations_take_the_longest(slots: int) -> None:
    assert walked_s(work(6, 5, 4), slots=slots).tolist() == [6]


def test_a_full_bucket_delays_nobody_and_an_empty_one_by_its_refill() -> None:
    # A minute's worth is there at the start, less what a quarter of a second may take away.
    assert walked_s(work(1, 1, 1, demands=(requests(3, per_minute=60),)), slots=3).tolist() == [1]
    limited = walked_s(work(1, 1, 1, 1, demands=(requests(4, per_minute=3),)), slots=4)
    assert limited.tolist() == [pytest.approx(20 + 0.25 + 1)]


def test_what_is_larger_than_the_bucket_waits_for_a_full_one() -> None:
    demand = Demand(limit=Limit(name="input tokens", per_minute=600), amounts=np.array([[10.0, 5_000.0]]))
    assert walked_s(work(1, 1, demands=(demand,)), slots=2).tolist() == [2]


def test_what_is_in_flight_takes_slots_until_it_ends() -> None:
    assert walked_s(work(5, 5), slots=2, busy_s=np.array([[3.0]])).tolist() == [8]
    assert walked_s(work(5), slots=2, busy_s=np.array([[3.0, 4.0]])).tolist() == [8]


def test_what_is_in_flight_beyond_the_slots_makes_no_room_and_counts_for_the_end() -> None:
    # Of three calls in flight at a concurrency that was lowered to one, the last one's end makes room.
    assert walked_s(work(5), slots=1, busy_s=np.array([[3.0, 9.0, 4.0]])).tolist() == [14]
    assert walked_s(work(1), slots=4, busy_s=np.array([[3.0, 9.0, 4.0]])).tolist() == [9]


def test_an_empty_queue_takes_as_long_as_what_is_in_flight() -> None:
    empty = Work(seconds=np.zeros((2, 0)))
    assert walked_s(empty, slots=3, busy_s=np.array([[3.0, 4.0], [1.0, 0.5]])).tolist() == [4, 1]
    assert walked_s(empty, slots=3).tolist() == [0, 0]


def test_a_running_batch_has_used_up_the_burst_of_every_limit() -> None:
    begun = walked_s(work(1, demands=(requests(1, per_minute=6),)), slots=2, busy_s=np.array([[2.0]]))
    assert begun.tolist() == [11]
    output = Demand(
        limit=Limit(name="output tokens", per_minute=600, counted_late=True),
        amounts=np.array([[50.0]]),
        expected=np.array([[50.0]]),
    )
    assert walked_s(work(1, demands=(output,)), slots=2, busy_s=np.array([[2.0]])).tolist() == [6]


@pytest.mark.parametrize("concurrency", [1, 3, 10, 90, 200])
def test_the_time_is_never_under_the_bounds_of_list_scheduling(concurrency: int) -> None:
    seconds = np.random.default_rng(3).lognormal(4, 0.5, (20, 90))
    slots = min(concurrency, 90)
    simulated = walked_s(Work(seconds=seconds, sizes=(90,), scales=(1.0,)), slots=concurrency)
    average, longest = seconds.sum(axis=1) / slots, seconds.max(axis=1)
    assert (simulated >= np.maximum(average, longest) - 1e-9).all()
    assert (simulated <= average + longest).all()


def drawn(draws: int, count: int, *, seed: int, tokens: float = 2_300.0) -> tuple[Array, Array, Array]:
    """Seconds, input tokens and output tokens."""
    rng = np.random.default_rng(seed)
    output = np.floor(tokens * rng.lognormal(-0.06, 0.36, (draws, count)))
    return 1 + output / 36, np.floor(2_300 * rng.lognormal(0, 0.1, (draws, count))), output


def engine_s(
    seconds: Array, input_tokens: Array, output: Array, *, expected: float, limit: Limit, concurrency: int
) -> float:
    """The same calls through the orchestrator's own limiter, against a provider with such a bucket."""
    per_minute = {"requests": NO_LIMIT, "input tokens": NO_LIMIT, "output tokens": NO_LIMIT}
    per_minute[limit.name] = int(limit.per_minute)
    doors = [Door(each, 60.0) for each in per_minute.values()]
    provider = Provider(doors[0], doors[1], doors[2])
    own = RateLimit(requests_per_minute=None, speed_up=1.0, now_s=0.0)
    told = provider.told(0.0)
    assert told is not None
    own.learn(told, 0.0)
    calls = [
        Call(
            comes_s=0.0,
            input_tokens=int(tokens),
            output_reserved=expected,
            output_tokens=int(out),
            transit_s=0.0,
            answer_s=took_s,
        )
        for took_s, tokens, out in zip(seconds.tolist(), input_tokens.tolist(), output.tolist(), strict=True)
    ]
    return play(calls, provider, own, concurrency=concurrency).done_s


@pytest.mark.parametrize("concurrency", [3, 10, 90])
@pytest.mark.parametrize(
    "limit",
    [
        Limit(name="requests", per_minute=2),
        Limit(name="requests", per_minute=6),
        Limit(name="input tokens", per_minute=5_000),
        Limit(name="input tokens", per_minute=15_000),
        Limit(name="output tokens", per_minute=5_000, counted_late=True),
        Limit(name="output tokens", per_minute=12_000, counted_late=True),
        Limit(name="output tokens", per_minute=21_000, counted_late=True),
        Limit(name="output tokens", per_minute=200_000, counted_late=True),
    ],
    ids=lambda limit: f"{limit.per_minute:g} {limit.name}",
)
def test_it_takes_as_long_as_the_orchestrators_own_limiter_lets_it(limit: Limit, concurrency: int) -> None:
    ratios: list[float] = []
    for seed in range(3):
        seconds, input_tokens, output = drawn(1, 90, seed=seed)
        expected = float(output.mean())
        amounts = {"requests": np.ones((1, 90)), "input tokens": input_tokens, "output tokens": output}[limit.name]
        demand = Demand(limit=limit, amounts=amounts, expected=np.full((1, 90), expected))
        simulated = walked_s(Work(seconds=seconds, demands=(demand,), sizes=(90,), scales=(1.0,)), slots=concurrency)
        real = engine_s(seconds[0], input_tokens[0], output[0], expected=expected, limit=limit, concurrency=concurrency)
        ratios.append(real / float(simulated[0]))
    # Of what is counted early, what replies tell of the provider's bucket is taken to be known all the time.
    assert np.mean(ratios) == pytest.approx(1, abs=0.005 if limit.counted_late else 0.025)


SIZES = (1_000, 1_200, 800)


def large(*, limit: str, share: float, concurrency: int, draws: int = 40) -> Work:
    """3,000 conversations of three groups; the limit allows `share` of what the slots would do."""
    parts = [
        drawn(draws, size, seed=at, tokens=tokens)
        for at, (size, tokens) in enumerate(zip(SIZES, (5_000, 4_000, 3_000), strict=True))
    ]
    seconds, input_tokens, output = (np.hstack([part[kind] for part in parts]) for kind in range(3))
    # Batches differ as well: some draws are bound by what others are not.
    drift = np.random.default_rng(9).lognormal(0, 0.1, (draws, 1))
    seconds, output = seconds * drift, output * drift
    amounts = {"requests": np.ones_like(seconds), "input tokens": input_tokens, "output tokens": output}
    demands: tuple[Demand, ...] = ()
    if limit:
        per_minute = share * concurrency * 60 / float(seconds.mean()) * float(amounts[limit].mean())
        expected = np.hstack(
            [
                np.broadcast_to(each.mean(axis=1, keepdims=True), each.shape)
                for each in np.split(output, np.cumsum(SIZES[:-1]), axis=1)
            ]
        )
        kind = Limit(name=limit, per_minute=per_minute, counted_late=limit == "output tokens")
        demands = (Demand(limit=kind, amounts=amounts[limit], expected=expected),)
    return Work(seconds=seconds, demands=demands, sizes=SIZES, scales=(1.0,) * 3)


@pytest.mark.parametrize(
    ("limit", "share"),
    [("", 0.0), ("requests", 0.7), ("output tokens", 0.5), ("output tokens", 0.9)],
)
@pytest.mark.parametrize("concurrency", [1, 20, 1_000])
def test_what_is_too_large_to_walk_through_is_told_as_the_walk_would_tell_it(
    concurrency: int, limit: str, share: float
) -> None:
    batch = large(limit=limit, share=share, concurrency=concurrency)
    walked, told = walked_s(batch, slots=concurrency), approximated_s(batch, slots=concurrency)
    assert told.mean() == pytest.approx(walked.mean(), rel=0.02)
    # Where a third of the batch is in flight together, its end is most of it.
    off = 0.07 if concurrency == 1_000 else 0.03
    for quantile in (0.1, 0.9):
        assert np.quantile(told, quantile) == pytest.approx(np.quantile(walked, quantile), rel=off)


def test_a_large_batch_that_runs_already_is_told_as_the_walk_would_tell_it() -> None:
    batch = large(limit="requests", share=0.7, concurrency=10)
    busy_s = np.random.default_rng(4).uniform(0, 150, (40, 10))
    walked = walked_s(batch, slots=10, busy_s=busy_s).mean()
    assert approximated_s(batch, slots=10, busy_s=busy_s).mean() == pytest.approx(walked, rel=0.02)
    wide = large(limit="requests", share=0.9, concurrency=1_000)
    walked = walked_s(wide, slots=1_000, busy_s=busy_s).mean()
    assert approximated_s(wide, slots=1_000, busy_s=busy_s).mean() == pytest.approx(walked, rel=0.04)


@pytest.mark.parametrize("concurrency", [10, 1_000])
def test_a_sampled_batch_is_told_as_the_whole_one(concurrency: int) -> None:
    whole = large(limit="", share=0.0, concurrency=concurrency)
    sampled = whole.thinned(1_500)
    scaled = Work(
        seconds=sampled.seconds,
        sizes=sampled.sizes,
        scales=tuple(size / kept for size, kept in zip(SIZES, sampled.sizes, strict=True)),
    )
    told = approximated_s(scaled, slots=concurrency).mean()
    off = 0.04 if concurrency == 1_000 else 0.02
    assert told == pytest.approx(walked_s(whole, slots=concurrency).mean(), rel=off)
