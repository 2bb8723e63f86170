"""Arguments: the options of all commands, which stand anywhere on the line."""

from __future__ import annotations

from collections.abc import Sequence

# The parser knows them only before the command.
HOISTED_FLAGS = ("--json",)
HOISTED_OPTIONS = ("--server", "--estimator", "--token")


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options of all commands moved to the front."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*front, *rest, argument, *waiting]
        if argument in HOISTED_FLAGS or argument.startswith(tuple(f"{option}=" for option in HOISTED_OPTIONS)):
            front.append(argument)
        elif argument in HOISTED_OPTIONS:
            front += [argument, *waiting[:1]]
            del waiting[:1]
        else:
            rest.append(argument)
    return [*front, *rest]
