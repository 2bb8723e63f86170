"""The spread about the mean: lognormal or as observed, what was cut, and what is not finished."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator_service.domain import shape
from estimator_service.domain.shape import GRID, POOL_MAX, PRIOR_FREEDOM, RESAMPLED_MIN, Array, Integers, Shape

PRIOR = 0.36


def lognormal(size: int, *, log_sd: float = PRIOR, mean: float = 1.0, seed: int = 1) -> Array:
    drawn = np.exp(np.random.default_rng(seed).standard_normal(size) * log_sd - log_sd**2 / 2)
    return mean * drawn


def spikes(size: int, *, seed: int = 1) -> Array:
    """Short refusals and long answers, and little between."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < 0.4, 100.0, 1_000.0) * np.exp(0.03 * rng.standard_normal(size))


def one_batch(values: Array) -> Integers:
    return np.zeros(len(values), dtype=np.int64)


def learned(values: Array, batch: Integers | None = None) -> Shape:
    return shape.learn(values, one_batch(values) if batch is None else batch, prior_log_sd=PRIOR)


def test_without_values_the_spread_is_the_priors() -> None:
    nothing = learned(np.zeros(0))
    assert nothing == Shape(log_sd=PRIOR, freedom=PRIOR_FREEDOM)


@pytest.mark.parametrize("seed", range(5))
def test_lognormal_values_stay_lognormal(seed: int) -> None:
    found = learned(lognormal(400, log_sd=0.5, seed=seed))
    assert found.pool is None
    assert found.log_sd == pytest.approx(0.5, rel=0.1)


def test_the_spread_moves_from_the_prior_with_what_was_seen() -> None:
    few, many = learned(lognormal(6, log_sd=0.05)), learned(lognormal(500, log_sd=0.05))
    assert PRIOR > few.log_sd > many.log_sd > 0.05
    assert many.log_sd < 0.07


def test_values_that_are_not_lognormal_are_resampled_from_thirty_on() -> None:
    assert learned(spikes(RESAMPLED_MIN - 1)).pool is None
    resampled = learned(spikes(RESAMPLED_MIN))
    assert resampled.pool is not None
    drawn = learned(spikes(300)).draw((100, 100), np.random.default_rng(1))
    # Two spikes, and nothing between.
    assert np.mean((drawn > 0.4) & (drawn < 1.2)) == 0


def test_what_a_batch_shares_is_no_spread() -> None:
    values = np.concatenate([lognormal(50, log_sd=0.1, mean=mean, seed=mean) for mean in (1, 3, 9)])
    batch = np.repeat(np.arange(3), 50)
    assert learned(values, batch).log_sd == pytest.approx(0.1, rel=0.3)
    assert learned(values).log_sd > 0.8


def test_batches_of_one_say_nothing_of_the_spread() -> None:
    assert learned(lognormal(200), np.arange(200)) == Shape(log_sd=PRIOR, freedom=PRIOR_FREEDOM)


def test_batches_of_one_stretch_nobodys_values() -> None:
    values = spikes(60)
    alone = learned(values)
    among = learned(np.concatenate([values, np.full(940, 500.0)]), np.repeat(np.arange(941), [60, *[1] * 940]))
    assert alone.pool is not None
    assert among.pool is not None
    assert np.allclose(among.pool, alone.pool)


