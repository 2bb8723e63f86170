"""The whole promise: money, quantiles, probabilities, warnings, and when it is stale."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from parley.v1 import quote_pb2

from estimator_service import convert
from estimator_service.config import PRICES_FILE
from estimator_service.domain.errors import EstimatorError, InvalidRequest
from estimator_service.domain.estimate import History, TokensKey
from estimator_service.domain.quote import QUANTILES, Figures, quote, stale_reason
from estimator_service.domain.rate_file import parse_rates
from estimator_service.domain.tokens import TokensSeen
from estimator_service.domain.warnings import Kind
from estimator_service.domain.workload import Group, Limits, Workload

NOW = datetime(2026, 11, 23, tzinfo=UTC)
TABLE = parse_rates(PRICES_FILE.read_text("utf-8"))
GROUP = Group(id="template", tier="template", model="claude-sonnet-5-5", count=30)
NOTHING_SEEN = History()


def mixed(count: int = 30, *, model: str = "claude-sonnet-5-5") -> Workload:
    groups = tuple(
        Group(id=tier, tier=tier, model=model, count=count) for tier in ("template", "scenario", "edge_case")
    )
    return Workload(groups=groups, concurrency=3)


def figures(workload: Workload, *, seed: int = 1, history: History = NOTHING_SEEN, now: datetime = NOW) -> Figures:
    return quote(workload, table=TABLE, history=history, seed=seed, now=now)


def seen(output_tokens_mean: float, *, calls: int = 1_000) -> History:
    key = TokensKey(tier="template", model="claude-sonnet-5-5", turn_by_turn=False)
    tokens = TokensSeen(calls=calls, input_tokens_mean=2_000, output_tokens_mean=output_tokens_mean)
    return History(tokens={key: tokens})


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
    # 30 x (12 x 10,000 + 7.5 x 2,000) thousand nano-dollars, and 3 % of the calls are made again.
    assert made.cost.mean_nanos == round(30 * (12_000 * 10_000 + 7_500 * 2_000) / 0.97)


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


def test_the_median_lies_near_the_mean_for_every_size() -> None:
    for count in (1, 30, 1_000, 100_000):
        made = figures(mixed(count))
        assert 0.9 < made.cost.quantiles_nanos[3] / made.cost.mean_nanos < 1.05


def test_more_conversations_cost_more() -> None:
    means = [figures(mixed(count)).cost.mean_nanos for count in (1, 2, 30, 1_000, 100_000)]
    assert means == sorted(set(means))


def test_a_larger_batch_is_quoted_relatively_closer() -> None:
    def spread(count: int) -> float:
        cost = figures(Workload(groups=(replace(GROUP, count=count),))).cost
        return (cost.quantiles_nanos[4] - cost.quantiles_nanos[2]) / cost.mean_nanos

    assert spread(1) > spread(10) > spread(100)


def test_the_same_seed_gives_the_same_quote_and_another_one_the_same_mean() -> None:
    assert figures(mixed()) == figures(mixed())
    other = figures(mixed(), seed=2)
    assert other.cost.quantiles_nanos != figures(mixed()).cost.quantiles_nanos
    assert other.cost.mean_nanos == figures(mixed()).cost.mean_nanos


def test_a_cached_prefix_is_written_once_and_read_afterwards() -> None:
    cached = figures(Workload(groups=(replace(GROUP, cacheable_tokens=1_500),)))
    calls = 30 / 0.97
    prefix = 1_500 * (2_500 + (calls - 1) * 100)
    assert cached.cost.mean_nanos == round(calls * (500 * 2_000 + 3_000 * 10_000) + prefix)


def test_no_more_is_cached_than_the_prompt_has() -> None:
    everything = figures(Workload(groups=(replace(GROUP, cacheable_tokens=1e7),)))
    assert everything.groups[0].estimate.fresh_tokens == 0


def test_a_long_prompt_pays_its_own_price() -> None:
    short = replace(GROUP, model="claude-haiku-5-5", input_characters_mean=399_000)
    long = replace(short, input_characters_mean=401_000)
    costs = [figures(Workload(groups=(group,))).cost.mean_nanos for group in (short, long)]
    assert costs[1] > 4.5 * costs[0]


def test_an_empty_workload_costs_and_takes_nothing() -> None:
    made = figures(mixed(0))
    assert (made.cost.mean_nanos, made.time.mean_s) == (0, 0)
    assert set(made.cost.quantiles_nanos) == {0}
    assert made.cost_within_10_percent == made.time_within_20_percent == 1


def test_probabilities_follow_the_spread() -> None:
    made = figures(mixed())
    assert 0.2 < made.cost_within_10_percent < 0.5
    assert 0.3 < made.time_within_20_percent < 0.7


def test_the_budget_has_a_probability_only_where_there_is_one() -> None:
    assert figures(mixed()).within_budget is None
    mean = figures(mixed()).cost.mean_nanos
    within = [figures(replace(mixed(), budget_nanos=each)).within_budget for each in (0, mean, 10 * mean)]
    assert within[0] == 0
    assert within[1] is not None
    assert 0.4 < within[1] < 0.7
    assert within[2] == 1


def test_real_time_is_told_where_the_provider_is_faster() -> None:
    assert figures(mixed()).real_time_mean_s is None
    fast = figures(replace(mixed(), speed_up=40))
    assert fast.real_time_mean_s == figures(mixed()).time.mean_s
    assert fast.time.mean_s < figures(mixed()).time.mean_s / 30


def test_observed_calls_move_the_cost() -> None:
    made = figures(mixed(), history=seen(1_000))
    assert made.cost.mean_nanos < figures(mixed()).cost.mean_nanos
    assert [group.estimate.tokens.observations for group in made.groups] == [1_000, 0, 0]


def test_a_modest_batch_has_no_warnings() -> None:
    assert kinds(mixed()) == []


def test_over_a_hundred_dollars_and_two_hours_are_told() -> None:
    warnings = figures(mixed(3_000)).warnings
    assert [warning.kind for warning in warnings] == [Kind.EXPENSIVE, Kind.LONG]
    assert warnings[0].message == "The expected cost is $417.53."
    assert "hours" in warnings[1].message


def test_a_tight_budget_is_told_with_its_probability() -> None:
    (warning,) = figures(replace(mixed(), budget_nanos=4_000_000_000)).warnings
    assert warning.kind is Kind.OVER_BUDGET
    assert "$4.00" in warning.message
    assert "%" in warning.message
    assert kinds(replace(mixed(), budget_nanos=8_000_000_000)) == []


def test_the_binding_limit_is_told_with_the_concurrency_that_is_enough() -> None:
    limited = replace(mixed(), concurrency=10, limits=Limits(output_tokens_per_minute=6_000))
    (warning,) = figures(limited).warnings
    assert warning.message == "Output tokens a minute bind: 3 calls at once would be as fast as 10."
    one = replace(mixed(), concurrency=10, limits=Limits(requests_per_minute=0.5))
    assert "Requests a minute bind: 1 call at once" in figures(one).warnings[-1].message


def test_a_model_without_a_price_is_quoted_as_free_with_a_warning() -> None:
    made = figures(mixed(model="llama-3"))
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
    *, age: timedelta = timedelta(0), now: datetime = NOW, history: History = NOTHING_SEEN, cost: int | None = None
) -> str:
    workload = Workload(groups=(GROUP,))
    made = figures(workload)
    return stale_reason(
        age=age,
        workload=workload,
        version=made.rates_version,
        cost_mean_nanos=made.cost.mean_nanos if cost is None else cost,
        table=TABLE,
        history=history,
        now=now,
    )


def test_a_quote_stays_fresh_for_a_day_while_nothing_moves() -> None:
    assert reason() == ""
    assert reason(age=timedelta(hours=24)) == ""
    assert reason(age=timedelta(hours=24, seconds=1)) == "it is older than 24 hours"


def test_a_quote_is_stale_once_a_price_changed() -> None:
    assert reason(now=datetime(2026, 10, 1, tzinfo=UTC)).startswith("prices changed")


def test_a_quote_is_stale_once_observations_moved_it_by_over_ten_percent() -> None:
    assert reason(history=seen(3_200)) == ""
    assert reason(history=seen(1_000)) == "observed calls moved the expected cost by -58%"
    assert reason(cost=0).startswith("observed calls moved")


def test_a_group_id_that_comes_twice_is_refused_by_its_field() -> None:
    group = quote_pb2.WorkloadGroup(id="a", tier="template", model="m", count=1)
    with pytest.raises(InvalidRequest) as failure:
        convert.workload(quote_pb2.Workload(groups=[group, group], concurrency=1))
    assert isinstance(failure.value, EstimatorError)
    assert failure.value.reason == "INVALID_FIELD"
    assert [violation.field for violation in failure.value.violations] == ["workload.groups[1].id"]
