"""`isr …`: one module per group of commands, imported when it is used.

A command module offers `register(subparsers)`; other rooms add theirs by the entry-point group `isr.commands`
(a function of the same form).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import IsrError
from ..registry import COMMANDS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["main", "parser"]

#: Our own command modules, in the order of `isr --help`.
_MODULES = (
    "evaluate",
    "batch",
    "runs",
    "review",
    "statistics",
    "calibrate",
    "probe",
    "info",
    "immunize",
    "bench",
    "demo",
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="isr", description="Immunization Success Rate: does an immunized image really resist text-guided editing?"
    )
    top.add_argument("--version", action="version", version=f"isr {__version__}")
    top.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _MODULES:
        import_module(f".{name}", __name__).register(commands)
    for plugin in COMMANDS.list():
        try:
            COMMANDS.load(plugin.name)(commands)
        except IsrError as error:
            print(f"isr: the command {plugin.name!r} is not available: {error}", file=sys.stderr)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 an error that was explained, 2 wrong usage, 130 interrupted."""
    arguments = parser().parse_args(argv)
    if getattr(arguments, "quiet", False):  # the model libraries' own bars too; they read this when they are imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        status: int = arguments.run(arguments) or 0
    except IsrError as error:
        if arguments.traceback:
            raise
        print(f"isr {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nisr: interrupted. Everything received so far is kept; the same command goes on where it stopped.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0
    return status
