"""The record of past quotes in slices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from estimator_service.domain.accuracy import SLICES_MAX, PastBatch, PastGroup, Slice, slices
from estimator_service.domain.scores import Scored, summarize

NOVEMBER = datetime(2026, 11, 5, tzinfo=UTC)
OCTOBER = datetime(2026, 10, 31, 23, 59, tzinfo=UTC)


def scored(actual: float, mean: float = 100.0) -> Scored:
    return Scored(actual=actual, mean=mean, quantiles=tuple(mean * each for each in (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3)))


def group(cost: Scored | None, *, tier: str = "template", model: str = "m") -> PastGroup:
    return PastGroup(tier=tier, model=model, cost=cost)


def batch(
    cost: Scored | None, time: Scored | None, *groups: PastGroup, number: int = 1, end_time: datetime = NOVEMBER
) -> PastBatch:
    return PastBatch(
        quote=f"quotes/q{number}",
        batch=f"batches/b{number}",
        end_time=end_time,
        cost=cost,
        time=time,
        groups=groups or (group(cost),),
    )


def by_name(past: Sequence[PastBatch], *by: str) -> dict[str, Slice]:
    return {each.name: each for each in slices(past, by=by)}


def test_nothing_happened_is_a_whole_of_nothing() -> None:
    assert slices([], by=["model"]) == [Slice(name="", count=0, cost=None, time=None)]


def test_the_whole_comes_first_and_alone_where_nothing_is_sliced() -> None:
    past = [batch(scored(90.0), scored(50.0)), batch(scored(120.0), scored(70.0))]
    (whole,) = slices(past, by=[])
    assert (whole.name, whole.count) == ("", 2)
    assert whole.cost == summarize([scored(90.0), scored(120.0)])
    assert whole.time == summarize([scored(50.0), scored(70.0)])


def test_slices_have_their_parts_in_one_order_whatever_was_asked() -> None:
    past = [batch(scored(90.0), None), batch(scored(120.0), None, end_time=OCTOBER)]
    names = ["", "model=m,tier=template,month=2026-10", "model=m,tier=template,month=2026-11"]
    assert list(by_name(past, "month", "tier", "model")) == names


def test_a_batch_of_several_tiers_counts_in_each_with_the_groups_range_and_its_own_time() -> None:
    cheap, dear = scored(15.0, 10.0), scored(85.0, 90.0)
    past = [batch(scored(100.0), scored(50.0), group(cheap), group(dear, tier="scenario"))]
    found = by_name(past, "tier")
    assert found["tier=template"].cost == summarize([cheap])
    assert found["tier=scenario"].cost == summarize([dear])
    assert found["tier=scenario"].time == found[""].time == summarize([scored(50.0)])
    assert [each.count for each in found.values()] == [1, 1, 1]


def test_a_slice_that_holds_a_whole_batch_scores_the_whole() -> None:
    past = [batch(scored(100.0), None, group(scored(15.0, 10.0)), group(scored(85.0, 90.0), tier="scenario"))]
    assert by_name(past, "model")["model=m"].cost == summarize([scored(100.0)])


def test_several_groups_of_a_slice_are_scored_each() -> None:
    parts = [scored(15.0, 10.0), scored(85.0, 90.0)]
    groups = [group(each) for each in parts]
    past = [batch(scored(120.0, 130.0), None, *groups, group(scored(20.0, 30.0), tier="scenario"))]
    found = by_name(past, "tier")["tier=template"]
    assert found.cost == summarize(parts)
    assert found.count == 1


def test_a_quote_of_nothing_counts_for_its_time_alone() -> None:
    found = by_name([batch(None, scored(50.0))], "tier")
    assert found["tier=template"].cost is None
    assert found["tier=template"].time is not None


def test_of_very_many_slices_those_of_most_batches_are_told() -> None:
    past = [
        batch(scored(90.0), None, group(scored(90.0), model=f"m{at:04}"), number=at) for at in range(SLICES_MAX + 1)
    ]
    past.append(batch(scored(90.0), None, group(scored(90.0), model=f"m{SLICES_MAX:04}")))
    found = by_name(past, "model")
    assert len(found) == 1 + SLICES_MAX
    assert f"model=m{SLICES_MAX:04}" in found
    assert f"model=m{SLICES_MAX - 1:04}" not in found


@pytest.mark.parametrize("by", ["model", "tier", "month"])
def test_every_batch_is_in_some_slice(by: str) -> None:
    past = [batch(scored(90.0), None), batch(scored(95.0), None, end_time=OCTOBER)]
    found = slices(past, by=[by])
    assert sum(each.count for each in found[1:]) == found[0].count == 2
