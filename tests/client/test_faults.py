"""The clients against a server that drops, stalls, babbles or floods."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from threading import Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest

from modelserve import errors
from modelserve.client import AsyncClient, Client, Retries
from modelserve.codecs import oip
from modelserve.messages import InferResponse

Ask = Callable[..., Any]
Make = Callable[..., Any]

X = {"x": np.arange(4, dtype=np.float32).reshape(1, 4)}
QUICK: dict[str, Any] = {"retries": Retries(2, base=0.001)}
BODY = b"".join(oip.encode_response(InferResponse("iris", "3", X))[0])


def reply(status: int = 200, body: bytes = BODY, *headers: str) -> Any:
    def behave(server: Any, connection: socket.socket) -> bool:
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)
        return True

    return behave


def say(data: bytes) -> Any:
    """Send bytes and close the connection."""

    def behave(server: Any, connection: socket.socket) -> bool:
        connection.sendall(data)
        return False

    return behave


def stall(server: Any, connection: socket.socket) -> bool:
    server.stop.wait()
    return False


def drip(data: bytes) -> Any:
    """Send a start, and then a byte every so often for as long as the client listens."""

    def behave(server: Any, connection: socket.socket) -> bool:
        connection.sendall(data)
        while not server.stop.wait(0.02):
            connection.sendall(b"a")
        return False

    return behave


drop = say(b"")


def test_lost_request_is_sent_again(ask: Ask, scripted: Make) -> None:
    server = scripted(drop, drop, reply())
    outputs = ask(server.url, "predict", "iris", X, options=QUICK)
    np.testing.assert_array_equal(outputs["x"], X["x"])
    assert len(server.requests) == 3


def test_request_lost_every_time_is_unavailable(ask: Ask, scripted: Make) -> None:
    server = scripted(drop)
    with pytest.raises(errors.UnavailableError, match="without an answer"):
        ask(server.url, "predict", "iris", X, options=QUICK)
    assert len(server.requests) == 3


@pytest.mark.parametrize("start", [b"HTT", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
def test_answer_that_breaks_off_is_not_asked_for_again(
    ask: Ask, scripted: Make, start: bytes
) -> None:
    server = scripted(say(start))
    with pytest.raises(errors.UnavailableError, match="broke off"):
        ask(server.url, "predict", "iris", X, options=QUICK)
    assert len(server.requests) == 1


def test_answer_that_is_not_http_is_the_servers_fault(ask: Ask, scripted: Make) -> None:
    server = scripted(say(b"SSH-2.0-OpenSSH\r\n\r\n"))
    with pytest.raises(errors.UnavailableError, match="not HTTP"):
        ask(server.url, "predict", "iris", X, options=QUICK)


def test_503_with_retry_after_then_an_answer(ask: Ask, scripted: Make) -> None:
    server = scripted(reply(503, b'{"error":"full"}', "retry-after: 0"), reply())
    assert list(ask(server.url, "predict", "iris", X, options=QUICK)) == ["x"]
    assert len(server.requests) == 2
    assert server.connections == 1


def test_503_without_retry_after_is_final(ask: Ask, scripted: Make) -> None:
    server = scripted(reply(503, b'{"error":"not loaded"}'), reply())
    with pytest.raises(errors.UnavailableError, match="not loaded"):
        ask(server.url, "predict", "iris", X, options=QUICK)
    assert len(server.requests) == 1


def test_nobody_listening_is_unavailable(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.UnavailableError, match="cannot be reached: connection refused"):
        ask(f"http://127.0.0.1:{port}", "predict", "iris", X, options=QUICK)


@pytest.mark.parametrize(
    "behaviour",
    [
        stall,
        drip(b""),
        drip(b"HTTP/1.1 200 OK\r\nx: "),
        drip(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 5000),
    ],
    ids=["silence", "status", "headers", "body", "more body"],
)
def test_deadline_bounds_the_whole_call(ask: Ask, scripted: Make, behaviour: Any) -> None:
    server = scripted(behaviour)
    started = monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        ask(server.url, "predict", "iris", X, timeout=0.3, options=QUICK)
    assert 0.29 <= monotonic() - started < 2.0
    assert len(server.requests) == 1


def test_deadline_bounds_a_server_that_does_not_read(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            ask(url, "predict", "iris", {"x": np.zeros(1 << 23, np.float32)}, timeout=0.5)
        assert monotonic() - started < 3.0


def test_clients_timeout_bounds_a_call_without_one(ask: Ask, scripted: Make) -> None:
    server = scripted(stall)
    with pytest.raises(errors.DeadlineExceeded):
        ask(server.url, "index", options={"timeout": 0.2})


def test_wait_for_a_connection_counts(scripted: Make) -> None:
    server = scripted(stall)
    with Client(server.url, max_connections=1, retries=0) as client:
        failures: list[errors.ServeError] = []

        def first() -> None:
            try:
                client.index()
            except errors.ServeError as error:
                failures.append(error)

        thread = Thread(target=first)
        thread.start()
        end = monotonic() + 5
        while not server.requests:
            assert monotonic() < end
        with pytest.raises(errors.DeadlineExceeded):
            client.predict("iris", X, timeout=0.2)
        assert server.connections == 1
        server.stop.set()
        thread.join()
    assert isinstance(failures[0], errors.UnavailableError)


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5000\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n1388\r\n",
        b"connection: close\r\n\r\n",
    ],
    ids=["stated", "chunked", "until close"],
)
def test_answer_over_the_limit_is_refused(ask: Ask, scripted: Make, head: bytes) -> None:
    server = scripted(say(b"HTTP/1.1 200 OK\r\n" + head + b"a" * 5000))
    with pytest.raises(errors.ServeError, match="max_response_size"):
        ask(server.url, "index", options={"max_response_size": 1000})
    assert len(server.requests) == 1


def test_flood_of_headers_is_refused(ask: Ask, scripted: Make) -> None:
    server = scripted(say(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1_000_000))
    with pytest.raises(errors.UnavailableError):
        ask(server.url, "index", options=QUICK)


def test_redirect_is_not_followed(ask: Ask, scripted: Make) -> None:
    server = scripted(reply(307, b"", "location: http://127.0.0.1:9/"))
    with pytest.raises(errors.ServeError, match="307"):
        ask(server.url, "index")


def test_answer_before_the_body_was_read_is_heard(ask: Ask) -> None:
    """A server may refuse a large body by its head and close."""

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(
                b"HTTP/1.1 413 x\r\ncontent-length: 20\r\nconnection: close\r\n\r\n"
                b'{"error":"too much"}'
            )
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=refuse, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.PayloadTooLarge, match="too much"):
            ask(url, "predict", "iris", {"x": np.zeros(1 << 20, np.float32)}, timeout=5.0)
        thread.join()


@pytest.mark.parametrize("name", ["a\r\nb", "a b"])
def test_header_that_is_not_one_is_refused(ask: Ask, scripted: Make, name: str) -> None:
    server = scripted(reply())
    with pytest.raises(errors.InvalidInput, match="header"):
        ask(server.url, "index", options={"headers": {name: "v"}})
    assert server.requests == []


def test_calls_share_a_connection(scripted: Make) -> None:
    server = scripted(reply())
    with Client(server.url) as client:
        for _ in range(5):
            client.predict("iris", X)
    assert (server.connections, len(server.requests)) == (1, 5)


def test_connection_closed_between_calls_is_opened_anew(scripted: Make) -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    server = scripted(say(whole))
    with Client(server.url, retries=1) as client:
        for _ in range(3):
            assert list(client.predict("iris", X)) == ["x"]
    assert server.connections == 3


def test_idle_connection_the_server_closed_is_not_used(scripted: Make) -> None:
    server = scripted(reply())
    with Client(server.url, retries=0) as client:
        client.predict("iris", X)
        server.hang_up()
        client.predict("iris", X)
    assert server.connections == 2


def test_idle_connection_the_server_closed_is_not_used_by_asyncio(scripted: Make) -> None:
    server = scripted(reply())

    async def main() -> None:
        async with AsyncClient(server.url, retries=0) as client:
            await client.predict("iris", X)
            server.hang_up()
            await client.predict("iris", X)

    asyncio.run(main())
    assert server.connections == 2
