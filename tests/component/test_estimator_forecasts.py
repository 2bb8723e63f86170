"""ForecastBatch over gRPC: where a running batch is heading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from estimator_fixtures import MODEL, ask, estimator, observed, record, workload
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import estimator_pb2, quote_pb2

pytestmark = pytest.mark.anyio

BATCH = "batches/abcd"


def asked(count: int = 20, *, spent: int = 0, **more: Any) -> estimator_pb2.ForecastBatchRequest:
    fields: dict[str, Any] = {
        "remaining": workload(count, tiers=["template"]),
        "batch": BATCH,
        "spent": Money(currency_code="USD", units=spent),
        "seed": 7,
    }
    return estimator_pb2.ForecastBatchRequest(**(fields | more))


def flying(*ages_s: int, group: str = "template") -> list[quote_pb2.InFlightCall]:
    return [quote_pb2.InFlightCall(group=group, age=Duration(seconds=each)) for each in ages_s]


async def test_a_forecast_has_what_is_spent_in_flight_and_left(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        ended = await served.stub.ForecastBatch(asked(0, spent=3))
        running = await served.stub.ForecastBatch(asked(0, spent=3, in_flight=flying(20)))
        begun = await served.stub.ForecastBatch(asked(20, spent=3, in_flight=flying(20)))
    assert money.to_nanos(ended.projected_cost) == 3_000_000_000
    assert ended.time.mean == Duration()
    assert money.to_nanos(ended.projected_cost) < money.to_nanos(running.projected_cost)
    assert money.to_nanos(running.projected_cost) < money.to_nanos(begun.projected_cost)
    assert running.time.mean.seconds < begun.time.mean.seconds
    costs = [money.to_nanos(each.value) for each in begun.cost.quantiles]
    assert costs == sorted(costs)
    assert costs[0] > 3_000_000_000


async def test_the_same_request_gives_the_same_forecast(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        one, same = [await served.stub.ForecastBatch(asked(in_flight=flying(1, 2))) for _ in range(2)]
        other = await served.stub.ForecastBatch(asked(in_flight=flying(1, 2), seed=8))
    assert one == same
    assert one.cost != other.cost


async def test_finished_calls_count_once_whether_recorded_sent_or_both(tmp_path: Path) -> None:
    calls = [observed(n, batch=BATCH) for n in range(10)]
    async with estimator(tmp_path / "e.db") as served:
        nothing = await served.stub.ForecastBatch(asked())
        sent = await served.stub.ForecastBatch(asked(finished=calls))
        await served.stub.RecordObservations(record(*calls))
        recorded = await served.stub.ForecastBatch(asked())
        both = await served.stub.ForecastBatch(asked(finished=calls))
    assert recorded.cost == both.cost
    assert money.to_nanos(sent.cost.mean) == pytest.approx(money.to_nanos(both.cost.mean), rel=1e-6)
    assert money.to_nanos(both.cost.mean) < 0.6 * money.to_nanos(nothing.cost.mean)
    assert both.basis == "10 calls of this batch"


async def test_finished_calls_of_a_caller_that_names_no_batch_are_taken_for_its_own(tmp_path: Path) -> None:
    calls = [observed(n) for n in range(10)]
    async with estimator(tmp_path / "e.db") as served:
        found = await served.stub.ForecastBatch(asked(batch="", finished=calls))
    assert found.basis == "10 calls of this batch"


async def test_a_forecast_stores_nothing(tmp_path: Path) -> None:
    calls = [observed(n, batch=BATCH) for n in range(10)]
    async with estimator(tmp_path / "e.db") as served:
        before = await served.stub.CreateQuote(ask())
        await served.stub.ForecastBatch(asked(finished=calls))
        after = await served.stub.CreateQuote(ask())
    assert before.cost == after.cost


async def test_a_budget_has_a_probability(tmp_path: Path) -> None:
    remaining = workload(20, tiers=["template"], budget=Money(currency_code="USD", units=1_000))
    async with estimator(tmp_path / "e.db") as served:
        ample = await served.stub.ForecastBatch(asked(remaining=remaining))
        none = await served.stub.ForecastBatch(asked())
    assert ample.probability_within_budget == 1
    assert not none.HasField("probability_within_budget")


async def test_a_quote_that_is_named_must_be_known(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        made = await served.stub.CreateQuote(ask())
        await served.stub.ForecastBatch(asked(quote=made.name))
        error = await served.refused("ForecastBatch", asked(quote="quotes/abcdefghij"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "QUOTE_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (estimator_pb2.ForecastBatchRequest(), "remaining"),
        (asked(in_flight=flying(1, group="other")), "in_flight[0].group"),
        (asked(in_flight=flying(-1)), "in_flight[0].age"),
        (asked(spent=-1), "spent"),
        (asked(batch="x"), "batch"),
        (asked(finished=[quote_pb2.Observation(call="c", tier="t", model=MODEL)]), "finished[0].outcome"),
    ],
)
async def test_a_bad_request_names_its_field(
    tmp_path: Path, request_: estimator_pb2.ForecastBatchRequest, field: str
) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("ForecastBatch", request_)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in error.violations] == [field]


async def test_a_model_without_a_price_is_refused_by_its_place_in_what_remains(tmp_path: Path) -> None:
    async with estimator(tmp_path / "e.db") as served:
        error = await served.refused("ForecastBatch", asked(remaining=workload(model="llama-3")))
    assert error.reason == "MODEL_UNKNOWN"
    assert error.violations[0].field == "remaining.groups[0].model"
