"""Models whose versions tell themselves apart, and what tests of repositories ask of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from modelserve.messages import InferRequest
from modelserve.protocols import VersionInfo
from onnx_models import model, value

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def adds(number: float) -> bytes:
    """Compute y = x + number in FP32 (batch, 4)."""
    constant = numpy_helper.from_array(np.array([number], np.float32), "number")
    return model(
        [helper.make_node("Add", ["x", "number"], ["y"])], [value("x")], [value("y")], [constant]
    )


def tree(root: Path, models: Mapping[str, Mapping[str, float]]) -> Path:
    """Write a directory as somebody makes it by hand: model, version, number it adds."""
    for name, versions in models.items():
        for version, number in versions.items():
            directory = root / name / version
            directory.mkdir(parents=True)
            (directory / "model.onnx").write_bytes(adds(number))
    return root


def request(name: str = "m", *, version: str = "", **options: Any) -> InferRequest:
    """One request of two rows."""
    return InferRequest(name, {"x": ROWS}, version=version, **options)


def added(outputs: Mapping[str, Any]) -> float:
    """Return the number that the version which answered has added."""
    difference = np.unique(outputs["y"] - ROWS)
    assert len(difference) == 1
    return float(difference[0])


def answer(repository: Any, name: str = "m", version: str = "") -> float:
    """Ask a model; return the number its version adds."""
    return added(repository.predict(name, {"x": ROWS}, version=version))


def states(infos: Any, name: str = "m") -> dict[str, str]:
    """Return the states of a model's versions."""
    return {info.version: info.state for info in infos if info.model == name}


def described(infos: Any, version: str, name: str = "m") -> VersionInfo:
    """Return one version's description."""
    (found,) = [info for info in infos if (info.model, info.version) == (name, version)]
    return found


def wait_until(condition: Callable[[], bool], *, timeout: float = 10.0) -> None:
    """Poll a condition; fail when it does not come true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)
