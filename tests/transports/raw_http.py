"""A client that sends any bytes and takes only well-formed HTTP/1.1 answers, for tests of servers.

It runs in the event loop of the server under test, so that what is sent in pieces also arrives
in pieces. It holds no opinion on requests: those are rows of bytes elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

BOUND: Final = 8.0
"""Seconds after which a wait for the server is taken for a hang."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t\x20-\x7e]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e\t ]*)")
_NO_PATH: Final = re.compile(r'there is no path "(.*)" here', re.DOTALL)
_NO_METHOD: Final = re.compile(r"expected .*, got (.*)", re.DOTALL)


class Malformed(AssertionError):
    """What came from the server is not HTTP/1.1."""


class Answer(NamedTuple):
    """One whole answer, and the interim ones before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    @property
    def closes(self) -> bool:
        """Whether it announces the end of the connection."""
        return "close" in self.headers.get("connection", "").lower()

    @property
    def told(self) -> str:
        """The status, and what the answer shows of how the request was understood.

        Of the model "echo" the text it was given, of an unknown path the path, of a wrong method
        the method.
        """
        shown = ""
        if self.headers.get("content-type") == "application/json" and self.body:
            found = json.loads(self.body)
            if self.status == 200 and "outputs" in found:
                shown = found["outputs"][0]["data"][0]
            elif self.status in (404, 405):
                pattern = _NO_PATH if self.status == 404 else _NO_METHOD
                match = pattern.fullmatch(found["error"])
                shown = match[1] if match else ""
        return f"{self.status} {shown}".strip()


class Reader:
    """Takes answers apart, strictly: any deviation from RFC 9112 is `Malformed`.

    Args:
        bodiless: Tells by its number, from 0, whether an answer is one to HEAD.
    """

    def __init__(self, bodiless: Callable[[int], bool] = lambda number: False) -> None:
        self.answers: list[Answer] = []
        self.rest = b""
        self._bodiless = bodiless
        self._interim: list[int] = []

    def feed(self, data: bytes) -> None:
        """Take bytes; `answers` has what is whole."""
        self.rest += data
        while (size := self._take()) is not None:
            self.rest = self.rest[size:]

    def _take(self) -> int | None:
        end = self.rest.find(b"\r\n\r\n")
        if end < 0:
            if len(self.rest) > 16 and not self.rest.startswith(b"HTTP/1.1 "):
                raise Malformed(f"no status line: {self.rest[:80]!r}")
            return None
        first, *lines = self.rest[:end].split(b"\r\n")
        status_line = _STATUS_LINE.fullmatch(first)
        if status_line is None:
            raise Malformed(f"no status line: {first[:80]!r}")
        status = int(status_line[1])
        headers: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise Malformed(f"no header: {line[:80]!r}")
            name = field[1].decode().lower()
            if name in headers and name in ("content-length", "transfer-encoding", "connection"):
                raise Malformed(f"{name} twice")
            headers[name] = field[2].decode().strip()
        if status < 200:
            self._interim.append(status)
            return end + 4
        framed = self._body(end + 4, status, headers)
        if framed is None:
            return None
        body, size = framed
        self.answers.append(Answer(status, headers, body, tuple(self._interim)))
        self._interim = []
        return size

    def _body(self, start: int, status: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        if self._bodiless(len(self.answers)) or status in (204, 304):
            return b"", start
        if "transfer-encoding" in headers:
            return self._chunks(start)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise Malformed(f"the length of the body is not told: {headers}")
        size = start + int(length)
        return None if len(self.rest) < size else (self.rest[start:size], size)

    def _chunks(self, at: int) -> tuple[bytes, int] | None:
        body = b""
        while (end := self.rest.find(b"\r\n", at)) >= 0:
            size, at = int(self.rest[at:end], 16), end + 2
            if len(self.rest) < at + size + 2:
                break
            if self.rest[at + size : at + size + 2] != b"\r\n":
                raise Malformed("a chunk does not end")
            body += self.rest[at : at + size]
            at += size + 2
            if size == 0:
                return body, at
        return None


class Peer:
    """One connection to a server in this loop."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.reader = Reader()
        self._loop = asyncio.get_running_loop()

    async def send(self, *pieces: bytes) -> None:
        """Send; each piece arrives by itself, as a rule.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        for number, piece in enumerate(pieces):
            if number:
                # Two turns of the loop: in one the server is told, in the next it has read.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            async with asyncio.timeout(BOUND):
                await self._loop.sock_sendall(self.socket, piece)

    async def receive(self, size: int = 1 << 16) -> bytes:
        """Return some bytes; none at the end."""
        async with asyncio.timeout(BOUND):
            return await self._loop.sock_recv(self.socket, size)

    async def answer(self) -> Answer:
        """Return the next answer.

        Raises:
            EOFError: The connection ended before it.
        """
        while not self.reader.answers:
            data = await self.receive()
            if not data:
                raise EOFError(f"closed after {self.reader.rest!r}")
            self.reader.feed(data)
        return self.reader.answers.pop(0)

    async def interim(self) -> int:
        """Return the status of the next interim answer."""
        while not self.reader._interim:
            assert not self.reader.answers, "a final answer came first"
            data = await self.receive()
            assert data, "the connection ended first"
            self.reader.feed(data)
        return self.reader._interim[-1]

    async def rest(self, patience: float = BOUND) -> list[Answer]:
        """Return all answers until the connection ends, which it must within the bound.

        Args:
            patience: Seconds without a byte after which what came is taken for all there is.

        Raises:
            Malformed: The last one is not whole.
        """
        # A server that closes before it has read everything resets the connection.
        with suppress(ConnectionError):
            while data := await self._receive_within(patience):
                self.reader.feed(data)
        if self.reader.rest:
            raise Malformed(f"an answer is not whole: {self.reader.rest[:200]!r}")
        answers, self.reader.answers = self.reader.answers, []
        return answers

    async def _receive_within(self, patience: float) -> bytes:
        try:
            async with asyncio.timeout(min(patience, BOUND)):
                return await self.receive()
        except TimeoutError:
            if patience >= BOUND:
                raise
            return b""

    async def ask(self, *pieces: bytes) -> Answer:
        """Send a request and return its answer."""
        await self.send(*pieces)
        return await self.answer()

    def finish(self) -> None:
        """Tell the server that nothing more will come; answers still may."""
        self.socket.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def peer_of(url: str, *, receive_buffer: int = 0) -> AsyncIterator[Peer]:
    """Connect to ``http://HOST:PORT`` or ``unix:PATH``."""
    path = url.removeprefix("unix:")
    family = socket.AF_INET if path == url else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as connected:
        if receive_buffer:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connected.setblocking(False)
        where: object = path
        if path == url:
            host, _, port = url.removeprefix("http://").rpartition(":")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            where = (host, int(port))
        async with asyncio.timeout(BOUND):
            await asyncio.get_running_loop().sock_connect(connected, where)
        yield Peer(connected)


async def converse(
    url: str,
    pieces: Sequence[bytes],
    *,
    bodiless: Iterable[int] = (),
    finish: bool = False,
    patience: float = BOUND,
) -> list[Answer]:
    """Send all, read all until the server closes; within the bound.

    Args:
        url: Of the server.
        pieces: What to send, one by one.
        bodiless: Numbers of the answers that are to HEAD.
        finish: Whether to close the sending half afterwards.
        patience: As for `Peer.rest`.
    """
    async with peer_of(url) as peer:
        peer.reader = Reader(frozenset(bodiless).__contains__)

        async def send() -> None:
            # A server that refuses does not read on.
            with suppress(ConnectionError, OSError):
                await peer.send(*pieces)
                if finish:
                    peer.finish()

        sending = asyncio.create_task(send())
        try:
            async with asyncio.timeout(BOUND):
                return await peer.rest(patience)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
