"""Send a request of the corpus as it is; bring the answer into a form to keep and to compare."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from wire.golden_asks import LENGTH, Ask, shown

TIMEOUT = 20.0
"""Seconds after which an answer is taken to be none."""

LONGEST: Final = 100
"""Elements up to which a tensor is kept as it is."""

TIMES: Final = frozenset(("ns", "last_inference"))
"""Members of statistics that are times."""


class Answer(NamedTuple):
    """What came back; the body is as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def plain(self) -> bytes:
        """The body, decompressed."""
        coding = self.headers.get("content-encoding", "")
        if not self.body or coding not in ("gzip", "deflate"):
            return self.body
        return gzip.decompress(self.body) if coding == "gzip" else zlib.decompress(self.body)

    def shown(self) -> dict[str, Any]:
        """Return it in a form to keep and read."""
        found: dict[str, Any] = {"status": self.status, "content_type": self.content_type}
        if "allow" in self.headers:
            found["allow"] = self.headers["allow"]
        if "content-encoding" in self.headers:
            found["content_encoding"] = self.headers["content-encoding"]
        body = self.plain
        length = self.headers.get(LENGTH.lower())
        if length is not None:
            found["json"] = _abridged(json.loads(body[: int(length)]))
            found["binary"] = shown(body[int(length) :])
        elif body:
            try:
                found["json"] = _abridged(json.loads(body))
            except ValueError:
                found["text"] = shown(body)
        return found


def _abridged(document: Any) -> Any:
    """Return an answer's JSON without what is too long to read, or different every time."""
    if isinstance(document, dict):
        found = {}
        for name, value in document.items():
            if name == "data" and isinstance(value, list) and len(value) > LONGEST:
                digest = zlib.crc32(json.dumps(value).encode())
                value = f"{len(value)} elements ({digest})"
            elif name in TIMES and isinstance(value, int):
                value = "measured"
            found[name] = _abridged(value)
        return found
    return [_abridged(item) for item in document] if isinstance(document, list) else document


def send(url: str, ask: Ask) -> Answer:
    """Send one request over a connection of its own.

    Raises:
        OSError: There is no answer.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    try:
        connection.putrequest(ask.method, ask.path, skip_accept_encoding=True)
        for name, value in ask.headers:
            connection.putheader(name, value)
        if ask.chunks:
            connection.putheader("Transfer-Encoding", "chunked")
        elif ask.body or ask.method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(ask.body)))
        connection.endheaders()
        if ask.chunks:
            _send_chunks(connection, ask)
        elif ask.body:
            connection.send(ask.body)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def _send_chunks(connection: http.client.HTTPConnection, ask: Ask) -> None:
    for start, end in zip((0, *ask.chunks), (*ask.chunks, len(ask.body)), strict=True):
        piece = ask.body[start:end]
        if piece:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.send(b"0\r\n\r\n")
