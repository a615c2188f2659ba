"""The examples in docstrings are run, in a directory that holds a model `iris.onnx`."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import modelserve
import onnx_models


def has_example(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ">>> " in Path(spec.origin).read_text(encoding="utf-8")


MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(modelserve.__path__, "modelserve.")
    if has_example(found.name)
)


@pytest.mark.docs
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The model that examples speak of: "x" FP32 (-1, 4) -> "y" FP32 (-1, 3).
    (tmp_path / "iris.onnx").write_bytes(onnx_models.mlp(4, 8, 3))
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0, "all its examples are skipped"
    assert result.failed == 0, capsys.readouterr().out
