"""The chunked transfer coding, from bytes as they arrive to a body."""

from __future__ import annotations

from typing import Final

from modelserve.errors import PayloadTooLarge

from .heads import Malformed

__all__ = ["ChunkedBody"]

_LONGEST_LINE: Final = 1024
_MOST_TRAILERS: Final = 8 << 10
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_TOKEN: Final = frozenset(
    b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
# Where a body ends was said before it.
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkedBody:
    """Decodes a chunked body piece by piece. Extensions and trailers are checked and dropped.

    Args:
        limit: Bytes the body may have.

    Example:
        >>> body = ChunkedBody(100)
        >>> body.feed(b"5\\r\\nhello\\r\\n0\\r\\n\\r\\nGET / ")
        b'GET / '
        >>> bytes(body.data)
        b'hello'
    """

    __slots__ = ("_left", "_limit", "_line", "_state", "_trailers", "data")

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit
        self._line = b""
        self._left = 0
        self._trailers = 0
        self._state = _SIZE

    def feed(self, data: bytes) -> bytes | None:
        """Take what arrived; returns what follows the body once it is whole, else None.

        Raises:
            Malformed: It is not the chunked coding.
            PayloadTooLarge: The body is larger than allowed.
        """
        start = 0
        while self._state != _DONE:
            if self._state == _DATA:
                piece = data[start : start + self._left]
                self.data += piece
                start += len(piece)
                self._left -= len(piece)
                if self._left:
                    return None
                self._state = _DATA_END
                continue
            end = data.find(b"\n", start)
            line = data[start:] if end < 0 else data[start : end + 1]
            line, self._line = self._line + line, b""
            if end < 0:
                self._keep(line)
                return None
            start = end + 1
            self._end_line(line)
        return data[start:]

    def _keep(self, line: bytes) -> None:
        """Keep the beginning of a line, unless it cannot become a good one."""
        if len(line) > _LONGEST_LINE:
            raise Malformed("a line of the chunked body is too long")
        if self._state == _DATA_END and not b"\r\n".startswith(line):
            raise Malformed("a chunk is longer than its size says")
        if self._state == _SIZE and line and line[0] not in _HEX:
            raise Malformed("a chunk's size is no hexadecimal number")
        self._line = line

    def _end_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise Malformed("a line of the chunked body does not end with CR LF")
        if len(line) > _LONGEST_LINE:
            raise Malformed("a line of the chunked body is too long")
        line = line[:-2]
        if self._state == _SIZE:
            self._begin_chunk(line)
        elif self._state == _DATA_END:
            if line:
                raise Malformed("a chunk is longer than its size says")
            self._state = _SIZE
        elif line:
            self._check_trailer(line)
        else:
            self._state = _DONE

    def _begin_chunk(self, line: bytes) -> None:
        digits, semicolon, extension = line.partition(b";")
        if semicolon:
            digits = digits.rstrip(b" \t")
        if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
            raise Malformed("a chunk's size is no hexadecimal number of at most 16 digits")
        if not all(byte == 9 or 32 <= byte != 127 for byte in extension):
            raise Malformed("a chunk's extension has a control character")
        self._left = int(digits, 16)
        if len(self.data) + self._left > self._limit:
            raise PayloadTooLarge(f"the body has more than the {self._limit} bytes allowed")
        self._state = _DATA if self._left else _TRAILER

    def _check_trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if self._trailers > _MOST_TRAILERS:
            raise Malformed("the trailers of the chunked body are too long")
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name):
            raise Malformed("a trailer of the chunked body is no header")
        if name.lower() in _FRAMING:
            raise Malformed("a trailer of the chunked body says how long it is")
        if not all(byte == 9 or 32 <= byte != 127 for byte in value):
            raise Malformed("a trailer of the chunked body has a control character")
