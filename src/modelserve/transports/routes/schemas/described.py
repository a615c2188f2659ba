"""What endpoints say of themselves for /openapi.json: what they take and give, as JSON Schemas.

Only data, for the endpoints' own modules to state beside the table; `openapi` makes a document of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from modelserve.protocols import VersionInfo

__all__ = [
    "BINARY_TYPE",
    "ERROR",
    "JSON_TYPE",
    "NOTHING",
    "Content",
    "Definition",
    "Described",
    "Header",
    "Schema",
    "json_of",
]

JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema with a name, by which documents refer to it.

    Args:
        name: Its name in the document: letters, digits, ".", "_" and "-".
        definition: The schema. Where others stand in it, they are referred to by their names;
            itself by ``{"$ref": "#/components/schemas/NAME"}``.
    """

    name: str
    definition: Mapping[str, Any]


Definition: TypeAlias = Schema | Mapping[str, Any]
"""A JSON Schema, with or without a name."""

Content: TypeAlias = Mapping[str, Definition]
"""Schemas of a body by its media type; empty for no body."""

NOTHING: Final[Content] = {}


def json_of(definition: Definition) -> Content:
    """Return the content of a body in JSON."""
    return {JSON_TYPE: definition}


@dataclass(frozen=True, slots=True)
class Header:
    """A header of requests or replies.

    Args:
        name: Its name.
        schema: What it may hold.
        text: What it says.
    """

    name: str
    schema: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Described:
    """What an endpoint says of itself beside its method, path, scope and summary.

    Args:
        tag: The group it belongs to, such as ``"inference"``.
        gives: The body of a reply with status 200.
        takes: The body of a request; an endpoint that reads one and names none takes anything.
        optional: Whether the request may leave the body away.
        text: More of what it does, in CommonMark.
        parts: Schemas of the parts of the path that do not take any text, by their names.
        asked: Headers of a request that mean something.
        told: Headers of a reply with status 200, which need not be there.
        others: Bodies of replies that are no errors, by a status other than 200.
        errors: Statuses of errors beside those that follow from the endpoint's scope and path.
        of_model: Returns what it says for one version of a model that is ready, or None for
            nothing beside the rest: the document then has a path of the model's own.
    """

    tag: str
    gives: Content
    takes: Content = field(default_factory=dict)
    optional: bool = False
    text: str = ""
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: tuple[Header, ...] = ()
    told: tuple[Header, ...] = ()
    others: Mapping[int, Content] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    of_model: Callable[[VersionInfo], ModelCall | None] | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What an endpoint takes and gives for one version of a model.

    Args:
        takes: The body of a request.
        gives: The body of a reply with status 200.
        example: A body that is accepted, as a JSON value; None where it would be too long.
        text: What the schemas leave open, in CommonMark.
    """

    takes: Content
    gives: Content
    example: Any = None
    text: str = ""


ERROR: Final = Schema(
    "Error",
    {
        "type": "object",
        "description": "What was wrong, where, and what would be right.",
        "properties": {"error": {"type": "string"}},
        "required": ["error"],
    },
)
