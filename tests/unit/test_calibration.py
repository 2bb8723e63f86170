"""Calibration: wide where past ranges missed, narrow where they were too wide, untouched where that helps nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from estimator_service.domain.calibration import (
    FACTOR_MAX,
    FACTOR_MIN,
    OUTCOMES_MAX,
    OUTCOMES_MIN,
    PastRange,
    apply,
    calibrate,
)

Z80 = 1.2815515655446004
QUANTILES_Z = (-1.9599639845, -1.6448536270, -Z80, 0.0, Z80, 1.6448536270, 1.9599639845)


def outcomes(count: int, *, true_sd: float, quoted_sd: float, seed: int = 5, median: float = 20.0) -> list[PastRange]:
    """Log-normal outcomes whose spread was quoted as another one."""
    drawn = np.random.default_rng(seed).normal(0.0, true_sd, count)
    return [past(median * math.exp(each), quoted_sd=quoted_sd, median=median) for each in drawn.tolist()]


def past(actual: float, *, quoted_sd: float = 0.1, median: float = 20.0) -> PastRange:
    low, high = median * math.exp(-Z80 * quoted_sd), median * math.exp(Z80 * quoted_sd)
    return PastRange(actual=actual, p10=low, p50=median, p90=high)


def held(ranges: Sequence[PastRange], factor: float) -> float:
    return sum(each.factor_needed <= factor for each in ranges) / len(ranges)


@pytest.mark.parametrize(("true_sd", "quoted_sd"), [(0.2, 0.1), (0.1, 0.2), (0.25, 0.1)])
def test_ranges_of_the_wrong_width_are_scaled_to_hold_four_of_five(true_sd: float, quoted_sd: float) -> None:
    factor = calibrate(outcomes(300, true_sd=true_sd, quoted_sd=quoted_sd))
    assert math.isclose(factor, true_sd / quoted_sd, rel_tol=0.15)
    later = outcomes(2_000, true_sd=true_sd, quoted_sd=quoted_sd, seed=6)
    assert 0.75 < held(later, factor) < 0.85


def needing(*factors: float) -> list[PastRange]:
    return [past(20.0 * math.exp(Z80 * 0.1 * factor)) for factor in factors]


def test_the_factor_is_what_four_of_five_needed_of_one_more_than_there_are() -> None:
    # The 33rd of 40: four fifths of 41.
    factors = [1.0 + 0.02 * number for number in range(40)]
    assert math.isclose(calibrate(needing(*factors[::2], *factors[1::2])), factors[32])


def test_the_factor_that_proved_itself_is_fitted_again_on_all() -> None:
    assert math.isclose(calibrate(needing(*[2.0] * 20, *[2.5] * 20)), 2.5)


def test_thirty_outcomes_are_too_few_and_one_more_is_enough() -> None:
    ranges = outcomes(OUTCOMES_MIN + 1, true_sd=0.3, quoted_sd=0.1)
    assert calibrate(ranges[:OUTCOMES_MIN]) == 1.0
    assert calibrate(ranges) > 1.5
    assert calibrate([]) == 1.0


def test_the_factor_is_left_at_1_where_the_newer_half_would_have_been_worse_with_it() -> None:
    # Wide once, right since.
    ranges = [*outcomes(50, true_sd=0.3, quoted_sd=0.1), *outcomes(50, true_sd=0.05, quoted_sd=0.1)]
    assert calibrate(ranges) == 1.0


@pytest.mark.parametrize(("true_sd", "bound"), [(2.0, FACTOR_MAX), (0.001, FACTOR_MIN)])
def test_the_factor_is_bounded(true_sd: float, bound: float) -> None:
    assert calibrate(outcomes(100, true_sd=true_sd, quoted_sd=0.1)) == bound


def test_only_the_newest_outcomes_count() -> None:
    newest = outcomes(OUTCOMES_MAX, true_sd=0.2, quoted_sd=0.1)
    assert calibrate([*outcomes(500, true_sd=1.0, quoted_sd=0.1), *newest]) == calibrate(newest)


def test_dear_batches_count_no_more_than_cheap_ones() -> None:
    cheap = outcomes(40, true_sd=0.3, quoted_sd=0.1, median=1.0)
    dear = outcomes(40, true_sd=0.3, quoted_sd=0.1, median=1_000.0)
    assert math.isclose(calibrate(cheap), calibrate(dear))


def test_quotes_without_a_median_are_passed_over() -> None:
    free = PastRange(actual=0.0, p10=0.0, p50=0.0, p90=0.0)
    assert calibrate([free] * 100) == 1.0


@pytest.mark.parametrize(
    ("range_", "needed"),
    [
        (PastRange(actual=20.0, p10=20.0, p50=20.0, p90=20.0), 0.0),
        (PastRange(actual=21.0, p10=20.0, p50=20.0, p90=20.0), math.inf),
        (PastRange(actual=0.0, p10=10.0, p50=20.0, p90=40.0), math.inf),
        (PastRange(actual=15.0, p10=0.0, p50=20.0, p90=40.0), math.inf),
        (PastRange(actual=80.0, p10=10.0, p50=20.0, p90=40.0), 2.0),
        (PastRange(actual=5.0, p10=10.0, p50=20.0, p90=40.0), 2.0),
        (PastRange(actual=20.0 * math.sqrt(2), p10=10.0, p50=20.0, p90=40.0), 0.5),
    ],
)
def test_the_factor_needed_is_the_least_that_holds_the_outcome(range_: PastRange, needed: float) -> None:
    assert range_.factor_needed == pytest.approx(needed)


def test_a_range_is_scaled_about_its_median_and_the_inverse_undoes_it() -> None:
    quantiles = tuple(20.0 * math.exp(0.1 * z) for z in QUANTILES_Z)
    wide = apply(quantiles, 2.0)
    assert wide == pytest.approx(tuple(20.0 * math.exp(0.2 * z) for z in QUANTILES_Z))
    assert apply(wide, 0.5) == pytest.approx(quantiles)
    assert apply(quantiles, 1.0) == pytest.approx(quantiles)


def test_a_range_at_zero_stays_where_it_is() -> None:
    assert apply((0.0,) * 7, 2.0) == (0.0,) * 7
    assert apply((0.0, 0.0, 0.0, 4.0, 8.0, 8.0, 8.0), 2.0) == (0.0, 0.0, 0.0, 4.0, 16.0, 16.0, 16.0)
