"""KServe's first protocol over REST: its list of models, readiness, and CloudEvents.

Requests to predict are those of TensorFlow Serving, `modelserve.codecs.tfserving`. A CloudEvent
(version 1.0) carries one either with its attributes in headers named ``ce-...`` (binary mode), or
as the member `data` of a JSON document (structured mode); the answer has the form of the request.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from modelserve.errors import InvalidInput
from modelserve.tensors import Tensor

from ._json import dumps
from ._tensors import short
from .tfserving import nest_outputs, read_document, write_document

__all__ = [
    "STRUCTURED",
    "check_event_headers",
    "decode_event",
    "encode_alive",
    "encode_event",
    "encode_explanations",
    "encode_models",
    "encode_ready",
    "event_attributes",
    "is_structured_event",
]

STRUCTURED: Final = "application/cloudevents+json"
"""Content type of a CloudEvent in the structured mode."""

_VERSION: Final = "1.0"
_REQUIRED: Final = ("id", "source", "type")
_TYPE: Final = "io.kserve.inference.response"
_SOURCE: Final = "io.kserve.inference."


def encode_alive() -> bytes:
    """Return the body that says the server is alive."""
    return dumps({"status": "alive"})


def encode_models(names: Iterable[str]) -> bytes:
    """Return the body that lists models.

    Example:
        >>> encode_models(["iris"])
        b'{"models":["iris"]}'
    """
    return dumps({"models": list(names)})


def encode_ready(model: str, ready: bool) -> bytes:
    """Return the body that says whether a model is ready."""
    return dumps({"name": model, "ready": ready})


def is_structured_event(content_type: str) -> bool:
    """Tell whether a content type is that of a CloudEvent in the structured mode."""
    return content_type.partition(";")[0].strip().lower() == STRUCTURED


def check_event_headers(header: Callable[[str], str | None]) -> None:
    """Check the attributes of a CloudEvent in the binary mode.

    Args:
        header: Looks up a header by lower-case name.

    Raises:
        InvalidInput: An attribute is missing, or of another version.
    """
    attributes = {name: header(f"ce-{name}") for name in ("specversion", *_REQUIRED)}
    _check_attributes(attributes, "header ce-")


def decode_event(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a CloudEvent in the structured mode: a JSON object.

    Args:
        document: The event, as `tfserving.read_document` returns it.

    Raises:
        InvalidInput: It is no event, or its data no object.
    """
    _check_attributes(document, "")
    if "data" in document:
        data = document["data"]
        if type(data) is not dict:
            raise InvalidInput(f"expected an object, got {short(data)}", path="data")
        return data
    encoded = document.get("data_base64")
    if type(encoded) is not str:
        raise InvalidInput("expected data, or data_base64, in the event")
    try:
        content = b64decode(encoded, validate=True)
    except (Base64Error, ValueError) as error:
        raise InvalidInput(f"expected base64: {str(error).lower()}", path="data_base64") from None
    return read_document(content)


def _check_attributes(attributes: Mapping[str, Any], place: str) -> None:
    version = attributes.get("specversion")
    if version != _VERSION:
        raise InvalidInput(
            f'expected "{_VERSION}", got {short(version)}', path=f"{place}specversion"
        )
    for name in _REQUIRED:
        value = attributes.get(name)
        if type(value) is not str or not value:
            raise InvalidInput(f"expected a text, got {short(value)}", path=f"{place}{name}")


def event_attributes(model: str, id: str, time: str) -> dict[str, str]:
    """Return the attributes of the event that carries an answer, by name.

    Args:
        model: Name of the model that answered.
        id: The event's id.
        time: When it was made, as RFC 3339 writes it.
    """
    return {
        "specversion": _VERSION,
        "id": id,
        # A URI reference, which has to be a header, too.
        "source": _SOURCE + quote(model, safe=""),
        "type": _TYPE,
        "time": time,
    }


def encode_event(attributes: Mapping[str, str], data: bytes) -> bytes:
    """Return the body of a CloudEvent in the structured mode.

    Args:
        attributes: Its attributes.
        data: Its data, as JSON.
    """
    head = dumps({**attributes, "datacontenttype": "application/json"})
    return b"".join((head[:-1], b',"data":', data, b"}"))


def encode_explanations(outputs: Mapping[str, Tensor], *, rows: bool) -> bytes:
    """Return the body of the answer to a request to explain.

    Args:
        outputs: Arrays by name, written as those of a prediction.
        rows: Whether the request had the row form.

    Raises:
        InvalidInput: The row form was asked for, and the outputs have no rows, or not the same.
        BackendError: An output is not a tensor of the protocol.
    """
    content, finite = nest_outputs(outputs, rows=rows)
    return write_document({"explanations": content}, finite=finite)
