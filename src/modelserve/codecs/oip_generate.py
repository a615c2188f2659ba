"""Triton's generate extension: a flat JSON object in, flat JSON objects out, one or a stream.

Members named as an input of the model are its inputs, all others parameters; members of the object
`parameters` likewise. A stream is Server-Sent Events. Source: Triton's `extension_generate.md`.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np

from modelserve.errors import BackendError, InvalidInput
from modelserve.messages import InferRequest, InferResponse, Parameters
from modelserve.tensors import Signature, Tensor, TensorSpec, as_bytes_tensor, datatype_of

from ._json import Buffer, dumps, loads
from ._tensors import from_list, short, to_list
from .oip import set_parameters

__all__ = ["decode_generate", "encode_event", "encode_failure", "encode_generate"]

_MAX_MEMBERS: Final = 1024
_NONE: Parameters = {}


def decode_generate(
    body: Buffer, signature: Signature, *, model: str, version: str = ""
) -> InferRequest:
    """Return the request in a body.

    A value becomes a tensor with as many axes as the input has: those that its nesting lacks are
    put in front with size 1, so that one text for an input of shape (-1, 1) is one row.

    Args:
        body: The whole body, decompressed.
        signature: What the model takes.
        model: Name of the model, from the path.
        version: Version number or label, from the path.

    Raises:
        InvalidInput: The body is not such a request; the text says where.

    Example:
        >>> signature = Signature([TensorSpec("text", "BYTES", (-1, 1))])
        >>> decode_generate(b'{"text": "hello"}', signature, model="m").inputs["text"]
        array([[b'hello']], dtype=object)
    """
    try:
        document = loads(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidInput(f"expected a JSON object, got {short(document)}")
    specs = {spec.name: spec for spec in signature.inputs}
    inputs: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    id = document.pop("id", "") if "id" not in specs else ""
    if type(id) is not str:
        raise InvalidInput(f"expected a string, got {short(id)}", path="id")
    nested = document.pop("parameters", None) if "parameters" not in specs else None
    if nested is not None and type(nested) is not dict:
        raise InvalidInput(f"expected an object, got {short(nested)}", path="parameters")
    for members, before in ((document, ""), (nested or {}, "parameters.")):
        if len(members) > _MAX_MEMBERS:
            raise InvalidInput(f"expected at most {_MAX_MEMBERS} members, got {len(members)}")
        for name, value in members.items():
            place = f"{before}{name[:80]}"
            if name in inputs or name in parameters:
                raise InvalidInput("stands there twice", path=place)
            if name in specs:
                inputs[name] = _tensor(value, specs[name], place)
            else:
                parameters[name] = _parameter(value, place, specs)
    request = InferRequest(model, inputs, version=version, id=id)
    if parameters:
        set_parameters(request, parameters)
    return request


def _parameter(value: Any, place: str, specs: dict[str, TensorSpec]) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    names = ", ".join(f'"{name}"' for name in specs) or "none"
    raise InvalidInput(
        f"expected a boolean, number or string, got {short(value)}; the model's inputs are {names}",
        path=place,
    )


def _tensor(value: Any, spec: TensorSpec, place: str) -> Tensor:
    nesting = _nesting(value)
    if spec.shape is not None:
        if len(nesting) > len(spec.shape):
            raise InvalidInput(
                f"expected at most {len(spec.shape)} axes, got {len(nesting)}", path=place
            )
        shape = (1,) * (len(spec.shape) - len(nesting)) + nesting
    else:
        shape = nesting
    data = value if type(value) is list else [value]
    try:
        return from_list(data, spec.datatype, nesting or (1,), prod(nesting), place).reshape(shape)
    except InvalidInput as error:
        where = error.path.replace(f"{place}.data", place, 1)
        message = str(error).removeprefix(f"{error.path}: ")
        raise InvalidInput(message, path=where if nesting else place) from None


def _nesting(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by their first elements; the rest is checked later."""
    shape: list[int] = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def encode_generate(response: InferResponse) -> bytes:
    """Return the body of an answer: the outputs by name, beside the model's name and version.

    A tensor of one element is a bare value; axes of size 1 in front are left away.

    Raises:
        InvalidInput: An output has no form in JSON.
        BackendError: An output is not a tensor of the protocol.
    """
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document.update({k: v for k, v in response.parameters.items() if k not in document})
    for name, tensor in response.outputs.items():
        document[name] = _value(name, tensor)
    return dumps(document)


def _value(name: str, tensor: Tensor) -> Any:
    array = tensor if type(tensor) is np.ndarray else np.asarray(tensor)
    try:
        datatype = datatype_of(array.dtype)
        if datatype == "BYTES":
            array = as_bytes_tensor(array)
    except InvalidInput as error:
        raise BackendError(f'output "{name}": {error}') from error
    shape = array.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    flat = to_list(array.reshape(-1), datatype, f'outputs "{name}"')
    if array.size != 1:
        return _nested(flat, shape)
    one = flat[0]
    return None if isinstance(one, np.floating) and not np.isfinite(one) else one


def _nested(flat: Any, shape: tuple[int, ...]) -> Any:
    if len(shape) < 2:
        return flat
    if isinstance(flat, np.ndarray):
        return flat.reshape(shape)
    step = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def encode_event(response: InferResponse) -> bytes:
    """Return an answer as one Server-Sent Event."""
    return b"data: %b\n\n" % encode_generate(response)


def encode_failure(text: str) -> bytes:
    """Return the Server-Sent Event that ends a stream which cannot go on.

    Its kind is `error`; its data is what an error's body is, for clients that look at data only.
    """
    body = dumps({"error": text.encode(errors="replace").decode()})
    return b"event: error\ndata: %b\n\n" % body
