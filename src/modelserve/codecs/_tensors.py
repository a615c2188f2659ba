"""Tensor data of the Open Inference Protocol: JSON lists or raw little-endian bytes, and numpy.

Conversions are done by one C call for a whole tensor; elements are walked only to name the one
that is wrong. Messages and parameters are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import nan
from struct import Struct, pack
from struct import error as StructError
from typing import Any, Final

import numpy as np
from numpy import little_endian
from numpy.typing import NDArray

from modelserve.errors import InvalidInput, Unsupported
from modelserve.tensors import as_bytes_tensor, numpy_dtype

from ._json import Buffer

__all__ = [
    "expected",
    "first_wrong",
    "from_bytes",
    "from_list",
    "number_code",
    "shape_of",
    "short",
    "to_bytes",
    "to_list",
    "wire_dtype",
]

# `struct` refuses what JSON strictness must refuse (3.7 or 300 for INT8, text or null for FP32,
# 1e39 for FP32), in one C call; only booleans pass it as numbers.
_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_BOOLEANS: Final = {code: (pack(f"<{code}", 1), pack(f"<{code}", 0)) for code in _CODES.values()}
# On most machines these are numpy's own objects, which are told by their identity further on.
_WIRE: Final = {
    name: numpy_dtype(name) if little_endian else numpy_dtype(name).newbyteorder("<")
    for name in (*_CODES, "BOOL")
}
_LENGTH: Final = Struct("<I")

_FEW: Final = 4096
"""Bytes up to which booleans are checked by taking the right ones away."""

# numpy 1 has 32 axes at most; and sizes must not overflow an offset even where one axis is 0.
_MAX_AXES: Final = 32
_MAX_ELEMENTS: Final = 2**48


def short(value: Any) -> str:
    """Return a JSON value as a few characters of text, whatever it holds."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value[:40]}..."' if len(value) > 43 else f'"{value}"'
        case list():
            return "a list"
        case dict():
            return "an object"
    return str(value)


def wire_dtype(datatype: str) -> np.dtype[Any]:
    """Return the little-endian dtype of a datatype with elements of fixed size."""
    found = _WIRE.get(datatype)
    if found is not None:
        return found
    try:
        return numpy_dtype(datatype)
    except ImportError as error:
        raise Unsupported(str(error)) from error


def number_code(datatype: str) -> str | None:
    """Return the code by which `struct` packs a number datatype, None for any other datatype."""
    return _CODES.get(datatype)


def shape_of(value: Any, place: str) -> tuple[tuple[int, ...], int]:
    """Check a shape as it came; return it and its number of elements."""
    if type(value) is not list:
        raise InvalidInput(f"expected a list of sizes, got {short(value)}", path=f"{place}.shape")
    if len(value) > _MAX_AXES:
        raise _too_large(place)
    count = total = 1
    for axis, size in enumerate(value):
        if type(size) is not int or size < 0:
            raise InvalidInput(
                f"expected a size of 0 or more, got {short(size)}", path=f"{place}.shape[{axis}]"
            )
        count *= size
        total *= size or 1
        if total > _MAX_ELEMENTS:
            raise _too_large(place)
    return tuple(value), count


def _too_large(place: str) -> InvalidInput:
    return InvalidInput(
        f"expected at most {_MAX_AXES} axes and 2**48 elements", path=f"{place}.shape"
    )


