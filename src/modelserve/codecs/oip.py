"""Open Inference Protocol v2 over REST: JSON bodies, and Triton's binary tensor extension.

Inference requests and responses both ways, and error bodies. Descriptions of models and
repositories are in `modelserve.codecs.oip_catalog`; HTTP itself is the transports' matter.

Choices where the protocol leaves one: FP16 is taken and given in JSON, BF16 is not; NaN and
infinities in an answer's JSON are null (and null is read back as NaN); `null` for an optional
member counts as absent; unknown members are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from math import prod
from time import monotonic
from typing import Any, Final

import numpy as np

from modelserve.errors import BackendError, InvalidInput
from modelserve.messages import InferRequest, InferResponse, Parameters
from modelserve.tensors import (
    DATATYPES,
    Signature,
    Tensor,
    TensorSpec,
    as_bytes_tensor,
    datatype_of,
)

from ._json import Buffer, dumps, loads, may_hold_booleans
from ._plans import (
    MAX_TIMEOUT,
    learn_frame,
    learn_head,
    opening_timeout,
    read_by_frame,
    read_by_head,
)
from ._templates import write_by_template
from ._tensors import from_bytes, from_list, shape_of, short, to_bytes, to_list, wire_dtype
from .shared_memory import PARAMETERS as SHARED
from .shared_memory import Placements, SharedMemoryNeeded, refuse_with

__all__ = [
    "HEADER",
    "decode_error",
    "decode_raw",
    "decode_request",
    "decode_response",
    "encode_error",
    "encode_request",
    "encode_response",
    "peek_timeout",
    "set_parameters",
]

HEADER: Final = "inference-header-content-length"
"""Name of the HTTP header that holds the length of the JSON part of a binary body."""

_DATATYPES: Final = frozenset(DATATYPES)
_NONE: Parameters = {}
_EVERY: Final = ""
_MICROSECOND: Final = 1_000_000
_FLAGS: Final = ("binary_data_output", "sequence_start", "sequence_end")
_MAX_ENTRIES: Final = 1024
"""Inputs, outputs, or parameters in one place, that a message may have."""
_SMALL_BODY: Final = 4096
_MAX_NATURAL: Final = 2**64 - 1


def decode_request(
    body: Buffer,
    *,
    model: str,
    version: str = "",
    header_length: int | str | None = None,
    cached: bool = True,
) -> InferRequest:
    """Return the request in a body.

    Tensors are read-only. Binary ones of fixed element size are views of `body`, which must
    neither change nor be reused while they live, or, where they are a small part of it, copies;
    they may be unaligned. The parameters `timeout`
    (microseconds) and `priority` become the request's deadline and priority, and
    `binary_data_output` the parameter `binary_data` of the output with the empty name, which
    stands for every output without its own: so that requests share a batch whatever their wire.
    The others stay parameters, `sequence_id` being both.

    At most 1024 inputs, as many outputs, and as many parameters in each place are taken.

    Args:
        body: The whole body, decompressed.
        model: Name of the model, from the path.
        version: Version number or label, from the path.
        header_length: Value of the header `Inference-Header-Content-Length`, None without one.
            It alone decides whether binary tensors may follow the JSON.
        cached: Remember, within narrow bounds, what the JSON around the data of small requests
            said, so that it is parsed and checked once and not again for every request that has
            the same. What is returned is the same either way.

    Raises:
        InvalidInput: The body is not a request; the text says where.
        SharedMemoryNeeded: It names shared memory: that is for `modelserve.codecs.oip_shared`.

    Example:
        >>> body = b'{"inputs":[{"name":"x","datatype":"INT8","shape":[2],"data":[1,2]}]}'
        >>> decode_request(body, model="m").inputs["x"]
        array([1, 2], dtype=int8)
    """
    if not cached:
        return decode_plain(body, model, version, header_length)
    if header_length is None:
        found = read_by_frame(body, model, version)
        if found is None:
            found = decode_plain(body, model, version, None)
            learn_frame(body, found)
        return found
    length = _header_length(header_length, len(body))
    found = read_by_head(body, length, model, version)
    if found is None:
        found = decode_plain(body, model, version, length)
        learn_head(body, length, found)
    return found


def decode_plain(
    body: Buffer,
    model: str,
    version: str,
    header_length: int | str | None,
    placements: Placements | None = None,
) -> InferRequest:
    """Decode without looking at what came before: what every shorter way must agree with.

    Tensors in shared memory are read and remembered by `placements`.
    """
    reader = _Reader(body, header_length, placements=placements)
    document = reader.document
    names = document.get("inputs")
    if type(names) is not list:
        raise InvalidInput(f"expected a list of tensors, got {short(names)}", path="inputs")
    inputs, input_parameters = reader.tensors(names, "inputs")
    request = InferRequest(
        model,
        inputs,
        version=version,
        id=_text(document, "id"),
        input_parameters=input_parameters,
    )
    parameters = document.get("parameters")
    if parameters is not None:
        set_parameters(request, _parameters(parameters, "parameters"))
    outputs = document.get("outputs")
    if outputs is not None:
        _set_outputs(request, outputs, placements)
    return request


def decode_raw(
    body: Buffer, signature: Signature, *, batched: bool, model: str, version: str = ""
) -> InferRequest:
    """Return the request in a body without JSON: the bytes of the model's one input.

    Every output is asked for as binary data. Of a tensor that rows are batched of, the body may
    hold any number of rows; one of BYTES has one element, the whole body, without its length.

    Args:
        body: The whole body, decompressed.
        signature: What the model takes.
        batched: Whether axis 0 of its tensors counts rows.
        model: Name of the model, from the path.
        version: Version number or label, from the path.

    Raises:
        InvalidInput: The model has several inputs, or the bytes do not tell the input's shape.
    """
    if len(signature.inputs) != 1:
        raise InvalidInput(
            f"the model has {len(signature.inputs)} inputs, and only one can stand in a body "
            "without JSON: send a JSON part, and its length in Inference-Header-Content-Length"
        )
    spec = signature.inputs[0]
    place = f'inputs[0] "{spec.name}"'
    shape = _raw_shape(spec, len(body), batched, place)
    if spec.datatype == "BYTES":
        array = np.empty(1, np.object_)
        array[0] = bytes(body)
        tensor: Tensor = array.reshape(shape)
        tensor.flags.writeable = False
    else:
        tensor = from_bytes(body, 0, len(body), spec.datatype, shape, prod(shape), place)
    return InferRequest(
        model,
        {spec.name: tensor},
        version=version,
        output_parameters={_EVERY: {"binary_data": True}},
    )


def _raw_shape(spec: TensorSpec, size: int, batched: bool, place: str) -> tuple[int, ...]:
    """Return the shape of a tensor of so many bytes, whose open axis they tell."""
    if spec.shape is None:
        raise InvalidInput("its number of axes is open: send a JSON part", path=place)
    shape = list(spec.shape)
    if spec.datatype == "BYTES":
        shape = [1 if length < 0 else length for length in shape]
        if prod(shape) != 1:
            raise InvalidInput("a body without JSON holds one element", path=place)
        return tuple(shape)
    if batched and shape and any(length < 0 for length in shape[1:]):
        shape[0] = 1
    axes = [axis for axis, length in enumerate(shape) if length < 0]
    if len(axes) > 1:
        raise InvalidInput(f"{len(axes)} of its axes are open: send a JSON part", path=place)
    if axes:
        shape[axes[0]] = 1
        each = prod(shape) * wire_dtype(spec.datatype).itemsize
        if not each or size % each:
            raise InvalidInput(f"expected a multiple of {each} bytes, got {size}", path=place)
        shape[axes[0]] = size // each
    return tuple(shape)


def peek_timeout(body: Buffer, start: int = 0) -> float | None:
    """Return the seconds a request's parameter `timeout` gives, where it stands first in the body.

    For a transport that refuses what is too late before it reads the rest. None says nothing.

    Args:
        body: The body; its JSON part, where binary data follows it, is at its beginning.
        start: Where it begins in what is given as the body.
    """
    return opening_timeout(body, start)


def decode_response(body: Buffer, *, header_length: int | str | None = None) -> InferResponse:
    """Return the response in a body, as a client reads it.

    At most 1024 outputs, and as many parameters in each place, are taken.

    Args:
        body: The whole body, decompressed.
        header_length: Value of the header `Inference-Header-Content-Length`, None without one.

    Raises:
        InvalidInput: The body is not a response; the text says where.
    """
    reader = _Reader(body, header_length, nulls=True)
    document = reader.document
    found = document.get("outputs")
    if type(found) is not list:
        raise InvalidInput(f"expected a list of tensors, got {short(found)}", path="outputs")
    outputs, output_parameters = reader.tensors(found, "outputs")
    parameters = document.get("parameters")
    return InferResponse(
        _text(document, "model_name"),
        _text(document, "model_version"),
        outputs,
        id=_text(document, "id"),
        parameters=_NONE if parameters is None else _parameters(parameters, "parameters"),
        output_parameters=output_parameters,
    )


class _Reader:
    """A body's JSON part and the place where its next binary tensor begins."""

    __slots__ = (
        "binary",
        "body",
        "booleans",
        "document",
        "head",
        "nulls",
        "offset",
        "placements",
    )

    def __init__(
        self,
        body: Buffer,
        header_length: int | str | None,
        nulls: bool = False,
        placements: Placements | None = None,
    ) -> None:
        if type(body) is not bytes:
            body = memoryview(body).toreadonly()
        self.body = body
        self.binary = header_length is not None
        self.nulls = nulls
        self.placements = placements
        self.booleans: bool | None = None
        head: Buffer = body
        if header_length is not None:
            self.offset = _header_length(header_length, len(body))
            head = bytes(body[: self.offset])
            size = len(body)
            if size > _SMALL_BODY and (size - self.offset) * 4 < size:
                # Views keep the whole body: it would be held for little.
                self.body, self.offset = bytes(body[self.offset :]), 0
        else:
            self.offset = len(body)
            if type(head) is not bytes:
                head = bytes(head)
        self.head = head
        try:
            self.document: dict[str, Any] = loads(head)
        except ValueError as error:
            raise InvalidInput(f"the body is not valid JSON: {error}") from None
        if type(self.document) is not dict:
            raise InvalidInput(f"expected a JSON object, got {short(self.document)}")

    def tensors(
        self, documents: list[Any], side: str
    ) -> tuple[dict[str, Tensor], Mapping[str, Parameters]]:
        _bounded(documents, side)
        tensors: dict[str, Tensor] = {}
        kept: dict[str, Parameters] = {}
        for index, document in enumerate(documents):
            place = f"{side}[{index}]"
            if type(document) is not dict:
                raise InvalidInput(f"expected an object, got {short(document)}", path=place)
            name = _name(document, place)
            if name in tensors:
                raise InvalidInput(f'"{name[:80]}" stands there twice', path=f"{place}.name")
            parameters = document.get("parameters")
            if parameters is not None:
                parameters = _parameters(parameters, f"{place}.parameters")
                tensors[name] = self._tensor(document, parameters, place)
                if parameters:
                    kept[name] = parameters
            else:
                tensors[name] = self._tensor(document, _NONE, place)
        if self.binary and self.offset != len(self.body):
            raise InvalidInput(
                f"{len(self.body) - self.offset} bytes follow the last binary tensor"
            )
        return tensors, kept or _NONE

    def _tensor(self, document: dict[str, Any], parameters: Parameters, place: str) -> Tensor:
        datatype = document.get("datatype")
        if type(datatype) is not str or datatype not in _DATATYPES:
            raise InvalidInput(
                f"expected one of {', '.join(DATATYPES)}, got {short(datatype)}",
                path=f"{place}.datatype",
            )
        shape, count = shape_of(document.get("shape"), place)
        if "binary_data_size" in parameters:
            return self._binary(document, parameters, datatype, shape, count, place)
        if not SHARED.isdisjoint(parameters):
            if "data" in document:
                refuse_with(parameters, "data", place)
            if self.placements is None:
                raise SharedMemoryNeeded(f"{place}.parameters: shared memory is not offered here")
            return self.placements.read(parameters, datatype, shape, count, place)  # type: ignore[arg-type]  # our own dict
        if "data" not in document:
            raise InvalidInput("expected data, or binary_data_size in parameters", path=place)
        if self.booleans is None:
            self.booleans = may_hold_booleans(self.head)
        return from_list(
            document["data"],
            datatype,
            shape,
            count,
            place,
            nulls=self.nulls,
            booleans=self.booleans,
        )

    def _binary(
        self,
        document: dict[str, Any],
        parameters: Parameters,
        datatype: str,
        shape: tuple[int, ...],
        count: int,
        place: str,
    ) -> Tensor:
        size = parameters.pop("binary_data_size")  # type: ignore[attr-defined]  # our own dict
        where = f"{place}.parameters.binary_data_size"
        if type(size) is not int or size < 0:
            raise InvalidInput(f"expected a number of bytes, got {short(size)}", path=where)
        # For a tensor without elements KServe's client sends null, and no header.
        if document.get("data") is not None:
            raise InvalidInput("expected data or binary_data_size, got both", path=place)
        if parameters:
            refuse_with(parameters, "binary_data_size", place)
        if not self.binary and size:
            raise InvalidInput(
                "binary data needs the header Inference-Header-Content-Length", path=where
            )
        start = self.offset
        if size > len(self.body) - start:
            raise InvalidInput(
                f"expected {size} bytes of binary data, got {len(self.body) - start}", path=where
            )
        self.offset = start + size
        return from_bytes(self.body, start, size, datatype, shape, count, place)


