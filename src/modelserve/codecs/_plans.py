"""What a request says beside its data, for heads that come again byte for byte.

Clients send the same few heads over and over, with other data. Each plan here is the outcome of the
plain decoding in `modelserve.codecs.oip` for one head; reading a body by it gives what the plain
decoding would give, or None where only that can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from struct import Struct
from struct import error as StructError
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy import ndarray

from modelserve.errors import InvalidInput
from modelserve.messages import InferRequest, Parameters
from modelserve.tensors import Tensor

from ._json import Buffer, dumps, loads
from ._memo import Memo
from ._tensors import from_bytes, from_list, number_code, wire_dtype

__all__ = [
    "DATA",
    "FRAMES",
    "HEADS",
    "MAX_FRAMED",
    "MAX_HEAD",
    "OPENINGS",
    "RowKind",
    "learn_frame",
    "learn_head",
    "opening_timeout",
    "read_by_frame",
    "read_by_head",
]

MAX_HEAD: Final = 1024
"""Bytes of JSON before or after the data that a plan may be for."""
MAX_FRAMED: Final = 16384
# Beyond this the data's own cost is all that matters.
_MAX_FRAMES: Final = 4
"""Frames that begin alike."""
DATA: Final = b'"data":'
_MICROSECOND: Final = 1_000_000

MAX_TIMEOUT: Final = 10**16
"""Microseconds, three centuries, from which a timeout is none: no clock's arithmetic survives it.
"""
_ALL_BINARY: Final = {"": {"binary_data": True}}

# What is another one for every request stands first where clients write it: an id, and from this
# library's own client what is left of its time. It is cut off what may come again. The characters
# of the id are those that stand for themselves in JSON.
OPENINGS: Final = (b'{"id"', b'{"parameters":{"timeout"', b'{"parameters": {"timeout"')
_OPENING: Final = re.compile(
    rb'\{(?:"id": ?"([ !#-\[\]-~]{,128})", ?)?'
    rb'(?:"parameters": ?\{"timeout": ?([1-9][0-9]{,15})(?=[,}]))?'
)
_UNCUT, _AFTER_ID, _AFTER_TIMEOUT = range(3)
_Own: TypeAlias = tuple[int, str, int, int]
"""Where the opening ends, the id and the timeout in it, and what it ends with. What follows makes a
document only behind an opening that ends alike. The end is 0 where there is none."""
_NOTHING: Final[_Own] = (0, "", 0, _UNCUT)


def _own(text: bytes) -> _Own:
    match = _OPENING.match(text)
    if match is None or match.end() == 1:
        return _NOTHING
    id, timeout = match.groups()
    name = id.decode() if id else ""
    if timeout:
        return match.end(), name, int(timeout), _AFTER_TIMEOUT
    return match.end(), name, 0, _AFTER_ID


def opening_timeout(body: Buffer, start: int = 0) -> float | None:
    """Return the seconds that a timeout in a body's opening says, or None."""
    if type(body) is not bytes or not body.startswith(OPENINGS, start):
        return None
    match = _OPENING.match(body, start)
    timeout = None if match is None else match[2]
    return int(timeout) / _MICROSECOND if timeout else None


def _document(rest: bytes, own: _Own) -> Any:
    """Parse what is left without its opening, as if there had been no id in it.

    Raises:
        ValueError: The timeout in the opening is not the document's.
    """
    if not own[2]:
        return loads(b"{" + rest if own[0] else rest)
    for timeout in (2, 1):
        document = loads(b'{"parameters":{"timeout":%d' % timeout + rest)
        if (document["parameters"] or {}).get("timeout") != timeout:
            raise ValueError("another timeout follows the first")
    return document


