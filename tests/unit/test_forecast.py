"""The projection of a running batch: the quote at first, experience more and more, never less than what is spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_service.domain.forecast import Progress, project

FRESH = Progress(
    total=100,
    pending=100,
    running=0,
    made=0,
    committed_nanos=0,
    confirmed_nanos=0,
    answered=0,
    answered_s=0.0,
    concurrency=4,
    quoted_cost_nanos=1_000,
    quoted_duration_s=250.0,
)


def test_before_the_first_answer_the_projection_is_the_quote() -> None:
    projection = project(FRESH)
    assert projection.cost_nanos == 1_000
    assert projection.time_left_s == pytest.approx(250.0)
    assert projection.basis == "the quote"


def test_without_quote_and_answers_only_what_is_spent_is_known() -> None:
    unquoted = replace(FRESH, quoted_cost_nanos=None, quoted_duration_s=None, committed_nanos=7)
    projection = project(unquoted)
    assert (projection.cost_nanos, projection.time_left_s, projection.basis) == (7, None, "nothing yet")


def test_without_a_quote_the_mean_is_what_was_seen() -> None:
    seen = replace(
        FRESH,
        quoted_cost_nanos=None,
        quoted_duration_s=None,
        pending=90,
        made=10,
        committed_nanos=200,
        confirmed_nanos=200,
        answered=10,
        answered_s=100.0,
    )
    projection = project(seen)
    # 90 more at 20 nanos each; 90 calls of 10 s, four at a time.
    assert projection.cost_nanos == 200 + 1_800
    assert projection.time_left_s == pytest.approx(225.0)
    assert projection.basis == "10 made"


def test_the_quote_counts_as_five_conversations() -> None:
    seen = replace(FRESH, pending=95, made=5, committed_nanos=100, confirmed_nanos=100, answered=5, answered_s=100.0)
    projection = project(seen)
    # Quoted at 10 nanos and 10 s each, seen at 20 and 20: 15 each.
    assert projection.cost_nanos == 100 + 15 * 95
    assert projection.time_left_s == pytest.approx(15 * 95 / 4)
    assert projection.basis == "the quote and 5 made"


def test_a_call_in_flight_has_half_of_its_time_before_it() -> None:
    alone = replace(FRESH, total=1, pending=0, running=1, concurrency=1, quoted_cost_nanos=8, quoted_duration_s=60.0)
    projection = project(alone)
    assert projection.cost_nanos == 8
    assert projection.time_left_s == pytest.approx(30.0)


def test_fewer_conversations_than_places_share_no_time() -> None:
    last_two = replace(FRESH, total=100, pending=2, running=0, made=98, concurrency=10, quoted_duration_s=100.0)
    # 10 s each at a time; ten places, two of them needed.
    none_answered = replace(last_two, answered=0, answered_s=0.0)
    assert project(none_answered).time_left_s == pytest.approx(10.0)


def test_a_batch_that_is_done_has_no_time_left_and_costs_what_it_cost() -> None:
    done = replace(
        FRESH, pending=0, made=100, committed_nanos=900, confirmed_nanos=900, answered=100, answered_s=1_000.0
    )
    projection = project(done)
    assert (projection.cost_nanos, projection.time_left_s) == (900, 0.0)


def test_a_batch_of_nothing_projects_nothing() -> None:
    projection = project(replace(FRESH, total=0, pending=0))
    assert (projection.cost_nanos, projection.time_left_s) == (0, None)


@given(
    made=st.integers(0, 1_000),
    pending=st.integers(0, 1_000),
    running=st.integers(0, 20),
    committed=st.integers(0, 10**12),
    quoted=st.none() | st.integers(0, 10**12),
    concurrency=st.integers(1, 1_000),
)
def test_the_projection_never_falls_below_what_is_committed(
    made: int, pending: int, running: int, committed: int, quoted: int | None, concurrency: int
) -> None:
    projection = project(
        Progress(
            total=made + pending + running,
            pending=pending,
            running=running,
            made=made,
            committed_nanos=committed,
            confirmed_nanos=committed,
            answered=made,
            answered_s=60.0 * made,
            concurrency=concurrency,
            quoted_cost_nanos=quoted,
            quoted_duration_s=None,
        )
    )
    assert projection.cost_nanos >= committed
    assert projection.time_left_s is None or projection.time_left_s >= 0
