"""`modelserve list`, `label` and `rollback`: what they change, say and refuse."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelserve.repository.store import LocalStore

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two(command: Cli, models: Path, model: Path) -> Path:
    """A directory in which `add` has version 1, stable, and version 2, canary."""
    assert command("publish", models, "add", model, "--label", "canary").returncode == 0
    return models


def test_list_shows_labels_and_who_answers(command: Cli, two: Path) -> None:
    done = command("list", two)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "* add version 1 stable\n  add version 2 canary\n"


def test_label_moves(command: Cli, two: Path) -> None:
    done = command("label", two, "add", "stable", "2")
    assert (done.returncode, done.stdout) == (0, "add version 2 is stable\n")
    assert LocalStore(two).labels("add") == {"canary": "2", "stable": "2"}


def test_label_is_removed(command: Cli, two: Path) -> None:
    done = command("label", two, "add", "canary", "--remove")
    assert (done.returncode, done.stdout) == (0, "add: canary removed\n")
    assert LocalStore(two).labels("add") == {"stable": "1"}


def test_rollback_labels_the_version_before(command: Cli, two: Path) -> None:
    assert command("label", two, "add", "stable", "2").returncode == 0
    done = command("rollback", two, "add")
    assert (done.returncode, done.stdout) == (0, "add version 1 is stable\n")
    assert LocalStore(two).labels("add")["stable"] == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("label", "add", "stable", "9"), "has no version '9'"),
        (("label", "nope", "stable", "1"), 'model "nope"'),
        (("label", "add", "7", "1"), "not a label"),
        (("rollback", "add"), 'model "add" has no version before 1'),
        (("rollback", "nope"), 'the store has no model "nope"'),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    command: Cli, two: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = command(arguments[0], two, *arguments[1:])
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith(f"modelserve {arguments[0]}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["list", "label", "rollback"])
def test_a_directory_that_is_not_there_is_named(command: Cli, tmp_path: Path, name: str) -> None:
    rest = {"list": (), "label": ("add", "stable", "1"), "rollback": ("add",)}[name]
    done = command(name, tmp_path / "nowhere", *rest)
    assert done.returncode == 1
    assert "nowhere is not a directory" in done.stderr


def test_an_empty_directory_holds_no_models(command: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("list", tmp_path / "empty")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no models" in done.stderr
