"""uvicorn's server as modelserve runs it: embedded, and with bounds on what a connection may do.

Where it listens, what it serves and when it ends are the business of `serving`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Iterator
from math import inf
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any, Final, cast

from modelserve.codecs import oip
from modelserve.transports.asgi import Application, Receive, Scope, Send

# The request line and headers: uvicorn takes any number of bytes, at any pace.
_MAX_HEAD: Final = 64 << 10
_HEAD_TIMEOUT: Final = 30.0
# How long a client may take nothing of what was written for it.
_WRITE_TIMEOUT: Final = 30.0
# Windows does not tell how much of a write was taken until all of it was: a large one gets the time
# that a client of this many bytes per second needs.
_UNSEEN_RATE: Final = 64 << 10 if sys.platform == "win32" else inf
# What was cancelled at the end of the drain answers that it was.
_LAST_WORDS: Final = 1.0
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: 50\r\n\r\n"
    b'{"error":"the headers have more than 65536 bytes"}'
)


class UvicornServer:
    """Runs an ASGI application on uvicorn, inside a running event loop.

    Args:
        app: What answers.
        tls: With a context, connections are encrypted.
        drain: Seconds, 0 or more, that requests under way get to end when it stops.

    Raises:
        ImportError: uvicorn is not installed.
    """

    def __init__(
        self, app: Application, *, tls: ssl.SSLContext | None = None, drain: float = 30.0
    ) -> None:
        self._app = app
        self._server = make_server(self._answer, drain)
        if tls is not None:
            self._server.config.ssl = tls
        self._serving: asyncio.Task[None] | None = None

    async def start(self, bound: socket.socket) -> None:
        """Accept connections on a listening socket, which it closes at the end."""
        started = self._server.ready = asyncio.Event()
        self._serving = asyncio.create_task(self._serve(bound))
        waiting = asyncio.ensure_future(started.wait())
        try:
            await asyncio.wait({waiting, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not started.is_set():
            await self._serving  # raises what went wrong
            raise RuntimeError("the HTTP server ended while it started")

    async def _serve(self, bound: socket.socket) -> None:
        try:
            await self._server.serve(sockets=[bound])
        finally:
            # uvicorn does so too, but not all of its versions where it was stopped as it started.
            for listener in getattr(self._server, "servers", ()):
                listener.close()
            bound.close()

    async def stop(self, *, linger: float = 0.0) -> None:
        """Accept no more, answer what is under way, end. If cancelled, it ends all the same.

        Args:
            linger: For servers that can; uvicorn closes connections without a request at once.
        """
        if self._serving is not None:
            self._server.should_exit = True
            await asyncio.shield(self._serving)

    def give_up(self) -> None:
        """End the drain of a server that was told to stop: what is under way is answered 503."""
        self._server.force_exit = True
        for task in tuple(self._server.server_state.tasks):
            task.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._server.should_exit or scope["type"] != "http":
                raise
            # The drain is over. uvicorn would take the cancellation it asked for as a failure.
            body = oip.encode_error("the server is stopping")
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            with contextlib.suppress(RuntimeError):  # the answer may have begun
                await send({"type": "http.response.start", "status": 503, "headers": headers})
                await send({"type": "http.response.body", "body": body})


def make_server(app: Application, drain: float) -> Any:
    """Return a `uvicorn.Server` that leaves signals, logging and the environment alone.

    Args:
        app: What answers.
        drain: Seconds, 0 or more, that requests under way get to end when it stops.

    Raises:
        ImportError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(
            'an HTTP server of its own needs uvicorn: pip install "modelserve[serve]"'
        ) from error

    class Server(uvicorn.Server):
        """uvicorn's server without its signal handlers; tells when it listens."""

        ready: asyncio.Event | None = None

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.ready is not None and self.started:
                self.ready.set()

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # every second; a timer for each request would cost more
                now = monotonic()
                for connection in tuple(self.server_state.connections):
                    if hasattr(connection, "close_if_late"):
                        connection.close_if_late(now)
            return await super().on_tick(counter)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets=sockets)
            await _end(self.server_state.connections, self.server_state.tasks)

    config = uvicorn.Config(
        app,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,  # and access_log as it is: False would take a host's handlers away
        proxy_headers=False,
        server_header=False,
        # Said here, so that uvicorn does not look for them in the environment.
        workers=1,
        forwarded_allow_ips="127.0.0.1",
        # It waits any number of seconds, whole or not; with 0 it would call an idle server busy.
        timeout_graceful_shutdown=cast(int, min(max(drain, 0.01), TIMEOUT_MAX)),
    )
    config.load()
    config.http_protocol_class = _bounded(config.http_protocol_class)
    return Server(config)


async def _end(connections: set[Any], tasks: set[asyncio.Task[None]]) -> None:
    """End the connections a drain left open: nobody looks after them any more."""
    if tasks:
        await asyncio.wait(tuple(tasks), timeout=_LAST_WORDS)
    for connection in tuple(connections):
        if connection.transport.get_write_buffer_size():
            connection.transport.abort()
        else:
            connection.transport.close()


def _bounded(protocol: Any) -> Any:
    """Return uvicorn's protocol with bounds on a connection, and without its access log."""

    class Bounded(protocol):  # type: ignore[misc]  # which one it is depends on what is installed
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.access_log = False
            self.idle_since: float = monotonic()
            self.taken_at: float = self.idle_since
            self.unsent = 0

        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def on_response_complete(self) -> None:
            self.idle_since = self.taken_at = monotonic()
            super().on_response_complete()

        def close_if_late(self, now: float) -> None:
            # Not left to uvicorn's keep-alive timer: any byte ends that, also one that begins no
            # request, such as the rest of a body that was not waited for.
            if self.is_stuck(now):
                self.transport.abort()
            elif self.is_idle() and now - self.idle_since > _HEAD_TIMEOUT:
                self.transport.close()

        def is_stuck(self, now: float) -> bool:
            """Tell whether the client has taken nothing for too long; to be called every second."""
            unsent: int = self.transport.get_write_buffer_size()
            # An application that still writes may hide what was taken. It cannot write much: above
            # a small mark it is paused.
            writing = not (self.flow.write_paused or self.is_idle())
            if unsent == 0 or unsent < self.unsent or writing:
                self.taken_at = now
            self.unsent = unsent
            return now - self.taken_at > _WRITE_TIMEOUT + unsent / _UNSEEN_RATE

    # httptools takes any number of bytes; h11 bounds the head by itself.
    return _bounded_head(Bounded) if hasattr(protocol, "on_headers_complete") else Bounded


def _bounded_head(protocol: Any) -> Any:
    """Return uvicorn's protocol for httptools with a bound on all that is not a body."""

    class BoundedHead(protocol):  # type: ignore[misc]  # a class made at run time
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.in_head = True
            # Bytes since anything came of them: of a head, or of a chunk's extension or trailers.
            self.head_size = 0

        def on_message_begin(self) -> None:
            self.in_head = True
            self.head_size = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.in_head = False
            self.head_size = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.head_size = 0
            super().on_body(body)

        def data_received(self, data: bytes) -> None:
            self.head_size += len(data)
            super().data_received(data)
            if self.head_size > _MAX_HEAD and not self.transport.is_closing():
                if self.in_head and self.is_idle():
                    self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()

    return BoundedHead