class _Envelope:
    """Everything of a request but its tensors. Never changed after it was made."""

    __slots__ = (
        "all_binary",
        "id",
        "input_parameters",
        "opening",
        "output_parameters",
        "outputs",
        "parameters",
        "priority",
        "rare",
        "sequence_id",
        "timeout",
    )

    def __init__(self, document: dict[str, Any], request: InferRequest, own: _Own) -> None:
        self.opening = own[3]
        # A second id or timeout behind the opening's is the one that counts.
        self.id: str | None = request.id if "id" in document else None
        timeout = 0 if own[2] else (document.get("parameters") or {}).get("timeout", 0)
        self.timeout: int = timeout if timeout < MAX_TIMEOUT else 0
        # Copies: whoever has this request may change it.
        self.outputs = None if request.outputs is None else tuple(request.outputs)
        self.output_parameters = _copied(request.output_parameters)
        self.input_parameters = _copied(request.input_parameters)
        self.parameters = dict(request.parameters)
        self.priority = request.priority
        self.sequence_id = request.sequence_id
        self.all_binary = self.output_parameters == _ALL_BINARY
        few = self.outputs is None and (self.all_binary or not self.output_parameters)
        self.rare = not few or bool(self.parameters or self.input_parameters or self.priority)

    def around(
        self, inputs: dict[str, Tensor], model: str, version: str, own: _Own
    ) -> InferRequest:
        """Return a request that shares nothing that can be changed with any other."""
        request = InferRequest(model, inputs)
        request.version = version
        _, id, timeout, _ = own
        request.id = id if self.id is None else self.id
        if timeout or self.timeout:
            request.deadline = monotonic() + (timeout or self.timeout) / _MICROSECOND
        if self.rare:
            self._set_rare(request)
        elif self.all_binary:
            request.output_parameters = {"": {"binary_data": True}}
        return request

    def _set_rare(self, request: InferRequest) -> None:
        request.outputs = None if self.outputs is None else list(self.outputs)
        request.output_parameters = _copied(self.output_parameters)
        request.input_parameters = _copied(self.input_parameters)
        request.parameters = self.parameters.copy()
        request.priority = self.priority
        request.sequence_id = self.sequence_id


def _copied(parameters: Mapping[str, Parameters]) -> dict[str, dict[str, Any]]:
    return {name: dict(kept) for name, kept in parameters.items()}


class RowKind(NamedTuple):
    """What requests of one row have in common that may be read and answered together.

    Args:
        name: Name of their only input.
        dtype: Its dtype.
        row: Shape of a row.
        binary: Whether all outputs are to go as binary data; else all go in JSON.
    """

    name: str
    dtype: np.dtype[Any]
    row: tuple[int, ...]
    binary: bool


def _kind(envelope: _Envelope, name: str, datatype: str, shape: tuple[int, ...]) -> RowKind | None:
    """Return the kind of a request, where it is one row of numbers and asks for nothing else."""
    if envelope.rare or envelope.id or envelope.timeout or envelope.opening != _UNCUT:
        return None
    if datatype in ("BOOL", "BYTES", "BF16"):
        return None
    if len(shape) < 2 or shape[0] != 1 or 0 in shape:
        return None
    return RowKind(name, wire_dtype(datatype), shape[1:], envelope.all_binary)


class _Head:
    """The JSON part of a request all of whose tensors are binary, and where each of them is."""

    __slots__ = ("envelope", "kind", "size", "tensors")

    def __init__(self, document: dict[str, Any], request: InferRequest, own: _Own) -> None:
        self.envelope = _Envelope(document, request, own)
        self.tensors = []
        start = 0
        pairs = zip(request.inputs.items(), document["inputs"], strict=True)
        for index, ((name, array), tensor) in enumerate(pairs):
            datatype = tensor["datatype"]
            size = tensor["parameters"]["binary_data_size"]
            shape = array.shape
            # Numbers need only a view: any bytes of the right length are right.
            numbers = size > 0 and datatype not in ("BOOL", "BYTES")
            dtype = wire_dtype(datatype) if numbers else None
            rest = (size, datatype, shape, array.size, f"inputs[{index}]")
            self.tensors.append((name, dtype, shape, start, rest))
            start += size
        self.size = start
        self.kind: RowKind | None = None
        if len(self.tensors) == 1:
            self.kind = _kind(self.envelope, name, datatype, shape)


