"""The models of `golden_models` as modelserve serves them: ONNX where natural, else Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import modelserve as ms
import onnx_models
from wire.golden_models import MODELS, Model, Spec

BY_NAME = {model.name: model for model in MODELS}


def write(directory: Path) -> None:
    """Write the models that have a graph, as a directory made for Triton."""
    for model in MODELS:
        graph = _graph(model)
        if graph is None:
            continue
        folder = directory / model.name
        for version in model.versions:
            (folder / version).mkdir(parents=True)
            (folder / version / "model.onnx").write_bytes(graph)
        (folder / "config.pbtxt").write_text(_config(model))
        if model.labels:
            (folder / "labels.txt").write_text("\n".join(model.labels) + "\n")


def _graph(model: Model) -> bytes | None:
    nodes, constants = _nodes(model.name)
    if not nodes:
        return None
    return onnx_models.model(
        nodes,
        [_value(spec, model) for spec in model.inputs],
        [_value(spec, model) for spec in model.outputs],
        constants,
    )


def _nodes(name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    def constant(called: str, *numbers: float) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(numbers, np.float32), called)

    node = helper.make_node
    if name.startswith("echo_") or name in ("line", "text", "versions", "counted"):
        return [node("Identity", ["x"], ["y"])], []
    if name == "add_one":
        return [node("Add", ["x", "one"], ["y"])], [constant("one", 1)]
    if name == "classifier":
        return [node("Mul", ["x", "factors"], ["scores"])], [constant("factors", 1, 2, 3)]
    if name == "arithmetic":
        return [
            node("Cast", ["b"], ["wide"], to=onnx.TensorProto.FLOAT),
            node("Add", ["a", "wide"], ["total"]),
            node("Add", ["b", "b"], ["doubled"]),
        ], []
    return [], []


def _value(spec: Spec, model: Model) -> onnx.ValueInfoProto:
    shape: list[Any] = [size if size >= 0 else None for size in spec.shape]
    if model.max_batch_size:
        shape.insert(0, "batch")
    return onnx_models.value(spec.name, spec.datatype, shape)


def _config(model: Model) -> str:
    def tensors(side: str, specs: tuple[Spec, ...]) -> str:
        lines = []
        for number, spec in enumerate(specs):
            kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
            text = f'name: "{spec.name}" data_type: TYPE_{kind} dims: {list(spec.shape)}'
            if model.labels and side == "output" and number == 0:
                text += ' label_filename: "labels.txt"'
            lines.append(f"{{ {text} }}")
        return f"{side} [ {', '.join(lines)} ]"

    lines = [
        f'name: "{model.name}"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {model.max_batch_size}",
        tensors("input", model.inputs),
        tensors("output", model.outputs),
    ]
    if len(model.versions) > 1:
        lines.append("version_policy: { all { } }")
    return "\n".join(lines) + "\n"


def _specs(specs: tuple[Spec, ...]) -> list[ms.TensorSpec]:
    return [ms.TensorSpec(*spec) for spec in specs]  # type: ignore[arg-type]  # a datatype


def _declared(name: str) -> dict[str, Any]:
    model = BY_NAME[name]
    return {"inputs": _specs(model.inputs), "outputs": _specs(model.outputs)}


@ms.model(**_declared("raises"))
def raises(x: Any) -> Any:
    return BY_NAME["raises"].function({"x": x}, {})


@ms.model(**_declared("sleeps"))
def sleeps(seconds: Any) -> Any:
    return BY_NAME["sleeps"].function({"seconds": seconds}, {})


@ms.model(**_declared("tells"))
def tells(x: Any, context: ms.Context) -> Any:
    return BY_NAME["tells"].function({"x": x}, context.parameters)


@ms.model(**_declared("words"))
def words(text_input: Any, context: ms.Context) -> Iterator[Any]:
    yield from BY_NAME["words"].function({"text_input": text_input}, context.parameters)


@ms.model(**_declared("exclaims"))
def exclaims(text_input: Any) -> Any:
    return BY_NAME["exclaims"].function({"text_input": text_input}, {})


def repository(directory: Path) -> ms.ModelRepository:
    """Return a repository of all the models; those with a graph lie in the directory."""
    repo = ms.ModelRepository(directory)
    for model in (raises, sleeps, tells, words, exclaims):
        repo.add(model)
    return repo
