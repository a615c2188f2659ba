"""What a response says beside its data, written once for responses that are made alike.

A template is for one model, version, and list of outputs with their datatypes, shapes and forms.
What it writes is, byte for byte, what the plain encoding in `modelserve.codecs.oip` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, final

from numpy import float32, ndarray
from numpy.typing import NDArray

from modelserve.messages import InferResponse, Parameters
from modelserve.tensors import Tensor, datatype_of

from ._json import dumps
from ._memo import Memo
from ._tensors import to_bytes

__all__ = ["TEMPLATES", "row_pieces", "write_by_template"]

Written: TypeAlias = tuple[list[bytes | memoryview], int | None]
"""Buffers to write in order, and the length of the JSON part where binary data follows it."""

_EVERY: Final = ""
_SMALL: Final = 16384
"""Bytes of a tensor from which on it is given as a view, as `to_bytes` has it."""
_SHORT: Final = 4096
"""Bytes of a tensor from which on copying its digits would cost more than is saved."""


@final
class _One:
    """Template of a response with one output: three pieces of JSON at most."""

    __slots__ = (
        "_binary",
        "_datatype",
        "_half",
        "_head",
        "_last",
        "_opened",
        "_small",
        "_tail",
        "size",
    )

    def __init__(self, response: InferResponse, forms: tuple[bool, ...]) -> None:
        first = _opening(response)
        self._opened = first + b',"id":'
        ((name, array),) = response.outputs.items()
        self._datatype = datatype_of(array.dtype)
        self._half = self._datatype == "FP16"
        self._binary = forms[0]
        self._small = array.nbytes < _SMALL
        opened, closed = _around(name, array, self._binary)
        self._tail = b',"outputs":[' + opened
        self._last = closed + b"]}"
        # Without data in between, only an id changes anything.
        if self._binary:
            self._tail += self._last
        self._head = _padded(first + self._tail) if self._binary else first + self._tail
        self.size = 2 * len(self._head) + len(self._last)

    def write(self, id: str, array: NDArray[Any]) -> Written:
        if self._binary:
            blob = array.tobytes() if self._small else to_bytes(array, self._datatype)
            if not id:
                return [self._head, blob], len(self._head)
            head = _padded(self._opened + dumps(id) + self._tail)
            return [head, blob], len(head)
        text = dumps(_flat(array, "FP16") if self._half else array.ravel())
        if not id:
            return [self._head + text + self._last], None
        return [b"".join((self._opened, dumps(id), self._tail, text, self._last))], None


class _Several:
    """Template of a response with any number of outputs, in JSON or as binary data each."""

    __slots__ = ("_first", "_forms", "size")

    def __init__(self, response: InferResponse, forms: tuple[bool, ...]) -> None:
        self._first = _opening(response)
        self._forms = []
        self.size = len(self._first)
        before = b',"outputs":['
        for (name, array), binary in zip(response.outputs.items(), forms, strict=True):
            opened, closed = _around(name, array, binary)
            self._forms.append((before + opened, closed, binary, datatype_of(array.dtype)))
            self.size += len(before) + len(opened) + len(closed)
            before = b","

    def write(self, id: str, arrays: Iterable[NDArray[Any]]) -> Written:
        blobs: list[bytes | memoryview] = []
        pieces = [self._first]
        if id:
            pieces += (b',"id":', dumps(id))
        for array, (opened, closed, binary, datatype) in zip(arrays, self._forms, strict=True):
            if binary:
                blobs.append(to_bytes(array, datatype))
                pieces += (opened, closed)
            else:
                pieces += (opened, dumps(_flat(array, datatype)), closed)
        pieces.append(b"]}")
        head = b"".join(pieces)
        if not blobs:
            return [head], None
        head = _padded(head)
        return [head, *blobs], len(head)


def _opening(response: InferResponse) -> bytes:
    model, version = dumps(response.model), dumps(response.version)
    return b'{"model_name":' + model + b',"model_version":' + version


def _around(name: str, array: NDArray[Any], binary: bool) -> tuple[bytes, bytes]:
    """Return what stands before and after an output's data."""
    document = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
    if binary:
        return dumps({**document, "parameters": {"binary_data_size": array.nbytes}}), b""
    return dumps(document)[:-1] + b',"data":', b"}"


def _flat(array: NDArray[Any], datatype: str) -> NDArray[Any]:
    # The digits of a half would be those of its float.
    return (array.astype(float32) if datatype == "FP16" else array).ravel()


def _padded(head: bytes) -> bytes:
    return head + b" " * (-len(head) % 8)


def row_pieces(response: InferResponse, binary: bool) -> list[bytes]:
    """Return what stands before, between and behind the data of a response without an id.

    Args:
        response: One like it.
        binary: Whether all outputs go as binary data: one piece then, the JSON part. Else there is
            one more piece than outputs.
    """
    pieces = [_opening(response) + b',"outputs":[']
    for index, (name, array) in enumerate(response.outputs.items()):
        opened, closed = _around(name, array, binary)
        pieces[-1] += (b"," if index else b"") + opened
        if binary:
            pieces[-1] += closed
        else:
            pieces[-1] += b"["
            pieces.append(b"]" + closed)
    pieces[-1] += b"]}"
    return [_padded(pieces[0])] if binary else pieces


# A pure function of the keys, as with functools.cache. False is for those that have no template.
TEMPLATES: Final[Memo[tuple[Any, ...], _One | _Several | Literal[False]]] = Memo(
    entries=512, size=256 * 1024
)
"""Templates by model, version, and each output's name, dtype, shape and form."""


def write_by_template(response: InferResponse, wanted: Mapping[str, Parameters]) -> Written | None:
    """Return what the plain encoding would, or None where only that can tell.

    Saves the writing of all that responses of one kind have alike: what is left is a look-up, and
    each output's bytes or digits.

    Args:
        response: The response.
        wanted: Parameters by requested output, with those for every other one under "".
    """
    if response.parameters or response.output_parameters:
        return None
    binary = default = False
    if wanted and _EVERY in wanted:
        default = wanted[_EVERY].get("binary_data", False)
    key: tuple[Any, ...] = (response.model, response.version)
    array: Tensor = None
    for name, array in response.outputs.items():
        if type(array) is not ndarray:
            return None
        if wanted:
            binary = wanted[name].get("binary_data", default) if name in wanted else default
        key += (name, array.dtype, array.shape, binary)
    template = TEMPLATES.get(key)
    if template is None:
        if not TEMPLATES.due(key):
            return None
        template = _template(response, key)
    if not template:
        return None
    if type(template) is _One:
        return template.write(response.id, array)
    return template.write(response.id, response.outputs.values())


def _template(response: InferResponse, key: tuple[Any, ...]) -> _One | _Several | Literal[False]:
    template: _One | _Several | Literal[False] = False
    forms = key[5::4]
    if forms and all(map(_suits, response.outputs.values(), forms)):
        template = (_One if len(forms) == 1 else _Several)(response, forms)
    TEMPLATES.keep(key, template, size=template.size if template else len(key))
    return template


def _suits(array: NDArray[Any], binary: bool) -> bool:
    """Say whether an output is of numbers or booleans that go out as they are in memory."""
    dtype = array.dtype
    # A long text is better written in its place at once than joined to the rest.
    if not binary and array.nbytes >= _SHORT:
        return False
    if not dtype.isnative or dtype != dtype.newbyteorder("<"):
        return False
    return dtype.kind in "biuf" and dtype.itemsize <= 8
