"""Make the environments of the peers: one virtual environment each, under build/peers/.

    python benchmarks/peers/install.py                  # all of them
    python benchmarks/peers/install.py mosec triton     # some

Running it again changes nothing that is complete. Every package comes from PyPI. The versions of
onnxruntime and scikit-learn are those of the interpreter this runs in, so that all contestants run
the same code below their own. Triton's Python backend needs that interpreter's shared library.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2] / "build" / "peers"


def _same(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}=={version(name)}" for name in names)


def environments() -> dict[str, tuple[str, ...]]:
    """Return what every peer's environment holds, by name."""
    runtime = _same("onnxruntime", "numpy")
    learn = _same("scikit-learn")
    fast = ("uvloop", "httptools", "orjson")
    return {
        "mosec": ("mosec==0.9.*", "orjson", *runtime),
        # Wants a numpy below 2. Carries tritonserver 2.51 and its Python backend.
        "triton": ("nvidia-pytriton==0.7.0", *_same("onnxruntime")),
        "litserve": ("litserve==0.2.*", *fast, *runtime, *learn),
        "bentoml": ("bentoml==1.4.*", *fast, *runtime, *learn),
        "mlserver": ("mlserver==1.7.*", *runtime),
    }


def home(peer: str) -> Path:
    """Return the directory of a peer's environment."""
    return ROOT / peer


def python(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return home(peer) / "bin" / "python"


def is_installed(peer: str) -> bool:
    """Return whether the environment is there, complete and of the versions wanted."""
    record = home(peer) / "packages.txt"
    return record.is_file() and record.read_text() == _wanted(environments()[peer])


def _wanted(packages: tuple[str, ...]) -> str:
    return "\n".join((sys.version, *packages)) + "\n"


def install(peer: str) -> None:
    """Make one environment anew.

    Raises:
        subprocess.CalledProcessError: A package could not be installed.
    """
    packages = environments()[peer]
    directory = home(peer)
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [python(peer), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *packages], check=True)
    # Last: an environment without it is incomplete.
    (directory / "packages.txt").write_text(_wanted(packages))


def main() -> int:
    """Install what is not there yet; the exit status tells whether all are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help="default: all")
    names = parser.parse_args().peers or list(environments())
    missing = 0
    for name in names:
        if name not in environments():
            parser.error(f"{name} is none of {', '.join(environments())}")
        if is_installed(name):
            print(f"{name}: is there")
            continue
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: not installed: {error}", file=sys.stderr)
            missing += 1
        else:
            print(f"{name}: installed")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
