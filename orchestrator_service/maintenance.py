"""`python -m orchestrator_service.maintenance`: the operator's verbs on database files, beside a server or without one.

`parley verify`, `parley backup` and `parley restore` run it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator_service.convert.rate import rate_from_json
from orchestrator_service.domain.ledger import Rate
from orchestrator_service.engine.clock import SystemClock
from orchestrator_service.storage import backup
from orchestrator_service.storage.books import Difference, Doubt
from orchestrator_service.storage.database import DatabaseUnusable
from orchestrator_service.storage.verify import Contents, Damage, Finding, contents, damages, findings, opened_read_only

# As the command line has them.
OK = 0
DIFFERS = 1
NOT_POSSIBLE = 3
INTERRUPTED = 130
# Findings of a file that are shown to a person; all are counted, and all are in the JSON.
SHOWN_MAX = 100
RESTORE = "`parley restore FOLDER` brings a backup back, and keeps the damaged file beside it."


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _options().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = asked.verb
    try:
        return verb(asked)
    except DatabaseUnusable as error:
        sys.stderr.write(f"{json.dumps(_error(error)) if asked.json else f'error: {error}'}\n")
        return NOT_POSSIBLE
    except KeyboardInterrupt:
        return INTERRUPTED


def verify(asked: argparse.Namespace) -> int:
    """Both files; DIFFERS where anything is wrong."""
    wrong = _verify_orchestrator(asked.database, as_json=asked.json)
    if asked.estimator is not None and asked.estimator.is_file():
        wrong += _verify_estimator(asked.estimator, as_json=asked.json)
    return DIFFERS if wrong else OK


def back_up(asked: argparse.Namespace) -> int:
    target = asked.folder / backup.ORCHESTRATOR
    files = {asked.database: target}
    if asked.estimator is not None and asked.estimator.is_file():
        files[asked.estimator] = asked.folder / backup.ESTIMATOR
    backup.refuse_existing(files.values(), force=asked.force)
    for source, copy in files.items():
        backup.back_up(source, copy)
        found = _contents(copy) if copy == target else None
        _tell(asked.json, {"file": str(copy), "bytes": copy.stat().st_size, **_facts(found)}, _described(copy, found))
    return OK


def restore(asked: argparse.Namespace) -> int:
    now_us = SystemClock().now_us()
    done = backup.restore(asked.folder, database=asked.database, estimator=asked.estimator, now_us=now_us)
    for restored in done:
        kept = None if restored.kept is None else str(restored.kept)
        facts = {"file": str(restored.path), "kept": kept, "held": list(restored.held)}
        _tell(asked.json, facts, _restored(restored))
    return OK


def _verify_orchestrator(path: Path, *, as_json: bool) -> int:
    """How much is wrong."""
    counted: Counter[str] = Counter()
    with opened_read_only(path) as connection:
        for finding in findings(connection, rate_of=_rate_of):
            _tell_finding(path, finding, counted, as_json=as_json)
        found = None if counted["damages"] else contents(connection)
    summary = {name: counted[name] for name in ("damages", "differences", "doubts")}
    _tell(as_json, {"file": str(path), **summary, **_facts(found)}, _judged(path, counted, found))
    if counted["damages"] and not as_json:
        sys.stderr.write(f"next: {RESTORE}\n")
    return counted["damages"] + counted["differences"]


def _verify_estimator(path: Path, *, as_json: bool) -> int:
    """Its rows are its own; only its pages are looked at."""
    counted: Counter[str] = Counter()
    with opened_read_only(path) as connection:
        for damage in damages(connection):
            _tell_finding(path, damage, counted, as_json=as_json)
    whole = "it is damaged" if counted["damages"] else "it is whole"
    _tell(as_json, {"file": str(path), "damages": counted["damages"]}, f"{path}: {whole}")
    return counted["damages"]


def _tell_finding(path: Path, finding: Finding, counted: Counter[str], *, as_json: bool) -> None:
    kind = {Damage: "damage", Difference: "difference", Doubt: "doubt"}[type(finding)]
    counted[f"{kind}s"] += 1
    if as_json or counted[f"{kind}s"] <= SHOWN_MAX:
        sentence = f"not certain: {finding}" if isinstance(finding, Doubt) else str(finding)
        _tell(as_json, {"file": str(path), kind: asdict(finding)}, sentence)


def _judged(path: Path, counted: Counter[str], found: Contents | None) -> str:
    words = {"damages": "damaged part", "differences": "difference", "doubts": "doubt"}
    said = ", ".join(_count(counted[kind], word) for kind, word in words.items() if counted[kind]) or "all agrees"
    return f"{path}: {said}" + (f" in {_inside(found)}" if found else "")


def _described(path: Path, found: Contents | None) -> str:
    size = f"{path}: {path.stat().st_size / 1e6:,.1f} MB"
    return f"{size}, {_inside(found)}, generation {found.generation or 'none yet'}" if found else size


def _restored(restored: backup.Restored) -> str:
    kept = f"; what was there is kept as {restored.kept}" if restored.kept else ""
    waits = f"; paused until `parley resume`: {', '.join(restored.held)}" if restored.held else ""
    return f"{restored.path}: restored{kept}{waits}"


def _inside(found: Contents) -> str:
    written = "nothing written yet" if found.last_us is None else f"last written {backup.shown(found.last_us)}"
    counts = (_count(found.batches, "batch"), _count(found.conversations, "conversation"), _count(found.calls, "call"))
    return ", ".join((*counts, written))


def _facts(found: Contents | None) -> Mapping[str, object]:
    if found is None:
        return {}
    facts = asdict(found)
    last_us = facts.pop("last_us")
    return {**facts, "lastWritten": None if last_us is None else backup.shown(last_us)}


def _error(error: DatabaseUnusable) -> Mapping[str, object]:
    """In the shape of every error of `parley --json`."""
    no_fields: list[object] = []
    empty = {"reason": "", "fields": no_fields, "next": "", "requestId": ""}
    return {"error": str(error), **empty, "exitCode": NOT_POSSIBLE}


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def _contents(path: Path) -> Contents:
    with opened_read_only(path) as connection:
        return contents(connection)


def _rate_of(stored: str) -> Rate:
    rate = rate_from_json(stored)
    assert rate is not None
    return rate


def _tell(as_json: bool, facts: Mapping[str, object], sentence: str) -> None:
    sys.stdout.write(f"{json.dumps(facts, ensure_ascii=False) if as_json else sentence}\n")
    sys.stdout.flush()


def _options() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    every.add_argument("--database", type=Path, required=True, metavar="FILE", help="the orchestrator's")
    every.add_argument(
        "--estimator", type=Path, metavar="FILE", help="the estimator's; passed over where there is none"
    )
    every.add_argument("--json", action="store_true", help="JSON lines in place of sentences")
    parser = argparse.ArgumentParser(prog="python -m orchestrator_service.maintenance", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    add = verbs.add_parser("verify", parents=[every], help="recompute everything from the ledger, and say what differs")
    add.set_defaults(verb=verify)
    add = verbs.add_parser("backup", parents=[every], help="copy both files, also while the servers run")
    add.set_defaults(verb=back_up)
    add.add_argument("folder", type=Path)
    add.add_argument("--force", action="store_true", help="in place of a backup that is there")
    add = verbs.add_parser("restore", parents=[every], help="put both files back, with the servers stopped")
    add.set_defaults(verb=restore)
    add.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
