"""What one model takes and gives, as JSON Schemas made of its signature."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

from modelserve.execution.proof import synthetic_shape
from modelserve.protocols import VersionInfo
from modelserve.tensors import Datatype, TensorSpec

from .described import BINARY_TYPE, JSON_TYPE, ModelCall, json_of
from .infer import BINARY_RESPONSE, RESPONSE_OUTPUT, response_of
from .parts import (
    ELEMENTS,
    FLAG,
    PARAMETER,
    PARAMETERS,
    SHAPE,
    STRING,
    TEXT,
    array_of,
    element,
    object_of,
)

__all__ = ["MOST_SHOWN", "data_of", "example_element", "infer_of"]

MOST_SHOWN: Final = 4096
"""Elements of all inputs up to which an example writes them out."""
# Rows of a request that are written out.
_ROWS: Final = (1, 2)


def example_element(datatype: Datatype) -> Any:
    """Return an element that most models take: loading tried them on such ones."""
    if datatype == "BOOL":
        return True
    if datatype == "BYTES":
        return "1"
    return 0.5 if datatype.startswith("FP") else 1


def _exactly(item: Any, size: int) -> dict[str, Any]:
    return array_of(item, minItems=size, maxItems=size)


def data_of(datatype: Datatype, shape: Sequence[int]) -> dict[str, Any]:
    """Return the schema of a tensor's data, flat or nested."""
    flat = _exactly(ELEMENTS[datatype], prod(shape))
    if len(shape) < 2:
        return flat
    nested: Any = ELEMENTS[datatype]
    for size in reversed(shape):
        nested = _exactly(nested, size)
    return {"anyOf": [nested, flat]}


def _input_of(spec: TensorSpec, rows: int) -> dict[str, Any]:
    shape = synthetic_shape(spec, rows)
    return object_of(
        {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype},
            "shape": {"const": list(shape)},
            "data": data_of(spec.datatype, shape),
            "parameters": {"type": ["object", "null"], "additionalProperties": PARAMETER},
        },
        *("name", "datatype", "shape", "data"),
    )


def _rows_of(info: VersionInfo, specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    if not any(spec.shape is None or spec.shape[:1] == (-1,) for spec in specs):
        return (1,)
    return tuple(rows for rows in _ROWS if not 0 < info.max_batch_size < rows)


def _tuple(items: Sequence[Any]) -> dict[str, Any]:
    if not items:
        return {"type": "array", "maxItems": 0}
    return {
        "type": "array",
        "prefixItems": list(items),
        "items": False,
        "minItems": len(items),
        "maxItems": len(items),
    }


def _inputs_of(info: VersionInfo, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    choices = [
        {
            **_tuple([_input_of(spec, rows) for spec in specs]),
            "title": "1 row" if rows == 1 else f"{rows} rows",
        }
        for rows in _rows_of(info, specs)
    ]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _outputs_of(outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the schema of the outputs asked for: each once at most."""
    parameters = object_of({"binary_data": FLAG}, additionalProperties=PARAMETER)
    names = [spec.name for spec in outputs]
    wanted = object_of(
        {"name": {"enum": names}, "parameters": {"anyOf": [parameters, {"type": "null"}]}}, "name"
    )
    once = [
        {
            "contains": object_of({"name": {"const": name}}, "name"),
            "minContains": 0,
            "maxContains": 1,
        }
        for name in names
    ]
    return {"type": ["array", "null"], "items": wanted, "allOf": once}


def _classes_of(outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the schema of an output of which classes were asked for."""
    return object_of(
        {
            "name": {"enum": [spec.name for spec in outputs]},
            "datatype": {"const": "BYTES"},
            "shape": SHAPE,
            "parameters": PARAMETERS,
            "data": array_of(STRING),
        },
        *("name", "datatype", "shape"),
        title="classes",
    )


def _output_of(spec: TensorSpec) -> dict[str, Any]:
    shape: dict[str, Any] = array_of({"type": "integer", "minimum": 0})
    if spec.shape is not None:
        shape |= {"minItems": len(spec.shape), "maxItems": len(spec.shape)}
        if -1 not in spec.shape:
            shape = {"const": list(spec.shape)}
    properties: dict[str, Any] = {
        "name": {"const": spec.name},
        "datatype": {"const": spec.datatype},
        "shape": shape,
        "parameters": PARAMETERS,
    }
    if spec.datatype in ELEMENTS:
        properties["data"] = array_of(element(spec.datatype, answered=True))
    return object_of(properties, "name", "datatype", "shape")


def infer_of(info: VersionInfo) -> ModelCall | None:
    signature = info.signature
    if signature is None or not signature.inputs or info.streams:
        return None
    specs = [spec for spec in signature.inputs if not spec.optional]
    if any(spec.datatype == "BF16" for spec in (*signature.inputs, *signature.outputs)):
        return None
    properties: dict[str, Any] = {
        "id": TEXT,
        "inputs": _inputs_of(info, specs),
        "parameters": {
            **object_of(
                {"binary_data_output": FLAG, "explain": FLAG},
                additionalProperties=PARAMETER,
            ),
            "type": ["object", "null"],
        },
    }
    given: dict[str, Any] = array_of(RESPONSE_OUTPUT)
    if signature.outputs:
        properties["outputs"] = _outputs_of(signature.outputs)
        forms = [_output_of(spec) for spec in signature.outputs]
        given = array_of({"anyOf": [*forms, _classes_of(signature.outputs)]})
    return ModelCall(
        takes=json_of(object_of(properties, "inputs")),
        gives={JSON_TYPE: response_of(given), BINARY_TYPE: BINARY_RESPONSE},
        example=_example(specs),
        text=_open(info),
    )


def _example(specs: Sequence[TensorSpec]) -> Any:
    shapes = {spec.name: synthetic_shape(spec, 1) for spec in specs}
    if sum(map(prod, shapes.values())) > MOST_SHOWN:
        return None
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": list(shapes[spec.name]),
                "data": [example_element(spec.datatype)] * prod(shapes[spec.name]),
            }
            for spec in specs
        ]
    }


def _open(info: VersionInfo) -> str:
    """Say what is taken beside what the schema writes out."""
    rows = f"1 to {info.max_batch_size} rows" if info.max_batch_size else "any size"
    return (
        "A schema cannot say that `data` has as many elements as `shape` says, so some shapes are "
        f"written out here. Others are taken alike: {rows} where the model's metadata has -1, "
        "inputs in any order, and all that `InferRequest` has."
    )