def _header_length(value: int | str, size: int) -> int:
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) < 20):
            digits = value.strip(" \t")  # not every server strips headers' values
            if digits == value:
                raise InvalidInput(f"expected a number, got {short(value)}", path=HEADER)
            return _header_length(digits, size)
        value = int(value)
    if not 0 <= value <= size:
        raise InvalidInput(f"expected at most the body's {size} bytes, got {value}", path=HEADER)
    if value == 0:
        raise InvalidInput("expected a JSON part, got none", path=HEADER)
    return value


def _name(document: dict[str, Any], place: str) -> str:
    name = document.get("name")
    if type(name) is not str or not name:
        raise InvalidInput(f"expected a name, got {short(name)}", path=f"{place}.name")
    return name


def _text(document: dict[str, Any], member: str) -> str:
    value = document.get(member)
    if value is None:
        return ""
    if type(value) is not str:
        raise InvalidInput(f"expected a string, got {short(value)}", path=member)
    return value


def _bounded(entries: Sized, place: str) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise InvalidInput(
            f"expected at most {_MAX_ENTRIES} entries, got {len(entries)}", path=place
        )


def _parameters(value: Any, place: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise InvalidInput(f"expected an object, got {short(value)}", path=place)
    _bounded(value, place)
    for name, parameter in value.items():
        if not isinstance(parameter, str | bool | int | float):
            raise InvalidInput(
                f"expected a boolean, number or string, got {short(parameter)}",
                path=f"{place}.{name[:80]}",
            )
    return value


def _natural(parameters: dict[str, Any], name: str) -> int:
    value = parameters.pop(name)
    if type(value) is not int or not 0 <= value <= _MAX_NATURAL:
        raise InvalidInput(
            f"expected an integer from 0 to {_MAX_NATURAL}, got {short(value)}",
            path=f"parameters.{name}",
        )
    return value


def _sequence_id(value: Any) -> int | str:
    if type(value) is str or (type(value) is int and 0 <= value <= _MAX_NATURAL):
        found: int | str = value
        return found
    raise InvalidInput(
        f"expected a string or an integer from 0 to {_MAX_NATURAL}, got {short(value)}",
        path="parameters.sequence_id",
    )


def set_parameters(request: InferRequest, parameters: dict[str, Any]) -> None:
    """Give a request its parameters, taking out those that have a meaning of their own.

    Raises:
        InvalidInput: One of those is not what it must be.
    """
    if "timeout" in parameters:
        microseconds = _natural(parameters, "timeout")
        # Clients write the largest number there is for "as long as it takes".
        if 0 < microseconds < MAX_TIMEOUT:
            request.deadline = monotonic() + microseconds / _MICROSECOND
    if "priority" in parameters:
        request.priority = _natural(parameters, "priority")
    if "sequence_id" in parameters:
        request.sequence_id = _sequence_id(parameters["sequence_id"])
    for name in _FLAGS:
        if name in parameters:
            _flag(parameters, name, "parameters")
    if parameters.pop("binary_data_output", False):
        request.output_parameters = {_EVERY: {"binary_data": True}}
    request.parameters = parameters


def _flag(parameters: Parameters, name: str, place: str) -> None:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise InvalidInput(f"expected true or false, got {short(value)}", path=f"{place}.{name}")


def _set_outputs(request: InferRequest, documents: Any, placements: Placements | None) -> None:
    if type(documents) is not list:
        raise InvalidInput(f"expected a list, got {short(documents)}", path="outputs")
    _bounded(documents, "outputs")
    names: dict[str, None] = {}
    kept: dict[str, Parameters] = {}
    for index, document in enumerate(documents):
        place = f"outputs[{index}]"
        if type(document) is not dict:
            raise InvalidInput(f"expected an object, got {short(document)}", path=place)
        name = _name(document, place)
        if name in names:
            raise InvalidInput(f'"{name[:80]}" stands there twice', path=f"{place}.name")
        names[name] = None
        if document.get("parameters") is not None:
            parameters = _parameters(document["parameters"], f"{place}.parameters")
            _flag(parameters, "binary_data", f"{place}.parameters")
            if not SHARED.isdisjoint(parameters):
                if placements is None:
                    raise SharedMemoryNeeded(
                        f"{place}.parameters: shared memory is not offered here"
                    )
                placements.note(name, parameters, place)
            if "classification" in parameters:
                parameters.setdefault("binary_data", False)  # Triton has no other default for it
            if parameters:
                kept[name] = parameters
    # An empty list names nothing, as Triton reads it: all outputs are wanted.
    request.outputs = list(names) or None
    if kept:
        request.output_parameters = {**request.output_parameters, **kept}


def encode_response(
    response: InferResponse, request: InferRequest | None = None, *, cached: bool = True
) -> tuple[list[bytes | memoryview], int | None]:
    """Return a response's body as buffers to write in order, and the length of its JSON part.

    An output goes as binary data when its own parameter `binary_data` in `request` says so, or
    else when that of the empty name does. The length is None where none goes so; otherwise it is
    the value of the header `Inference-Header-Content-Length`. The JSON part is padded with spaces
    so that the data behind it stands at a multiple of 8.

    Args:
        response: Its outputs are arrays, or what `np.asarray` takes.
        request: What it answers; None asks for everything as JSON.
        cached: Remember, within narrow bounds, what responses made alike have in common. What is
            returned is the same either way.

    Raises:
        InvalidInput: An output asked for in JSON has no such form.
        BackendError: An output is not a tensor of the protocol.
    """
    wanted = _NONE if request is None else request.output_parameters
    if cached:
        found = write_by_template(response, wanted)
        if found is not None:
            return found
    return encode_plain(response, wanted)


def encode_plain(
    response: InferResponse,
    wanted: Mapping[str, Parameters],
    placements: Placements | None = None,
) -> tuple[list[bytes | memoryview], int | None]:
    """Encode without looking at what came before: what every shorter way must agree with."""
    default = wanted[_EVERY].get("binary_data", False) if _EVERY in wanted else False
    blobs: list[bytes | memoryview] = []
    placed: dict[str, bytes | memoryview] = {}
    outputs: list[dict[str, Any]] = []
    for name, tensor in response.outputs.items():
        array = tensor if type(tensor) is np.ndarray else np.asarray(tensor)
        try:
            datatype = datatype_of(array.dtype)
            if datatype == "BYTES":
                array = as_bytes_tensor(array)
        except InvalidInput as error:
            raise BackendError(f'output "{name}": {error}') from error
        if placements is not None and name in placements:
            content = placed[name] = to_bytes(array, datatype)
            place = placements.described(name, content, datatype, array.shape)
            parameters = {**response.output_parameters.get(name, _NONE), **place}
            head = {"name": name, "datatype": datatype, "shape": array.shape}
            outputs.append({**head, "parameters": parameters})
            continue
        binary = wanted[name].get("binary_data", default) if name in wanted else default
        outputs.append(
            _tensor_document(
                name, array, datatype, blobs, binary, response.output_parameters, "outputs"
            )
        )
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    parts = _assemble(document, blobs)
    if placements is not None:
        placements.write(placed)
    return parts


def encode_request(
    request: InferRequest, *, binary: bool = True
) -> tuple[list[bytes | memoryview], int | None]:
    """Return a request's body as buffers to write in order, and the length of its JSON part.

    The model and version belong into the path. What is left until the deadline is sent as the
    parameter `timeout`.

    Args:
        request: Its inputs are arrays (anything `np.asarray` takes, with the right dtype).
        binary: Send inputs and ask for outputs as binary data; otherwise as JSON.

    Raises:
        InvalidInput: An input has no such form: no datatype, or NaN, infinities, BF16 or bytes
            that are not UTF-8 in JSON.
    """
    blobs: list[bytes | memoryview] = []
    inputs: list[dict[str, Any]] = []
    for index, (name, tensor) in enumerate(request.inputs.items()):
        array = np.asarray(tensor)
        datatype = datatype_of(array.dtype)
        if not binary and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(
                "NaN and infinities have no JSON form; send it as binary data",
                path=f'inputs[{index}] "{name}"',
            )
        inputs.append(
            _tensor_document(
                name, array, datatype, blobs, binary, request.input_parameters, "inputs"
            )
        )
    document: dict[str, Any] = {}
    if request.id:
        document["id"] = request.id
    parameters = _request_parameters(request, binary)
    if parameters:
        document["parameters"] = parameters
    document["inputs"] = inputs
    if request.outputs is not None:
        document["outputs"] = [
            _output_document(name, request.output_parameters, binary) for name in request.outputs
        ]
    return _assemble(document, blobs)


def _request_parameters(request: InferRequest, binary: bool) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if request.deadline is not None:
        # At least one microsecond: 0 would mean no limit.
        left = int((request.deadline - monotonic()) * _MICROSECOND)
        # First, since it is another one every time: servers know again what follows it.
        parameters["timeout"] = min(max(left, 1), MAX_TIMEOUT - 1)
    parameters = {**parameters, **request.parameters, **parameters}
    if binary:
        parameters["binary_data_output"] = True
    if request.priority:
        parameters["priority"] = request.priority
    if request.sequence_id:
        parameters["sequence_id"] = request.sequence_id
    return parameters


def _output_document(
    name: str, parameters: Mapping[str, Parameters], binary: bool
) -> dict[str, Any]:
    kept = {k: v for k, v in parameters.get(name, _NONE).items() if k != "binary_data"}
    if binary:
        kept["binary_data"] = True
    return {"name": name, "parameters": kept} if kept else {"name": name}


def _tensor_document(
    name: str,
    array: np.ndarray[Any, Any],
    datatype: str,
    blobs: list[bytes | memoryview],
    binary: bool,
    parameters: Mapping[str, Parameters],
    side: str,
) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
    kept = parameters.get(name)
    if binary:
        blob = to_bytes(array, datatype)
        blobs.append(blob)
        document["parameters"] = {**(kept or _NONE), "binary_data_size": len(blob)}
        return document
    if kept:
        document["parameters"] = kept
    document["data"] = to_list(array, datatype, f'{side} "{name}"')
    return document


def _assemble(
    document: dict[str, Any], blobs: list[bytes | memoryview]
) -> tuple[list[bytes | memoryview], int | None]:
    head = dumps(document)
    if not blobs:
        return [head], None
    head += b" " * (-len(head) % 8)
    return [head, *blobs], len(head)


def encode_error(text: str) -> bytes:
    """Return the body of an error answer: `{"error": text}`, valid UTF-8 whatever the text."""
    return dumps({"error": text.encode(errors="replace").decode()})


def decode_error(body: Buffer) -> str:
    """Return the text of an error answer's body, or empty text where it is not one."""
    try:
        document = loads(bytes(body))
    except ValueError:
        return ""
    text = document.get("error") if type(document) is dict else None
    return text if type(text) is str else ""
