"""What the endpoints of Triton's generate extension say of themselves."""

from __future__ import annotations

from math import prod
from typing import Any, Final

from modelserve.execution.proof import synthetic_shape
from modelserve.protocols import VersionInfo
from modelserve.tensors import TensorSpec

from .described import Content, Described, ModelCall, Schema, json_of
from .infer import ASKED
from .models import MOST_SHOWN, data_of, example_element
from .parts import ELEMENTS, PARAMETER, STRING, object_of

__all__ = ["GENERATE", "GENERATE_STREAM"]

_REQUEST: Final = Schema(
    "GenerateRequest",
    object_of(
        {
            "id": {**STRING, "description": "The caller's own name for the request."},
            "parameters": {"type": ["object", "null"], "additionalProperties": {}},
        },
        text="Members named as an input of the model are its inputs, all others parameters.",
    ),
)

_ANSWER: Final = Schema(
    "GenerateResponse",
    object_of(
        {"model_name": STRING, "model_version": STRING, "id": STRING},
        *("model_name", "model_version"),
        text="The outputs by name, beside the model's name and version.",
    ),
)

# A schema here would be read by some as one of each event.
_EVENTS: Final[Content] = {"text/event-stream": {}}

_OF_EVENTS: Final = (
    "The data of each event is a `GenerateResponse`. An event of the kind `error`, with an `Error` "
    "as its data, ends a stream that cannot go on."
)


def _value_of(spec: TensorSpec) -> Any:
    shape = synthetic_shape(spec, 1)
    data = data_of(spec.datatype, shape)
    # The axes that a value lacks are put in front.
    return {"anyOf": [ELEMENTS[spec.datatype], data]} if prod(shape) == 1 else data


def _stream_of(info: VersionInfo) -> ModelCall | None:
    """Return what a model that answers with a stream takes and gives."""
    signature = info.signature
    if signature is None or not signature.inputs or not info.streams:
        return None
    specs = [spec for spec in signature.inputs if not spec.optional]
    if any(spec.datatype == "BF16" for spec in (*signature.inputs, *signature.outputs)):
        return None
    values = {spec.name: _value_of(spec) for spec in specs}
    takes = object_of(values, *values, additionalProperties=PARAMETER)
    sizes = {spec.name: prod(synthetic_shape(spec, 1)) for spec in specs}
    ones = {spec.name: example_element(spec.datatype) for spec in specs}
    example = {
        name: ones[name] if size == 1 else [ones[name]] * size for name, size in sizes.items()
    }
    return ModelCall(
        takes=json_of(takes),
        gives=_EVENTS,
        example=example if sum(sizes.values()) <= MOST_SHOWN else None,
        text="Values of other sizes are taken alike where the model's metadata has -1.",
    )


GENERATE: Final = Described(
    "inference", gives=json_of(_ANSWER), takes=json_of(_REQUEST), asked=ASKED
)

GENERATE_STREAM: Final = Described(
    "inference",
    gives=_EVENTS,
    takes=json_of(_REQUEST),
    text=_OF_EVENTS,
    asked=ASKED,
    of_model=_stream_of,
)
