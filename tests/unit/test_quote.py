"""The whole promise: money, quantiles, probabilities, warnings, and when it is stale."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from parley.v1 import quote_pb2
from simulated_calls import batch, batches, call, history, key, renamed

from estimator_service import convert
from estimator_service.config import PRICES_FILE
from estimator_service.domain.errors import EstimatorError, InvalidRequest
from estimator_service.domain.failures import Failures
from estimator_service.domain.history import NOTHING_SEEN, CallKey, CallSeen, History
from estimator_service.domain.quote import QUANTILES, Calibration, CostRange, Figures, quote, stale_reason
from estimator_service.domain.rate_file import parse_rates
from estimator_service.domain.rates import RateTable
from estimator_service.domain.warnings import Kind
from estimator_service.domain.workload import Assumed, Group, Limits, Workload

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MODEL = "claude-sonnet-5-5"
TABLE = parse_rates(PRICES_FILE.read_text("utf-8"))
GROUP = Group(id="template", tier="template", model=MODEL, count=30)
KEY: CallKey = key(model=MODEL)
# Planning figures, and what is made again: 30 x (12 x 10,000 + 7.5 x 2,000) thousand nano-dollars.
PLANNED = 30 * (12_000 * 10_000 + 7_500 * 2_000)
AGAIN = Failures().calls_mean


def mixed(count: int = 30, *, model: str = MODEL) -> Workload:
    groups = tuple(
        Group(id=tier, tier=tier, model=model, count=count) for tier in ("template", "scenario", "edge_case")
    )
    return Workload(groups=groups, concurrency=3)


def figures(
    workload: Workload,
    *,
    seed: int = 1,
    seen: History = NOTHING_SEEN,
    now: datetime = NOW,
    table: RateTable = TABLE,
    batch: str = "",
) -> Figures:
    return quote(workload, table=table, history=seen, seed=seed, now=now, batch=batch)


def alike(output_tokens: float, *, count: int = 50) -> list[CallSeen]:
    return [call(output_tokens, of=KEY)] * count


def several(output_tokens: float) -> History:
    """Ten batches of it."""
    return history(*(renamed(alike(output_tokens), f"b{at}") for at in range(10)))


def drifting(drift: float) -> History:
    """Each batch that far above or below."""
    rng, means = np.random.default_rng(1), (3_000 * (1 - drift), 3_000 * (1 + drift))
    return history(*(batch(f"b{at}", mean=means[at % 3 % 2], calls=60, rng=rng, of=KEY) for at in range(30)))


def width(cost: CostRange) -> float:
    """P10 to P90, over the mean."""
    return (cost.quantiles_nanos[4] - cost.quantiles_nanos[2]) / cost.mean_nanos


def kinds(workload: Workload) -> list[Kind]:
    return [warning.kind for warning in figures(workload).warnings]


def test_the_mean_cost_is_tokens_times_prices() -> None:
    made = figures(mixed())
    # $2 and $10 a million tokens are 2,000 and 10,000 nano-dollars a token.
    by_hand = sum(
        group.estimate.group.count * (g.input_tokens_mean * 2_000 + g.output_tokens_mean * 10_000)
        for group in made.groups
        for g in [group.estimate]
    )
    assert math.isclose(made.cost.mean_nanos, by_hand, rel_tol=1e-9)


def test_the_priors_mean_cost_is_that_of_the_planning_figures_and_of_what_is_made_again() -> None:
    assert figures(mixed()).cost.mean_nanos == pytest.approx(PLANNED * AGAIN, rel=0.005)


def test_the_groups_add_up_to_the_whole() -> None:
    made = figures(mixed())
    assert sum(group.cost.mean_nanos for group in made.groups) == made.cost.mean_nanos


def test_quantiles_ascend_around_the_mean() -> None:
    made = figures(mixed())
    for values, mean in (
        (made.cost.quantiles_nanos, made.cost.mean_nanos),
        (made.time.quantiles_s, made.time.mean_s),
        *((group.cost.quantiles_nanos, group.cost.mean_nanos) for group in made.groups),
    ):
        assert len(values) == len(QUANTILES)
        assert list(values) == sorted(set(values))
        assert values[2] < mean < values[4]


def test_the_median_lies_below_the_mean_and_near_it_for_every_size() -> None:
    for count in (1, 30, 1_000, 100_000):
        made = figures(mixed(count))
        assert 0.8 < made.cost.quantiles_nanos[3] / made.cost.mean_nanos < 1


def test_more_conversations_cost_more() -> None:
    means = [figures(mixed(count)).cost.mean_nanos for count in (1, 2, 30, 1_000, 100_000)]
    assert means == sorted(set(means))


def test_a_larger_batch_is_quoted_relatively_closer() -> None:
    widths = [
        width(figures(Workload(groups=(replace(GROUP, count=count),)), seen=drifting(0.004)).cost)
        for count in (1, 10, 100)
    ]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_what_all_conversations_of_a_batch_share_widens_its_range_and_stays_however_many_there_are() -> None:
    def widths(seen: History) -> list[float]:
        workloads = (Workload(groups=(replace(GROUP, count=count),)) for count in (90, 2_000, 50_000))
        return [width(figures(each, seen=seen).cost) for each in workloads]

    calm, wild = widths(drifting(0.004)), widths(drifting(0.1))
    # 2.56 SD of 0.36 / sqrt(90) and of 0.1 with its own doubt.
    assert 0.08 < calm[0] < 0.16
    assert wild[0] > 1.7 * calm[0]
    assert wild[1] > 0.9 * 2.56 * 0.08
    assert wild[2] > 0.8 * wild[1]
    assert calm[2] < 0.5 * calm[0]


def test_the_same_seed_gives_the_same_quote_and_another_one_the_same_mean() -> None:
    seen = drifting(0.1)
    first, same, other = (figures(mixed(), seed=seed, seen=seen) for seed in (1, 1, 2))
    assert (first.cost, first.time, first.warnings) == (same.cost, same.time, same.warnings)
    assert other.cost.quantiles_nanos != first.cost.quantiles_nanos
    assert other.cost.mean_nanos == first.cost.mean_nanos


def test_the_order_of_the_groups_moves_no_mean() -> None:
    seen = drifting(0.1)
    backwards = replace(mixed(), groups=tuple(reversed(mixed().groups)))
    there, back = figures(mixed(), seen=seen), figures(backwards, seen=seen)
    assert there.cost.mean_nanos == pytest.approx(back.cost.mean_nanos, rel=1e-9)
    assert there.cost.quantiles_nanos == pytest.approx(back.cost.quantiles_nanos, rel=0.06)


def test_a_cached_prefix_is_written_once_and_read_afterwards() -> None:
    certain = replace(GROUP, assumed=Assumed(input_tokens_mean=2_000, output_tokens_mean=3_000, failure_share=0.2))
    cached = figures(Workload(groups=(replace(certain, cacheable_tokens=1_500),)))
    calls = 30 / 0.8
    prefix = 1_500 * (2_500 + (calls - 1) * 100)
    assert cached.cost.mean_nanos == round(calls * (500 * 2_000 + 3_000 * 10_000) + prefix)


def test_no_more_is_cached_than_the_prompt_has() -> None:
    everything = figures(Workload(groups=(replace(GROUP, cacheable_tokens=1e7),)))
    assert everything.groups[0].estimate.fresh_tokens == 0


def test_a_long_prompt_pays_its_own_price() -> None:
    short = replace(GROUP, model="claude-haiku-5-5", assumed=Assumed(input_tokens_mean=99_999))
    long = replace(short, assumed=Assumed(input_tokens_mean=100_001))
    costs = [figures(Workload(groups=(group,))).cost.mean_nanos for group in (short, long)]
    assert costs[1] > 4.5 * costs[0]


def test_an_empty_workload_costs_and_takes_nothing() -> None:
    made = figures(mixed(0))
    assert (made.cost.mean_nanos, made.time.mean_s) == (0, 0)
    assert set(made.cost.quantiles_nanos) == {0}
    assert made.cost_within_10_percent == made.time_within_20_percent == 1


def test_a_group_with_nothing_to_make_costs_nothing_beside_one_that_has() -> None:
    some = Workload(groups=(GROUP, replace(GROUP, id="none", count=0)))
    assert [group.cost.mean_nanos > 0 for group in figures(some).groups] == [True, False]


def test_probabilities_follow_the_spread() -> None:
    new, known = figures(mixed()), figures(Workload(groups=(GROUP,), concurrency=3), seen=drifting(0.004))
    assert 0.1 < new.cost_within_10_percent < 0.4
    assert known.cost_within_10_percent > 0.75
    assert known.time_within_20_percent > new.time_within_20_percent


def test_the_budget_has_a_probability_only_where_there_is_one() -> None:
    assert figures(mixed()).within_budget is None
    mean = figures(mixed()).cost.mean_nanos
    within = [figures(replace(mixed(), budget_nanos=each)).within_budget for each in (0, mean, 10 * mean)]
    assert within[0] == 0
    assert within[1] is not None
    assert 0.4 < within[1] < 0.75
    assert within[2] == 1


def test_a_calibration_moves_ranges_and_probabilities_and_no_mean() -> None:
    def calibrated(calibration: Calibration) -> Figures:
        return quote(mixed(), table=TABLE, history=NOTHING_SEEN, seed=1, now=NOW, calibration=calibration)

    drawn, wide = calibrated(Calibration()), calibrated(Calibration(cost=2.0, time=0.5))
    assert (drawn.cost.mean_nanos, drawn.time.mean_s) == (wide.cost.mean_nanos, wide.time.mean_s)
    ratios = [math.log(made.cost.quantiles_nanos[4] / made.cost.quantiles_nanos[3]) for made in (drawn, wide)]
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=0.001)
    assert wide.time.quantiles_s[-1] < drawn.time.quantiles_s[-1]
    assert wide.cost_within_10_percent < drawn.cost_within_10_percent
    assert wide.time_within_20_percent > drawn.time_within_20_percent
    assert (wide.cost_calibration, wide.time_calibration) == (2.0, 0.5)


def test_a_calibration_leaves_what_costs_nothing_as_it_is() -> None:
    made = quote(
        mixed(0), table=TABLE, history=NOTHING_SEEN, seed=1, now=NOW, calibration=Calibration(cost=2.0, time=2.0)
    )
    assert set(made.cost.quantiles_nanos) == {0}


def test_real_time_is_told_where_the_provider_is_faster() -> None:
    assert figures(mixed()).real_time_mean_s is None
    fast = figures(replace(mixed(), speed_up=40))
    assert fast.real_time_mean_s == pytest.approx(figures(mixed()).time.mean_s, rel=0.005)
    assert fast.time.mean_s < figures(mixed()).time.mean_s / 30


def test_observed_calls_move_the_cost_of_their_prompt_most() -> None:
    new, known = figures(mixed()), figures(mixed(), seen=several(1_000))
    moved = [
        after.cost.mean_nanos / before.cost.mean_nanos for before, after in zip(new.groups, known.groups, strict=True)
    ]
    assert moved[0] < 0.5 < moved[1] < 0.9
    assert [group.estimate.observations for group in known.groups] == [500, 0, 0]


def test_a_price_that_changed_changes_cost_and_no_tokens() -> None:
    seen = drifting(0.02)
    cached = Workload(groups=(replace(GROUP, cacheable_tokens=1_900),))
    before, after = (figures(cached, seen=seen, now=datetime(2026, 10, day, tzinfo=UTC)) for day in (6, 8))
    assert before.groups[0].estimate.tokens == after.groups[0].estimate.tokens
    assert after.cost.mean_nanos < before.cost.mean_nanos
    assert before.rates_version != after.rates_version


def test_the_rest_of_a_batch_has_its_own_drift_and_a_new_batch_has_not() -> None:
    rng = np.random.default_rng(4)
    past = batches(20, drift=0.12, rng=rng, calls=60, of=KEY)
    seen = history(past, batch("own", mean=4_200, calls=45, rng=rng, of=KEY))
    workload = Workload(groups=(replace(GROUP, count=45),))
    before, new, rest = (
        figures(workload, seen=told, batch=name) for told, name in ((history(past), ""), (seen, ""), (seen, "own"))
    )
    assert abs(new.cost.mean_nanos / before.cost.mean_nanos - 1) < 0.06
    assert rest.cost.mean_nanos > 1.2 * new.cost.mean_nanos
    assert width(rest.cost) < 0.75 * width(new.cost)
    assert rest.groups[0].estimate.of_batch == 45


def test_a_modest_batch_has_no_warnings() -> None:
    assert kinds(mixed()) == []


def test_over_a_hundred_dollars_and_two_hours_are_told() -> None:
    made = figures(mixed(3_000))
    assert [warning.kind for warning in made.warnings] == [Kind.EXPENSIVE, Kind.LONG]
    assert made.warnings[0].message == f"The expected cost is ${made.cost.mean_nanos / 1e9:.2f}."
    assert "hours" in made.warnings[1].message


def test_a_tight_budget_is_told_with_its_probability() -> None:
    (warning,) = figures(replace(mixed(), budget_nanos=4_000_000_000)).warnings
    assert warning.kind is Kind.OVER_BUDGET
    assert "$4.00" in warning.message
    assert "%" in warning.message
    assert kinds(replace(mixed(), budget_nanos=12_000_000_000)) == []


def test_the_binding_limit_is_told_with_the_concurrency_that_is_enough() -> None:
    limited = replace(mixed(), concurrency=10, limits=Limits(output_tokens_per_minute=6_000))
    (warning,) = figures(limited).warnings
    assert warning.message == "Output tokens a minute bind: 4 would be as fast as 10."
    one = replace(mixed(), concurrency=10, limits=Limits(requests_per_minute=0.5))
    assert figures(one).warnings[-1].message == "Requests a minute bind: 2 would be as fast as 10."


def test_a_model_that_costs_nothing_is_quoted_as_free_with_a_warning() -> None:
    local = parse_rates(
        '{"unit":"USD per million tokens","as_of":"2026-11-10","models":{"llama-3":'
        '{"in":0,"out":0,"w5m":0,"w1h":0,"read":0}}}'
    )
    made = figures(mixed(model="llama-3"), table=local)
    assert made.cost.mean_nanos == 0
    assert made.time.mean_s > 0
    assert [warning.kind for warning in made.warnings] == [Kind.NO_PRICE]
    assert [rate.model for rate in made.rates] == ["llama-3"]


@pytest.mark.parametrize(
    ("model", "now", "told"),
    [
        ("claude-sonnet-4-5", datetime(2026, 11, 23, tzinfo=UTC), "retires on 2026-11-30, in 7 days"),
        ("claude-sonnet-4-5", datetime(2026, 11, 30, tzinfo=UTC), "has retired"),
        ("claude-opus-4-1", datetime(2026, 11, 23, tzinfo=UTC), "has retired"),
    ],
)
def test_a_model_that_goes_or_is_gone_is_told(model: str, now: datetime, told: str) -> None:
    (warning,) = figures(mixed(1, model=model), now=now).warnings
    assert warning.kind is Kind.MODEL_RETIRES
    assert told in warning.message


def test_a_model_that_retires_in_two_months_and_a_day_is_not_told() -> None:
    assert figures(mixed(1, model="claude-sonnet-4-5"), now=datetime(2026, 9, 30, tzinfo=UTC)).warnings == ()


def reason(
    *, age: timedelta = timedelta(0), now: datetime = NOW, seen: History = NOTHING_SEEN, cost: int | None = None
) -> str:
    workload = Workload(groups=(GROUP,))
    made = figures(workload)
    return stale_reason(
        age=age,
        workload=workload,
        version=made.rates_version,
        cost_mean_nanos=made.cost.mean_nanos if cost is None else cost,
        table=TABLE,
        history=seen,
        now=now,
    )


def test_a_quote_stays_fresh_for_a_day_while_nothing_moves() -> None:
    assert reason() == ""
    assert reason(age=timedelta(hours=24)) == ""
    assert reason(age=timedelta(hours=24, seconds=1)) == "it is older than 24 hours"


def test_a_quote_is_stale_once_a_price_changed() -> None:
    assert reason(now=datetime(2026, 10, 1, tzinfo=UTC)).startswith("prices changed")


def test_a_quote_is_stale_once_observations_moved_it_by_over_ten_percent() -> None:
    assert reason(seen=several(3_100)) == ""
    told = reason(seen=several(1_000))
    assert told.startswith("observed calls moved the expected cost by -5")
    assert told.endswith("%")
    assert reason(cost=0).startswith("observed calls moved")


def test_a_group_id_that_comes_twice_is_refused_by_its_field() -> None:
    group = quote_pb2.WorkloadGroup(id="a", tier="template", model="m", count=1)
    with pytest.raises(InvalidRequest) as failure:
        convert.workload(quote_pb2.Workload(groups=[group, group], concurrency=1))
    assert isinstance(failure.value, EstimatorError)
    assert failure.value.reason == "INVALID_FIELD"
    assert [violation.field for violation in failure.value.violations] == ["workload.groups[1].id"]


def test_quotes_of_one_workload_are_estimated_once() -> None:
    known: dict[Workload, int] = {}
    asked: dict[str, Any] = {"age": timedelta(), "table": TABLE, "history": NOTHING_SEEN, "now": NOW}
    made = figures(mixed())
    for _ in range(2):
        reason = stale_reason(
            workload=mixed(),
            version=made.rates_version,
            cost_mean_nanos=made.cost.mean_nanos,
            expected_nanos=known,
            **asked,
        )
        assert reason == ""
    assert known == {mixed(): made.cost.mean_nanos}
    known[mixed()] *= 2
    assert "+100%" in stale_reason(
        workload=mixed(),
        version=made.rates_version,
        cost_mean_nanos=made.cost.mean_nanos,
        expected_nanos=known,
        **asked,
    )
