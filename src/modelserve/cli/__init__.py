"""The command line: one module for each command. Only here does anything print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from modelserve import __version__
from modelserve.cli import bench, demo, doctor, inspection, publication, server, versions
from modelserve.errors import ServeError

__all__ = ["main"]

_COMMANDS = (server, publication, versions, inspection, bench, doctor, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="modelserve", description="Serve models: stored, versioned, batched."
    )
    parser.add_argument("--version", action="version", version=f"modelserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.declare(commands)
    parsed = parser.parse_args(arguments)
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


def _finish_output() -> None:
    """Drop what cannot be written; Python would try it again at the exit, and fail there."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
