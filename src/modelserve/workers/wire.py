"""Messages between supervisor and workers: JSON objects, each behind its length in four bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, TypeAlias

from modelserve import errors
from modelserve.errors import ServeError

__all__ = ["MAX_MESSAGE", "Message", "decode_error", "encode", "encode_error", "receive"]

Message: TypeAlias = dict[str, Any]

MAX_MESSAGE: Final = 16 * 2**20
"""Most bytes of a message."""


def encode(message: Message) -> bytes:
    """Return a message as bytes.

    Raises:
        ValueError: It is too long.
    """
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} bytes; at most {MAX_MESSAGE}")
    return len(body).to_bytes(4, "big") + body


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """Return the next message; None at the end.

    Raises:
        ValueError: It is too long, or no JSON object.
    """
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if length > MAX_MESSAGE:
            raise ValueError(f"a message of {length} bytes; at most {MAX_MESSAGE}")
        message = json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    return message


def encode_error(error: Exception) -> Message:
    """Return what a worker needs to raise the error again."""
    known = isinstance(error, ServeError) and error.public
    name = type(error).__name__ if known else "LoadError"
    return {"error": name, "text": str(error) if known else type(error).__name__}


def decode_error(message: Message) -> ServeError:
    """Return the error a message tells."""
    kind = getattr(errors, str(message.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, ServeError)):
        kind = errors.LoadError
    return kind(str(message.get("text", "")))
