"""Compressed bodies, both ways."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from modelserve.errors import InvalidInput, PayloadTooLarge, Unsupported

from .messages import JSON, Body, Reply

__all__ = [
    "COMPRESSED_FROM",
    "accepted",
    "asks_to_compress",
    "compress_answer",
    "compress_asked",
    "decompress",
]

COMPRESSED_FROM: Final = 16 << 10
"""Bytes from which an answer in JSON is compressed for clients that would take it so."""

# Clients' libraries say unasked that they take gzip. To compress holds up everybody on the loop, so
# for them it is done where it is worth it, and short.
_COMPRESSED_TO: Final = 256 << 10
# One that asks for it gets any answer compressed; larger ones than this by a thread.
_INLINE: Final = 64 << 10

_LEVEL: Final = 1
_WINDOW: Final = {"gzip": 31, "deflate": 15}

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


@lru_cache(64)
def accepted(header: str) -> tuple[str, bool]:
    """Return what a header Accept-Encoding asks for.

    Returns:
        ``"gzip"``, ``"deflate"`` or nothing; and whether it names that one alone, as clients do
        that were told to ask for it.
    """
    weights: dict[str, float] = {}
    for entry in header.split(",")[:16]:
        name, _, parameters = entry.partition(";")
        key, _, value = parameters.partition("=")
        try:
            weight = float(value) if key.strip().lower() == "q" else 1.0
        except ValueError:
            weight = 0.0
        weights.setdefault(name.strip().lower(), weight)
    weights.pop("identity", None)
    offered = {name: weights.get(name, weights.get("*", 0.0)) for name in _WINDOW}
    best = max(offered, key=offered.__getitem__)
    if not offered[best] > 0:
        return "", False
    return best, set(weights) == {best}


def asks_to_compress(header: str | None) -> bool:
    """Tell whether a header Accept-Encoding asks for one way to compress, and for no other."""
    return header is not None and accepted(header)[1]


def compress_answer(reply: Reply, header: str) -> None:
    """Compress an answer whose client would take it so, and did not ask; see `COMPRESSED_FROM`.

    Args:
        reply: The answer; it has `COMPRESSED_FROM` bytes or more.
        header: The header Accept-Encoding.
    """
    coding, alone = accepted(header)
    if coding and not alone and reply.content_type is JSON and reply.size <= _COMPRESSED_TO:
        _replace(reply, coding, _compressed(reply.body, coding))


async def compress_asked(reply: Reply, header: str) -> None:
    """Compress an answer whose client asks for that.

    Args:
        reply: The answer.
        header: The header Accept-Encoding.
    """
    coding, alone = accepted(header)
    if not alone or not reply.size:
        return
    if reply.size <= _INLINE:
        body = _compressed(reply.body, coding)
    else:
        body = await asyncio.to_thread(_compressed, reply.body, coding)
    _replace(reply, coding, body)


def _compressed(body: Sequence[bytes | memoryview], coding: str) -> bytes:
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(stream.compress(piece) for piece in body), stream.flush()])


def _replace(reply: Reply, coding: str, body: bytes) -> None:
    reply.body, reply.size = [body], len(body)
    reply.extra = [
        *reply.extra,
        (b"content-encoding", coding.encode()),
        (b"vary", b"accept-encoding"),
    ]