def from_list(
    data: Any,
    datatype: str,
    shape: tuple[int, ...],
    count: int,
    place: str,
    *,
    nulls: bool = False,
    booleans: bool = True,
) -> NDArray[Any]:
    """Return the read-only tensor of a JSON list, flat or nested as its shape.

    Args:
        data: The parsed JSON value.
        datatype: A known datatype.
        shape: The tensor's shape.
        count: The shape's number of elements.
        place: Where the tensor stands, for error texts.
        nulls: Whether null stands for NaN in floats (answers) or is wrong (requests).
        booleans: Whether the text it was parsed from may have held true or false.
    """
    if type(data) is not list:
        raise InvalidInput(f"expected a list, got {short(data)}", path=f"{place}.data")
    nested = len(data) != count or (len(shape) > 1 and count > 0 and type(data[0]) is list)
    flat = _flatten(data, shape, count, f"{place}.data") if nested else data
    index_shape = shape if nested else None
    code = _CODES.get(datatype)
    if code is None:
        return _from_other(flat, datatype, shape, place, index_shape)
    packed = _pack(flat, code, count)
    if packed is None and nulls and code in "efd":
        flat = [nan if value is None else value for value in flat]
        packed = _pack(flat, code, count)
    if packed is None or (booleans and _has_boolean(flat, packed, code)):
        raise _wrong_element(flat, datatype, place, index_shape)
    return np.ndarray(shape, _WIRE[datatype], packed)


def _pack(flat: list[Any], code: str, count: int) -> bytes | None:
    try:
        return pack(f"<{count}{code}", *flat)
    except (StructError, OverflowError):
        return None


def _has_boolean(flat: list[Any], packed: bytes, code: str) -> bool:
    # true and false were packed as 1 and 0: without these, no element's type need be looked at.
    one, zero = _BOOLEANS[code]
    return (one in packed or zero in packed) and bool in set(map(type, flat))


def _from_other(
    flat: list[Any],
    datatype: str,
    shape: tuple[int, ...],
    place: str,
    index_shape: tuple[int, ...] | None,
) -> NDArray[Any]:
    array: NDArray[Any]
    if datatype == "BOOL":
        if flat and set(map(type, flat)) != {bool}:
            raise _wrong_element(flat, datatype, place, index_shape)
        array = np.array(flat, np.bool_)
    elif datatype == "BYTES":
        try:
            array = np.fromiter(map(str.encode, flat), np.object_, len(flat))
        except TypeError:
            raise _wrong_element(flat, datatype, place, index_shape) from None
    else:
        raise InvalidInput("BF16 has no JSON form; send it as binary data", path=f"{place}.data")
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _flatten(data: list[Any], shape: tuple[int, ...], count: int, place: str) -> list[Any]:
    if not (data and type(data[0]) is list and len(shape) > 1) and (count or data):
        raise InvalidInput(
            f"expected {count} elements for shape {list(shape)}, got {len(data)}", path=place
        )
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        for index, part in enumerate(level):
            if type(part) is not list or len(part) != size:
                got = f"{len(part)} elements" if type(part) is list else short(part)
                raise InvalidInput(
                    f"expected a list of {size} elements for shape {list(shape)}, got {got}",
                    path=place + _index(index, shape[:axis]),
                )
        level = list(chain.from_iterable(level))
    return level


def _index(index: int, shape: Sequence[int]) -> str:
    """Write a flat index as brackets, one per axis of `shape`."""
    brackets = []
    for size in reversed(shape):
        index, position = divmod(index, size)
        brackets.append(f"[{position}]")
    return "".join(reversed(brackets))


def _fit(values: list[Any], datatype: str) -> bool:
    types = set(map(type, values))
    if datatype == "BOOL" or datatype == "BYTES":
        return types == {bool if datatype == "BOOL" else str}
    return bool not in types and _pack(values, _CODES[datatype], len(values)) is not None


def first_wrong(flat: list[Any], datatype: str) -> int:
    """Return the index of the first element of a flat list that is wrong, where there is one."""
    start, stop = 0, len(flat)
    # By halves: as much work as converting all of them once.
    while stop - start > 1:
        middle = (start + stop) // 2
        if _fit(flat[start:middle], datatype):
            start = middle
        else:
            stop = middle
    return start


def _wrong_element(
    flat: list[Any], datatype: str, place: str, index_shape: tuple[int, ...] | None
) -> InvalidInput:
    index = first_wrong(flat, datatype)
    return InvalidInput(
        expected(datatype, flat[index]),
        path=f"{place}.data{_index(index, index_shape or (len(flat),))}",
    )


