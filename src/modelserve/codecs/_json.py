"""JSON in and out, with orjson or, where it has no wheel, with the standard library.

Both give the same documents and refuse the same texts: NaN and Infinity, numbers beyond a double,
lone surrogates, invalid UTF-8. Nothing here knows a protocol.
"""

from __future__ import annotations

import json
from itertools import chain
from math import isinf
from typing import Any, NoReturn, TypeAlias

import numpy as np

try:
    import orjson
except ImportError:  # no wheel for this platform or interpreter
    orjson = None  # type: ignore[assignment]  # the module or nothing

__all__ = [
    "Buffer",
    "dumps",
    "dumps_with_tokens",
    "loads",
    "loads_with_tokens",
    "may_hold_booleans",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

_EDGE = 1024
"""Bytes at either end of a long text that may be about anything."""

_INT_RANGE = range(-(2**63), 2**64)


def _number_out_of_range() -> NoReturn:
    raise ValueError("a number is beyond the range of a double")


def _parse_float(text: str) -> float:
    value = float(text)
    return _number_out_of_range() if isinf(value) else value


def _parse_int(text: str) -> int | float:
    # 20 characters hold every 64-bit integer; longer ones are doubles to orjson.
    if len(text) <= 20 and (value := int(text)) in _INT_RANGE:
        return value
    return _parse_float(text)


def _parse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


_DECODER = json.JSONDecoder(
    parse_float=_parse_float, parse_int=_parse_int, parse_constant=_parse_constant
)
_TOKENS = json.JSONDecoder(parse_float=_parse_float, parse_int=_parse_int)


def may_hold_booleans(text: bytes) -> bool:
    """Return False only where no `true` and no `false` is in a JSON text, by a look at its bytes.

    Saves the look at the type of every element of a list of numbers.
    """
    # A search for one letter is many times faster than one for a word, and numbers have neither;
    # what stands around a long list has them often.
    end = len(text)
    if end > 2 * _EDGE:
        if text.find(b"r", _EDGE, -_EDGE) >= 0 or text.find(b"l", _EDGE, -_EDGE) >= 0:
            return b"true" in text or b"false" in text
        # Words across an edge have a letter on each of its sides.
        text = text[: _EDGE + 4] + text[-_EDGE - 4 :]
    return (text.find(b"r") >= 0 and b"true" in text) or (text.find(b"l") >= 0 and b"false" in text)


def _plain_default(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        # Text gives the shortest digits of the array's own precision, as orjson writes them.
        finite = np.isfinite(value).ravel().tolist()
        digits = value.ravel().astype("U32").tolist()
        flat = [float(text) if fine else None for text, fine in zip(digits, finite, strict=True)]
        return flat if value.ndim == 1 else np.array(flat, np.object_).reshape(value.shape).tolist()
    if isinstance(value, np.floating):
        return float(str(value)) if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def plain_loads(data: Buffer, decoder: json.JSONDecoder = _DECODER) -> Any:
    """Parse with the standard library."""
    text = bytes(data).decode()
    try:
        document = decoder.decode(text)
        if "\\u" in text:
            # Lone surrogates pass the standard parser; only encoding tells.
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return document


def plain_dumps(document: Any) -> bytes:
    """Write with the standard library; a float that is no number becomes null in arrays."""
    return json.dumps(
        document,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=_plain_default,
    ).encode()


def fast_dumps(document: Any) -> bytes:
    """Write with orjson, numpy arrays included."""
    return orjson.dumps(document, None, orjson.OPT_SERIALIZE_NUMPY)


loads = plain_loads if orjson is None else orjson.loads
"""Parse UTF-8 JSON; raises ValueError for anything else."""

dumps = plain_dumps if orjson is None else fast_dumps
"""Write UTF-8 JSON. Arrays are C-contiguous and in native byte order; NaN and infinities in them
become null."""


def loads_with_tokens(data: bytes) -> Any:
    """Parse UTF-8 JSON in which NaN, Infinity and -Infinity may stand for numbers.

    They are no JSON: TensorFlow Serving's documents have them.

    Raises:
        ValueError: It is anything else.
    """
    try:
        return loads(data)
    except ValueError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
    return plain_loads(data, _TOKENS)


def _token_default(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        # As in `_plain_default`: the shortest digits.
        flat = [float(text) for text in value.ravel().astype("U32").tolist()]
        return flat if value.ndim == 1 else np.array(flat).reshape(value.shape).tolist()
    if isinstance(value, np.floating):
        return float(str(value))
    return _plain_default(value)


def plain_dumps_with_tokens(document: Any) -> bytes:
    """Write with the standard library."""
    return json.dumps(
        document, ensure_ascii=False, separators=(",", ":"), default=_token_default
    ).encode()


def _with_tokens(value: Any) -> Any:
    """Return an array's own text, with the tokens that orjson writes null for."""
    text = fast_dumps(value)
    if value.dtype.kind == "f" and b"null" in text:
        flat = value.ravel()
        pieces = text.split(b"null")
        tokens = json.dumps(flat[~np.isfinite(flat)].tolist())[1:-1].encode().split(b", ")
        text = b"".join(chain.from_iterable(zip(pieces, [*tokens, b""], strict=True)))
    return orjson.Fragment(text)


def fast_dumps_with_tokens(document: Any) -> bytes:
    """Write with orjson."""
    return orjson.dumps(document, _with_tokens)


dumps_with_tokens = plain_dumps_with_tokens if orjson is None else fast_dumps_with_tokens
"""Write UTF-8 text that is JSON but for the tokens NaN, Infinity and -Infinity, of arrays and their
scalars."""
