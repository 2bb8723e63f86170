"""`make bench`: measures, prints a line for each figure, and fails where a bound is missed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks import crowd, durability, limits, makespan, memory, throughput, watchers
from benchmarks.figures import Figure, as_json, table

PARTS = ("makespan", "throughput", "limits", "durability", "watchers", "crowd", "memory")


def main() -> int:
    options = _options().parse_args()
    # Short, because a Unix socket's path is: some 100 characters at most.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = asyncio.run(_measure(options, Path(folder)))
    print(as_json(figures) if options.json else table(figures))
    return 0 if all(figure.keeps_bound for figure in figures) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "--quick", action="store_true", help="the large batch has 10,000 conversations, and one round in place of three"
    )
    add("--large", type=int, help="conversations of the large batch (100000)")
    add("--count", type=int, default=2_000, help="conversations of a round, and of the small batch (2000)")
    add("--rounds", type=int, help="rounds of throughput, each side in turn (3)")
    add("--only", choices=PARTS, action="append", help="this part alone; may be given many times")
    add("--json", action="store_true", help="print the figures as JSON")
    return parser


async def _measure(options: argparse.Namespace, folder: Path) -> list[Figure]:
    parts: list[str] = options.only or list(PARTS)
    figures: list[Figure] = []
    if "makespan" in parts:
        figures += await makespan.measure(folder / "makespan", count=90, concurrencies=(3, 10))
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
    return figures


if __name__ == "__main__":
    sys.exit(main())