class _Frame:
    """The JSON of a request before and after the data of its only tensor."""

    __slots__ = (
        "count",
        "datatype",
        "dtype",
        "envelope",
        "kind",
        "name",
        "pack",
        "shape",
        "suffix",
    )

    def __init__(
        self, suffix: bytes, document: dict[str, Any], request: InferRequest, own: _Own
    ) -> None:
        self.envelope = _Envelope(document, request, own)
        self.suffix = suffix
        ((self.name, array),) = request.inputs.items()
        self.shape = array.shape
        self.count = array.size
        self.datatype: str = document["inputs"][0]["datatype"]
        self.dtype = wire_dtype(self.datatype) if self.datatype != "BYTES" else None
        # Without elements there is nothing to save.
        code = number_code(self.datatype) if self.count else None
        self.pack = None if code is None else Struct(f"<{self.count}{code}").pack
        self.kind = (
            None if code is None else _kind(self.envelope, self.name, self.datatype, self.shape)
        )

    def read_row(self, text: bytes) -> bytes | None:
        """Return the bytes of a row of right numbers, or None where it may be something else."""
        if text.find(b"t") >= 0 or text.find(b"f") >= 0 or self.pack is None:
            return None  # it may hold true or false
        try:
            data = loads(text)
            if type(data) is not list:
                return None
            if len(data) == 1 and self.count > 1 and len(self.shape) == 2:
                data = data[0]
                if type(data) is not list:
                    return None
            return self.pack(*data) if len(data) == self.count else None
        except (StructError, OverflowError, TypeError, ValueError):
            return None

    def read(self, text: bytes, model: str, version: str, own: _Own) -> InferRequest | None:
        try:
            data = loads(text)
            tensor = self._numbers(text, data)
            if tensor is None:
                tensor = from_list(data, self.datatype, self.shape, self.count, "")
        except (ValueError, InvalidInput):
            return None
        return self.envelope.around({self.name: tensor}, model, version, own)

    def _numbers(self, text: bytes, data: Any) -> Tensor | None:
        """Return the tensor of a list of right numbers, flat or in rows, and of nothing else."""
        # A list without these letters holds neither true nor false: its elements need no look.
        if self.pack is None or text.find(b"t") >= 0 or text.find(b"f") >= 0:
            return None
        if type(data) is not list:
            return None
        try:
            if len(data) != self.count:
                rows, columns = self.shape
                if len(data) != rows or set(map(len, data)) != {columns}:
                    return None
                # A row that is text or an object gives text, which is no number.
                data = chain.from_iterable(data)
            return ndarray(self.shape, self.dtype, self.pack(*data))
        except (StructError, OverflowError, TypeError, ValueError):
            return None


# What both remember is a pure function of the keys, as with functools.cache. A head's size stands
# for its plan's, which is some twenty times that at the worst. False and None are for those that
# only the plain decoding can read.
HEADS: Final[Memo[bytes, _Head | Literal[False]]] = Memo(entries=256, size=128 * 1024)
"""Plans by the JSON part of a binary body, behind its opening."""
FRAMES: Final[Memo[bytes, tuple[_Frame | None, ...]]] = Memo(entries=256, size=128 * 1024)
"""Plans by what stands in a JSON body from its opening to the first data, told apart by what stands
behind that."""