def expected(datatype: str, value: Any) -> str:
    """Say what an element of a datatype is, where `value` is none."""
    wanted = {"BOOL": "true or false", "BYTES": "a string"}.get(datatype)
    if wanted is None:
        floating = datatype.startswith("FP")
        kind = (int, float) if floating else (int,)
        if type(value) in kind:
            wanted = f"a number in the range of {datatype}"
        else:
            wanted = f"a number for {datatype}" if floating else f"an integer for {datatype}"
    return f"expected {wanted}, got {short(value)}"


def from_bytes(
    body: Buffer,
    start: int,
    size: int,
    datatype: str,
    shape: tuple[int, ...],
    count: int,
    place: str,
) -> NDArray[Any]:
    """Return a tensor of raw little-endian bytes, without a copy where elements have fixed size.

    The view may start at an address that is not a multiple of its element's size. It is read-only
    when `body` is.
    """
    if datatype == "BYTES":
        return _split(body, start, size, shape, count, place)
    dtype = wire_dtype(datatype)
    if size != count * dtype.itemsize:
        raise InvalidInput(
            f"expected {count * dtype.itemsize} bytes for {datatype} of shape {list(shape)}, "
            f"got {size}",
            path=place,
        )
    if not count:
        return np.ndarray(shape, dtype, b"")
    array: NDArray[Any] = np.frombuffer(body, dtype, count, start)
    # Of few bytes the right ones are taken away faster than the largest is found.
    if datatype == "BOOL" and (
        size > _FEW or bytes(body[start : start + size]).translate(None, b"\0\1")
    ):
        raw = array.view(np.uint8)
        if raw.max() > 1:
            index = int((raw > 1).argmax())
            raise InvalidInput(
                f"expected a byte of 0 or 1, got {raw[index]}", path=f"{place}[{index}]"
            )
    return array.reshape(shape)


def _split(
    body: Buffer, start: int, size: int, shape: tuple[int, ...], count: int, place: str
) -> NDArray[Any]:
    if size < 4 * count:
        raise InvalidInput(
            f"expected at least {4 * count} bytes for {count} elements, got {size}", path=place
        )
    array = np.empty(count, np.object_)
    end = start + size
    unpack = _LENGTH.unpack_from
    for index in range(count):
        begin = start + 4
        if begin > end:
            raise InvalidInput("the data ends before its length", path=f"{place}[{index}]")
        start = begin + unpack(body, start)[0]
        if start > end:
            raise InvalidInput(
                f"expected {start - begin} bytes, got {end - begin}", path=f"{place}[{index}]"
            )
        array[index] = bytes(body[begin:start])
    if start != end:
        raise InvalidInput(f"{end - start} bytes follow the last element", path=place)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def to_bytes(array: NDArray[Any], datatype: str) -> bytes | memoryview:
    """Return a tensor's raw little-endian bytes, large ones as a view."""
    if datatype == "BYTES":
        flat = as_bytes_tensor(array).ravel().tolist()
        length = _LENGTH.pack
        return b"".join(chain.from_iterable((length(len(item)), item) for item in flat))
    array = np.ascontiguousarray(array, wire_dtype(datatype))
    if array.nbytes < 16384:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def to_list(array: NDArray[Any], datatype: str, place: str) -> Any:
    """Return what `dumps` writes as the tensor's flat JSON list.

    Raises:
        InvalidInput: The tensor has no JSON form: BF16, or bytes that are not UTF-8.
    """
    if datatype == "BYTES":
        flat = as_bytes_tensor(array, path=place).ravel().tolist()
        try:
            return [item.decode() for item in flat]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"element {flat.index(error.object)} is not UTF-8 and has no JSON form; "
                "transfer it as binary data",
                path=place,
            ) from None
    if datatype == "BF16":
        raise InvalidInput("BF16 has no JSON form; transfer it as binary data", path=place)
    if datatype == "FP16":
        return array.astype(np.float32).reshape(-1)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array).reshape(-1)
