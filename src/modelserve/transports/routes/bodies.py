"""Compressed bodies, both ways."""

from __future__ import annotations

import zlib
from typing import Final

from modelserve.errors import InvalidInput, PayloadTooLarge, Unsupported

from .messages import Body

__all__ = ["decompress"]

# A compressed body costs its sender little and the event loop what it becomes.
_MAX_RATIO: Final = 100
_ALWAYS_DECOMPRESSED: Final = 2**20


def decompress(body: Body, encoding: str, limit: int) -> bytes:
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return bytes(body)
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f'content encoding "{encoding[:40]}"; expected gzip or deflate')
    bound = min(limit, max(_ALWAYS_DECOMPRESSED, _MAX_RATIO * len(body)))
    stream = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        plain = stream.decompress(body, bound + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > bound:
        why = "" if bound == limit else f" and {_MAX_RATIO} times what was sent"
        raise PayloadTooLarge(f"the decompressed body has more than {bound} bytes{why}")
    if not stream.eof or stream.unused_data:
        raise InvalidInput(f"the body is not one whole {encoding} stream")
    return plain
