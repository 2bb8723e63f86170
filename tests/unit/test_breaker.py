"""The circuit breaker: what it remembers, and when it trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_service.domain.breaker import NO_ENDS, WINDOW, Breaker, after_end, trips


def ends(outcomes: str) -> int:
    """x failed, . did not."""
    memory = NO_ENDS
    for outcome in outcomes:
        memory = after_end(memory, failed=outcome == "x")
    return memory


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ("", None),
        ("xxxxxxxxx", None),
        ("xxxxxxxxxx", "The last 10 conversations failed, one after the other."),
        ("xxxxxxxxx.", None),
        ("." + "x" * 10, "The last 10 conversations failed, one after the other."),
        ("x." * 10, None),
        ("x." * 9 + "xx", "11 of the last 20 conversations failed."),
        # Too few to speak of a share.
        ("x.xx.xx.xx.xx.xx.xx", None),
        # What is long ago does not count.
        ("x" * 9 + "." * 20 + "x", None),
    ],
)
def test_it_trips_at_ten_in_a_row_or_at_more_than_half_of_twenty(outcomes: str, message: str | None) -> None:
    assert trips(Breaker(), ends(outcomes)) == message


def test_either_rule_can_be_switched_off() -> None:
    assert trips(Breaker(failures_in_a_row=0, failure_share=1.0), ends("x" * 50)) is None
    assert trips(Breaker(failures_in_a_row=0), ends("x" * 50)) == "20 of the last 20 conversations failed."
    assert trips(Breaker(failures_in_a_row=3, failure_share=1.0), ends("xxx")) is not None
    assert trips(Breaker(failure_share=0.0), ends("." * 19 + "x")) == "1 of the last 20 conversations failed."


@given(st.lists(st.booleans(), max_size=70))
def test_it_remembers_the_last_twenty(outcomes: list[bool]) -> None:
    memory = ends("".join("x" if failed else "." for failed in outcomes))
    assert f"{memory:b}" == "1" + "".join(str(int(failed)) for failed in outcomes[-WINDOW:])
