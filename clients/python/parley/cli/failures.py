"""Failures of the command: one sentence, the fields, what to do next, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from parley.cli.output import Output, json_line
from parley.cli.spec_file import SpecFileError
from parley.exceptions import (
    Conflict,
    InvalidRequest,
    NotBuilt,
    NotFound,
    ParleyError,
    ServerError,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from parley.wire.errors import BootError

OK = 0
NOT_ALL_MADE = 1
BAD_USAGE = 2
NOT_POSSIBLE = 3
UNAVAILABLE = 4
HELD = 5
INTERRUPTED = 130

_REFUSED = (NotFound, Conflict, WrongState, NotBuilt, Unauthenticated)


@dataclass(frozen=True, slots=True)
class Fault:
    """Where and what: `spec.yaml:12 tiers[0].count` and `expected a whole number`."""

    where: str
    message: str


class CommandError(Exception):
    """The command can't go on."""

    def __init__(
        self,
        sentence: str,
        *,
        exit_code: int,
        faults: Sequence[Fault] = (),
        next_step: str = "",
        reason: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code
        self.faults = tuple(faults)
        self.next_step = next_step
        self.reason = reason
        self.request_id = request_id


EXPECTED = (CommandError, ParleyError, SpecFileError, BootError)


def as_command_error(error: Exception, *, server: str) -> CommandError:
    match error:
        case CommandError():
            return error
        case SpecFileError():
            return _of_spec(error)
        case ParleyError():
            return _of_call(error, server=server)
        case _:
            return CommandError(str(error), exit_code=BAD_USAGE)


def no_estimator(target: str) -> CommandError:
    return CommandError(
        f"No estimator answers at {target}.",
        exit_code=UNAVAILABLE,
        next_step="Start it with `parley up`, or name another one with --estimator or PARLEY_ESTIMATOR.",
    )


def show(output: Output, error: CommandError) -> None:
    if output.as_json:
        output.err.file.write(json_line(_as_json(error)) + "\n")
        return
    output.err.print(Text.assemble(("error: ", "bold red"), error.sentence), soft_wrap=True)
    for fault in error.faults:
        output.err.print(
            Text(f"  {fault.where}: {fault.message}" if fault.where else f"  {fault.message}"), soft_wrap=True
        )
    if error.next_step:
        output.err.print(Text.assemble(("next: ", "bold"), error.next_step), soft_wrap=True)


def _as_json(error: CommandError) -> dict[str, object]:
    return {
        "error": error.sentence,
        "reason": error.reason,
        "fields": [{"where": fault.where, "message": fault.message} for fault in error.faults],
        "next": error.next_step,
        "requestId": error.request_id,
        "exitCode": error.exit_code,
    }


def _of_spec(error: SpecFileError) -> CommandError:
    faults = [Fault(_place(str(error.path), fault.line, fault.field), fault.message) for fault in error.faults]
    return CommandError(
        str(error),
        exit_code=BAD_USAGE,
        faults=faults,
        reason="SPEC_FILE",
        next_step="Correct the file and run this again.",
    )


def _place(path: str, line: int, field: str) -> str:
    place = f"{path}:{line}" if line else path
    return f"{place} {field}" if field else place


def _of_call(error: ParleyError, *, server: str) -> CommandError:
    sentence, next_step = error.message, error.next_step
    if isinstance(error, Unavailable) and not error.reason:
        sentence = f"No orchestrator answers at {server}."
        next_step = "Start it with `parley up`, or name another one with --server or PARLEY_ORCHESTRATOR."
    if isinstance(error, ServerError) and error.request_id:
        sentence = f"{sentence.rstrip('.')} (request {error.request_id})."
    faults = [Fault(field, message) for field, message in error.fields.items()]
    return CommandError(
        sentence,
        exit_code=exit_code_of(error),
        faults=faults,
        next_step=next_step,
        reason=error.reason,
        request_id=error.request_id,
    )


def exit_code_of(error: ParleyError) -> int:
    if isinstance(error, InvalidRequest):
        return BAD_USAGE
    return NOT_POSSIBLE if isinstance(error, _REFUSED) else UNAVAILABLE
