"""The table of the back-test: the estimator and the oracle beside each other in every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.backtest.series import Series
from benchmarks.backtest.trials import ALL_PAST, ALL_PAST_MIN, Result, Row
from estimator_service.domain.scores import Scores, summarize

HEADINGS = ("", "", "n", "MAPE", "<=10%", "<=20%", "in 80%", "in 95%", "width", "pinball", "int.80", "ratio", "clairv.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One row. The ratio is that of the interval scores, ours over the oracle's."""

    row: Row
    ours: Scores
    oracle: Scores
    # None before the start.
    clairvoyant: Scores | None

    @property
    def ratio(self) -> float:
        return self.ours.interval_score_80 / self.oracle.interval_score_80

    @property
    def error_ratio(self) -> float:
        return self.ours.mape / self.oracle.mape

    @property
    def title(self) -> str:
        past = f"all past ({ALL_PAST_MIN}+)" if self.row.past == ALL_PAST else f"{self.row.past} past"
        return f"{past}, {self.row.done:.0%} done" if self.row.done else past


def worlds(series: Sequence[Series]) -> str:
    """What the batches on the sandbox were like: a line for each world; empty where there are none."""
    return "\n".join(_world(each) for each in series if each.kind == "sandbox")


def _world(series: Series) -> str:
    batches = series.batches
    tokens = np.array([call.output_tokens for call in series.calls])
    drifts = np.array([(batch.drift.tokens, batch.drift.speed) for batch in batches if batch.drift])
    of_tokens, of_speed = drifts.std(axis=0) if len(drifts) else (0.0, 0.0)
    return (
        f"{series.name}: {len(batches)} batches of {len(batches[0].calls)}, {tokens.mean():,.0f} output tokens a call "
        f"(CV {_variation(series):.2f} in a tier), drift {of_tokens:.3f} and {of_speed:.3f} (tokens, speed), "
        f"{np.mean([batch.time_s for batch in batches]):.1f} s at {series.speed_up:g} x"
    )


def _variation(series: Series) -> float:
    """The coefficient of variation of the tier that varies most."""
    tiers: dict[str, list[int]] = {}
    for call in series.calls:
        tiers.setdefault(call.tier, []).append(call.output_tokens)
    return max(float(np.std(each) / np.mean(each)) for each in tiers.values())


def summaries(results: Sequence[Result]) -> list[Summary]:
    """In the order of the rows' first results."""
    rows: dict[Row, list[Result]] = {}
    for result in results:
        rows.setdefault(result.row, []).append(result)
    return [_summary(row, each) for row, each in sorted(rows.items(), key=lambda pair: _position(pair[0]))]


def _position(row: Row) -> tuple[Any, ...]:
    return row.kind, row.measure, row.done, row.past == ALL_PAST, row.past


def _summary(row: Row, results: Sequence[Result]) -> Summary:
    clairvoyant = [each.clairvoyant for each in results if each.clairvoyant]
    return Summary(
        row=row,
        ours=summarize([each.ours for each in results]),
        oracle=summarize([each.oracle for each in results]),
        clairvoyant=summarize(clairvoyant) if clairvoyant else None,
    )


def table(rows: Sequence[Summary]) -> str:
    lines: list[str] = []
    last = ("", "")
    for row in rows:
        if (row.row.kind, row.row.measure) != last:
            last = (row.row.kind, row.row.measure)
            lines += ["", f"{row.row.kind}: {row.row.measure}", _line(HEADINGS)]
        lines.append(_line((row.title, "ours", *_cells(row.ours), f"{row.ratio:.3f}", "")))
        clairvoyant = _percent(row.clairvoyant.mape) if row.clairvoyant else ""
        lines.append(_line(("", "oracle", *_cells(row.oracle), "", clairvoyant)))
    return "\n".join(lines).lstrip("\n")


def _cells(scores: Scores) -> tuple[str, ...]:
    return (
        f"{scores.count}",
        _percent(scores.mape),
        _percent(scores.within_10_percent),
        _percent(scores.within_20_percent),
        _percent(scores.coverage_80),
        _percent(scores.coverage_95),
        _percent(scores.width_80),
        f"{scores.pinball_loss:.4f}",
        f"{scores.interval_score_80:.4f}",
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _line(cells: Sequence[str]) -> str:
    title, who, count, *rest = cells
    return f"{title:<20}{who:<7}{count:>4} {' '.join(f'{cell:>7}' for cell in rest)}".rstrip()


def as_json(rows: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        asdict(row.row)
        | {
            "name": f"{row.row.kind}: {row.row.measure}, {row.title}",
            "ours": asdict(row.ours),
            "oracle": asdict(row.oracle),
            "clairvoyant": asdict(row.clairvoyant) if row.clairvoyant else None,
            "interval_score_ratio": row.ratio,
            "error_ratio": row.error_ratio,
        }
        for row in rows
    ]
