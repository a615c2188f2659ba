"""Serving over HTTP without a host application: `HTTPServer` inside a loop, `serve` by itself.

Sockets and parsing are those of `http1`, or uvicorn's; the routes are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from modelserve.protocols import Authenticator, Servable
from modelserve.transports.address import Address
from modelserve.transports.http1.limits import Limits
from modelserve.transports.routes import (
    MAX_BODY_SIZE,
    PROTOCOLS,
    AdminRoutes,
    ProtocolName,
    routes_of,
)
from modelserve.transports.shared_memory import SharedMemory, shared_memory_of

__all__ = ["HTTPServer", "ServerName", "loop_factory", "serve"]

# How long a thread may keep the interpreter when another one wants it. With the default of 5 ms a
# model's thread that has finished waits that long behind a busy event loop.
_SWITCH_INTERVAL: Final = 1e-4

ServerName: TypeAlias = Literal["http1", "uvicorn"]
"""What parses HTTP: our own server, or uvicorn."""


class _Listener(Protocol):
    async def start(self, bound: socket.socket) -> None:
        """Accept connections on a listening socket, which it closes at the end."""

    async def stop(self, *, linger: float = 0.0) -> None:
        """Accept no more, answer what is under way, end."""

    def give_up(self) -> None:
        """End the drain."""


class HTTPServer:
    """An HTTP server for a servable inside a running event loop.

    It changes nothing outside itself: no signal handlers, no logging. The control routes (load,
    unload) are offered on an address that only this machine reaches, and on any other one only with
    an authenticator; `admin` says otherwise.

    Args:
        servable: What answers: a repository, a model, a client. It is not closed with the server.
        http: Where to listen, see `Address`.
        server: What parses HTTP: ``"http1"``, our own, or ``"uvicorn"``, which costs more and is
            there for whoever knows it better.
        tls: A server's `ssl.SSLContext`, such as `server_context` makes; connections are encrypted
            then. With client certificates asked for, the client's reaches the authenticator (not
            under uvicorn, which keeps it to itself).
        protocols: Which protocols' routes there are: any of ``"oip"``, ``"tfserving"``,
            ``"kserve"``.
        docs: Whether there are /openapi.json, which describes all routes and models, and /docs, a
            page to try the models with.
        limits: What one client may ask for. uvicorn has bounds of its own: about 64 KiB and 30
            seconds for the headers, 30 seconds in which a client takes nothing.
        admin: Whether to offer the control routes; None decides by the address, and does not
            offer them to requests that come from a web page or through a proxy.
        uploads: Whether a request to load a model may bring its configuration and files; where
            control routes are offered.
        shared_memory: Whether clients may register shared memory, where control routes are
            offered; or what they register it in, for several transports to have the same.
        authenticator: Tells who is calling; None admits everyone.
        max_body_size: Bytes the body of an inference request may have.
        gather: Whether plain requests of one turn of the event loop, for a model of microseconds,
            are read, run and answered together.
        drain: Seconds that requests under way get to end when the server stops.
        bound: A listening socket to take instead of binding `http`; it is closed at the end.

    Raises:
        ImportError: What parses HTTP is not installed.
        ValueError: `http` is no address; `drain` is negative; control routes are wanted where
            anyone could use them; or `limits` are given for uvicorn.

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
        server: ServerName = "http1",
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        protocols: Iterable[ProtocolName] = PROTOCOLS,
        docs: bool = True,
        admin: bool | None = None,
        uploads: bool = False,
        shared_memory: SharedMemory | bool = True,
        authenticator: Authenticator | None = None,
        max_body_size: int = MAX_BODY_SIZE,
        gather: bool = True,
        drain: float = 30.0,
        bound: socket.socket | None = None,
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
        memory = shared_memory_of(shared_memory, max_body_size)
        self._own_memory = None if memory is shared_memory else memory
        self._bound = bound
        self._secure = tls is not None
        self._listener = _listener(
            server,
            servable,
            tls=tls,
            limits=limits,
            gather=gather,
            drain=drain,
            protocols=protocols,
            docs=docs,
            uploads=uploads,
            shared_memory=memory,
            admin=_offered(self._address, authenticator) if admin is None else admin,
            authenticator=authenticator,
            max_body_size=max_body_size,
        )
        self._started = False
        self._stopped = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the real port once it was started."""
        url = str(self._address)
        return url.replace("http://", "https://", 1) if self._secure else url

    async def start(self) -> None:
        """Bind the address and accept connections; returns when the first one would be answered.

        Raises:
            OSError: The address cannot be listened on.
        """
        if self._started:
            raise RuntimeError("the server was started already")
        bound = self._address.bind() if self._bound is None else self._bound
        self._started = True
        try:
            await self._listener.start(bound)
        except BaseException:
            await self._listener.stop()
            bound.close()
            self._address.release()
            self._started = False
            raise

    async def stop(self, *, linger: float = 0.0) -> None:
        """Accept no more, answer what is under way, end. If cancelled, it ends all the same.

        Args:
            linger: Seconds in which a connection may still send a request, its last: where another
                process has taken over, a client that was just sending one does not lose it. Uvicorn
                cannot wait so.
        """
        if not self._started or self._stopped.is_set():
            return
        try:
            await self._listener.stop(linger=linger)
        finally:
            if self._own_memory is not None:
                self._own_memory.unregister()
            self._address.release()
            self._stopped.set()

    def give_up(self) -> None:
        """End the drain of a server that was told to stop: what is under way is answered 503."""
        self._listener.give_up()

    async def wait(self) -> None:
        """Wait until the server was stopped."""
        if self._started:
            await self._stopped.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _listener(
    server: ServerName,
    servable: Servable,
    *,
    tls: ssl.SSLContext | None,
    limits: Limits | None,
    gather: bool,
    drain: float,
    **options: Any,
) -> _Listener:
    # Imported here: whoever uses the one needs not have installed the other.
    if server == "http1":
        from modelserve.transports.http1.server import HTTP1Server

        return HTTP1Server(
            routes_of(servable, **options), limits=limits, tls=tls, drain=drain, gather=gather
        )
    if server != "uvicorn":
        raise ValueError(f'server is "http1" or "uvicorn", got {server!r}')
    if limits is not None:
        raise ValueError('limits are those of server="http1"; uvicorn has its own')
    from modelserve.transports.asgi import ASGIApp
    from modelserve.transports.uvicorn_server import UvicornServer

    return UvicornServer(ASGIApp(servable, gather=gather, **options), tls=tls, drain=drain)


def _offered(address: Address, authenticator: Authenticator | None) -> AdminRoutes:
    if authenticator is not None:
        return True
    return "direct" if address.loopback else False


def serve(
    servable: Servable,
    *,
    http: str = "127.0.0.1:8000",
    server: ServerName = "http1",
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    protocols: Iterable[ProtocolName] = PROTOCOLS,
    docs: bool = True,
    admin: bool | None = None,
    uploads: bool = False,
    shared_memory: SharedMemory | bool = True,
    authenticator: Authenticator | None = None,
    max_body_size: int = MAX_BODY_SIZE,
    drain: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve over HTTP until SIGINT or SIGTERM, then answer what is under way and return.

    For a process that does nothing else: it runs an event loop (uvloop's where installed), handles
    those two signals, and SIGHUP like them unless it is ignored. While it serves, the interpreter's
    switch interval is 0.1 ms, and the garbage collector keeps away from what was there before. A
    second signal ends the wait for what is under way.

    Args:
        servable: What answers. It is not closed afterwards.
        http: Where to listen: ``HOST:PORT``, or ``unix:PATH``.
        server: What parses HTTP, as for `HTTPServer`.
        tls: A server's `ssl.SSLContext`; connections are encrypted then.
        limits: What one client may ask for.
        protocols: Which protocols' routes there are, as for `HTTPServer`.
        docs: Whether there are /openapi.json and /docs.
        admin: Whether to offer the control routes; None: where only this machine reaches them, or
            with an authenticator.
        uploads: Whether a request to load a model may bring its configuration and files.
        shared_memory: Whether clients may register shared memory, as for `HTTPServer`.
        authenticator: Tells who is calling; None admits everyone.
        max_body_size: Bytes the body of an inference request may have.
        drain: Seconds that requests under way get to end.
        on_ready: Called with the URL when the first request would be answered.

    Raises:
        ImportError: What parses HTTP is not installed.
        OSError: The address cannot be listened on.
        RuntimeError: It was called inside a running event loop.
        ValueError: As `HTTPServer`.
    """
    _refuse_running_loop()
    listening = HTTPServer(
        servable,
        http=http,
        server=server,
        tls=tls,
        limits=limits,
        protocols=protocols,
        docs=docs,
        admin=admin,
        uploads=uploads,
        shared_memory=shared_memory,
        authenticator=authenticator,
        max_body_size=max_body_size,
        drain=drain,
    )
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # What is loaded now stays: no collection is to walk through it while requests wait.
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(listening, on_ready))
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "serve() runs an event loop of its own, and was called inside one; there, use "
        "`async with HTTPServer(...)`"
    )


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
    """Call something on the signals that end it; the handlers there were come back afterwards."""
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # as under nohup
        numbers.append(hangup)
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


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's event loops where it is installed, else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
