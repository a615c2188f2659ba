"""`modelserve publish`: a model into a directory of models, as its next version."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from modelserve.cli.arguments import at_least, existing_model
from modelserve.repository.publication import described
from modelserve.repository.store import STABLE, LocalStore

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "publish",
        help="put a model into a directory of models",
        description=(
            "Check that a model loads and put it into a directory of models as its next version, "
            "whole or not at all. A server started with --watch takes it up."
        ),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of models")
    parser.add_argument("model", metavar="NAME", help="name of the model")
    parser.add_argument(
        "source", metavar="MODEL.onnx", type=Path, help="ONNX file, or a directory holding one"
    )
    parser.add_argument("--model-version", metavar="N", default="", help="number (default: next)")
    parser.add_argument(
        "--label",
        metavar="LABEL",
        default=STABLE,
        help="label that moves to it; empty for none (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        metavar="N",
        type=at_least(1),
        help="then delete all but the newest N versions",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    existing_model(arguments.source)
    store = LocalStore(arguments.directory)
    metadata = described(arguments.source)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        stored = store.put(
            arguments.model,
            arguments.source,
            version=arguments.model_version,
            label=arguments.label,
            metadata=metadata,
            progress=progress,
        )
    print(f"{arguments.model} version {stored.version} published")
    if arguments.keep is not None:
        for version in store.collect(arguments.model, arguments.keep):
            print(f"{arguments.model} version {version} deleted")
    return 0


def _progress() -> AbstractContextManager[Callable[[int, int], None] | None]:
    """Show a bar on a terminal that has rich."""
    return _bar() if sys.stderr.isatty() else _nothing()


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    try:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress
    except ImportError:
        yield None
        return
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("publishing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
