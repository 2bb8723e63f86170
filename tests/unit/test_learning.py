"""What a sample says of the next batch: honest ranges, age, and what is in flight."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain import learning, level
from estimator_service.domain.learning import Learned, Prior, Sample, Told, learn
from estimator_service.domain.level import DRIFT_LOG_SD, DRIFT_MEDIAN, Array
from estimator_service.domain.shape import Shape

LOG_SD = 0.36
PRIOR = Prior(means=np.array([1_000.0]), covariance=np.array([[0.2]]), log_sd=LOG_SD)
TWO = Prior(means=np.array([1_000.0, 2_000.0]), covariance=np.array([[0.2, 0.12], [0.12, 0.2]]), log_sd=LOG_SD)
NOTHING = Sample(
    values=np.zeros(0),
    node=np.zeros(0, dtype=np.int64),
    batch=np.zeros(0, dtype=np.int64),
    censored=np.zeros(0, dtype=np.bool_),
    ended_s=np.zeros(0),
)


def sample(*batches: Array, node: int = 0, cut: float = math.inf, ended_s: Array | None = None) -> Sample:
    values = np.concatenate([*batches, np.zeros(0)])
    sizes = [len(each) for each in batches]
    return Sample(
        values=np.minimum(values, cut),
        node=np.full(len(values), node, dtype=np.int64),
        batch=np.repeat(np.arange(len(batches)), sizes),
        censored=values > cut,
        ended_s=np.full(len(values), np.nan) if ended_s is None else ended_s,
    )


def drawn(mean: float, size: int, rng: np.random.Generator, log_sd: float = LOG_SD) -> Array:
    values: Array = mean * np.exp(rng.standard_normal(size) * log_sd - log_sd**2 / 2)
    return values


def predicted(learned: Learned, conversations: int, rng: np.random.Generator) -> Array:
    """The mean of a batch, draw by draw."""
    levels = learned.medians[0] * np.exp(learned.levels.draw(200, rng)[:, 0])
    means: Array = levels * learned.shapes[0].draw((200, conversations), rng).mean(axis=1)
    return means


def hits(worlds: int, past: int) -> int:
    """How many of the worlds have the mean of their next batch within its 80 % range."""
    rng = np.random.default_rng(past)
    found = 0
    for _ in range(worlds):
        level = 1_000 * math.exp(math.sqrt(0.2) * rng.standard_normal() - 0.1)
        drift = min(DRIFT_MEDIAN * math.exp(DRIFT_LOG_SD * rng.standard_normal()), 0.5)
        means = level * np.exp(drift * rng.standard_normal(past + 1))
        *seen, actual = [drawn(mean, 30, rng) for mean in means.tolist()]
        low, high = np.quantile(predicted(learn(sample(*seen), PRIOR), 30, rng), (0.1, 0.9)).tolist()
        found += low <= float(actual.mean()) <= high
    return found


@pytest.mark.parametrize("past", [0, 3, 10])
def test_eighty_percent_ranges_hold_eighty_percent_of_the_time(past: int) -> None:
    # 99.9 % of a binomial of 300 at 0.8: 240 give or take 3.3 of its SD of 6.9.
    assert 217 <= hits(300, past) <= 263


def test_nothing_seen_leaves_the_priors_mean_and_its_doubt() -> None:
    learned = learn(NOTHING, PRIOR)
    assert learned.mean(0) == pytest.approx(1_000, rel=0.005)
    assert learned.levels.variance[0] == pytest.approx(0.2, rel=0.05)
    assert learned.observations.tolist() == learned.of_batch.tolist() == [0]


def test_the_mean_moves_to_what_was_seen() -> None:
    rng = np.random.default_rng(1)
    means = [learn(sample(*(drawn(2_000, 50, rng) for _ in range(count))), PRIOR).mean(0) for count in (1, 4, 16)]
    assert means[0] == pytest.approx(2_000, rel=0.12)
    assert means[2] == pytest.approx(2_000, rel=0.03)


def test_one_observation_moves_the_mean_a_part_of_the_way() -> None:
    assert 1_200 < learn(sample(np.array([2_000.0])), PRIOR).mean(0) < 1_900


def test_batches_that_differ_leave_more_doubt_than_batches_that_agree() -> None:
    rng = np.random.default_rng(2)
    agree = learn(sample(*(drawn(1_000, 50, rng) for _ in range(12))), PRIOR)
    differ = learn(sample(*(drawn(1_000 * (0.8, 1.2)[at % 2], 50, rng) for at in range(12))), PRIOR)
    assert differ.levels.variance[0] > 5 * agree.levels.variance[0]


def test_a_level_seen_long_ago_counts_less_than_a_new_one() -> None:
    old, new = np.full(30, 800.0), np.full(30, 1_200.0)
    times = np.repeat([0.0, 5 * 365 * 86_400.0], 30)
    faded = learn(sample(old, new, ended_s=times), PRIOR).mean(0)
    together = learn(sample(old, new, ended_s=np.zeros(60)), PRIOR).mean(0)
    untold = learn(sample(old, new), PRIOR).mean(0)
    assert faded > together + 20
    assert untold == pytest.approx(together)


def test_a_call_whose_time_was_not_told_is_as_good_as_a_new_one() -> None:
    values = np.full(30, 800.0)
    some = np.where(np.arange(30) % 2, np.nan, 0.0)
    assert learn(sample(values, ended_s=some), PRIOR).mean(0) == learn(sample(values), PRIOR).mean(0)


def test_what_was_cut_counts_for_more_than_it_had() -> None:
    rng = np.random.default_rng(3)
    whole = [drawn(1_500, 60, rng) for _ in range(6)]
    learned = learn(sample(*whole, cut=1_400), PRIOR)
    assert learned.mean(0) == pytest.approx(1_500, rel=0.06)
    dropped = learn(sample(*(each[each <= 1_400] for each in whole)), PRIOR)
    assert dropped.mean(0) < 1_150


def test_a_node_that_was_never_seen_follows_one_that_was() -> None:
    rng = np.random.default_rng(4)
    learned = learn(sample(*(drawn(2_000, 50, rng) for _ in range(4))), TWO)
    assert learned.mean(0) == pytest.approx(2_000, rel=0.06)
    assert 2_500 < learned.mean(1) < 3_600
    assert learned.levels.variance[1] > learned.levels.variance[0]
    assert learned.observations.tolist() == [200, 0]


def test_a_node_with_few_calls_has_the_spread_of_all() -> None:
    rng = np.random.default_rng(5)
    both = sample(drawn(1_000, 100, rng, log_sd=0.1), np.full(4, 2_000.0))
    node = np.repeat([0, 1], [100, 4])
    few = learn(
        Sample(values=both.values, node=node, batch=both.batch * 0, censored=both.censored, ended_s=both.ended_s), TWO
    )
    assert few.shapes[1].log_sd < 0.15
    assert few.shapes[1].pool is None


def test_the_batch_at_hand_knows_its_own_drift_and_others_do_not() -> None:
    rng = np.random.default_rng(6)
    past = [drawn(1_000 * (0.9, 1.1)[at % 2], 90, rng) for at in range(20)]
    own = drawn(1_200, 90, rng)
    everything = sample(*past, own)
    rest, other = learn(everything, PRIOR, current=20), learn(everything, PRIOR)
    assert rest.mean(0) == pytest.approx(1_190, rel=0.05)
    assert other.mean(0) == pytest.approx(1_010, rel=0.04)
    assert rest.levels.variance[0] < other.levels.variance[0] / 3
    assert (rest.of_batch.tolist(), other.of_batch.tolist()) == ([90], [0])


def test_what_the_batch_itself_showed_counts_once() -> None:
    own = drawn(1_500, 40, np.random.default_rng(12))
    learned = learn(sample(own), PRIOR, current=0)
    showed = learning.seen_of(own, learned.shapes[0], node=0, median=float(PRIOR.medians[0]))
    alone = level.fit(PRIOR.covariance, [], [showed])
    assert learned.levels.mean == pytest.approx(alone.mean)
    assert learned.levels.variance == pytest.approx(alone.variance)


def test_what_is_told_of_the_batch_counts_for_it() -> None:
    learned = learn(NOTHING, PRIOR, told=[Told(node=0, log_ratio=0.7, noise=0.0025, conversations=math.inf)])
    assert learned.levels.mean[0] == pytest.approx(0.7, abs=0.02)


def test_calls_that_have_just_begun_tell_nothing() -> None:
    own = np.random.default_rng(7).permutation(drawn(1_300, 10, np.random.default_rng(7)))
    without = learn(sample(own), PRIOR, current=0)
    begun = learn(sample(own), PRIOR, current=0, in_flight={0: np.zeros(80)})
    assert begun.mean(0) == pytest.approx(without.mean(0), rel=0.005)
    assert begun.levels.variance[0] == pytest.approx(without.levels.variance[0], rel=0.01)
    nothing = learn(NOTHING, PRIOR, in_flight={0: np.zeros(80)})
    assert nothing.levels.mean.tolist() == learn(NOTHING, PRIOR).levels.mean.tolist()


def test_calls_that_have_surpassed_what_was_expected_raise_it() -> None:
    surpassed = learn(NOTHING, PRIOR, in_flight={0: np.full(5, 2_000.0)})
    assert surpassed.mean(0) > 1_500
    assert surpassed.levels.variance[0] < 0.1


def test_short_answers_that_came_first_are_weighed_against_those_still_in_flight() -> None:
    rng = np.random.default_rng(8)
    known = [drawn(1_000, 90, rng) for _ in range(3)]
    errors: list[tuple[float, float]] = []
    for _ in range(40):
        mean = 1_000 * math.exp(0.3 * rng.standard_normal())
        own = drawn(mean, 60, rng)
        # All began together; a good half has ended.
        ended, bound = own[own < 0.95 * mean], 0.95 * mean
        flying = {0: np.full(60 - len(ended), bound)}
        with_flight = learn(sample(*known, ended), PRIOR, current=3, in_flight=flying).mean(0)
        finished_only = learn(sample(*known, ended), PRIOR, current=3).mean(0)
        errors.append((math.log(with_flight / mean), math.log(finished_only / mean)))
    bias, naive_bias = np.mean(errors, axis=0).tolist()
    assert naive_bias < -0.15
    # 40 batches of 60: the mean error's own SD is 0.36 / sqrt(40 * 40) = 0.01.
    assert abs(bias) < 0.03


def test_a_stalled_call_does_not_raise_the_others_without_bound() -> None:
    own = drawn(1_000, 20, np.random.default_rng(9))
    stalled = learn(sample(own), PRIOR, current=0, in_flight={0: np.array([1e12])})
    assert stalled.mean(0) < 1.15 * learn(sample(own), PRIOR, current=0).mean(0)


def test_resampled_values_are_judged_by_their_mean() -> None:
    two_spikes = Shape(log_sd=0.7, freedom=100, pool=np.repeat([0.2, 1.8], 50))
    found = learning.seen_of(np.array([200.0, 1_800.0] * 20), two_spikes, node=0, median=1_000)
    assert found.log_ratio == pytest.approx(0, abs=0.01)
    assert found.noise == pytest.approx(0.64 / 40, rel=0.01)


def test_one_value_of_a_wild_shape_is_no_wilder_than_a_lognormal() -> None:
    pool = np.sort(np.r_[np.full(99, 0.1), 90.1])
    found = learning.seen_of(np.array([100.0]), Shape(log_sd=1, freedom=100, pool=pool), node=0, median=1_000)
    assert abs(found.log_ratio) < 3


def test_in_flight_calls_of_a_resampled_shape_count_by_what_was_observed_beyond() -> None:
    rng = np.random.default_rng(10)
    past = [np.where(rng.random(100) < 0.4, 100.0, 1_000.0) * np.exp(0.02 * rng.standard_normal(100)) for _ in range(5)]
    assert learn(sample(*past), PRIOR).shapes[0].pool is not None
    own = past[0][:20]
    long = learn(sample(*past, own), PRIOR, current=5, in_flight={0: np.full(20, 300.0)})
    without = learn(sample(*past, own), PRIOR, current=5)
    assert 1.05 * without.mean(0) < long.mean(0) < 1.5 * without.mean(0)


@pytest.mark.parametrize("value", [1.0, 1e-4, 1e7])
def test_values_of_any_size_are_learned_without_trouble(value: float) -> None:
    learned = learn(
        sample(np.full(40, value), np.full(1, value)), PRIOR, current=1, in_flight={0: np.array([0.0, 1e9])}
    )
    assert math.isfinite(learned.mean(0))
    assert learned.mean(0) > 0


def test_only_cut_answers_still_give_a_mean_above_the_cut() -> None:
    rng = np.random.default_rng(11)
    learned = learn(sample(drawn(5_000, 50, rng), cut=2_000.0), PRIOR)
    assert 2_000 < learned.mean(0) < 4_000
    # Cut at less than was expected they say nothing against the expectation.
    assert learn(sample(drawn(5_000, 50, rng), cut=300.0), PRIOR).mean(0) == pytest.approx(1_000, rel=0.05)
