"""The `parley` command."""

from __future__ import annotations


def main() -> None:
    """The entry point: runs the command of this process's arguments."""
    from parley.cli.app import main as run

    run()
