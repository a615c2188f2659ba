"""Serving over HTTP by itself: addresses, start and stop, control routes, signals."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.address import Address
from modelserve.transports.http1.limits import Limits
from modelserve.transports.serving import HTTPServer, serve
from processes import half_a_request, python, wait_until_refused

INFER = "/v2/models/stub/infer"
UNLOAD = "/v2/repository/models/stub/unload"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]}

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")


class Slow:
    """A model that says when a request is in it, and answers when it is let."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.model = StubModel(self._answer)

    async def _answer(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.entered.set()
        await self.gate.wait()
        return inputs


def port_of(server: HTTPServer) -> int:
    return int(server.url.rpartition(":")[2])


async def refuses(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it waited to be accepted when the listener was closed
        return False
    writer.close()
    return False


async def until_refused(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            if await refuses(port):
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def client_of(server: HTTPServer) -> AsyncIterator[httpx.AsyncClient]:
    path = server.url.removeprefix("unix:")
    unix = path != server.url
    transport = httpx.AsyncHTTPTransport(uds=path if unix else None)
    url = "http://unix" if unix else server.url.replace("0.0.0.0", "127.0.0.1")
    async with httpx.AsyncClient(transport=transport, base_url=url, timeout=10) as client:
        yield client


async def answers(server: HTTPServer) -> bool:
    async with client_of(server) as client:
        return (await client.post(INFER, json=BODY)).status_code == 200


@pytest.fixture
def short_path() -> Iterator[Path]:
    # The path of a Unix socket has about a hundred characters; pytest's are longer.
    with TemporaryDirectory(prefix="ms-") as directory:
        yield Path(directory)


# Addresses


@pytest.mark.parametrize(
    ("text", "where", "loopback", "shown"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000, ""), True, "http://127.0.0.1:8000"),
        ("127.9.9.9:1", ("127.9.9.9", 1, ""), True, "http://127.9.9.9:1"),
        ("localhost:0", ("localhost", 0, ""), True, "http://localhost:0"),
        (":8000", ("127.0.0.1", 8000, ""), True, "http://127.0.0.1:8000"),
        ("[::1]:65535", ("::1", 65535, ""), True, "http://[::1]:65535"),
        ("0.0.0.0:80", ("0.0.0.0", 80, ""), False, "http://0.0.0.0:80"),
        ("[::]:80", ("::", 80, ""), False, "http://[::]:80"),
        ("10.0.0.7:80", ("10.0.0.7", 80, ""), False, "http://10.0.0.7:80"),
        ("models.example:80", ("models.example", 80, ""), False, "http://models.example:80"),
        ("localhost.example:80", ("localhost.example", 80, ""), False, None),
        ("unix:/run/ms.sock", ("", 0, "/run/ms.sock"), True, "unix:/run/ms.sock"),
        ("unix:ms:1.sock", ("", 0, "ms:1.sock"), True, "unix:ms:1.sock"),
    ],
)
def test_address(text: str, where: tuple[str, int, str], loopback: bool, shown: str | None) -> None:
    address = Address(text)
    assert (address.host, address.port, address.path) == where
    assert address.loopback is loopback
    assert str(address) == (shown or f"http://{text}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no address"),
        ("127.0.0.1", "is no address"),
        ("8000", "is no address"),
        ("127.0.0.1:", "is no address"),
        ("127.0.0.1:http", "is no address"),
        ("127.0.0.1:65536", "is no address"),
        ("127.0.0.1:-1", "is no address"),
        ("127.0.0.1:٣", "is no address"),
        ("http://127.0.0.1:8000/", "is no address"),
        ("::1:8000", "stands in brackets"),
        ("unix:", "needs a path"),
    ],
)
def test_what_is_no_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Address(text)


# Start and stop


def test_url_has_the_real_port_once_started() -> None:
    async def main() -> None:
        server = HTTPServer(StubModel(), http="127.0.0.1:0")
        assert server.url == "http://127.0.0.1:0"
        async with server:
            assert port_of(server) > 0
            assert await answers(server)

    asyncio.run(main())


