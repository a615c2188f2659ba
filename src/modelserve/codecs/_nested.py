"""Tensors as nested JSON lists whose shape the lists themselves tell, and back.

The form of TensorFlow Serving's REST interface and of KServe's first protocol. Binary strings are
``{"b64": "..."}``. Which tensors belong to a message is not known here.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from modelserve.errors import BackendError, InvalidInput
from modelserve.tensors import TensorSpec, as_bytes_tensor, datatype_of

from ._tensors import expected, first_wrong, from_list, short, wire_dtype

__all__ = ["Place", "from_nested", "is_binary", "rows_of", "to_array", "to_nested"]

_MAX_AXES: Final = 32
# Every integer up to here is a float of its own.
_EXACT: Final = {"FP16": 2**11, "FP32": 2**24, "FP64": 2**53}


@final
class Place:
    """Where a tensor stands in a document, for error texts.

    Args:
        head: The place of the whole, as ``inputs.x`` or ``instances``.
        tail: What follows the index of a row, as ``.x`` in ``instances[2].x``.
        rows: Whether the first axis is spread over the rows of a list.
        shared: Whether all these rows are one, and stand there once.
    """

    __slots__ = ("head", "rows", "shared", "tail")

    def __init__(
        self, head: str, tail: str = "", *, rows: bool = False, shared: bool = False
    ) -> None:
        self.head = head
        self.tail = tail
        self.rows = rows
        self.shared = shared

    def at(self, index: Sequence[int]) -> str:
        """Write the place of an element, or of a list of them."""
        brackets = [f"[{position}]" for position in index]
        if not self.rows:
            return self.head + "".join(brackets)
        row = () if self.shared else brackets[:1]
        return "".join((self.head, *row, self.tail, *brackets[1:]))


def is_binary(value: Any) -> bool:
    """Tell whether a JSON value is ``{"b64": "..."}``: one string, not an object with members."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def from_nested(data: Any, spec: TensorSpec, place: Place) -> NDArray[Any]:
    """Return the read-only tensor of nested JSON lists, or of one value for a tensor without axes.

    Args:
        data: The parsed JSON value.
        spec: What the tensor is to be.
        place: Where it stands.

    Raises:
        InvalidInput: It is ragged, of another shape, or has an element of another kind.
    """
    shape = _shape(data, spec, place)
    flat = _flatten(data, shape, place)
    datatype = "FP32" if spec.datatype == "BF16" else spec.datatype
    if datatype == "BYTES" and any(type(value) is dict for value in flat):
        flat = _decoded(flat, shape, place)
        array: NDArray[Any] = np.fromiter(flat, np.object_, len(flat))
        array.flags.writeable = False
        return array.reshape(shape)
    try:
        array = from_list(flat, datatype, (len(flat),), len(flat), "")
    except InvalidInput:
        index = first_wrong(flat, datatype)
        text = expected(datatype, flat[index])
        raise InvalidInput(text, path=place.at(_index(index, shape))) from None
    if datatype in _EXACT:
        _check_exact(flat, array, datatype, shape, place)
    if spec.datatype == "BF16":
        array = array.astype(wire_dtype("BF16"))
        array.flags.writeable = False
    return array.reshape(shape)


def _shape(data: Any, spec: TensorSpec, place: Place) -> tuple[int, ...]:
    """Return the shape of the lists that stand first, if it is one of those specified."""
    sizes: list[int] = []
    first = data
    while type(first) is list:
        if len(sizes) == _MAX_AXES:
            raise InvalidInput(f"expected at most {_MAX_AXES} axes", path=place.at(()))
        sizes.append(len(first))
        if not first:
            break
        first = first[0]
    wanted = spec.shape
    if wanted is None:
        return tuple(sizes)
    if sizes and sizes[-1] == 0:  # an empty list says nothing of the axes below
        sizes += [max(size, 0) for size in wanted[len(sizes) :]]
    if place.rows and not wanted:
        raise InvalidInput(
            f'"{spec.name}" is one value without rows; send it as "inputs"', path=place.at(())
        )
    if place.rows and wanted[0] not in (-1, sizes[0]):
        raise InvalidInput(
            f'"{spec.name}" takes {wanted[0]} entries, got {sizes[0]}', path=place.at(())
        )
    skipped = 1 if place.rows else 0
    want, got = wanted[skipped:], tuple(sizes[skipped:])
    if len(want) != len(got) or any(
        size not in (-1, found) for size, found in zip(want, got, strict=True)
    ):
        raise InvalidInput(
            f"expected {_called(want)}, got {_called(got)}", path=place.at((0,) * skipped)
        )
    return tuple(sizes)


