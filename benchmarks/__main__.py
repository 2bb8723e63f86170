"""`make bench`: measures, prints a line for each figure, and fails where a bound is missed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks import crowd, durability, limits, makespan, memory, simulation, throughput, watchers
from benchmarks.backtest import measure as backtest
from benchmarks.backtest import report
from benchmarks.backtest.histories import BATCHES, HistoryError
from benchmarks.backtest.report import Summary
from benchmarks.backtest.traces import TraceError
from benchmarks.figures import Figure, as_json, table

PARTS = ("makespan", "simulation", "throughput", "limits", "durability", "watchers", "crowd", "memory", "backtest")

EXIT_UNUSABLE = 2


def main() -> int:
    options = _options().parse_args()
    # Short, because a Unix socket's path is: some 100 characters at most.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            figures, rows = asyncio.run(_measure(options, Path(folder)))
        except (TraceError, HistoryError) as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return EXIT_UNUSABLE
    if rows and not options.json:
        print(report.table(rows), end="\n\n")
    print(as_json(figures, more=report.as_json(rows)) if options.json else table(figures))
    return 0 if all(figure.keeps_bound for figure in figures) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="the large batch has 10,000 conversations, one round, and a fifth of the batches",
    )
    add("--large", type=int, help="conversations of the large batch (100000)")
    add("--count", type=int, default=2_000, help="conversations of a round, and of the small batch (2000)")
    add("--rounds", type=int, help="rounds of throughput, each side in turn (3)")
    add("--only", choices=PARTS, action="append", help="this part alone; may be given many times")
    add("--histories", type=Path, help="batches on the sandbox for the back-test: read, or recorded there if missing")
    add("--cost-trace", type=Path, help="another trace for the back-test of cost (see benchmarks/README.md)")
    add("--time-trace", type=Path, help="another trace for the back-test of time")
    add("--json", action="store_true", help="print the figures as JSON")
    return parser


async def _measure(options: argparse.Namespace, folder: Path) -> tuple[list[Figure], list[Summary]]:
    parts: list[str] = options.only or list(PARTS)
    figures: list[Figure] = []
    rows: list[Summary] = []
    # Read first: a file that can't be used ends the run before anything is measured.
    series = backtest.traces_of(cost=options.cost_trace, time=options.time_trace) if "backtest" in parts else []
    if "makespan" in parts:
        figures += await makespan.measure(folder / "makespan", count=90, concurrencies=(3, 10))
    if "simulation" in parts:
        figures += await simulation.measure(folder / "simulation")
    if "throughput" in parts:
        rounds = options.rounds or (1 if options.quick else 3)
        figures += await throughput.measure(folder / "throughput", count=options.count, rounds=rounds)
    if "limits" in parts:
        figures += await limits.measure(folder / "limits")
    if "durability" in parts:
        figures += await durability.measure(folder / "durability")
    if "watchers" in parts:
        figures += await watchers.measure(folder / "watchers")
    if "crowd" in parts:
        figures += await crowd.measure(folder / "crowd", each=250 if options.quick else 1_000)
    if "memory" in parts:
        large = options.large or (10_000 if options.quick else 100_000)
        figures += await memory.measure(folder / "memory", small=options.count, large=large)
    if "backtest" in parts:
        saved: Path | None = options.histories
        # Where traces alone are named, no sandbox is run for them.
        if saved or not (options.cost_trace or options.time_trace):
            batches = BATCHES // 5 if options.quick else BATCHES
            series = [*await backtest.histories_of(folder, batches=batches, saved=saved), *series]
        of_backtest, rows = await backtest.measure(series)
        figures += of_backtest
    return figures, rows


if __name__ == "__main__":
    sys.exit(main())
