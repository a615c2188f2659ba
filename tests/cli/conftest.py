"""The command line in processes of its own, and directories of models to give to it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

import onnx_models
from modelserve.cli import main
from modelserve.repository.store import LocalStore
from processes import python

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Serving:
    """A server that said it is ready: its process, its address, what it printed before."""

    process: subprocess.Popen[str]
    url: str
    printed: str

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])


Serve: TypeAlias = Callable[..., AbstractContextManager[Serving]]


@pytest.fixture
def cli(environment: dict[str, str], tmp_path: Path) -> Cli:
    """Run a command to its end, below `tmp_path`."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modelserve.cli", *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=15,
        )

    return run


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """Do as `cli` in the process of the tests: a tenth of the time, where nothing else differs."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        given = [str(argument) for argument in arguments]
        try:
            status = main(given)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return subprocess.CompletedProcess(given, status, *capsys.readouterr())

    return run


@pytest.fixture
def serve(environment: dict[str, str]) -> Serve:
    """Run `modelserve serve` and wait until it says its address."""

    @contextmanager
    def run(*arguments: str | Path, http: str = "127.0.0.1:0") -> Iterator[Serving]:
        command = ["-m", "modelserve.cli", "serve", *map(str, arguments), "--http", http]
        with python(command, environment) as process:
            assert process.stdout is not None
            printed = ""
            for line in process.stdout:
                if line.startswith("serving on "):
                    yield Serving(process, line.removeprefix("serving on ").strip(), printed)
                    return
                printed += line
            assert process.stderr is not None
            raise AssertionError(f"it did not serve: {process.stderr.read()}")

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with a model: y = x + 1 for rows of four."""
    path = tmp_path / "add.onnx"
    path.write_bytes(onnx_models.add_one())
    return path


@pytest.fixture
def models(tmp_path: Path, model: Path) -> Path:
    """A directory with that model, published as "add"."""
    directory = tmp_path / "models"
    store = LocalStore(directory)
    store.put("add", model)
    store.label("add", {"stable": "1"})
    return directory


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A directory with the model "good" and the file of "bad", which is none."""
    directory = tmp_path / "broken"
    for name, content in (("good", onnx_models.add_one()), ("bad", b"no model")):
        version = directory / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(content)
    return directory