def test_two_values_lie_further_from_their_mean_than_from_the_mean_of_both() -> None:
    found = learned(np.tile([100.0, 300.0, 300.0, 100.0], 15), np.arange(60) // 2)
    assert found.pool is not None
    assert sorted(set(found.pool.round(3).tolist())) == [0.293, 1.707]


def test_resampled_factors_have_the_mean_one_and_only_the_newest_are_kept() -> None:
    found = learned(spikes(3_000), np.arange(3_000) // 2)
    assert found.pool is not None
    assert len(found.pool) == POOL_MAX
    assert found.pool.mean() == pytest.approx(1)
    assert list(found.pool) == sorted(found.pool)


def test_values_that_are_all_the_same_have_no_spread_and_no_trouble() -> None:
    found = learned(np.full(100, 7.0))
    assert found.cv == 0
    assert set(found.draw((3, 4), np.random.default_rng(0)).ravel().tolist()) == {1.0}
    mean, told = shape.above(found, np.array([0.0, 0.5, 1.0, 2.0]))
    assert mean.tolist() == told.tolist() == [0, 0, 0, 0]


def test_draws_have_the_mean_one_and_the_spread_that_was_learned() -> None:
    drawn = Shape(log_sd=0.4, freedom=math.inf).draw((500, 200), np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(1, abs=0.005)
    assert drawn.std() == pytest.approx(math.sqrt(math.expm1(0.16)), rel=0.02)


def test_an_unsure_spread_is_one_for_all_conversations_of_a_draw() -> None:
    drawn = np.log(Shape(log_sd=0.4, freedom=6).draw((400, 400), np.random.default_rng(1))).std(axis=1)
    assert drawn.std() > 0.05
    sure = np.log(Shape(log_sd=0.4, freedom=math.inf).draw((400, 400), np.random.default_rng(1))).std(axis=1)
    assert sure.std() < 0.02


@pytest.mark.parametrize("log_sd", [0.0, 0.36, 3.0, 9.0])
def test_factors_are_finite_however_wide_the_spread(log_sd: float) -> None:
    wide = Shape(log_sd=log_sd, freedom=PRIOR_FREEDOM)
    assert np.isfinite(wide.draw((100, 100), np.random.default_rng(1))).all()
    assert np.isfinite(wide.grid()).all()
    assert math.isfinite(wide.cv)


@pytest.mark.parametrize(
    "found", [Shape(log_sd=0.36, freedom=40), learned(spikes(500))], ids=["lognormal", "resampled"]
)
def test_the_grid_is_ascending_with_the_mean_one_and_nearly_the_spread(found: Shape) -> None:
    grid = found.grid()
    assert len(grid) == GRID
    assert list(grid) == sorted(grid)
    assert grid.mean() == pytest.approx(1)
    assert grid.std() == pytest.approx(found.cv, rel=0.05)


def test_the_mean_of_several_calls_varies_less_than_one() -> None:
    found = learned(spikes(500))
    assert found.narrowed(1) is found
    assert found.narrowed(4).cv == pytest.approx(found.cv / 2)
    assert Shape(log_sd=0.36, freedom=9).narrowed(9).freedom == 9


def test_nothing_is_filled_in_where_nothing_was_cut() -> None:
    values = lognormal(10)
    assert shape.uncensored(values, np.zeros(10, dtype=np.bool_), prior_mean=1, prior_log_sd=PRIOR) is values


def cut_at(values: Array, maximum: float) -> tuple[Array, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    return np.minimum(values, maximum), (values > maximum)


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_is_found_though_half_of_the_values_were_cut(seed: int) -> None:
    whole = lognormal(400, mean=2_000, seed=seed)
    values, cut = cut_at(whole, float(np.median(whole)))
    filled = shape.uncensored(values, cut, prior_mean=1_000, prior_log_sd=PRIOR)
    assert filled.mean() == pytest.approx(whole.mean(), rel=0.06)
    # To drop them, or to take them for whole answers, is no near miss.
    assert values[~cut].mean() < 0.77 * whole.mean()
    assert values.mean() < 0.87 * whole.mean()
    assert (filled > 0.999 * values).all()
    assert np.allclose(filled[~cut], values[~cut])


def test_newer_values_that_were_cut_are_filled_in_no_higher_than_older_ones() -> None:
    whole = lognormal(400, mean=2_000)
    values, cut = cut_at(whole, 1_700)
    filled = shape.uncensored(values, cut, prior_mean=1_000, prior_log_sd=PRIOR)[cut]
    half = len(filled) // 2
    assert filled[:half].mean() == pytest.approx(filled[half:].mean(), rel=0.03)


def test_where_all_were_cut_the_prior_says_by_how_much() -> None:
    cut = np.full(400, 1_000.0)
    everything = np.ones(400, dtype=np.bool_)
    known, beyond = (
        shape.uncensored(cut, everything, prior_mean=mean, prior_log_sd=PRIOR).mean() for mean in (3_000, 100)
    )
    # Nearly all of a lognormal about 3,000 is beyond 1,000 anyhow.
    assert known == pytest.approx(3_000, rel=0.02)
    assert 999 < beyond < 1_300


@pytest.mark.parametrize("maximum", [1.0, 1e9])
def test_a_cut_far_from_all_others_is_filled_with_something_finite(maximum: float) -> None:
    values = np.array([*np.full(20, 1_000.0), maximum])
    filled = shape.uncensored(values, values == maximum, prior_mean=1_000, prior_log_sd=PRIOR)
    assert np.isfinite(filled).all()
    assert filled[-1] >= maximum


@pytest.mark.parametrize("log_sd", [0.1, 0.36, 1.0])
def test_the_further_a_value_is_known_to_go_the_more_it_tells(log_sd: float) -> None:
    bounds = np.array([0.0, 0.5, 0.8, 1.0, 1.3, 1.8, 3.0, 1e12])
    mean, told = shape.above(Shape(log_sd=log_sd, freedom=40), bounds)
    assert told[0] == 0
    assert mean[0] == pytest.approx(0, abs=1e-12)
    assert list(mean) == sorted(mean)
    assert list(told) == sorted(told)
    assert told[-1] == 1


def test_what_is_expected_beyond_a_bound_is_what_simulated_values_have_there() -> None:
    factors = lognormal(200_000)
    mean, _ = shape.above(Shape(log_sd=PRIOR, freedom=40), np.array([0.7, 1.2]))
    deviations = np.log(factors) + PRIOR**2 / 2
    wanted = [deviations[factors > bound].mean() for bound in (0.7, 1.2)]
    assert mean == pytest.approx(wanted, abs=0.02)


def test_resampled_values_beyond_a_bound_are_those_that_were_observed_there() -> None:
    found = learned(spikes(500))
    # Over the short spike it can only be the long one.
    mean, told = shape.above(found, np.array([0.5]))
    assert 1 + mean[0] == pytest.approx(1_000 / spikes(500).mean(), rel=0.02)
    assert told[0] > 0.95


def test_what_is_beyond_everything_expected_counts_as_the_longest() -> None:
    found = Shape(log_sd=PRIOR, freedom=40)
    mean, _ = shape.above(found, np.array([1e6]))
    assert mean[0] < 1
    assert math.exp(mean[0] - PRIOR**2 / 2) == pytest.approx(found.grid()[-1], rel=0.01)