def test_two_servers_live_in_one_loop() -> None:
    async def main() -> None:
        async with (
            HTTPServer(StubModel(version="1"), http="127.0.0.1:0") as one,
            HTTPServer(StubModel(version="2"), http="127.0.0.1:0") as two,
        ):
            versions = []
            for server in (one, two):
                async with client_of(server) as client:
                    answer = await client.post(INFER, json=BODY)
                    versions.append(answer.json()["model_version"])
            await one.stop()
            assert versions == ["1", "2"]
            assert await answers(two)

    asyncio.run(main())


def test_request_under_way_is_answered_after_stop_begins() -> None:
    async def main() -> None:
        slow = Slow()
        server = HTTPServer(slow.model, http="127.0.0.1:0")
        await server.start()
        async with client_of(server) as client:
            asked = asyncio.create_task(client.post(INFER, json=BODY))
            await slow.entered.wait()
            stopping = asyncio.create_task(server.stop())
            await until_refused(port_of(server))
            assert not stopping.done()
            slow.gate.set()
            assert (await asked).json()["outputs"] == BODY["inputs"]
            await stopping

    asyncio.run(main())


def test_stop_closes_idle_connections() -> None:
    async def main() -> None:
        server = HTTPServer(StubModel(), http="127.0.0.1:0", drain=30.0)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with asyncio.timeout(10):  # far less than the time to drain
            await server.stop()
            await reader.read()
        writer.close()

    asyncio.run(main())


def test_request_that_outlasts_the_drain_is_given_up() -> None:
    async def main() -> None:
        slow = Slow()
        server = HTTPServer(slow.model, http="127.0.0.1:0", drain=0.05)
        await server.start()
        async with client_of(server) as client:
            asked = asyncio.create_task(client.post(INFER, json=BODY))
            await slow.entered.wait()
            async with asyncio.timeout(10):
                await server.stop()
                answer = await asked  # though its gate never opened
                assert answer.status_code == 503
                assert answer.json() == {"error": "the server is stopping"}

    asyncio.run(main())


def test_cancelled_stop_ends_the_server_all_the_same() -> None:
    async def main() -> None:
        slow = Slow()
        server = HTTPServer(slow.model, http="127.0.0.1:0")
        await server.start()
        async with client_of(server) as client:
            asked = asyncio.create_task(client.post(INFER, json=BODY))
            await slow.entered.wait()
            stopping = asyncio.create_task(server.stop())
            await until_refused(port_of(server))
            stopping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopping
            slow.gate.set()
            assert (await asked).status_code == 200
            async with asyncio.timeout(10):
                await server.wait()

    asyncio.run(main())


def test_wait_returns_when_the_server_was_stopped() -> None:
    async def main() -> None:
        async with HTTPServer(StubModel(), http="127.0.0.1:0") as server:
            waiting = asyncio.create_task(server.wait())
            await server.stop()
            async with asyncio.timeout(10):
                await waiting

    asyncio.run(main())


def test_stop_may_come_before_start_and_twice() -> None:
    async def main() -> None:
        server = HTTPServer(StubModel(), http="127.0.0.1:0")
        await server.stop()
        await server.start()
        await server.stop()
        await server.stop()
        assert await refuses(port_of(server))

    asyncio.run(main())


def test_server_is_started_once() -> None:
    async def main() -> None:
        async with HTTPServer(StubModel(), http="127.0.0.1:0") as server:
            with pytest.raises(RuntimeError, match="started already"):
                await server.start()
            assert await answers(server)

    asyncio.run(main())


def test_taken_address_is_refused_by_name_and_leaves_nothing() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = HTTPServer(StubModel(), http=f"127.0.0.1:{port}")
            with pytest.raises(OSError, match=f"cannot listen on http://127.0.0.1:{port}: addr"):
                await server.start()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        await server.start()  # free by now
        assert await answers(server)
        await server.stop()

    asyncio.run(main())


def test_foreign_address_is_refused_by_name() -> None:
    server = HTTPServer(StubModel(), http="192.0.2.1:0")  # of no machine: RFC 5737
    with pytest.raises(OSError, match=r"cannot listen on http://192\.0\.2\.1:0: "):
        asyncio.run(server.start())


