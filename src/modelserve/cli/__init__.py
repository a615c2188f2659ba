"""The command line: one module for each command. Only here does anything print."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, Final

from modelserve import __version__
from modelserve.errors import ServeError

__all__ = ["main"]

# Which module declares which commands. Only what is wanted is imported: a server that starts
# should not wait for the code of a demo.
_MODULES: Final = {
    "server": ("serve",),
    "publication": ("publish",),
    "versions": ("list", "label", "rollback"),
    "inspection": ("inspect",),
    "bench": ("bench",),
    "doctor": ("doctor",),
    "demo": ("demo",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="modelserve", description="Serve models: stored, versioned, batched."
    )
    parser.add_argument("--version", action="version", version=f"modelserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    _declare(commands, _modules_for(given))
    parsed = parser.parse_args(given)
    try:
        status = int(parsed.run(parsed))
        sys.stdout.flush()  # here, where it may fail
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _finish_output()  # whoever read it has seen enough
        return 1
    except (ServeError, ImportError, ValueError) as error:
        print(f"modelserve {parsed.command}: {error}", file=sys.stderr)
    except OSError as error:
        _finish_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"modelserve {parsed.command}: {where}{error.strerror or error}", file=sys.stderr)
    return 1


def _declare(commands: Any, modules: Iterable[str]) -> None:
    # What imports make stays; looking through it for garbage would take a server's start 6 ms.
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in modules:
            import_module(f"modelserve.cli.{name}").declare(commands)
    finally:
        if collecting:
            gc.enable()


def _modules_for(arguments: Sequence[str]) -> Iterable[str]:
    """Return the module of the command that is named; all where help or an error is due."""
    for name, commands in _MODULES.items():
        if arguments and arguments[0] in commands:
            return (name,)
    return _MODULES


def _finish_output() -> None:
    """Drop what cannot be written; Python would try it again at the exit, and fail there."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
