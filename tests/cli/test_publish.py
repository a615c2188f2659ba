"""`modelserve publish` as a process: what it stores, says and refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelserve.repository.store import LocalStore

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_published_model_is_the_next_version(cli: Cli, tmp_path: Path, model: Path) -> None:
    for version in ("1", "2"):
        done = cli("publish", "new", "add", model)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"add version {version} published\n"
    store = LocalStore(tmp_path / "new")
    assert store.versions("add") == ("1", "2")
    assert store.labels("add") == {"stable": "2"}
    published = store.open("add", "2")
    assert (published.path / "model.onnx").read_bytes() == model.read_bytes()


def test_manifest_tells_what_the_model_takes_and_gives(
    command: Cli, models: Path, model: Path
) -> None:
    assert command("publish", models, "add", model).returncode == 0
    manifest = LocalStore(models).open("add", "2").manifest
    assert manifest["source"] == "add.onnx"
    assert manifest["metadata"]["signature"]["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    ]


def test_directory_that_holds_a_model_is_published(command: Cli, models: Path) -> None:
    done = command("publish", models, "other", models / "add" / "1")
    assert (done.returncode, done.stdout) == (0, "other version 1 published\n")


def test_version_may_be_chosen(command: Cli, models: Path, model: Path) -> None:
    done = command("publish", models, "add", model, "--model-version", "7")
    assert (done.returncode, done.stdout) == (0, "add version 7 published\n")


def test_label_moves_to_it(command: Cli, models: Path, model: Path) -> None:
    assert command("publish", models, "add", model, "--label", "canary").returncode == 0
    assert LocalStore(models).labels("add") == {"canary": "2", "stable": "1"}


def test_empty_label_moves_none(command: Cli, models: Path, model: Path) -> None:
    assert command("publish", models, "add", model, "--label", "").returncode == 0
    assert LocalStore(models).labels("add") == {"stable": "1"}


def test_keep_deletes_older_versions(command: Cli, models: Path, model: Path) -> None:
    store = LocalStore(models)
    store.put("add", model)
    done = command("publish", models, "add", model, "--keep", "2")
    assert done.returncode == 0
    assert done.stdout == "add version 3 published\nadd version 1 deleted\n"
    assert store.versions("add") == ("2", "3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models", "add", "none.onnx"], "none.onnx: no such file or directory"),
        (
            ["models", "add", "models"],
            "models: expected an ONNX file, or a directory that holds model.onnx",
        ),
        (["models", "add", "noise.onnx"], '"noise.onnx" is not an ONNX model, or not a whole one'),
        (["noise.onnx", "add", "add.onnx"], '"noise.onnx" is not a directory'),
        (
            ["models", "add", "add.onnx", "--model-version", "1"],
            'model "add" has a version 1 already',
        ),
        (
            ["models", "add", "add.onnx", "--model-version", "v2"],
            '"v2" is not a version; expected a number such as "3"',
        ),
        (
            ["models", "add", "add.onnx", "--label", "9lives"],
            "'9lives' is not a label; expected a letter, then up to 63 letters, digits or any of "
            '"_.-"',
        ),
        (
            ["models", "a/b", "add.onnx"],
            "'a/b' cannot be the name of a model: \"/\" is reserved",
        ),
    ],
)
def test_refusal_is_one_sentence_and_publishes_nothing(
    command: Cli, models: Path, arguments: list[str], sentence: str
) -> None:
    (models.parent / "noise.onnx").write_bytes(b"noise")
    done = command("publish", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"modelserve publish: {sentence}\n"
    assert LocalStore(models).versions("add") == ("1",)
    assert LocalStore(models).models() == ("add",)


@pytest.mark.parametrize("keep", ["0", "-1", "all"])
def test_keep_is_refused_before_anything_is_published(
    command: Cli, models: Path, model: Path, keep: str
) -> None:
    done = command("publish", models, "add", model, f"--keep={keep}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f'argument --keep: expected a whole number from 1 on, got "{keep}"' in done.stderr
    assert LocalStore(models).versions("add") == ("1",)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="nowhere that even root may not write")
def test_directory_that_cannot_be_made_is_named(command: Cli, model: Path) -> None:
    done = command("publish", "/proc/nowhere", "add", model)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "modelserve publish: /proc/nowhere: No such file or directory\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal as POSIX has it")
def test_progress_is_shown_on_a_terminal_only(
    cli: Cli, environment: dict[str, str], models: Path, model: Path
) -> None:
    import pty

    assert cli("publish", models, "add", model).stderr == ""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modelserve.cli", "publish", str(models), "add", str(model)],
            env={**environment, "TERM": "xterm", "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            timeout=15,
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, done.stdout) == (0, "add version 3 published\n")
    assert "publishing" in shown
