"""What `serve_workers` refuses before it starts anything, and who may reach its files."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from modelserve import workers
from modelserve.errors import ModelNotFound
from modelserve.workers import serve_workers
from several import several
from versioned_models import tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need a POSIX system")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "workers is 1 or more"),
        ({"workers": 1, "spares": -1}, "spares is 0 or more"),
        ({"workers": 1, "hang_timeout": 0.0}, "hang_timeout is more than 0"),
        ({"workers": 1, "drain": -1.0}, "drain is 0 or more"),
        ({"workers": 1, "http": "0.0.0.0:0", "admin": True}, "would let anyone"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        serve_workers(tmp_path, **options)


def test_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match='no model "nothing"'):
        serve_workers(tmp_path, workers=1, http="127.0.0.1:0", load=["nothing"])


def test_runtime_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    runtime = tmp_path / "open"
    runtime.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="this user alone"):
        serve_workers(tmp_path, workers=1, http="127.0.0.1:0", runtime=runtime)


def test_runtime_directory_has_one_server_and_one_user(
    environment: dict[str, str], tmp_path: Path
) -> None:
    models = tree(tmp_path / "models", {"m": {"1": 1.0}})
    with several(environment, models, workers=1, spares=0) as server:
        assert stat.S_IMODE(server.runtime.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.runtime / "control").stat().st_mode) == 0o600
        with pytest.raises(OSError, match="in use by another server"):
            serve_workers(models, workers=1, http="127.0.0.1:0", runtime=server.runtime)


def test_no_supervisor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        workers.status(tmp_path)
