"""What one connection may do to uvicorn's server: bounds on heads, on idling, on not reading."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from math import inf
from time import monotonic
from typing import Any

import pytest
import uvicorn.protocols.http.auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from modelserve.transports import uvicorn_server
from modelserve.transports.asgi import Application, Receive, Scope, Send
from modelserve.transports.uvicorn_server import make_server

LIVE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
LARGE = 16 << 20

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="asyncio's loop there does not tell what was taken of a write"
)


@pytest.fixture(params=["httptools", "h11"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either of the parsers uvicorn picks from."""
    name: str = request.param
    if name == "h11":
        monkeypatch.setattr(uvicorn.protocols.http.auto, "AutoHTTPProtocol", H11Protocol)
    else:
        pytest.importorskip("httptools")
    return name


@pytest.fixture
def httptools() -> None:
    pytest.importorskip("httptools")


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Either of the loops a server may run in; they buffer what was not sent differently."""
    if request.param == "asyncio":
        factory: Any = asyncio.SelectorEventLoop
    else:
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the systems that tell how much of a write was taken."""
    monkeypatch.setattr(uvicorn_server, "_UNSEEN_RATE", inf)


async def respond(send: Send, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body was read."""
    await respond(send, b"ok")


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, bytes(LARGE))


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer how many bytes the body has."""
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await respond(send, b"%d" % size)


class Running:
    """A server under test, and what the tests look at."""

    def __init__(self, server: Any, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def connections(self) -> set[Any]:
        found: set[Any] = self.server.server_state.connections
        return found

    async def connection(self) -> Any:
        """Return the one connection there is, once it is there."""
        await until(lambda: len(self.connections) == 1)
        (connection,) = self.connections
        return connection

    async def talk(self, said: bytes) -> bytes:
        """Say something; return all that comes back."""
        async with self.peer() as peer:
            await peer.say(said)
            return await peer.rest()

    @asynccontextmanager
    async def peer(self) -> AsyncIterator["Peer"]:
        """Connect a client that reads only when told."""
        with socket.socket() as connected:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connected.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self.port))
            yield Peer(connected)


class Peer:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    async def say(self, data: bytes) -> None:
        async with asyncio.timeout(10):
            await self._loop.sock_sendall(self._socket, data)

    async def hear(self) -> bytes:
        async with asyncio.timeout(10):
            return await self._loop.sock_recv(self._socket, 1 << 16)

    async def rest(self) -> bytes:
        """Return all that comes; a server that did not read to the end may reset."""
        data = b""
        with suppress(ConnectionError):
            while chunk := await self.hear():
                data += chunk
        return data


def take_over(connection: Any) -> Callable[[float], None]:
    """Return what the server calls every second; from here on the test does."""
    close_if_late: Callable[[float], None] = connection.close_if_late
    connection.close_if_late = lambda now: None
    return close_if_late


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(app: Application, drain: float = 0.05) -> AsyncIterator[Running]:
    bound = socket.create_server(("127.0.0.1", 0))
    server = make_server(app, drain)
    server.ready = asyncio.Event()
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        async with asyncio.timeout(10):
            await server.ready.wait()
        yield Running(server, bound.getsockname()[1])
    finally:
        server.should_exit = True
        await task
        bound.close()


# Heads


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(LIVE + b"x: 1\r\n" * 60_000, id="many headers"),
        pytest.param(LIVE + b"x: " + b"1" * 400_000, id="a long header"),
        pytest.param(b"GET /" + b"1" * 400_000, id="a long path"),
    ],
)
def test_endless_headers_are_cut_off(endless: bytes) -> None:
    async def main() -> None:
        async with serving(early) as running, running.peer() as peer:
            # The server may reset the connection, as it does not read to the end.
            with suppress(ConnectionError):
                await peer.say(endless)
                assert (await peer.hear()).split()[1] in (b"431", b"400")
                await peer.rest()
            await until(lambda: not running.connections)
            assert (await running.talk(LIVE + b"\r\n")).startswith(b"HTTP/1.1 200")

    asyncio.run(main())


