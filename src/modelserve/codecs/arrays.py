"""Arrays as JSON values whose nesting is their shape: what people write, and frameworks parse.

Elements are as strict as in `modelserve.codecs.oip`: no text and no true for a number, no 3.7 for
an integer, nothing out of a datatype's range. There are no messages here.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelserve.errors import InvalidInput
from modelserve.tensors import as_bytes_tensor, datatype_of, numpy_dtype

from ._json import Buffer, dumps, loads
from ._tensors import from_list, short

__all__ = ["JSONBytes", "as_lists", "decode_array", "encode_arrays", "parse", "shown"]

JSONBytes: TypeAlias = Literal["utf8", "base64"]
"""How a BYTES element stands in JSON: as text, or as base64 (RFC 4648, with padding)."""

_FLOATS: Final = frozenset(("FP16", "FP32", "FP64", "BF16"))
_MAX_AXES: Final = 32
_LONGEST: Final = 40
_LONGEST_TEXT: Final = 200


def decode_array(
    value: Any,
    datatype: str,
    shape: Sequence[int] | None = None,
    *,
    json_bytes: JSONBytes = "utf8",
    allow_nan: bool = False,
    finite: bool = False,
) -> NDArray[Any]:
    """Return the read-only array of nested lists, or of one value where there are no axes.

    Args:
        value: The parsed JSON value.
        datatype: A known datatype. BF16 is read as FP32 and rounded.
        shape: Sizes, -1 where any will do; None where even the number of axes is open.
        json_bytes: What a string is for BYTES.
        allow_nan: Whether null, NaN and infinities may stand in an array of floats.
        finite: Whether the parser let no NaN and no infinity through, so that none is looked for.

    Raises:
        InvalidInput: The lists are ragged, of another shape, or hold what the datatype does not.
            Its `path` is the place below the value, as in ``[0][3]``.

    Example:
        >>> decode_array([[1, 2], [3, 4]], "INT8", (-1, 2)).shape
        (2, 2)
    """
    sizes = _sizes(value, shape)
    count = prod(sizes)
    read_as = "FP32" if datatype == "BF16" else datatype
    try:
        if sizes:
            array = from_list(value, read_as, sizes, count, "", nulls=allow_nan)
        else:
            array = from_list([value], read_as, (1,), 1, "", nulls=allow_nan).reshape(())
    except UnicodeEncodeError:
        raise InvalidInput("expected text of whole characters, got half of a pair") from None
    except InvalidInput as error:
        text = str(error).removeprefix(f"{error.path}: ")
        path = error.path.removeprefix(".data") if sizes else ""
        raise InvalidInput(text[:_LONGEST_TEXT], path=path) from None
    if datatype == "BF16":
        array = array.astype(numpy_dtype("BF16"))
        array.flags.writeable = False
        finite = False  # rounded up it may be infinite
    if datatype in _FLOATS:
        if not allow_nan and not finite and not np.isfinite(array).all():
            raise _not_finite(array, value)
    elif datatype == "BYTES" and json_bytes == "base64":
        array = _from_base64(array)
    return array


def parse(body: Buffer) -> Any:
    """Return the JSON value in a body; there is no NaN and no infinity in it.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
    """
    return loads(body)


def _sizes(value: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return the sizes of the lists that stand first, if they are those wanted."""
    sizes: list[int] = []
    first = value
    while type(first) is list:
        if len(sizes) == _MAX_AXES:
            raise InvalidInput(f"expected at most {_MAX_AXES} axes")
        sizes.append(len(first))
        if not first:
            break
        first = first[0]
    if shape is None:
        return tuple(sizes)
    if sizes and not sizes[-1]:  # an empty list says nothing of the axes below
        sizes += [max(size, 0) for size in shape[len(sizes) :]]
    if len(sizes) != len(shape) or any(
        size not in (-1, found) for size, found in zip(shape, sizes, strict=True)
    ):
        got = f"shape {sizes}" if sizes else short(value)
        raise InvalidInput(f"expected {_called(shape)}, got {got}")
    return tuple(sizes)


