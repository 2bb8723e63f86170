"""Exports: dataset files of one or several batches, and what was left out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parley.cli.failures import BAD_USAGE, OK, CommandError
from parley.cli.output import Output, json_line
from parley.cli.session import Session
from parley.cli.spec_reader import enum_words
from parley.client import BatchClient
from parley.downloads import ExportedFiles
from parley.v1 import conversation_pb2, orchestrator_pb2

REFUSED_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    out: Path
    format: str = "messages"
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0
    tiers: Sequence[str] = ()


async def export(session: Session, names: Sequence[str], options: ExportOptions) -> int:
    async with session.client() as client:
        exported = await write(client, names, options)
    show(session.output, exported)
    return OK


async def write(client: BatchClient, names: Sequence[str], options: ExportOptions) -> ExportedFiles:
    formats = enum_words(orchestrator_pb2.DatasetFormat.DESCRIPTOR)
    number = formats.get(options.format.lower().replace("-", "_").replace("/", "_"))
    if number is None:
        raise CommandError(
            f"--format {options.format} is not known; there are {', '.join(formats)}.", exit_code=BAD_USAGE
        )
    return await client.export(
        names,
        options.out,
        format=orchestrator_pb2.DatasetFormat.ValueType(number),
        split=_split(options),
        filter=conversation_pb2.ConversationFilter(tiers=options.tiers) if options.tiers else None,
    )


def _split(options: ExportOptions) -> orchestrator_pb2.DatasetSplit | None:
    if not options.validation and not options.test:
        return None
    return orchestrator_pb2.DatasetSplit(validation=options.validation, test=options.test, seed=options.seed)


def show(output: Output, exported: ExportedFiles) -> None:
    if output.as_json:
        output.line(json_line(_as_json(exported)))
        return
    output.table(
        ("file", "rows", "bytes", "sha256"),
        [(file.path, file.rows, file.size_bytes, file.sha256[:12]) for file in exported.files],
        right=("rows", "bytes"),
    )
    for review, count in sorted(exported.left_out.items()):
        output.note(f"left out: {count} {review.lower()}")
    for name, reason in sorted(exported.refused.items())[:REFUSED_SHOWN]:
        output.note(f"left out: {name}: {reason}")
    if len(exported.refused) > REFUSED_SHOWN:
        output.note(f"left out: {len(exported.refused) - REFUSED_SHOWN} more that the format can't hold")


def _as_json(exported: ExportedFiles) -> dict[str, object]:
    files = [{**asdict(file), "path": str(file.path)} for file in exported.files]
    return {
        "files": files,
        "rows": exported.rows,
        "leftOut": dict(exported.left_out),
        "refused": dict(exported.refused),
    }
