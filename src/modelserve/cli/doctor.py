"""`modelserve doctor`: what is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any, Final, NamedTuple

import numpy as np

from modelserve import __version__

__all__ = ["declare"]

_EXTRAS: Final = (
    ("orjson", "orjson", "fast JSON", "pip install orjson"),
    ("uvicorn", "uvicorn", "serving over HTTP", 'pip install "modelserve[serve]"'),
    ("httptools", "httptools", "fast HTTP parsing", 'pip install "modelserve[serve]"'),
    ("uvloop", "uvloop", "a faster event loop", 'pip install "modelserve[serve]"'),
    ("prometheus_client", "prometheus-client", "/metrics", 'pip install "modelserve[serve]"'),
    ("httpcore", "httpcore", "Client and AsyncClient", 'pip install "modelserve[client]"'),
    ("ml_dtypes", "ml-dtypes", "BF16 tensors", 'pip install "modelserve[bf16]"'),
)


class _Finding(NamedTuple):
    """One line: whether it is well, what was found, and what to do where it is not."""

    level: str
    subject: str
    text: str
    remedy: str = ""


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="check the installation",
        description=(
            "Check the installation: ONNX Runtime, its execution providers, CUDA, threads, and "
            "optional packages. Exit status 1 when models cannot be run."
        ),
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    findings = [*_machine(), *_runtime(), *_optional()]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<7} {finding.subject:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"{'':<7} {'':<{width}}  -> {finding.remedy}")
    return 1 if any(finding.level == "FAIL" for finding in findings) else 0


def _machine() -> Iterator[_Finding]:
    yield _Finding("ok", "modelserve", __version__)
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield _Finding("ok", "python", python)
    yield _Finding("ok", "numpy", np.__version__)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield _Finding(
        "ok",
        "cores",
        f"{usable} usable; an instance runs ONNX Runtime with 1 thread unless told otherwise",
    )


def _runtime() -> Iterator[_Finding]:
    from modelserve.backends.providers import load_runtime

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            runtime = load_runtime()
        except ImportError as error:
            remedy = 'pip install "modelserve[cpu]", or "modelserve[gpu]" for NVIDIA GPUs'
            yield _Finding("FAIL", "onnxruntime", str(error), remedy)
            return
    if not hasattr(runtime, "InferenceSession"):
        yield _Finding(
            "FAIL",
            "onnxruntime",
            "its files are damaged, as when one of two flavours was uninstalled",
            'pip install --force-reinstall "onnxruntime"',
        )
        return
    yield _Finding("ok", "onnxruntime", runtime.__version__)
    for warning in caught:
        yield _Finding("FAIL", "onnxruntime", str(warning.message))
    providers = [
        name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()
    ]
    yield _Finding("ok", "providers", ", ".join(providers))
    yield _run_a_model()
    yield from _cuda(providers)


def _run_a_model() -> _Finding:
    from modelserve.backends.onnxruntime import InferenceSession

    try:
        session = InferenceSession(_identity(), providers=["cpu"])
        answer = session.run({"x": np.ones(1, np.float32)})["y"]
        session.close()
    except Exception as error:  # whatever is wrong with the installation is the finding
        return _Finding("FAIL", "inference", f"a model of one node fails: {error}")
    if answer.tolist() != [1.0]:
        return _Finding("FAIL", "inference", f"a model of one node gives {answer}")
    return _Finding("ok", "inference", "a model of one node runs")


def _identity() -> bytes:
    """Return the smallest model there is, y = x for one float, written out as protobuf."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes((number << 3, value))
        return bytes((number << 3 | 2, len(value))) + value

    def tensor(name: bytes) -> bytes:
        dimension = field(1, 1)
        tensor_type = field(1, 1) + field(2, field(1, dimension))
        return field(1, name) + field(2, field(1, tensor_type))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, tensor(b"x")) + field(12, tensor(b"y"))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def _cuda(providers: list[str]) -> Iterator[_Finding]:
    """Say what is wrong where a GPU flavour is installed and its provider does not come up."""
    flavour = next((name for name in ("onnxruntime-gpu",) if _version(name) is not None), None)
    if flavour is None:
        return
    version = _version(flavour) or ""
    major = 13 if _at_least(version, (1, 27)) else 12
    if "CUDA" not in providers:
        yield _Finding("FAIL", "cuda", f"{flavour} {version} has no CUDA provider here")
        return
    wanted = f"cupy-cuda{major}x"
    other = f"cupy-cuda{25 - major}x"
    if _version(other) is not None:
        yield _Finding(
            "warn",
            "cuda",
            f"{flavour} {version} is built for CUDA {major}, {other} for CUDA {25 - major}",
            f"pip uninstall {other}; pip install {wanted}",
        )
    yield _Finding("ok", "cuda", f"{flavour} {version} wants CUDA {major} and cuDNN 9")
    yield _session_on_gpu()


def _session_on_gpu() -> _Finding:
    from modelserve.backends.onnxruntime import InferenceSession

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            session = InferenceSession(_identity(), providers=["cuda"])
            got = session.providers[0]
            session.close()
        except Exception as error:  # whatever is wrong with the installation is the finding
            return _Finding("warn", "cuda", f"a session on the GPU fails: {error}")
    if got != "CUDA":
        return _Finding(
            "warn",
            "cuda",
            f"a session that asks for the GPU gets {got}",
            "check the driver (nvidia-smi) and that CUDA's and cuDNN's libraries are found",
        )
    return _Finding("ok", "cuda", "a session on the GPU runs")


def _optional() -> Iterator[_Finding]:
    for module, distribution, purpose, remedy in _EXTRAS:
        if distribution == "uvloop" and sys.platform == "win32":
            continue
        if util.find_spec(module) is None:
            yield _Finding("missing", distribution, f"needed for {purpose}", remedy)
        else:
            yield _Finding("ok", distribution, f"{_version(distribution)}, for {purpose}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _at_least(version: str, least: tuple[int, ...]) -> bool:
    return tuple(int(number) for number in re.findall(r"\d+", version)[: len(least)]) >= least
