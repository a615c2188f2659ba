"""Requests for inference and their answers, as JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelserve.tensors import DATATYPES

from .described import Header, Schema
from .parts import (
    ELEMENTS,
    MOST_ENTRIES,
    NAME,
    PARAMETER,
    PARAMETERS,
    SHAPE,
    STRING,
    TEXT,
    array_of,
    element,
    object_of,
)

__all__ = [
    "ASKED",
    "BINARY_REQUEST",
    "BINARY_RESPONSE",
    "LENGTH",
    "REQUEST",
    "RESPONSE",
    "RESPONSE_OUTPUT",
    "TOLD",
    "response_of",
]


def _nested(name: str, item: Mapping[str, Any], text: str) -> Schema:
    here = {"$ref": f"#/components/schemas/{name}"}
    return Schema(name, {"type": "array", "description": text, "items": {"anyOf": [item, here]}})


_NESTED: Final = "flat in row-major order, or nested as the shape is"
_DATA: Final[Mapping[str, Schema]] = {
    datatype: _nested(f"Data.{datatype}", item, f"Elements of a {datatype} tensor, {_NESTED}.")
    for datatype, item in ELEMENTS.items()
}

_BYTES: Final = {"type": "integer", "minimum": 0}


def _elsewhere(name: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of a tensor whose elements are not in the JSON."""
    places = {
        "binary": {"binary_data_size": {**_BYTES, "description": "Bytes behind the JSON."}},
        "shared memory": {
            "shared_memory_region": {**NAME, "description": "Name of a registered region."},
            "shared_memory_byte_size": _BYTES,
        },
    }
    return [
        object_of(
            {
                "name": name,
                "datatype": {"enum": list(DATATYPES)},
                "shape": SHAPE,
                "parameters": object_of(parameters, *parameters, additionalProperties=PARAMETER),
            },
            *("name", "datatype", "shape", "parameters"),
            title=title,
            forbidden="data",
        )
        for title, parameters in places.items()
    ]


_INPUT: Final = Schema(
    "RequestInput",
    {
        "description": "One input tensor: with its data, or where its bytes are.",
        "oneOf": [
            *(
                object_of(
                    {
                        "name": NAME,
                        "datatype": {"const": datatype},
                        "shape": SHAPE,
                        "data": data,
                        "parameters": PARAMETERS,
                    },
                    *("name", "datatype", "shape", "data"),
                    title=datatype,
                )
                for datatype, data in _DATA.items()
            ),
            *_elsewhere(NAME),
        ],
    },
)

_OUTPUT: Final = Schema(
    "RequestOutput",
    object_of(
        {
            "name": NAME,
            "parameters": object_of(
                {
                    "binary_data": {
                        "type": "boolean",
                        "description": "Whether to send it as bytes behind the JSON.",
                    },
                    "classification": {
                        "type": "integer",
                        "minimum": 1,
                        "description": (
                            "Send so many of the best classes, as BYTES of `value:index:name`."
                        ),
                    },
                    "shared_memory_region": {
                        **NAME,
                        "description": "The registered region to write it into.",
                    },
                    "shared_memory_byte_size": _BYTES,
                    "shared_memory_offset": _BYTES,
                },
                additionalProperties=PARAMETER,
                maxProperties=MOST_ENTRIES,
            ),
        },
        "name",
        text="An output that is wanted.",
    ),
)

_REQUEST_PARAMETERS: Final = Schema(
    "RequestParameters",
    object_of(
        {
            "timeout": {
                "type": "integer",
                "minimum": 0,
                "maximum": 10**16,
                "description": "Microseconds after which the answer is not wanted: 504.",
            },
            "priority": {
                "type": "integer",
                "minimum": 0,
                "maximum": 2**64 - 1,
                "description": "0 is the default; from 1 on a lower number goes first.",
            },
            "binary_data_output": {
                "type": "boolean",
                "description": "Whether to send all outputs as bytes behind the JSON.",
            },
            "explain": {
                "type": "boolean",
                "description": "Whether to say where the time went.",
            },
            "sequence_id": {"type": ["integer", "string"]},
        },
        text="What has a meaning of its own; any other is given to the model.",
        additionalProperties=PARAMETER,
        maxProperties=MOST_ENTRIES,
    ),
)

REQUEST: Final = Schema(
    "InferRequest",
    object_of(
        {
            "id": {**TEXT, "description": "The caller's own name for the request."},
            "inputs": array_of(_INPUT, maxItems=MOST_ENTRIES),
            "outputs": {
                **array_of(_OUTPUT, maxItems=MOST_ENTRIES),
                "type": ["array", "null"],
                "description": "The outputs wanted; without it all.",
            },
            "parameters": {"anyOf": [_REQUEST_PARAMETERS, {"type": "null"}]},
        },
        "inputs",
    ),
)

RESPONSE_OUTPUT: Final = Schema(
    "ResponseOutput",
    {
        "description": "One output tensor. A number that is none, as NaN, is null.",
        "oneOf": [
            *(
                object_of(
                    {
                        "name": STRING,
                        "datatype": {"const": datatype},
                        "shape": SHAPE,
                        "data": array_of(element(datatype, answered=True)),
                        "parameters": PARAMETERS,
                    },
                    *("name", "datatype", "shape", "data"),
                    title=datatype,
                )
                for datatype in DATATYPES
                if datatype in ELEMENTS
            ),
            *_elsewhere(STRING),
        ],
    },
)


def response_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    return object_of(
        {
            "model_name": STRING,
            "model_version": STRING,
            "id": STRING,
            "parameters": PARAMETERS,
            "outputs": outputs,
        },
        *("model_name", "model_version", "outputs"),
    )


RESPONSE: Final = Schema("InferResponse", response_of(array_of(RESPONSE_OUTPUT)))

BINARY_REQUEST: Final = {
    "description": (
        "With the header Inference-Header-Content-Length: so many bytes of JSON (InferRequest), "
        "then the tensors' bytes in order, each as long as its binary_data_size. Little-endian, "
        "row-major; an element of BYTES has its length as UINT32 in front. With a header of 0 the "
        "whole body is the one input of the model."
    )
}
BINARY_RESPONSE: Final = {
    "description": (
        "Where outputs in binary form were asked for: so many bytes of JSON (InferResponse) as the "
        "header Inference-Header-Content-Length says, then the tensors' bytes in order."
    )
}

LENGTH: Final = "Inference-Header-Content-Length"

ASKED: Final = (
    Header("X-Request-Id", STRING, "The request's id, where the body has none."),
    Header("traceparent", STRING, "W3C trace context, given to the model."),
    Header(
        "X-Request-Timeout",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 10**10},
        "Seconds after which the answer is not wanted: 504.",
    ),
    Header("X-Explain", STRING, "`1` or `true`: say where the time went."),
    Header("Idempotency-Key", STRING, "Names the operation across retries."),
)
"""Headers of any request for inference."""

TOLD: Final = (Header("Server-Timing", STRING, "Where the time went, where that was asked."),)
