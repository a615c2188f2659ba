"""ONNX Runtime's presence in the process, and its execution providers by name.

Opens no session and holds no model.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

__all__ = [
    "DEFAULT_PROVIDERS",
    "HOST_PROVIDERS",
    "Provider",
    "load_runtime",
    "resolve_providers",
]

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]
"""A provider's name, or its name and options."""

_SUFFIX: Final = "ExecutionProvider"

DEFAULT_PROVIDERS: Final = ("CUDA", "MIGraphX", "DML", "OpenVINO", "CPU")
"""Taken in this order, as far as the installed runtime has them, when none are named.

The others are used when named: TensorRT builds engines for minutes at load; CoreML, QNN, VitisAI,
NNAPI and WebGPU compute in reduced precision or want models prepared for them.
"""

HOST_PROVIDERS: Final = frozenset({"CPU", "Azure", "Xnnpack", "Dnnl"})
"""Providers that compute on the calling thread, in host memory."""

_DISTRIBUTIONS: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-cann",
    "onnxruntime-webgpu",
)


@cache
def load_runtime() -> Any:
    """Import ONNX Runtime and return its module.

    Warns (RuntimeWarning, once per process) when two of its distributions are installed: they
    overwrite each other's files, and which one runs is a matter of luck. Warns as well when it is
    older than 1.24.

    Raises:
        ImportError: None of its distributions is installed.
    """
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            'InferenceSession needs ONNX Runtime: pip install "modelserve[cpu]", '
            'or "modelserve[gpu]" for NVIDIA GPUs'
        ) from error
    installed = _installed()
    if len(installed) > 1:
        warnings.warn(
            f"{' and '.join(installed)} are installed together and overwrite each other: "
            f"uninstall all of them, then install one (pip uninstall {' '.join(installed)})",
            RuntimeWarning,
            stacklevel=3,
        )
    if _is_outdated(runtime.__version__):
        warnings.warn(
            f"ONNX Runtime {runtime.__version__} reads external data outside a model's directory; "
            "1.24 and newer refuse: pip install -U onnxruntime",
            RuntimeWarning,
            stacklevel=3,
        )
    return runtime


def _is_outdated(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) < (1, 24)


def _installed() -> list[str]:
    """Return which distributions are there. importlib.metadata would take 15 ms to tell."""
    found: set[str] = set()
    for directory in sys.path:
        with suppress(OSError):
            found.update(
                name.partition("-")[0].replace("_", "-")
                for name in os.listdir(directory or ".")
                if name.startswith("onnxruntime") and name.endswith((".dist-info", ".egg-info"))
            )
    return [name for name in _DISTRIBUTIONS if name in found]


def short_name(provider: str) -> str:
    """Return a provider's name without its suffix: ``"CUDAExecutionProvider"`` -> ``"CUDA"``."""
    return provider.removesuffix(_SUFFIX)


def resolve_providers(
    wanted: Sequence[Provider] | None, *, known: Iterable[str], available: Iterable[str]
) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """Return the providers to ask for with their options, and the wanted ones that are missing.

    Args:
        wanted: Names in order of preference, with or without the suffix, in any case; or pairs of
            a name and its options. None stands for `DEFAULT_PROVIDERS`. CPU is added at the end.
        known: Full names of every provider the runtime knows of.
        available: Full names of those its build contains.

    Raises:
        ValueError: A name is unknown, or stands twice.
    """
    available = list(available)
    by_short = {short_name(name).lower(): name for name in (*known, *available)}
    chosen: dict[str, dict[str, str]] = {}
    missing: list[str] = []
    for provider in DEFAULT_PROVIDERS if wanted is None else wanted:
        name, options = (provider, {}) if isinstance(provider, str) else provider
        full = by_short.get(name.lower().removesuffix(_SUFFIX.lower()))
        if full is None:
            if wanted is None:
                continue
            names = ", ".join(sorted(map(short_name, by_short.values()), key=str.lower))
            raise ValueError(f"unknown provider {name!r}; one of {names}")
        if full in chosen or full in missing:
            raise ValueError(f"provider {short_name(full)} stands twice")
        if full in available:
            chosen[full] = {key: str(value) for key, value in options.items()}
        elif wanted is not None:
            missing.append(full)
    chosen.setdefault("CPU" + _SUFFIX, {})
    return list(chosen.items()), missing