def _called(shape: Sequence[int]) -> str:
    return f"shape {list(shape)}" if shape else "a single value"


def _brackets(index: Sequence[Any]) -> str:
    return "".join(f"[{position}]" for position in index)


def _not_finite(array: NDArray[Any], value: Any) -> InvalidInput:
    index = np.unravel_index(int(np.isfinite(array).argmin()), array.shape)
    for position in index:
        value = value[int(position)]
    return InvalidInput(f"expected a finite number, got {short(value)}", path=_brackets(index))


def _from_base64(array: NDArray[Any]) -> NDArray[Any]:
    flat: list[bytes] = array.ravel().tolist()
    decoded: NDArray[Any] = np.empty(len(flat), np.object_)
    for position, text in enumerate(flat):
        try:
            decoded[position] = b64decode(text, validate=True)
        except ValueError:
            index = np.unravel_index(position, array.shape)
            raise InvalidInput(
                f"expected base64, got {short(text.decode())}", path=_brackets(index)
            ) from None
    decoded = decoded.reshape(array.shape)
    decoded.flags.writeable = False
    return decoded


def shown(value: Any) -> Any:
    """Return a parsed JSON value, or, of one that is long or has no JSON form, a few words."""
    if value is None or type(value) is bool or (type(value) is int and abs(value) < 2**63):
        return value
    if type(value) is str and len(value) <= _LONGEST:
        return value.encode(errors="replace").decode()
    if type(value) is float and value - value == 0:
        return value
    if type(value) is int:
        return "a large integer"
    return short(value).encode(errors="replace").decode()


def _written(tensor: Any, json_bytes: JSONBytes) -> Any:
    """Return what `dumps` writes as nested lists."""
    array = tensor if type(tensor) is np.ndarray else np.asarray(tensor)
    datatype = datatype_of(array.dtype)
    if datatype == "BYTES":
        flat: list[bytes] = as_bytes_tensor(array).ravel().tolist()
        texts = [
            b64encode(item).decode() if json_bytes == "base64" else item.decode() for item in flat
        ]
        if array.ndim == 1:
            return texts
        nested = np.fromiter(texts, np.object_, len(texts)).reshape(array.shape)
        return nested.tolist() if array.ndim else texts[0]
    if datatype in ("FP16", "BF16"):
        array = array.astype(np.float32)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if array.ndim else _scalar(array)


def _scalar(array: NDArray[Any]) -> Any:
    # In a list of one a float is written with the digits of its own precision, and NaN as null.
    return loads(dumps(array.reshape(1)))[0]


def as_lists(tensor: Any, *, json_bytes: JSONBytes = "utf8") -> Any:
    """Return an array as nested lists of what JSON has; NaN and infinities are None.

    Floats have the shortest digits that tell them from others of their datatype.

    Raises:
        InvalidInput: It has no datatype of the protocol.
        UnicodeDecodeError: Bytes to be written as text are not UTF-8.

    Example:
        >>> as_lists(np.array([[0.1, np.nan]], np.float32))
        [[0.1, None]]
    """
    written = _written(tensor, json_bytes)
    return loads(dumps(written)) if type(written) is np.ndarray else written


def encode_arrays(arrays: Mapping[str, Any], *, json_bytes: JSONBytes = "utf8") -> bytes:
    """Return a JSON object of arrays by name, each written as by `as_lists`.

    Raises:
        InvalidInput: One has no datatype of the protocol.
        UnicodeDecodeError: Bytes to be written as text are not UTF-8.

    Example:
        >>> encode_arrays({"y": np.array([0.5, 1], np.float32)})
        b'{"y":[0.5,1.0]}'
    """
    return dumps({name: _written(array, json_bytes) for name, array in arrays.items()})
