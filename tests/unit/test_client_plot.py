"""The plot of quoted ranges and actuals: text of any width, in Unicode or plain ASCII."""

from __future__ import annotations

import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st
from parley.cli import plot
from parley.v1 import quote_pb2

RATIOS = st.floats(min_value=0, max_value=1e6)


def outcome(
    ratio: float, *, low: float = 0.9, high: float = 1.1, batch: str = "batches/plants1", time_held: bool = True
) -> quote_pb2.ScoredOutcome:
    return quote_pb2.ScoredOutcome(
        batch=batch,
        end_time=timestamp_pb2.Timestamp(seconds=1_795_478_400),
        cost_ratio=ratio,
        cost_low_ratio=low,
        cost_high_ratio=high,
        cost_held=low <= ratio <= high,
        time_ratio=0.97,
        time_held=time_held,
    )


def drawn(*outcomes: quote_pb2.ScoredOutcome, width: int = 80, ascii_only: bool = True) -> list[str]:
    return [line.plain.rstrip() for line in plot.lines(outcomes, width=width, ascii_only=ascii_only)]


def test_a_line_shows_the_quoted_range_and_the_actual() -> None:
    header, line = drawn(outcome(1.05))
    assert header.split() == ["batch", "ended", "cost", "0.9", "0.95", "1.0", "1.05", "1.1", "time"]
    assert line.split(maxsplit=3)[:3] == ["plants1", "11-24", "1.05"]
    assert line.endswith("0.97")
    # Low end, what was quoted, what it was, high end; each beneath its own ratio.
    places = [line.index(mark, 20) for mark in "[|o]"]
    assert places == sorted(places)
    assert abs(places[1] - (header.index("1.0 ") + 1)) <= 1
    assert abs(places[2] - (header.index("1.05") + 2)) <= 1


def test_a_miss_has_another_mark_and_stands_outside() -> None:
    _, line = drawn(outcome(1.2))
    assert line.index("X") > line.index("]")
    assert "o" not in line
    assert drawn(outcome(0.8))[1].index("X") < drawn(outcome(0.8))[1].index("[")


def test_one_far_out_gets_an_arrow_and_leaves_the_others_room() -> None:
    _, usual, over, under = drawn(outcome(1.05), outcome(9.0), outcome(0.01))
    assert usual.index("]") - usual.index("[") > 40
    assert over.index(">") > over.index("]")
    assert under.index("<") < under.index("[")
    assert "9.00" in over


def test_a_time_that_was_missed_is_marked() -> None:
    _, held, missed = drawn(outcome(1.0), outcome(1.0, time_held=False))
    assert (held[-4:], missed[-6:]) == ("0.97", "0.97 *")


def test_without_a_range_only_the_actual_is_drawn() -> None:
    _, line = drawn(outcome(1.02, low=0.0, high=0.0))
    assert "[" not in line
    assert "X" in line


def test_what_was_quoted_as_free_has_an_empty_line() -> None:
    free = outcome(0.0, low=0.0, high=0.0, time_held=False)
    free.time_ratio = 0.0
    _, usual, empty = drawn(outcome(1.05), free)
    assert empty.split() == ["plants1", "11-24", "-", "-"]
    # The others' scale is their own.
    assert usual == drawn(outcome(1.05))[1]


def test_a_long_name_is_cut() -> None:
    _, line = drawn(outcome(1.0, batch="batches/abcdefghijklmnopqrstuvwxyz"))
    assert line.startswith("abcdefghijk~  ")


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_terminal_that_knows_only_ascii_gets_no_other_letter(ascii_only: bool) -> None:
    text = "".join(drawn(outcome(1.05), outcome(1.5), ascii_only=ascii_only)) + plot.legend(ascii_only=ascii_only)
    assert text.isascii() == ascii_only


@given(
    st.lists(st.tuples(RATIOS, st.floats(0, 1), st.floats(1, 20)), min_size=1, max_size=30),
    st.sampled_from([40, 80, 120]),
)
def test_whatever_happened_every_line_fits(outcomes: list[tuple[float, float, float]], width: int) -> None:
    lines = drawn(*(outcome(ratio, low=low, high=high) for ratio, low, high in outcomes), width=width)
    assert len(lines) == len(outcomes) + 1
    assert max(map(len, lines)) <= max(width, 46)


@given(st.floats(0, 0.99), st.floats(1.01, 50))
def test_the_scale_names_a_few_round_ratios(low: float, high: float) -> None:
    ticks = plot.Scale(low, high, 40).ticks()
    assert 1 <= len(ticks) <= plot.TICKS_MAX + 1
    assert low - 1e-9 <= min(ticks) <= max(ticks) <= high + 1e-9
