"""Servers for the clients' tests: real ones, and one that does what a script says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Any, TypeAlias

import pytest
import uvicorn

from modelserve.client import AsyncClient, Client
from modelserve.transports.asgi import mount

Behaviour: TypeAlias = "Callable[[Scripted, socket.socket], bool]"
Ask: TypeAlias = Callable[..., Any]


@contextmanager
def running(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI application with uvicorn in a thread; gives its URL."""
    server = uvicorn.Server(
        # Without its configuration of logging, which would stay for the tests that follow.
        uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none", **options)
    )
    thread = Thread(target=server.run)
    thread.start()
    try:
        end = monotonic() + 10
        while not server.started:
            assert thread.is_alive()
            assert monotonic() < end
            Event().wait(0.005)
        scheme = "https" if "ssl_keyfile" in options else "http"
        if "uds" in options:
            yield f"unix:{options['uds']}"
        else:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"{scheme}://localhost:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Directory:
    """One server's applications, each under a path of its own."""

    def __init__(self) -> None:
        self._apps: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, app: Any) -> str:
        path = f"/{len(self._apps)}"
        self._apps[path[1:]] = mount(None, path, app)
        return path

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's event loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        await self._apps[scope["path"].split("/")[1]](scope, receive, send)


@pytest.fixture(scope="session")
def directory() -> Directory:
    return Directory()


@pytest.fixture(scope="session")
def shared(directory: Directory) -> Iterator[str]:
    """The URL of a server for all tests: to start and stop one takes longer than most of them."""
    with running(directory) as url:
        yield url


@pytest.fixture
def serve(shared: str, directory: Directory) -> Iterator[Callable[..., str]]:
    """Serve an application: under a path of the shared server, or by one with its own options."""
    with ExitStack() as stack:

        def serve(app: Any, **options: Any) -> str:
            if options:
                return stack.enter_context(running(app, **options))
            return shared + directory.add(app)

        yield serve


class Scripted:
    """Reads HTTP requests and does with each what its script says next; the last goes on."""

    def __init__(self, *script: Behaviour) -> None:
        self._script = list(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[Thread] = []
        self._open: list[socket.socket] = []
        self.stop = Event()
        self.connections = 0
        self.requests: list[bytes] = []
        """The requests read, each head and body in one."""
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.stop.is_set():
                connection.close()
                return
            self.connections += 1
            self._open.append(connection)
            self._spawn(self._talk, connection)

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                while (request := _read(connection)) is not None:
                    self.requests.append(request)
                    behave = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                    if not behave(self, connection):
                        return
            except OSError:
                return  # the client is gone

    def hang_up(self) -> None:
        """End every connection."""
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already
        self._open.clear()

    def close(self) -> None:
        self.stop.set()
        socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()


def _read(connection: socket.socket) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            return None
        body += piece
    return head + b"\r\n\r\n" + body


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    with ExitStack() as stack:

        def make(*script: Behaviour) -> Scripted:
            server = Scripted(*script)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Call one verb of a client made for it: `ask(url, verb, *args, options={}, **kwargs)`."""

    def ask(url: str, verb: str, *args: Any, options: Any = None, **kwargs: Any) -> Any:
        if request.param == "Client":
            with Client(url, **(options or {})) as client:
                return getattr(client, verb)(*args, **kwargs)

        async def main() -> Any:
            async with AsyncClient(url, **(options or {})) as client:
                name = f"a{verb}" if verb in ("load", "unload") else verb
                return await getattr(client, name)(*args, **kwargs)

        return asyncio.run(main())

    return ask
