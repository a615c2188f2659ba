"""Triton's server out of the wheel nvidia-pytriton: what it needs to start, with Python models.

Runs in the environment that `install.py` makes for Triton.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytriton

SERVER = Path(pytriton.__file__).parent / "tritonserver"


def write_backends(directory: Path) -> None:
    """Put the Python backend and this interpreter's stub, which the wheel parts, together."""
    folder = directory / "python"
    folder.mkdir(parents=True)
    for path in (SERVER / "backends" / "python").iterdir():
        (folder / path.name).symlink_to(path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = SERVER / "python_backend_stubs" / version / "triton_python_backend_stub"
    (folder / stub.name).unlink(missing_ok=True)
    shutil.copy(stub, folder / stub.name)
    (folder / stub.name).chmod(0o755)


def command(directory: Path, port: int) -> list[str]:
    """Return the command that serves `directory`/models over HTTP with `directory`/backends."""
    return [
        str(SERVER / "bin" / "tritonserver"),
        f"--model-repository={directory / 'models'}",
        f"--backend-directory={directory / 'backends'}",
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]


def environment() -> dict[str, str]:
    """Return the environment in which the server finds the wheel's and Python's libraries."""
    # A copied stub finds the wheel's libraries no more by where it lies.
    site = Path(sysconfig.get_path("purelib"))
    folders = [site / "nvidia_pytriton.libs", SERVER / "external_libs"]
    libraries = [*map(str, folders), sysconfig.get_config_var("LIBDIR")]
    found = dict(os.environ)
    found["LD_LIBRARY_PATH"] = ":".join([*libraries, found.get("LD_LIBRARY_PATH", "")])
    found["PYTHONPATH"] = str(site)
    return found