def test_cancelled_start_leaves_nothing() -> None:
    async def main() -> None:
        server = HTTPServer(StubModel(), http="127.0.0.1:0")
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        port = port_of(server)
        assert port, "it listens already, and did not return yet"
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await refuses(port)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("name", ["http1", "uvicorn"])
@pytest.mark.parametrize("drain", [1e10, 1e300, float("inf")])
def test_drain_may_be_longer_than_any_timer(drain: float, name: Any) -> None:
    async def main() -> None:
        slow = Slow()
        server = HTTPServer(slow.model, http="127.0.0.1:0", server=name, drain=drain)
        async with server, client_of(server) as client:
            asked = asyncio.create_task(client.post(INFER, json=BODY))
            await slow.entered.wait()
            stopping = asyncio.create_task(server.stop())
            await until_refused(port_of(server))
            slow.gate.set()
            assert (await asked).status_code == 200
            await stopping

    asyncio.run(main())


@pytest.mark.parametrize("drain", [-1.0, float("nan")])
def test_drain_is_a_time(drain: float) -> None:
    with pytest.raises(ValueError, match="drain is 0 or more seconds"):
        HTTPServer(StubModel(), drain=drain)


# What it leaves alone, and what it sets


def test_server_touches_no_signal_and_no_switch_interval() -> None:
    async def main() -> None:
        before = (signal.getsignal(signal.SIGINT), sys.getswitchinterval())
        async with HTTPServer(StubModel(), http="127.0.0.1:0"):
            assert (signal.getsignal(signal.SIGINT), sys.getswitchinterval()) == before

    asyncio.run(main())


def test_hosts_access_log_keeps_its_handlers_and_gets_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("uvicorn.access")
    before = (list(log.handlers), log.propagate, log.level)
    log.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="uvicorn.access")

    async def main() -> None:
        async with HTTPServer(StubModel(), http="127.0.0.1:0") as server:
            assert await answers(server)
            assert caplog.handler in log.handlers
            assert log.propagate

    try:
        asyncio.run(main())
    finally:
        log.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.name == "uvicorn.access"] == []
    assert (list(log.handlers), log.propagate) == before[:2]


def test_small_answers_are_sent_at_once() -> None:
    # With Nagle's algorithm on, an answer may wait 40 ms for the client's acknowledgement.
    async def main() -> None:
        async with HTTPServer(StubModel(), http="127.0.0.1:0") as server, client_of(server) as c:
            await c.get("/v2/health/live")
            (connection,) = server._listener._connections
            accepted = connection._transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    # On a plain loop: uvloop does so for every socket.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_ipv6() -> None:
    async def main() -> None:
        server = HTTPServer(StubModel(), http="[::1]:0")
        try:
            await server.start()
        except OSError as error:
            pytest.skip(str(error))
        assert server.url.startswith("http://[::1]:")
        assert await answers(server)
        await server.stop()

    asyncio.run(main())


# Control routes


def unload(server: HTTPServer, key: str = "") -> httpx.Response:
    async def main() -> httpx.Response:
        async with server, client_of(server) as client:
            return await client.post(UNLOAD, headers={"x-api-key": key} if key else {})

    return asyncio.run(main())


def test_control_routes_are_on_where_only_this_machine_reaches_them() -> None:
    assert unload(HTTPServer(StubModel(), http="127.0.0.1:0")).status_code == 200


def test_control_routes_on_loopback_are_not_for_what_a_proxy_passes_on() -> None:
    async def main() -> int:
        server = HTTPServer(StubModel(), http="127.0.0.1:0")
        async with server, client_of(server) as client:
            return (await client.post(UNLOAD, headers={"x-forwarded-for": "1.2.3.4"})).status_code

    assert asyncio.run(main()) == 403


@unix_sockets
def test_control_routes_are_on_at_a_unix_socket(short_path: Path) -> None:
    assert unload(HTTPServer(StubModel(), http=f"unix:{short_path / 's'}")).status_code == 200


