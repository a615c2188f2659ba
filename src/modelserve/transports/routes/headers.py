"""What the headers of a request say, and those of an answer; for every HTTP transport."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, nan
from typing import Final

from modelserve.errors import InvalidInput, MethodNotAllowed, Unauthenticated
from modelserve.messages import Exchange

__all__ = ["LONGEST_TIMEOUT", "headers_of", "is_request_id", "seconds_of", "server_timing"]

LONGEST_TIMEOUT: Final = 1e10
"""Three centuries, as the codec has it for the parameter: more would not survive the arithmetic."""

_LONGEST_ID: Final = 128


def is_request_id(text: str) -> bool:
    """Return whether a text may be a request's id: up to 128 visible characters of ASCII."""
    return (
        0 < len(text) <= _LONGEST_ID and text.isascii() and text.isprintable() and " " not in text
    )


def seconds_of(timeout: str) -> float:
    """Return the seconds that the header `X-Request-Timeout` gives a request.

    Raises:
        InvalidInput: It is not a number above 0, and no more than three centuries.
    """
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = nan
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidInput(
            f'expected seconds above 0, got "{timeout[:40]}"', path="header X-Request-Timeout"
        )
    return seconds


def headers_of(error: Exception) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers that say more of an error: what is allowed, and when to come again."""
    headers = []
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    elif isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="modelserve"'))
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, ceil(retry_after))))
    return headers


def server_timing(exchange: Exchange) -> str:
    """Return an exchange as the header Server-Timing has it, in milliseconds."""
    times = ", ".join(
        f"{name};dur={getattr(exchange, name) * 1e3:.3f}"
        for name in ("decode", "queue", "run", "encode")
    )
    batch = f"{exchange.batch_requests} requests, {exchange.batch_rows} rows, {exchange.reason}"
    return f'{times}, batch;desc="{batch}"'
