"""A dataset streamed in constant memory: for each file a header, its bytes and a footer; a summary last."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator_service.exports import messages
from orchestrator_service.storage import conversations
from orchestrator_service.storage.conversations import Which
from orchestrator_service.storage.database import Database

ROWS_PER_READ = 200
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Source:
    """One batch of the dataset, and the system message of its rows."""

    batch: str
    display_name: str
    system: str


@dataclass(frozen=True)
class Split:
    """Shares of rows; what is left is train. A row's place depends on seed, batch and number only."""

    validation: float
    test: float
    seed: int

    def file_of(self, batch: str, number: int) -> str:
        digest = hashlib.sha256(f"{self.seed}:{batch}:{number}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64
        if drawn < self.test:
            return "test"
        return "validation" if drawn < self.test + self.validation else "train"

    @property
    def files(self) -> list[str]:
        return ["train", *(["validation"] if self.validation else []), *(["test"] if self.test else [])]


@dataclass(frozen=True)
class Header:
    file_name: str
    media_type: str


@dataclass(frozen=True)
class Footer:
    sha256: str
    size_bytes: int
    rows: int


@dataclass(frozen=True)
class Summary:
    rows: int
    left_out: Counter[str]


async def parts(
    database: Database, sources: Sequence[Source], which: Which, split: Split | None
) -> AsyncGenerator[Header | bytes | Footer | Summary]:
    """The same batches give the same bytes."""
    total = 0
    for name in split.files if split else [_slug(sources[0].display_name)]:
        yield Header(name + messages.SUFFIX, messages.MEDIA_TYPE)
        digest, size, rows, chunk = hashlib.sha256(), 0, 0, bytearray()
        async for line in _lines(database, sources, which, split, name):
            rows += 1
            chunk += line
            while len(chunk) >= CHUNK_BYTES:
                part, chunk = bytes(chunk[:CHUNK_BYTES]), chunk[CHUNK_BYTES:]
                digest.update(part)
                size += len(part)
                yield part
        if chunk:
            digest.update(chunk)
            size += len(chunk)
            yield bytes(chunk)
        total += rows
        yield Footer(digest.hexdigest(), size, rows)
    yield Summary(total, await _left_out(database, sources, which))


async def _lines(
    database: Database, sources: Sequence[Source], which: Which, split: Split | None, name: str
) -> AsyncGenerator[bytes]:
    for source in sources:
        after = 0
        while True:
            query = partial(conversations.deliverable, batch=source.batch, which=which, after=after, size=ROWS_PER_READ)
            rows = await database.read(query)
            for row in rows:
                if split is None or split.file_of(source.batch, row["number"]) == name:
                    yield messages.line(json.loads(row["turns"]), system=source.system)
            if len(rows) < ROWS_PER_READ:
                break
            after = rows[-1]["number"]


async def _left_out(database: Database, sources: Sequence[Source], which: Which) -> Counter[str]:
    found: Counter[str] = Counter()
    for source in sources:
        found.update(await database.read(partial(conversations.left_out, batch=source.batch, which=which)))
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "dataset"
