"""Replies as bytes on the wire."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from modelserve.transports.routes import Reply

__all__ = ["CONTINUE", "render"]

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS: Final = {s.value: b"HTTP/1.1 %d %b\r\n" % (s, s.phrase.encode()) for s in HTTPStatus}


def render(reply: Reply, date: bytes, *, keep: bool, old: bool) -> bytes:
    """Return a reply's status line and headers, with the empty line behind them.

    Args:
        reply: What to say.
        date: The header `date` as a line.
        keep: Whether the connection stays open.
        old: Whether the client speaks HTTP/1.0, which has to be told if it does.
    """
    lines = b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n" % (
        _STATUS[reply.status],
        date,
        reply.content_type,
        reply.size,
        reply.id.encode(),
    )
    if reply.json_size is not None:
        lines += b"inference-header-content-length: %d\r\n" % reply.json_size
    for header in reply.extra:
        lines += b"%b: %b\r\n" % header
    if not keep:
        return lines + b"connection: close\r\n\r\n"
    return lines + (b"connection: keep-alive\r\n\r\n" if old else b"\r\n")
