"""Output: tables on a terminal, plain tab-separated lines into a pipe, JSON lines where asked for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

ANSWER_MAX_BYTES = 4096
NOTE_INDENT = 6


@dataclass(frozen=True, slots=True)
class Output:
    out: Console
    err: Console
    as_json: bool

    @property
    def live(self) -> bool:
        """True where somebody looks at a terminal."""
        return self.out.is_terminal and not self.as_json

    @property
    def can_ask(self) -> bool:
        return self.live and sys.stdin.isatty()

    def show(self, renderable: RenderableType = "") -> None:
        """For a terminal only."""
        self.out.print(renderable)

    def line(self, *columns: object) -> None:
        """One line of columns, as it is: no wrapping, no colours, no markup."""
        self.out.file.write("\t".join(_one_line(column) for column in columns) + "\n")
        self.out.file.flush()

    def text(self, text: str) -> None:
        """Text as it is, with its line breaks."""
        self.out.file.write(f"{text}\n")
        self.out.file.flush()

    def message(self, message: Message) -> None:
        """One proto message as canonical JSON on one line."""
        self.line(json_format.MessageToJson(message, indent=None, ensure_ascii=False))

    def note(self, text: str) -> None:
        """What is no result: for the person, not for the pipe."""
        self.err.print(Text(text), soft_wrap=True)

    async def ask(self, question: str) -> str:
        """A line of the keyboard; empty at its end. Ctrl-C cancels it like any other wait."""
        self.out.print(Text(f"{question} "), end="")
        loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
        typed = asyncio.Event()
        loop.add_reader(keyboard, typed.set)
        try:
            await typed.wait()
        finally:
            loop.remove_reader(keyboard)
        # A terminal hands over whole lines.
        return os.read(keyboard, ANSWER_MAX_BYTES).decode(errors="replace").strip()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        if not self.live:
            self.line(*columns)
            for row in rows:
                self.line(*row)
            return
        self.show(table(columns, rows, right=right))

    def noted_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), elastic: str
    ) -> None:
        """A table whose last column are notes: on a terminal a note stands beneath its row, where it has room.

        `elastic` is the column that gives way where the terminal is narrow.
        """
        if not self.live:
            self.table(columns, rows)
            return
        made = table(columns[:-1], [[_unbroken(cell) for cell in row[:-1]] for row in rows], right=right)
        for column in made.columns:
            column.no_wrap, column.min_width = column.header != elastic, len(str(column.header))
        header, *lines = self.out.render_lines(made, pad=False)
        self.show(Segments([*header, Segment.line()]))
        for line, row in zip(lines, rows, strict=True):
            self.show(Segments([*line, Segment.line()]))
            if row[-1]:
                self.show(Padding(Text(row[-1], style="dim"), (0, 0, 0, NOTE_INDENT)))

    def grouped_table(
        self, columns: Sequence[str], groups: Sequence[tuple[Text, Sequence[Sequence[str]]]], *, right: Sequence[str]
    ) -> None:
        """For a terminal: tables beneath headings, with one header and columns of the same width."""
        rows = [[_unbroken(cell) for cell in row] for _, group in groups for row in group]
        made = table(columns, rows, right=right)
        for column in made.columns:
            column.no_wrap = True
        header, *lines = self.out.render_lines(made, pad=False)
        self.show(Segments([*header, Segment.line()]))
        waiting = iter(lines)
        for heading, group in groups:
            self.show(heading)
            for line in islice(waiting, len(group)):
                self.show(Segments([*line, Segment.line()]))


def new_output(*, as_json: bool) -> Output:
    return Output(Console(file=sys.stdout, highlight=False), Console(file=sys.stderr, highlight=False), as_json=as_json)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """Without frames: they cost width and say nothing."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def _unbroken(cell: str) -> Text:
    return Text(_one_line(cell), no_wrap=True, overflow="ellipsis")


def json_line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _one_line(column: object) -> str:
    return " ".join(str(column).split("\n")).replace("\t", " ")