def _called(shape: Sequence[int]) -> str:
    return f"shape {list(shape)}" if shape else "a single value"


def _flatten(data: Any, shape: tuple[int, ...], place: Place) -> list[Any]:
    if len(shape) == 1:
        flat: list[Any] = data
        return flat
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if not level:
            break
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise _ragged(level, shape, axis, place)
        level = list(chain.from_iterable(level))
    return level


def _ragged(level: list[Any], shape: tuple[int, ...], axis: int, place: Place) -> InvalidInput:
    """Say which list is not as long as the first one of its level."""
    size = shape[axis]
    index = next(i for i, part in enumerate(level) if type(part) is not list or len(part) != size)
    part = level[index]
    got = f"{len(part)} elements" if type(part) is list else short(part)
    where = _index(index, shape[:axis])
    first = place.at((0,) * len(where))
    return InvalidInput(
        f"expected a list of {size} elements, as {first}; got {got}", path=place.at(where)
    )


def _index(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a flat index as one index per axis."""
    positions = []
    for size in reversed(shape):
        index, position = divmod(index, size)
        positions.append(position)
    return tuple(reversed(positions))


def _decoded(flat: list[Any], shape: tuple[int, ...], place: Place) -> list[bytes]:
    decoded = []
    for index, value in enumerate(flat):
        if type(value) is str:
            decoded.append(value.encode())
            continue
        if not is_binary(value):
            raise InvalidInput(
                f'expected a string or {{"b64": "..."}}, got {short(value)}',
                path=place.at(_index(index, shape)),
            )
        try:
            decoded.append(_from_base64(value["b64"]))
        except ValueError as error:
            raise InvalidInput(
                f"expected base64: {error}", path=f"{place.at(_index(index, shape))}.b64"
            ) from None
    return decoded


def _from_base64(text: str) -> bytes:
    """Decode base64 whose lines may be broken, and whose padding may be missing."""
    text = "".join(text.split())
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except Base64Error as error:
        raise ValueError(str(error).lower()) from None


def _check_exact(
    flat: list[Any], array: NDArray[Any], datatype: str, shape: tuple[int, ...], place: Place
) -> None:
    """Refuse integers that would become another number."""
    if (np.abs(array) < _EXACT[datatype]).all():
        return
    for index, (value, kept) in enumerate(zip(flat, array.tolist(), strict=True)):
        if type(value) is int and value != kept:
            raise InvalidInput(
                f"{value} has no {datatype} of its own, and would lose precision; write it with a "
                "decimal point to have it rounded",
                path=place.at(_index(index, shape)),
            )


def to_array(tensor: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return an output as an array, and its datatype.

    Raises:
        BackendError: It is not a tensor of the protocol.
    """
    array = tensor if type(tensor) is np.ndarray else np.asarray(tensor)
    try:
        datatype = datatype_of(array.dtype)
        if datatype == "BYTES":
            array = as_bytes_tensor(array)
    except InvalidInput as error:
        raise BackendError(f'output "{name}": {error}') from error
    return array, datatype


def to_nested(array: NDArray[Any], datatype: str, *, binary: bool) -> Any:
    """Return what writes an array as nested JSON lists: an array, a scalar, or lists.

    Args:
        array: The array, as `to_array` returns it.
        datatype: Its datatype.
        binary: Whether BYTES are written as base64; those that are not UTF-8 are in any case.
    """
    if datatype == "BYTES":
        return _strings(array, binary)
    if datatype in ("FP16", "BF16"):
        array = array.astype(np.float32)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.ndim:
        return np.ascontiguousarray(array)
    # C has two names for most integers, and so has numpy, of which orjson knows one.
    return array[()] if array.dtype.kind == "f" else array.item()


def rows_of(nested: Any) -> Any:
    """Return what `to_nested` made of an array as something whose items are written alone."""
    if isinstance(nested, np.ndarray) and nested.ndim == 1 and nested.dtype.kind != "f":
        return nested.tolist()
    return nested


def _strings(array: NDArray[Any], binary: bool) -> Any:
    flat: list[Any] = array.ravel().tolist()
    texts: list[Any] = []
    if not binary:
        try:
            texts = [value.decode() for value in flat]
        except UnicodeDecodeError:
            binary = True
    if binary:
        texts = [{"b64": b64encode(value).decode()} for value in flat]
    if array.ndim == 1:
        return texts
    nested = np.fromiter(texts, np.object_, len(texts)).reshape(array.shape)
    return nested.tolist() if array.ndim else texts[0]
