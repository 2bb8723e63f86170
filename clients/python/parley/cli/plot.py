"""Plot: what batches cost beside what was quoted, a line each, in text that needs no colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from parley.cli import words
from parley.v1 import quote_pb2

NAME_MAX = 12
# An actual further out than so many half-ranges would press all ranges into a few columns; it gets an arrow.
HALF_RANGES_SHOWN = 3.0
# Where no quote has a range.
HALF_RANGE_MIN = 0.05
TICKS_MAX = 5
ARROW_ROOM = 0.06
PLOT_MIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    low: str
    line: str
    high: str
    quoted: str
    held: str
    missed: str


DRAWN = Marks(low="├", line="─", high="┤", quoted="│", held="●", missed="X")
# For a terminal that knows nothing else.
TYPED = Marks(low="[", line="-", high="]", quoted="|", held="o", missed="X")


@dataclass(frozen=True, slots=True)
class Scale:
    """Ratios to columns: the first column is `low`, the last one `high`."""

    low: float
    high: float
    width: int

    def column(self, ratio: float) -> int:
        """May lie outside of the columns."""
        return round((ratio - self.low) / (self.high - self.low) * (self.width - 1))

    def ticks(self) -> list[float]:
        """Round ratios, a few."""
        step = _round_step((self.high - self.low) / TICKS_MAX)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * number for number in range(first, last + 1)]


def new_scale(outcomes: Sequence[quote_pb2.ScoredOutcome], *, width: int) -> Scale:
    """From the ranges and the actuals, except for those that are far outside."""
    scored = [each for each in outcomes if _is_scored(each)]
    half = max([HALF_RANGE_MIN, *(max(1 - each.cost_low_ratio, each.cost_high_ratio - 1) for each in scored)])
    reach = HALF_RANGES_SHOWN * half
    ratios = [each.cost_ratio for each in scored] or [1.0]
    shown = [ratio for ratio in ratios if abs(ratio - 1) <= reach]
    low, high = max(0.0, min([1 - half, *shown])), max([1 + half, *shown])
    # Beyond the ends of all ranges, so that an arrow hides none.
    room = ARROW_ROOM * (high - low)
    return Scale(low - room * (min(ratios) < low), high + room * (max(ratios) > high), width)


def lines(outcomes: Sequence[quote_pb2.ScoredOutcome], *, width: int, ascii_only: bool) -> list[Text]:
    """A header with the scale, then a line for each outcome; what a mark means is said by `legend`."""
    marks = TYPED if ascii_only else DRAWN
    names = max([len("batch"), *(min(NAME_MAX, len(words.bare_id(each.batch))) for each in outcomes)])
    before = names + len("  11-23   1.00  ")
    scale = new_scale(outcomes, width=max(PLOT_MIN, width - before - len("   0.97 *")))
    header = f"{'batch':<{names}}  {'ended':<5}  {'cost':>5}  {_axis(scale)}  {'time':>5}"
    return [Text(header, style="dim", no_wrap=True), *(_line(each, scale, marks, names) for each in outcomes)]


def legend(*, ascii_only: bool) -> str:
    marks = TYPED if ascii_only else DRAWN
    return (
        f"actual over quoted: {marks.low}{marks.line}{marks.high} quoted P10 to P90 of the cost, {marks.held} held,"
        f" {marks.missed} missed; * the time was outside of its range"
    )


def _line(outcome: quote_pb2.ScoredOutcome, scale: Scale, marks: Marks, names: int) -> Text:
    name = words.bare_id(outcome.batch)
    name = name if len(name) <= names else f"{name[: names - 1]}~"
    line = Text(f"{name:<{names}}  {words.day(outcome.end_time)[5:]:<5}  {_ratio(outcome.cost_ratio)}  ", no_wrap=True)
    line.append_text(_bar(outcome, scale, marks) if _is_scored(outcome) else Text(" " * scale.width))
    missed = outcome.time_ratio and not outcome.time_held
    return line.append(f"  {_ratio(outcome.time_ratio)}{' *' if missed else ''}")


def _is_scored(outcome: quote_pb2.ScoredOutcome) -> bool:
    """What was quoted as free has no ratios."""
    return bool(outcome.cost_ratio or outcome.cost_high_ratio)


def _bar(outcome: quote_pb2.ScoredOutcome, scale: Scale, marks: Marks) -> Text:
    cells = [" "] * scale.width
    if outcome.cost_high_ratio > outcome.cost_low_ratio:
        low, high = (_inside(scale, ratio) for ratio in (outcome.cost_low_ratio, outcome.cost_high_ratio))
        cells[low : high + 1] = marks.line * (high + 1 - low)
        cells[low], cells[high] = marks.low, marks.high
    cells[_inside(scale, 1.0)] = marks.quoted
    at = scale.column(outcome.cost_ratio)
    mark = marks.held if outcome.cost_held else marks.missed
    place = _inside(scale, outcome.cost_ratio)
    cells[place] = mark if at == place else "<" if at < place else ">"
    bar = Text("".join(cells), style="dim")
    bar.stylize("bold not dim green" if outcome.cost_held else "bold not dim red", place, place + 1)
    return bar


def _inside(scale: Scale, ratio: float) -> int:
    return min(max(scale.column(ratio), 0), scale.width - 1)


def _axis(scale: Scale) -> str:
    cells = [" "] * scale.width
    free_from = 0
    for tick in scale.ticks():
        label = f"{tick:.2f}".removesuffix("0")
        start = min(max(scale.column(tick) - len(label) // 2, 0), scale.width - len(label))
        if start >= free_from:
            cells[start : start + len(label)] = label
            free_from = start + len(label) + 1
    return "".join(cells)


def _ratio(ratio: float) -> str:
    """Without a ratio there was nothing to score."""
    if not ratio:
        return "    -"
    return f"{ratio:5.2f}" if ratio < 100 else "  >99"


def _round_step(least: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