@pytest.mark.usefixtures("httptools")
def test_headers_below_the_bound_are_let_be() -> None:
    async def main() -> None:
        async with serving(early) as running:
            answer = await running.talk(LIVE + b"x: " + b"1" * 60_000 + b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")

    asyncio.run(main())


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("chunks", [b"0\r\n", b"1\r\nx\r\n0\r\n", b"1;"])
@pytest.mark.parametrize("endless", [b"x: 1\r\n", b"x"])
def test_endless_trailers_and_extensions_are_cut_off(chunks: bytes, endless: bytes) -> None:
    async def main() -> None:
        async with serving(count) as running, running.peer() as peer:
            await running.connection()
            with suppress(ConnectionError):
                await peer.say(CHUNKED + chunks + endless * (400_000 // len(endless)))
            await until(lambda: not running.connections)

    asyncio.run(main())


@pytest.mark.usefixtures("protocol")
def test_one_request_has_one_answer_though_its_trailers_are_endless() -> None:
    async def main() -> None:
        async with serving(early) as running, running.peer() as peer:
            await peer.say(CHUNKED + b"1\r\nx\r\n0\r\n")
            answer = await peer.hear()
            while not answer.endswith(b"\r\n\r\nok"):
                answer += await peer.hear()
            await peer.say(b"x" * 66_000)
            assert b" 431 " not in await peer.rest()

    asyncio.run(main())


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("chunk", [1, 400_000])
def test_chunked_bodies_and_later_requests_do_not_count_as_headers(chunk: int) -> None:
    async def main() -> None:
        sizes = [b"%x" % chunk] * (400_000 // chunk if chunk > 1 else 30_000)
        body = b"".join(b"%b\r\n%b\r\n" % (size, b"x" * chunk) for size in sizes)
        length = chunk * len(sizes)
        async with serving(count) as running, running.peer() as peer:
            for _ in range(3):
                await peer.say(CHUNKED + body + b"0\r\n\r\n")
                answer = b""
                while not answer.endswith(b"\r\n\r\n%d" % length):
                    answer += await peer.hear()
                assert answer.startswith(b"HTTP/1.1 200")

    asyncio.run(main())


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("head", [b"", LIVE])
def test_headers_that_do_not_end_are_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_server, "_HEAD_TIMEOUT", 0.1)

    async def main() -> None:
        async with serving(early) as running:
            assert await running.talk(head) == b""

    asyncio.run(main())


@pytest.mark.usefixtures("protocol")
def test_request_under_way_is_not_given_up() -> None:
    async def main() -> None:
        entered, gate = asyncio.Event(), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            entered.set()
            await gate.wait()
            await respond(send, b"ok")

        async with serving(slow) as running, running.peer() as peer:
            await peer.say(LIVE + b"\r\n")
            await entered.wait()
            take_over(await running.connection())(monotonic() + 1e6)
            gate.set()
            assert (await peer.rest()).startswith(b"HTTP/1.1 200")

    asyncio.run(main())


# Connections that idle


@pytest.mark.parametrize(
    ("request_", "stray"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n", id="an empty line"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"G", id="part of a head"),
        pytest.param(
            b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n", b"x", id="part of a body"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
            b"1\r\n",
            id="part of a chunk",
        ),
    ],
)
def test_bytes_that_make_no_request_keep_no_connection_open(
    request_: bytes, stray: bytes, protocol: str
) -> None:
    if protocol == "h11" and stray == b"\r\n":
        pytest.skip("h11 takes no empty line: it is answered 400")

    async def main() -> None:
        async with serving(early) as running, running.peer() as peer:
            await peer.say(request_)
            connection = await running.connection()
            close_if_late = take_over(connection)
            await until(lambda: connection.timeout_keep_alive_task is not None)
            answered = monotonic()
            await peer.say(stray)
            await until(lambda: connection.timeout_keep_alive_task is None)
            close_if_late(answered + 29)
            assert not connection.transport.is_closing()
            close_if_late(answered + 31)
            assert (await peer.rest()).endswith(b"\r\n\r\nok")
            await until(lambda: not running.connections)

    asyncio.run(main())


@pytest.mark.usefixtures("protocol")
def test_time_to_idle_begins_with_the_answer() -> None:
    async def main() -> None:
        async with serving(early) as running, running.peer() as peer:
            connection = await running.connection()
            close_if_late = take_over(connection)
            connection.idle_since -= 1e6
            await peer.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: connection.timeout_keep_alive_task is not None)
            close_if_late(monotonic())
            assert not connection.transport.is_closing()

    asyncio.run(main())


# Clients that do not read


@pytest.mark.usefixtures("protocol", "seen")
def test_answer_that_nobody_takes_is_given_up(run: Run) -> None:
    async def main() -> None:
        async with serving(large) as running, running.peer() as peer:
            await peer.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            connection = await running.connection()
            close_if_late = take_over(connection)
            await until(lambda: connection.transport.get_write_buffer_size() > LARGE // 4)
            now = monotonic()
            for later in (0, 29):
                close_if_late(now + later)
                assert not connection.transport.is_closing()
            close_if_late(now + 31)
            await until(lambda: not running.connections)
            assert len(await peer.rest()) < LARGE

    run(main())


@pytest.mark.usefixtures("protocol", "seen")
def test_closing_connection_whose_answer_nobody_takes_is_given_up(run: Run) -> None:
    async def main() -> None:
        async with serving(large) as running, running.peer() as peer:
            await peer.say(LIVE + b"\r\n")
            connection = await running.connection()
            close_if_late = take_over(connection)
            await until(lambda: connection.is_idle() and connection.transport.is_closing())
            now = monotonic()
            close_if_late(now)
            close_if_late(now + 31)
            await until(lambda: not running.connections)

    run(main())


@pytest.mark.usefixtures("protocol", "seen")
def test_client_that_reads_slowly_gets_all_of_its_answer(run: Run) -> None:
    async def main() -> None:
        async with serving(large, drain=10) as running, running.peer() as peer:
            await peer.say(LIVE + b"\r\n")
            connection = await running.connection()
            close_if_late = take_over(connection)
            unsent = connection.transport.get_write_buffer_size
            await until(lambda: unsent() > LARGE // 4)
            now = monotonic()
            read = 0
            for _ in range(4):
                close_if_late(now)
                before = unsent()
                while unsent() >= before:
                    read += len(await peer.hear())
                now += 31
            close_if_late(now)
            assert read + len(await peer.rest()) > LARGE

    run(main())


@pytest.mark.usefixtures("protocol", "seen")
def test_application_that_writes_is_judged_only_once_it_is_paused(run: Run) -> None:
    async def main() -> None:
        closing: list[bool] = []
        now = monotonic()

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            (connection,) = running.connections
            close_if_late = take_over(connection)

            async def write_until(condition: Callable[[], bool]) -> None:
                while not condition():
                    await send({"type": "http.response.body", "body": bytes(4096), "more_body": 1})
                # Nothing is sent between these, so that nothing may be taken.
                for _ in range(2):
                    nonlocal now
                    now += 31
                    close_if_late(now)
                closing.append(connection.transport.is_closing())

            await send({"type": "http.response.start", "status": 200, "headers": []})
            await write_until(lambda: connection.transport.get_write_buffer_size() > 0)
            await write_until(lambda: connection.flow.write_paused)

        async with serving(stream) as running, running.peer() as peer:
            await peer.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: len(closing) == 2)
            assert closing == [False, True]

    run(main())


def test_where_a_part_of_a_write_is_not_seen_a_large_one_gets_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvicorn_server, "_UNSEEN_RATE", LARGE / 1000)

    async def main() -> None:
        async with serving(large) as running, running.peer() as peer:
            await peer.say(LIVE + b"\r\n")
            connection = await running.connection()
            close_if_late = take_over(connection)
            await until(lambda: connection.transport.get_write_buffer_size() > LARGE // 4)
            now = monotonic()
            for later, closed in [(0, False), (200, False), (1031, True)]:
                close_if_late(now + later)
                await asyncio.sleep(0)
                assert (not running.connections) is closed

    asyncio.run(main())


# The end


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize("parts", [1, 64])
def test_no_connection_outlives_the_server(parts: int, run: Run) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in range(parts):
            body = bytes(LARGE // parts)
            more = part + 1 < parts
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def main() -> None:
        async with serving(stream) as running, running.peer() as peer:
            await peer.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            connection = await running.connection()
            await until(lambda: connection.flow.write_paused)
            running.server.should_exit = True
            await until(lambda: not running.connections)
            await until(lambda: not running.server.server_state.tasks)

    run(main())
