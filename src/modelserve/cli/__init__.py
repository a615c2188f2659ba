"""The command line: one module for each command. Only here does anything print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from modelserve import __version__
from modelserve.cli import demo, doctor, inspection, publication, server
from modelserve.errors import ServeError

__all__ = ["main"]

_COMMANDS = (server, publication, inspection, doctor, demo)


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
        return int(parsed.run(parsed))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (ServeError, ImportError, ValueError) as error:
        print(f"modelserve {parsed.command}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"modelserve {parsed.command}: {error.strerror or error}", file=sys.stderr)
    return 1
