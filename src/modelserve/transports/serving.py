"""Serving over HTTP without a host application: `HTTPServer` inside a loop, `serve` by itself.

Sockets and HTTP parsing are uvicorn's; the routes are those of `ASGIApp`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from modelserve.codecs import oip
from modelserve.protocols import Authenticator, Servable
from modelserve.transports.asgi import ASGIApp, Receive, Scope, Send
from modelserve.transports.routes import MAX_BODY_SIZE, AdminRoutes
from modelserve.transports.uvicorn_server import make_server

__all__ = ["Address", "HTTPServer", "serve"]

# How long a thread may keep the interpreter when another one wants it. With the default of 5 ms a
# model's thread that has finished waits that long behind a busy event loop.
_SWITCH_INTERVAL: Final = 1e-4
_BACKLOG: Final = 2048


class Address:
    """Where to listen: ``HOST:PORT``, ``[IPV6]:PORT``, or ``unix:PATH``. Port 0 takes a free one.

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> Address("127.0.0.1:8000").loopback
        True
    """

    __slots__ = ("_inode", "host", "path", "port")

    def __init__(self, text: str) -> None:
        self.host, self.port, self.path = "", 0, ""
        self._inode: tuple[int, int] | None = None
        if text.startswith("unix:"):
            self.path = text.removeprefix("unix:")
            if not self.path:
                raise ValueError("an address unix:PATH needs a path")
            return
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(
                f'"{text}" is no address; expected HOST:PORT such as 127.0.0.1:8000, or unix:PATH'
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f'"{text}": an IPv6 address stands in brackets, as in [::1]:8000')
        self.host, self.port = host or "127.0.0.1", int(port)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def bind(self) -> socket.socket:
        """Return a socket that listens here; `port` is then the real one.

        Raises:
            OSError: The address is taken, not this machine's, or not permitted.
        """
        if self.path:
            return self._bind_path()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # With the protocol named, asyncio sees TCP in its connections and sends small answers at
        # once.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if sys.platform != "win32":  # there it would let two servers share the port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.host, self.port))
            bound.listen(_BACKLOG)
            bound.setblocking(False)
        except BaseException as error:
            bound.close()
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise
        self.port = bound.getsockname()[1]
        return bound

    def _bind_path(self) -> socket.socket:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets")
        import os
        import stat

        with contextlib.suppress(FileNotFoundError):
            # What a dead server left; a living one's socket answers and is left alone.
            if stat.S_ISSOCK(os.stat(self.path).st_mode) and not self._answers():
                os.unlink(self.path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(self.path)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            found = os.stat(self.path)
        except OSError as error:
            bound.close()
            raise self._explained(error) from error
        self._inode = found.st_dev, found.st_ino
        return bound

    def release(self) -> None:
        """Remove the file of a Unix socket that `bind` made; not that of a server after this one.

        While requests under way are answered, a successor may listen on the same path already.
        """
        if self._inode is None:
            return
        import os

        with contextlib.suppress(OSError):
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self.path)
        self._inode = None

    def _answers(self) -> bool:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(1.0)
            probe.connect(self.path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        finally:
            probe.close()
        return True

    def _explained(self, error: OSError) -> OSError:
        reason = (error.strerror or str(error)).lower()
        return OSError(error.errno, f"cannot listen on {self}: {reason}")


class HTTPServer:
    """An HTTP server for a servable inside a running event loop.

    It changes nothing outside itself: no signal handlers, no logging. The control routes (load,
    unload) are offered on an address that only this machine reaches, and on any other one only with
    an authenticator; `admin` says otherwise. The headers of a request may have about 64 KiB and
    take about 30 seconds to arrive. A connection is closed when its client has taken nothing of an
    answer for 30 seconds.

    Args:
        servable: What answers: a repository, a model, a client. It is not closed with the server.
        http: Where to listen, see `Address`.
        admin: Whether to offer the control routes; None decides by the address, and does not
            offer them to requests that come from a web page or through a proxy.
        authenticator: Tells who is calling; None admits everyone.
        max_body_size: Bytes the body of an inference request may have.
        drain: Seconds that requests under way get to end when the server stops.

    Raises:
        ImportError: uvicorn is not installed.
        ValueError: `http` is no address; `drain` is negative; or control routes are wanted where
            anyone could use them.

    Example:
        >>> import asyncio
        >>> from modelserve.testing import StubModel
        >>> async def main():
        ...     async with HTTPServer(StubModel(), http="127.0.0.1:0") as server:
        ...         return server.url.startswith("http://127.0.0.1:")
        >>> asyncio.run(main())
        True
    """

    def __init__(
        self,
        servable: Servable,
        *,
        http: str = "127.0.0.1:8000",
        admin: bool | None = None,
        authenticator: Authenticator | None = None,
        max_body_size: int = MAX_BODY_SIZE,
        drain: float = 30.0,
    ) -> None:
        self._address = Address(http)
        if not drain >= 0:
            raise ValueError(f"drain is 0 or more seconds, got {drain}")
        guarded = self._address.loopback or authenticator is not None
        if admin and not guarded:
            raise ValueError(
                f"admin=True on {self._address} would let anyone load and unload models: give an "
                "authenticator, or listen on 127.0.0.1"
            )
        self._app = ASGIApp(
            servable,
            admin=_offered(self._address, authenticator) if admin is None else admin,
            authenticator=authenticator,
            max_body_size=max_body_size,
        )
        self._server = make_server(self._answer, drain)
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the real port once it was started."""
        return str(self._address)

    async def start(self) -> None:
        """Bind the address and accept connections; returns when the first one would be answered.

        Raises:
            OSError: The address cannot be listened on.
        """
        if self._serving is not None:
            raise RuntimeError("the server was started already")
        bound = self._address.bind()
        started = self._server.ready = asyncio.Event()
        self._serving = asyncio.create_task(self._serve(bound))
        waiting = asyncio.ensure_future(started.wait())
        try:
            await asyncio.wait({waiting, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
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
            self._address.release()

    async def stop(self) -> None:
        """Accept no more, answer what is under way, end. If cancelled, it ends all the same."""
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

    async def wait(self) -> None:
        """Wait until the server was stopped."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _offered(address: Address, authenticator: Authenticator | None) -> AdminRoutes:
    if authenticator is not None:
        return True
    return "direct" if address.loopback else False


def serve(
    servable: Servable,
    *,
    http: str = "127.0.0.1:8000",
    admin: bool | None = None,
    authenticator: Authenticator | None = None,
    max_body_size: int = MAX_BODY_SIZE,
    drain: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve over HTTP until SIGINT or SIGTERM, then answer what is under way and return.

    For a process that does nothing else: it runs an event loop (uvloop's where installed), handles
    those two signals and sets the interpreter's switch interval to 0.1 ms while it serves. A second
    signal ends the wait for what is under way.

    Args:
        servable: What answers. It is not closed afterwards.
        http: Where to listen: ``HOST:PORT``, or ``unix:PATH``.
        admin: Whether to offer the control routes; None: where only this machine reaches them, or
            with an authenticator.
        authenticator: Tells who is calling; None admits everyone.
        max_body_size: Bytes the body of an inference request may have.
        drain: Seconds that requests under way get to end.
        on_ready: Called with the URL when the first request would be answered.

    Raises:
        ImportError: uvicorn is not installed.
        OSError: The address cannot be listened on.
        ValueError: As `HTTPServer`.
    """
    server = HTTPServer(
        servable,
        http=http,
        admin=admin,
        authenticator=authenticator,
        max_body_size=max_body_size,
        drain=drain,
    )
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(server, on_ready))
    finally:
        sys.setswitchinterval(interval)


async def _serve(server: HTTPServer, on_ready: Callable[[str], None] | None) -> None:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            server.give_up()
        stop.set()

    with _on_signals(on_signal):
        async with server:
            if on_ready is not None:
                on_ready(server.url)
            await stop.wait()


@contextlib.contextmanager
def _on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call something on SIGINT and SIGTERM; the handlers there were come back afterwards."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {}
    try:
        for number in numbers:
            # Not every system's loop can watch signals; the plain handler works on all.
            before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))
    except ValueError:  # not the main thread: whoever runs that one stops us
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is not Python's, and cannot be put back
                signal.signal(number, handler)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