def read_by_head(body: Buffer, length: int, model: str, version: str) -> InferRequest | None:
    """Return the request in a binary body whose head came before, or None.

    Saves the parsing and checking of the head: what is left is a look-up, a comparison of lengths
    and a view for every tensor.

    Raises:
        InvalidInput: An element is wrong (BOOL, BYTES), as the plain decoding says it.
    """
    if length > MAX_HEAD:
        return None
    if type(body) is bytes:
        head = body[:length]
    else:
        body = memoryview(body).toreadonly()
        head = bytes(body[:length])
    own = _NOTHING
    if head.startswith(OPENINGS):
        own = _own(head)
        head = head[own[0] :]
    plan = HEADS.get(head)
    if not plan or len(body) != length + plan.size or plan.envelope.opening != own[3]:
        return None
    # Views keep the whole body. With so short a head that is never much more than the tensors.
    inputs: dict[str, Tensor] = {}
    for name, dtype, shape, start, rest in plan.tensors:
        if dtype is not None:
            inputs[name] = ndarray(shape, dtype, body, length + start)
        else:
            inputs[name] = from_bytes(body, length + start, *rest)
    return plan.envelope.around(inputs, model, version, own)


def learn_head(body: Buffer, length: int, request: InferRequest) -> None:
    """Note a head whose body was decoded to `request`; plan for it when it came before."""
    if length > MAX_HEAD:
        return
    head = bytes(body[:length])
    own = _own(head)
    head = head[own[0] :]
    if HEADS.get(head) is not None or not HEADS.due(head):
        return
    plan: _Head | Literal[False] = False
    try:
        document = _document(head, own)
        if all("binary_data_size" in (t.get("parameters") or ()) for t in document["inputs"]):
            plan = _Head(document, request, own)
    except ValueError:
        plan = False
    HEADS.keep(head, plan, size=length)


def read_by_frame(body: Buffer, model: str, version: str) -> InferRequest | None:
    """Return the request in a JSON body whose frame came before, or None.

    Saves the parsing and checking of everything but the data. What is between two texts that make
    a valid document around one list makes the same document around any other: so the data may be
    parsed alone.
    """
    if type(body) is not bytes or len(body) > MAX_FRAMED:
        return None
    start = body.find(DATA, 0, MAX_HEAD)
    if start < 0:
        return None
    own = _own(body) if body.startswith(OPENINGS) else _NOTHING
    for frame in FRAMES.get(body[own[0] : start]) or ():
        if frame is None or frame.envelope.opening != own[3]:
            continue
        if body.endswith(frame.suffix):
            text = body[start + len(DATA) : len(body) - len(frame.suffix)]
            request = frame.read(text, model, version, own)
            if request is not None:
                return request
    return None


def learn_frame(body: Buffer, request: InferRequest) -> None:
    """Note what surrounds the data of a body decoded to `request`; plan for it when it came before.

    At most four plans are made, or tried in vain, for frames that begin alike.
    """
    if type(body) is not bytes or len(body) > MAX_FRAMED:
        return
    start = body.find(DATA, 0, MAX_HEAD)
    if start < 0:
        return
    own = _own(body)
    prefix = body[own[0] : start]
    known = FRAMES.get(prefix) or ()
    if len(known) < _MAX_FRAMES and (known or FRAMES.due(prefix)):
        frames = (*known, _frame(body[own[0] :], len(prefix) + len(DATA), request, own))
        size = len(prefix) + sum(len(frame.suffix) for frame in frames if frame is not None)
        FRAMES.keep(prefix, frames, size=size)


def _frame(rest: bytes, start: int, request: InferRequest, own: _Own) -> _Frame | None:
    if len(request.inputs) != 1:
        return None
    try:
        document = _document(rest, own)
        tensor = document["inputs"][0]
        innermost = tensor.get("data")
        closing = b""
        while type(innermost) is list:
            closing += b"]"
            innermost = innermost[0] if innermost else None
        end = rest.find(closing, start) + len(closing)
        suffix = rest[end:]
        if len(suffix) > MAX_HEAD:
            return None
        # Proof that it was the data that was cut out: the rest is the same around any other list.
        for other in ([0], [1]):
            tensor["data"] = other
            if _document(rest[:start] + dumps(other) + suffix, own) != document:
                return None
    except ValueError:
        return None
    return _Frame(suffix, document, request, own)
