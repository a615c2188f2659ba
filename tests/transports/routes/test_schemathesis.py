"""The OpenAPI document held against a running server, by requests that schemathesis makes of it.

By hand, for more of them, against any server (`--checks all` is every check there is):

    SCHEMATHESIS_HOOKS=tests/transports/routes/schemathesis_hooks.py \
    schemathesis --config-file tests/transports/routes/schemathesis.toml \
        run http://127.0.0.1:8000/openapi.json --checks all --max-examples 500

Below a prefix it has to be told with --url, for it takes relative servers for those of the root.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        importlib.util.find_spec("schemathesis") is None and "CI" not in os.environ,
        reason="schemathesis is not installed",
    ),
]

SETTINGS = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
SERVER = Path(__file__).with_name("described_server.py")

OWN = "^/v2/models/[^{/]+/(infer|generate_stream)$"
CONTROL = "^/v2/(repository|logging|trace|models/.*trace|.*sharedmemory)"


@contextmanager
def served(environment: dict[str, str], *arguments: str) -> Iterator[str]:
    """Serve the models in a process of its own: control routes change what a process logs."""
    server = subprocess.Popen(
        [sys.executable, str(SERVER), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(20)


def check(url: str, folder: Path, *arguments: str) -> None:
    """Let schemathesis check a server, and keep what it keeps in a folder."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS), "run"),
        *(f"{url}/openapi.json", "--checks", "all", "--seed", "20261127", "--no-color"),
        *("--warnings", "off", "--continue-on-failure"),
        *arguments,
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=220,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def test_models_answer_as_their_own_paths_say(environment: dict[str, str], tmp_path: Path) -> None:
    with served(environment) as url:
        check(url, tmp_path, "--include-path-regex", OWN, "--max-examples", "50")


def test_everything_else_answers_as_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    with served(environment) as url:
        check(url, tmp_path, "--exclude-path-regex", OWN, "--max-examples", "10")


def test_control_routes_answer_as_they_say(environment: dict[str, str], tmp_path: Path) -> None:
    # Whether a shared memory object is there, or a setting in its bounds, no schema says.
    without = ("--exclude-checks", "positive_data_acceptance,not_a_server_error")
    with served(environment, "admin") as url:
        check(url, tmp_path, "--include-path-regex", CONTROL, *without, "--max-examples", "20")


def test_who_has_no_key_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    without = ("--exclude-checks", "positive_data_acceptance,not_a_server_error")
    with served(environment, "key=secret") as url:
        key = ("-H", "Authorization: Bearer secret")
        check(url, tmp_path, *key, *without, "--phases", "examples,fuzzing", "--max-examples", "4")
