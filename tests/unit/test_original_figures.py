"""The figures of the original design, from its prices, with its tokens and times taken for certain."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from estimator_service.config import PRICES_FILE
from estimator_service.domain.history import NOTHING_SEEN
from estimator_service.domain.quote import Figures, quote
from estimator_service.domain.rate_file import parse_rates
from estimator_service.domain.workload import Assumed, Group, InputSource, Workload

MODEL = "original-design"
TABLE = parse_rates(PRICES_FILE.with_name("original-design.json").read_text("utf-8"))
INPUT_TOKENS = {"template": 2_000, "scenario": 2_500, "edge_case": 3_000}
OUTPUT_TOKENS = {"template": 3_000, "scenario": 4_000, "edge_case": 5_000}


def figures(counts: dict[str, int], *, concurrency: int = 3) -> Figures:
    groups = tuple(
        Group(
            id=tier,
            tier=tier,
            model=MODEL,
            count=count,
            input_source=InputSource.COUNTED,
            input_tokens_mean=INPUT_TOKENS[tier],
            assumed=Assumed(
                input_tokens_mean=INPUT_TOKENS[tier],
                output_tokens_mean=OUTPUT_TOKENS[tier],
                call_seconds_mean=60,
                overhead_share=0.10,
                failure_share=0,
            ),
        )
        for tier, count in counts.items()
    )
    workload = Workload(groups=groups, concurrency=concurrency)
    return quote(workload, table=TABLE, history=NOTHING_SEEN, seed=1, now=datetime(2026, 11, 23, tzinfo=UTC))


@pytest.mark.parametrize(
    ("counts", "nanos"),
    [
        ({"template": 100}, 25_500_000_000),
        ({"scenario": 100}, 33_750_000_000),
        ({"edge_case": 100}, 42_000_000_000),
        ({"template": 30, "scenario": 30, "edge_case": 30}, 30_375_000_000),
    ],
    ids=["template", "scenario", "edge case", "mixed"],
)
def test_its_costs_come_out_to_the_nano_dollar_and_without_doubt(counts: dict[str, int], nanos: int) -> None:
    made = figures(counts)
    assert made.cost.mean_nanos == nanos
    assert set(made.cost.quantiles_nanos) == {nanos}
    assert made.cost_within_10_percent == 1


@pytest.mark.parametrize(("count", "concurrency", "minutes"), [(10, 3, 4), (30, 3, 11), (90, 3, 33), (90, 5, 20)])
def test_its_times_come_out_to_the_minute_and_without_doubt(count: int, concurrency: int, minutes: int) -> None:
    time = figures({"template": count}, concurrency=concurrency).time
    assert round(time.mean_s / 60) == minutes
    assert {round(each / 60) for each in time.quantiles_s} == {minutes}
    assert max(time.quantiles_s) == pytest.approx(min(time.quantiles_s))
