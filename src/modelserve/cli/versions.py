"""`modelserve list`, `label` and `rollback`: the versions of a directory, and who answers.

They change the directory only; a server started with --watch follows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from modelserve.errors import ModelNotFound
from modelserve.repository.models import answering_version
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import LocalStore

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add the commands."""
    listing = _command(commands, "list", "list the versions of a directory of models", _list)
    listing.description = (
        "List the versions of every model with their labels. A star marks the version that answers "
        "requests that name none."
    )
    label = _command(commands, "label", "move a label to a version", _label)
    label.description = (
        "Move a label to a version, or with --remove take it away. The version labelled stable "
        "answers; any other label is for requests that ask for it."
    )
    label.add_argument("model", metavar="NAME", help="name of the model")
    label.add_argument("label", metavar="LABEL", help="such as stable or canary")
    chosen = label.add_mutually_exclusive_group(required=True)
    chosen.add_argument("version", metavar="VERSION", nargs="?", help="number of the version")
    chosen.add_argument("--remove", action="store_true", help="remove the label")
    rollback = _command(commands, "rollback", "let the version before answer again", _rollback)
    rollback.description = "Label the version before the one that answers now stable."
    rollback.add_argument("model", metavar="NAME", help="name of the model")


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of models")
    parser.set_defaults(run=run)
    return parser


def _store(arguments: argparse.Namespace) -> LocalStore:
    if not arguments.directory.is_dir():
        raise ValueError(f"{arguments.directory} is not a directory; give the directory of models")
    return LocalStore(arguments.directory)


def _list(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    models = store.models()
    if not models:
        raise ModelNotFound(f"{arguments.directory} holds no models")
    for model in models:
        versions, labels = store.versions(model), store.labels(model)
        answering = answering_version(versions, labels)
        for version in versions:
            names = sorted(name for name, number in labels.items() if number == version)
            star = "*" if version == answering else " "
            print(f"{star} {model} version {version}{' ' + ', '.join(names) if names else ''}")
    return 0


def _label(arguments: argparse.Namespace) -> int:
    version = None if arguments.remove else arguments.version
    _store(arguments).label(arguments.model, {arguments.label: version})
    if version is None:
        print(f"{arguments.model}: {arguments.label} removed")
    else:
        print(f"{arguments.model} version {version} is {arguments.label}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    with ModelRepository(_store(arguments), load="none") as repository:
        version = repository.rollback(arguments.model)
    print(f"{arguments.model} version {version} is stable")
    return 0