def test_control_routes_are_off_elsewhere_and_the_refusal_says_how_to_turn_them_on() -> None:
    answer = unload(HTTPServer(StubModel(), http="0.0.0.0:0"))
    assert answer.status_code == 403
    assert "admin=True" in answer.json()["error"]


def test_control_routes_may_be_turned_off() -> None:
    assert unload(HTTPServer(StubModel(), http="127.0.0.1:0", admin=False)).status_code == 403


def test_control_routes_are_on_elsewhere_for_whoever_proves_who_it_is() -> None:
    key, hashed = APIKeys.generate()
    keys = APIKeys({"ada": (hashed, {"admin"})})
    assert unload(HTTPServer(StubModel(), http="0.0.0.0:0", authenticator=keys)).status_code == 401
    answer = unload(HTTPServer(StubModel(), http="0.0.0.0:0", authenticator=keys), key)
    assert answer.status_code == 200


def test_control_routes_for_everyone_are_refused_and_the_refusal_says_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"give an authenticator, or listen on 127\.0\.0\.1"):
        HTTPServer(StubModel(), http="0.0.0.0:0", admin=True)


# Unix sockets


@unix_sockets
def test_unix_socket_answers_and_is_removed(short_path: Path) -> None:
    async def main() -> None:
        path = short_path / "s"
        async with HTTPServer(StubModel(), http=f"unix:{path}") as server:
            assert server.url == f"unix:{path}"
            assert await answers(server)
        assert not path.exists()

    asyncio.run(main())


@unix_sockets
def test_socket_of_a_dead_server_is_replaced(short_path: Path) -> None:
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()

    async def main() -> None:
        async with HTTPServer(StubModel(), http=f"unix:{path}") as server:
            assert await answers(server)

    assert path.exists()
    asyncio.run(main())


@unix_sockets
def test_socket_of_a_living_server_is_left_alone(short_path: Path) -> None:
    async def main() -> None:
        address = f"unix:{short_path / 's'}"
        async with HTTPServer(StubModel(), http=address) as living:
            with pytest.raises(OSError, match=f"cannot listen on {address}: address already"):
                await HTTPServer(StubModel(), http=address).start()
            assert await answers(living)

    asyncio.run(main())


@unix_sockets
def test_file_in_the_place_of_a_unix_socket_is_left_alone(short_path: Path) -> None:
    path = short_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="cannot listen on unix:"):
        asyncio.run(HTTPServer(StubModel(), http=f"unix:{path}").start())
    assert path.read_text() == "precious"


@unix_sockets
def test_successors_socket_outlives_the_server_before_it(short_path: Path) -> None:
    async def main() -> None:
        path = short_path / "s"
        slow = Slow()
        first = HTTPServer(slow.model, http=f"unix:{path}")
        await first.start()
        async with client_of(first) as client:
            asked = asyncio.create_task(client.post(INFER, json=BODY))
            await slow.entered.wait()
            stopping = asyncio.create_task(first.stop())
            second = HTTPServer(StubModel(), http=f"unix:{path}")
            async with asyncio.timeout(10):
                while True:
                    try:
                        await second.start()
                        break
                    except OSError:  # the first one still listens
                        await asyncio.sleep(0.005)
            slow.gate.set()
            assert (await asked).status_code == 200
            await stopping
        assert await answers(second)
        await second.stop()
        assert not path.exists()

    asyncio.run(main())


# serve()

SERVE = """
import json, signal, sys
from modelserve.testing import StubModel
from modelserve.transports.serving import serve

def facts():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    return handlers, sys.getswitchinterval()

signal.signal(signal.SIGTERM, lambda *_: None)
before = facts()
during = []

def ready(url):
    during.append(facts())
    print(url, flush=True)

serve(StubModel(), http="127.0.0.1:0", on_ready=ready)
[(handlers, interval)] = during
print(json.dumps({
    "restored": facts() == before,
    "handled": [a is not b for a, b in zip(handlers, before[0])],
    "interval": round(interval, 6),
}))
"""


