"""JSON Schemas of tensors' elements, and the few forms that all schemas here are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .described import Schema

__all__ = [
    "ELEMENTS",
    "FLAG",
    "MOST_ENTRIES",
    "NAME",
    "PARAMETER",
    "PARAMETERS",
    "SHAPE",
    "STRING",
    "TEXT",
    "array_of",
    "element",
    "nullable",
    "object_of",
]


def object_of(
    properties: Mapping[str, Any],
    *required: str,
    text: str = "",
    forbidden: str = "",
    **more: Any,
) -> dict[str, Any]:
    """Return the schema of an object.

    Args:
        properties: Schemas of its members.
        required: Names of those that must be there.
        text: What it is.
        forbidden: Name of a member that must not be there.
        more: Further keywords of JSON Schema.
    """
    found: dict[str, Any] = {"type": "object", "properties": properties, **more}
    if text:
        found["description"] = text
    if forbidden:
        found["not"] = {"required": [forbidden]}
    if required:
        found["required"] = list(required)
    return found


def array_of(items: Any, **more: Any) -> dict[str, Any]:
    """Return the schema of a list, with further keywords of JSON Schema."""
    return {"type": "array", "items": items, **more}


def nullable(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of one type that takes null, too."""
    return {**definition, "type": [definition["type"], "null"]}


STRING: Final = {"type": "string"}
TEXT: Final = nullable(STRING)
FLAG: Final = {"type": "boolean"}
NAME: Final = {"type": "string", "minLength": 1}

MOST_ENTRIES: Final = 1024
"""Inputs, outputs, or parameters in one place, that a message may have."""

PARAMETER: Final = {"type": ["boolean", "number", "string"]}

PARAMETERS: Final = Schema(
    "Parameters",
    object_of(
        {},
        text=f"Booleans, numbers and strings by name, at most {MOST_ENTRIES}.",
        additionalProperties=PARAMETER,
        maxProperties=MOST_ENTRIES,
    ),
)

SHAPE: Final = array_of(
    {"type": "integer", "minimum": 0},
    maxItems=32,
    description="Sizes of the axes. Their product is the number of elements.",
)


def _integer(bits: int, *, signed: bool) -> dict[str, Any]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return {
        "type": "integer",
        "minimum": low,
        "maximum": high,
        "description": "Written without a fraction.",
    }


def _number(beyond: float) -> dict[str, Any]:
    # What is below it is rounded to a number of the datatype.
    return {"type": "number", "exclusiveMinimum": -beyond, "exclusiveMaximum": beyond}


ELEMENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "BOOL": FLAG,
    **{f"UINT{bits}": _integer(bits, signed=False) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": _integer(bits, signed=True) for bits in (8, 16, 32, 64)},
    "FP16": _number(65520.0),
    "FP32": _number(2.0**128 - 2.0**103),
    "FP64": {"type": "number"},
    "BYTES": STRING,
}
"""Schemas of elements by datatype; BF16 has no form in JSON."""


def element(datatype: str, *, answered: bool = False) -> Mapping[str, Any]:
    """Return the schema of one element.

    Args:
        datatype: Any but BF16.
        answered: Whether it stands in an answer, where what is no number is null.
    """
    found = ELEMENTS[datatype]
    return {"type": ["number", "null"]} if answered and found["type"] == "number" else found
