"""Sends one request over a pool of connections, within its deadline; the room's only I/O.

Imported when a client is made, because it needs httpcore. Nothing here knows the protocol.
"""

# ruff: noqa: ASYNC109  # the signatures are httpcore's

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from threading import Lock, Semaphore
from time import monotonic
from typing import Any, Final, TypeAlias, cast

import httpcore

from .core import Answer, Lost, Send

__all__ = ["AsyncConnections", "Connections"]

_PIECE: Final = 1 << 16
# A socket takes a timeout of 0 for "do not block".
_LEAST: Final = 1e-6
_KEEPALIVE: Final = 30.0

_Options: TypeAlias = Iterable[httpcore.SOCKET_OPTION]


class _Mark(float):
    """A timeout that httpcore hands down to the stream with each read and write.

    A plain number would start anew with each of them; this one knows when all must be done, and
    notes that a part of an answer came.
    """

    __slots__ = ("deadline", "received")
    deadline: float | None
    received: bool

    def __new__(cls, deadline: float | None) -> _Mark:
        mark = super().__new__(cls)
        mark.deadline = deadline
        mark.received = False
        return mark


def _left(timeout: float | None) -> float | None:
    """What is left of a timeout, at this moment."""
    if not isinstance(timeout, _Mark):
        return timeout
    return None if timeout.deadline is None else max(_LEAST, timeout.deadline - monotonic())


class _Stream(httpcore.NetworkStream):
    """A connection on which a mark bounds all that is done."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, _left(timeout))
        if data and isinstance(timeout, _Mark):
            timeout.received = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # A write goes on for as long as the peer reads a little each time; a piece ends soon.
        view = memoryview(buffer)
        for start in range(0, len(view), _PIECE):
            self._stream.write(cast(bytes, view[start : start + _PIECE]), _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(
            self._backend.connect_tcp(host, port, _left(timeout), local_address, socket_options)
        )

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: _Options | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._backend.connect_unix_socket(path, _left(timeout), socket_options))


class _AsyncStream(httpcore.AsyncNetworkStream):
    """The same for asyncio, where one timeout around everything bounds the time."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, None)
        if data and isinstance(timeout, _Mark):
            timeout.received = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, None)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._stream.start_tls(ssl_context, server_hostname, None))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(
            await self._backend.connect_tcp(host, port, None, local_address, socket_options)
        )

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: _Options | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _AsyncStream(await self._backend.connect_unix_socket(path, None, socket_options))


class _TooLargeError(Exception):
    pass


class _Body:
    """Gathers an answer's body up to a limit."""

    def __init__(self, response: httpcore.Response, limit: int) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._limit = limit
        self._response = response
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers
        }
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _TooLargeError

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise _TooLargeError
        self._pieces.append(piece)

    def answer(self) -> Answer:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Answer(self._response.status, self.headers, body)


def _joined(step: Send) -> bytes | None:
    """A small request's body for one write; None for no body, or one that is sent in parts."""
    if not step.body or sum(len(part) for part in step.body) > _PIECE:
        return None
    return b"".join(step.body)


def _content(step: Send) -> bytes | Iterator[bytes] | None:
    small = _joined(step)
    return map(bytes, step.body) if step.body and small is None else small


def _async_content(step: Send) -> bytes | AsyncIterator[bytes] | None:
    small = _joined(step)
    return _parts(step) if step.body and small is None else small


async def _parts(step: Send) -> AsyncIterator[bytes]:
    for part in step.body:
        yield bytes(part)


def _lost(error: Exception, mark: _Mark) -> Lost:
    """Tell why there is no answer."""
    if isinstance(error, _TooLargeError):
        return Lost("too large")
    if isinstance(error, TimeoutError | httpcore.TimeoutException):
        return Lost("timeout", error)
    if isinstance(error, httpcore.LocalProtocolError):
        return Lost("unsendable", error)
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return Lost("insecure", error)
    if isinstance(error, httpcore.ConnectError):
        return Lost("refused", error)
    return Lost("broken" if mark.received else "reset", error)


_ERRORS: Final = (
    TimeoutError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    _TooLargeError,
)