@posix
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])],
)
def test_serve_answers_what_is_under_way_at_a_signal_and_returns(
    number: signal.Signals, environment: dict[str, str]
) -> None:
    with python(["-c", SERVE], environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        body = json.dumps(BODY).encode()
        with half_a_request(port, INFER, body) as connection:
            process.send_signal(number)
            wait_until_refused(port)
            connection.sendall(body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        rest, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert json.loads(rest) == {"restored": True, "handled": [True, True], "interval": 1e-4}
    assert errors == ""


@posix
def test_second_signal_ends_the_wait_for_what_is_under_way(environment: dict[str, str]) -> None:
    with python(["-c", SERVE], environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        with half_a_request(port, INFER, b"{}") as connection:  # the rest never comes
            process.send_signal(signal.SIGINT)
            wait_until_refused(port)
            process.send_signal(signal.SIGINT)
            assert connection.recv(1000).startswith(b"HTTP/1.1 503")
            _, errors = process.communicate(timeout=10)  # a third of the time to drain
    assert (process.returncode, errors) == (0, "")


def test_serve_in_another_thread_leaves_the_signals_alone(
    fresh_python: Callable[..., str],
) -> None:
    printed = fresh_python(
        "import signal, threading, urllib.request\n"
        "from modelserve.testing import StubModel\n"
        "from modelserve.transports.serving import serve\n"
        "before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]\n"
        "urls, ready = [], threading.Event()\n"
        "def on_ready(url):\n"
        "    urls.append(url)\n"
        "    ready.set()\n"
        "options = {'http': '127.0.0.1:0', 'on_ready': on_ready}\n"
        "threading.Thread(\n"
        "    target=serve, args=(StubModel(),), kwargs=options, daemon=True\n"
        ").start()\n"
        "assert ready.wait(10)\n"
        "print(urllib.request.urlopen(urls[0] + '/v2/health/live').status)\n"
        "print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before)\n"
    )
    assert printed.split() == ["200", "True"]


def test_serve_that_cannot_listen_puts_everything_back() -> None:
    before = (signal.getsignal(signal.SIGINT), sys.getswitchinterval())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            serve(StubModel(), http=f"127.0.0.1:{port}")
    assert (signal.getsignal(signal.SIGINT), sys.getswitchinterval()) == before


def test_serve_whose_on_ready_fails_stops_serving() -> None:
    urls: list[str] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        raise LookupError("no")

    with pytest.raises(LookupError):
        serve(StubModel(), http="127.0.0.1:0", on_ready=on_ready)
    host, _, port = urls[0].removeprefix("http://").partition(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/v2")


@posix
@unix_sockets
def test_serve_on_a_unix_socket_removes_it_at_the_end(
    environment: dict[str, str], short_path: Path
) -> None:
    path = short_path / "s"
    code = SERVE.replace('"127.0.0.1:0"', repr(f"unix:{path}"))
    with python(["-c", code], environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"unix:{path}\n"
        assert path.is_socket()
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert not path.exists()


def test_serve_inside_a_loop_says_what_to_use_there() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with HTTPServer"):
            serve(StubModel(), http="127.0.0.1:0")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limits", "error", "told"),
    [
        ({"header_timeout": "3"}, TypeError, "header_timeout is a number, got '3'"),
        ({"idle_timeout": None}, TypeError, "idle_timeout is a number, got None"),
        ({"max_headers": True}, TypeError, "max_headers is a number, got True"),
        ({"body_timeout": 0}, ValueError, "body_timeout is above 0, got 0"),
        ({"max_connections": -1}, ValueError, "max_connections is above 0, got -1"),
        ({"write_timeout": float("nan")}, ValueError, "write_timeout is above 0, got nan"),
    ],
)
def test_wrong_limit_is_named(limits: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Limits(**limits)


def test_limits_are_limits() -> None:
    wrong: Any = {"max_connections": 3}
    with pytest.raises(TypeError, match="limits: expected a Limits, got dict"):
        HTTPServer(StubModel(), limits=wrong)
    with pytest.raises(ValueError, match="uvicorn has its own"):
        HTTPServer(StubModel(), server="uvicorn", limits=Limits())
