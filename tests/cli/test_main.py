"""The command itself: help, version, wrong arguments, output nobody reads."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelserve import __version__
from modelserve.cli import main

Cli = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = ("serve", "publish", "inspect", "doctor", "demo")


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"modelserve {__version__}\n")


def test_help_lists_the_commands(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")]
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: modelserve {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve"], ["inspect", "a", "b"]])
def test_wrong_arguments_are_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("usage: modelserve")


def test_status_is_returned_to_who_calls_it_in_python(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model)]) == 0
    assert capsys.readouterr().out.startswith("add.onnx")
    assert main(["inspect", f"{model}.missing"]) == 1
    assert capsys.readouterr().err.startswith("modelserve inspect: ")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as POSIX has them")
def test_reader_that_goes_away_gets_no_traceback(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "modelserve.cli", "doctor"],
            env={**environment, "PYTHONUNBUFFERED": ""},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=15,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_that_cannot_be_written_is_a_failure(
    environment: dict[str, str], model: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "modelserve.cli", "inspect", str(model)],
            env={**environment, "PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=15,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("modelserve inspect: No space left on device")
