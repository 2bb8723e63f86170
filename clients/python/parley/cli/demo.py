"""The demo: quote, start, watch and export the example, on the sandbox where there is no key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.text import Text

from parley.cli import conversations, exporting, services, spec_file, starter, starting, watching, words
from parley.cli.conversations import Excerpt
from parley.cli.exporting import ExportOptions
from parley.cli.failures import HELD, OK
from parley.cli.output import Output
from parley.cli.session import Session, run
from parley.cli.starting import StartOptions
from parley.downloads import ExportedFiles
from parley.v1 import batch_pb2

EXAMPLE = Path("examples/planner/spec.yaml")
EXCERPT = Excerpt(turns=4, characters=280)


def demo(session: Session, *, spec: Path | None, out: Path, yes: bool) -> int:
    """Ends what it started itself; what ran before goes on."""
    running = [] if session.server else services.up(session.output)
    started = [service.name for service in running if service.pid is not None]
    local = session if session.server else replace(session, server=services.target())
    try:
        return run(local, lambda ready: _make(ready, spec or _example(), out=out, yes=yes))
    finally:
        if started:
            services.down(session.output, started)
            session.output.note("What is unfinished goes on after the next `parley up`.")


def _example() -> Path:
    return EXAMPLE if EXAMPLE.exists() else starter.FOLDER / "spec.yaml"


async def _make(session: Session, path: Path, *, out: Path, yes: bool) -> int:
    file = spec_file.load(path)
    async with session.client() as client:
        batch = await starting.start_batch(session, client, file, StartOptions(yes=yes))
        if batch is None:
            session.output.note("Nothing was started.")
            return OK
        code = await watching.watch_batch(session, client, batch.name, hints=False)
        batch = await client.get(batch.name)
        if code == HELD or not batch.counts.deliverable:
            session.output.note(f"next: parley up && parley show {words.bare_id(batch.name)}")
            return code
        exported = await exporting.write(client, [batch.name], ExportOptions(out=out))
        exporting.show(session.output, exported)
        if not session.output.as_json:
            number = await conversations.first_number(client, batch.name)
            _heading(session.output, f"conversation {number}:")
            conversations.show(session.output, await client.conversation(batch.name, number), excerpt=EXCERPT)
            _hints(session.output, batch, exported)
    return code


def _heading(output: Output, text: str) -> None:
    if output.live:
        output.show()
        output.show(Text(text, style="bold"))
    else:
        output.text(f"\n{text}")


def _hints(output: Output, batch: batch_pb2.Batch, exported: ExportedFiles) -> None:
    name = words.bare_id(batch.name)
    output.note("")
    if exported.files:
        output.note(f"The dataset is {exported.files[0].path}.")
    output.note(f"next: parley up && parley read {name}            (more of this batch)")
    output.note("next: parley init mine && parley start mine/spec.yaml   (a spec of your own)")
    if batch.provider.sandbox:
        output.note("next: export ANTHROPIC_API_KEY=... && parley demo       (the same with Claude)")