class _Origin:
    """Where connections go: what both pools make one from.

    Pools of our own, because httpcore's looks at a connection's state while another thread
    changes it, and then closes one that is in use. Here a connection is either in the list of
    idle ones or belongs to one request.

    Args:
        origin: Scheme, host and port.
        socket: Path of a Unix socket to use instead, or None.
        ssl_context: For https.
    """

    def __init__(
        self, origin: tuple[str, str, int], socket: str | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._scheme, self._host, self._port = origin
        self._socket = socket
        self._ssl_context = ssl_context

    def connection(self) -> httpcore.HTTPConnection:
        return httpcore.HTTPConnection(
            self._url(b"/").origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=_KEEPALIVE,
            uds=self._socket,
            network_backend=_Backend(),
        )

    def async_connection(self) -> httpcore.AsyncHTTPConnection:
        return httpcore.AsyncHTTPConnection(
            self._url(b"/").origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=_KEEPALIVE,
            uds=self._socket,
            network_backend=_AsyncBackend(),
        )

    def request(
        self,
        step: Send,
        mark: _Mark,
        content: bytes | Iterator[bytes] | AsyncIterator[bytes] | None,
    ) -> httpcore.Request:
        return httpcore.Request(
            step.method,
            self._url(step.target),
            headers=step.headers,
            content=content,
            extensions={"timeout": {"connect": mark, "read": mark, "write": mark}},
        )

    def _url(self, target: bytes) -> httpcore.URL:
        return httpcore.URL(scheme=self._scheme, host=self._host, port=self._port, target=target)


class Connections:
    """A pool for threads: at most `max_connections` are open; further requests wait for one."""

    def __init__(
        self,
        origin: tuple[str, str, int],
        *,
        socket: str | None,
        ssl_context: ssl.SSLContext | None,
        max_connections: int,
    ) -> None:
        self._origin = _Origin(origin, socket, ssl_context)
        self._free = Semaphore(max_connections)
        self._lock = Lock()
        self._idle: list[httpcore.HTTPConnection] = []
        self._closed = False

    def send(self, step: Send) -> Answer | Lost:
        """Send a request and read its whole answer."""
        mark = _Mark(step.deadline)
        if not self._free.acquire(timeout=_left(mark)):
            return Lost("timeout")
        try:
            connection = self._take()
            try:
                return _receive(connection, self._origin.request(step, mark, _content(step)), step)
            finally:
                self._give(connection)
        except _ERRORS as error:
            return _lost(error, mark)
        finally:
            self._free.release()

    def _take(self) -> httpcore.HTTPConnection:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            connection.close()
        return self._origin.connection()

    def _give(self, connection: httpcore.HTTPConnection) -> None:
        closing = [connection]
        with self._lock:
            if connection.is_available() and not self._closed:
                self._idle.append(connection)
                # The first was used least recently: in time every expired one stands there.
                closing = [self._idle.pop(0)] if self._idle[0].has_expired() else []
        for old in closing:
            old.close()

    def close(self) -> None:
        """Close the idle connections; each of the others is closed after its request."""
        with self._lock:
            self._closed = True
            closing, self._idle = self._idle, []
        for connection in closing:
            connection.close()


def _receive(connection: httpcore.HTTPConnection, request: httpcore.Request, step: Send) -> Answer:
    response = connection.handle_request(request)
    try:
        body = _Body(response, step.limit)
        for piece in response.iter_stream():
            body.add(piece)
    finally:
        response.close()
    return body.answer()


class AsyncConnections:
    """A pool for one event loop; the arguments are those of `Connections`."""

    def __init__(
        self,
        origin: tuple[str, str, int],
        *,
        socket: str | None,
        ssl_context: ssl.SSLContext | None,
        max_connections: int,
    ) -> None:
        self._origin = _Origin(origin, socket, ssl_context)
        self._free = asyncio.Semaphore(max_connections)
        self._idle: list[httpcore.AsyncHTTPConnection] = []
        self._closed = False

    async def send(self, step: Send) -> Answer | Lost:
        """Send a request and read its whole answer."""
        mark = _Mark(step.deadline)
        try:
            async with asyncio.timeout(_left(mark)), self._free:
                connection = await self._take()
                try:
                    request = self._origin.request(step, mark, _async_content(step))
                    return await _areceive(connection, request, step)
                finally:
                    await self._give(connection)
        except _ERRORS as error:
            return _lost(error, mark)

    async def _take(self) -> httpcore.AsyncHTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return self._origin.async_connection()

    async def _give(self, connection: httpcore.AsyncHTTPConnection) -> None:
        if not connection.is_available() or self._closed:
            await connection.aclose()
            return
        self._idle.append(connection)
        if self._idle[0].has_expired():
            await self._idle.pop(0).aclose()

    async def aclose(self) -> None:
        """Close the idle connections; each of the others is closed after its request."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()


async def _areceive(
    connection: httpcore.AsyncHTTPConnection, request: httpcore.Request, step: Send
) -> Answer:
    response = await connection.handle_async_request(request)
    try:
        body = _Body(response, step.limit)
        async for piece in response.aiter_stream():
            body.add(piece)
    finally:
        await response.aclose()
    return body.answer()
