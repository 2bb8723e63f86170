"""A session: one run of the command, with its output and its servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from parley.cli import failures
from parley.cli.output import Output
from parley.client import BatchClient, channel_settings
from parley.estimator import EstimatorClient, estimator_settings
from parley.exceptions import Unavailable


@dataclass(frozen=True, slots=True)
class Session:
    output: Output
    server: str | None
    token: str | None
    # Where the estimator is called, for the few commands that ask it themselves.
    estimator: str | None = None

    @property
    def target(self) -> str:
        return channel_settings(self.server, token=None, tls_ca_file=None).target

    @property
    def targets(self) -> Mapping[str, str]:
        """What is called, by the variable that names it."""
        estimator = estimator_settings(self.estimator, token=None, tls_ca_file=None).target
        return {"PARLEY_ORCHESTRATOR": self.target, "PARLEY_ESTIMATOR": estimator}

    def client(self) -> BatchClient:
        return BatchClient(self.server, token=self.token)

    @asynccontextmanager
    async def estimating(self) -> AsyncGenerator[EstimatorClient]:
        async with EstimatorClient(self.estimator, token=self.token) as client:
            try:
                yield client
            except Unavailable as error:
                if error.reason:
                    raise
                raise failures.no_estimator(client.target) from error


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
