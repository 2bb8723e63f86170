"""A session: one run of the command, with its output and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from parley.cli import failures
from parley.cli.output import Output
from parley.client import BatchClient, channel_settings


@dataclass(frozen=True, slots=True)
class Session:
    output: Output
    server: str | None
    token: str | None

    @property
    def target(self) -> str:
        return channel_settings(self.server, token=None, tls_ca_file=None).target

    def client(self) -> BatchClient:
        return BatchClient(self.server, token=self.token)


def run(session: Session, command: Callable[[Session], Coroutine[Any, Any, int]]) -> int:
    """The exit code of an asynchronous command; expected failures are told on stderr."""
    return run_here(session, lambda ready: asyncio.run(command(ready)))


def run_here(session: Session, command: Callable[[Session], int]) -> int:
    """The exit code of a command; expected failures are told on stderr."""
    try:
        return command(session)
    except failures.EXPECTED as error:
        told = failures.as_command_error(error, server=session.target)
        failures.show(session.output, told)
        return told.exit_code
    except KeyboardInterrupt:
        return failures.INTERRUPTED
