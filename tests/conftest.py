"""What every test may use: a fresh interpreter, and settings for hypothesis."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import modelserve

# A shared machine makes single examples slow now and then; pytest-timeout bounds the test.
settings.register_profile("project", parent=settings.default, deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment for child processes: they find the package under test."""
    source = str(Path(modelserve.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([source, inherited]) if inherited else source
    binaries = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def fresh_python(environment: dict[str, str]) -> Callable[..., str]:
    """Run code in a new interpreter; return what it printed."""

    def run(code: str, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=15,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
