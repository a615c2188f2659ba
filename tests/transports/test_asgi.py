"""The ASGI application: bodies and their limits, lost clients, prefixes, other scopes."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

import serving
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.protocols import Caller
from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp, Message, Scope, mount

EXPECTED = "expected an object with a coroutine method infer"
INFER = "/v2/models/stub/infer"
X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
BODY = json.dumps({"inputs": [X]}).encode()
DISCONNECT = {"type": "http.disconnect"}


def http_scope(method: str = "POST", path: str = INFER, **more: Any) -> Scope:
    headers: Mapping[str, str] = more.pop("headers", {})
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        **more,
    }


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Connection:
    """What a server is to an application: messages in order, then silence."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.received = 0
        self.sent: list[Message] = []
        self.waiting = asyncio.Event()
        """Set when the application waits for what never comes."""
        self.abandoned = asyncio.Event()
        """Set when it gave that up."""

    async def receive(self) -> Message:
        self.received += 1
        if self.messages:
            return self.messages.pop(0)
        self.waiting.set()
        try:
            return await asyncio.Future()
        finally:
            self.abandoned.set()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def content(self) -> Any:
        return json.loads(self.sent[1]["body"])


def talk(app: Any, scope: Scope, *messages: Message) -> Connection:
    async def main() -> Connection:
        connection = Connection(*messages)
        await app(scope, connection.receive, connection.send)
        return connection

    return asyncio.run(main())


def get(app: Any, path: str, **more: Any) -> Connection:
    return talk(app, http_scope("GET", path, **more))


# Bodies


def test_answer_is_a_start_and_one_body() -> None:
    connection = talk(ASGIApp(StubModel()), http_scope(), chunk(BODY))
    assert [message["type"] for message in connection.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    body = connection.sent[1]["body"]
    assert dict(connection.sent[0]["headers"])[b"content-length"] == b"%d" % len(body)
    assert connection.content["outputs"] == [X]


def test_body_may_come_in_pieces() -> None:
    pieces = [chunk(BODY[i : i + 7], more=True) for i in range(0, len(BODY), 7)]
    connection = talk(ASGIApp(StubModel()), http_scope(), *pieces, {"type": "http.request"})
    assert connection.content["outputs"] == [X]


def test_binary_answer_is_joined_into_one_body() -> None:
    body = json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}}).encode()
    sent = talk(ASGIApp(StubModel()), http_scope(), chunk(body)).sent
    head = int(dict(sent[0]["headers"])[b"inference-header-content-length"])
    assert type(sent[1]["body"]) is bytes
    assert np.frombuffer(sent[1]["body"][head:], np.float32).tolist() == [1.5, 2.5]


def test_nothing_is_received_where_no_body_is_wanted() -> None:
    assert get(ASGIApp(StubModel()), "/v2").received == 0


def test_quick_answer_receives_nothing_after_the_body() -> None:
    assert talk(ASGIApp(StubModel()), http_scope(), chunk(BODY)).received == 1


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (http_scope(headers={"content-length": "101"}), 413),
        (http_scope(headers={"content-length": "9" * 5000}), 413),
        (http_scope("GET"), 405),
        (http_scope(path="/nope"), 404),
        (http_scope(path="/v2/repository/models/stub/load"), 403),
    ],
    ids=["too large", "absurd", "method", "path", "control"],
)
def test_refusal_comes_before_the_body_is_read(scope: Scope, status: int) -> None:
    connection = talk(ASGIApp(StubModel(), max_body_size=100), scope)
    assert (connection.status, connection.received) == (status, 0)
    assert set(connection.content) == {"error"}


def test_caller_is_authenticated_before_the_body_is_read() -> None:
    connection = talk(ASGIApp(StubModel(), authenticator=APIKeys({})), http_scope())
    assert (connection.status, connection.received) == (401, 0)


@pytest.mark.parametrize(
    "messages",
    [
        [chunk(BODY + b" " * 100)],
        [chunk(BODY, more=True), chunk(b" " * 100, more=True), chunk(b"")],
        [chunk(b"", more=True), chunk(BODY + b" " * 100)],
    ],
    ids=["at once", "in pieces", "at the end"],
)
def test_body_over_the_limit_is_refused_while_it_comes(messages: Sequence[Message]) -> None:
    app = ASGIApp(StubModel(), max_body_size=len(BODY) + 50)
    connection = talk(app, http_scope(headers={"content-length": "1"}), *messages)
    assert connection.status == 413
    assert str(len(BODY) + 50) in connection.content["error"]


def test_body_of_just_the_limit_is_taken() -> None:
    app = ASGIApp(StubModel(), max_body_size=len(BODY))
    scope = http_scope(headers={"content-length": str(len(BODY))})
    assert talk(app, scope, chunk(BODY[:9], more=True), chunk(BODY[9:])).status == 200


@pytest.mark.parametrize("length", ["", "x", "-1", "+1", "²"])
def test_strange_content_length_is_left_to_the_server(length: str) -> None:
    scope = http_scope()
    scope["headers"] = [(b"content-length", length.encode("latin-1"))]
    assert talk(ASGIApp(StubModel()), scope, chunk(BODY)).status == 200


@pytest.mark.parametrize("first", [[], [chunk(BODY[:9], more=True)]], ids=["none", "some"])
def test_body_that_does_not_come_times_out(first: Sequence[Message]) -> None:
    stub = StubModel()
    seen: list[Exchange] = []
    app = ASGIApp(stub, body_timeout=0.01, record=seen.append)
    connection = talk(app, http_scope(), *first)
    assert connection.status == 408
    assert "0.01 seconds" in connection.content["error"]
    assert (stub.count, seen[0].code) == (0, "DEADLINE_EXCEEDED")
    assert connection.abandoned.is_set()


def test_body_may_take_any_time_without_a_timeout() -> None:
    async def main() -> int:
        release = asyncio.Event()

        async def receive() -> Message:
            await release.wait()
            return chunk(BODY)

        connection = Connection()
        app = ASGIApp(StubModel(), body_timeout=None)
        task = asyncio.create_task(app(http_scope(), receive, connection.send))
        await asyncio.sleep(0)
        release.set()
        await task
        return connection.status

    assert asyncio.run(main()) == 200


def test_unused_time_for_the_body_leaves_no_timer() -> None:
    """The task is not cancelled later on, when it does something else."""

    async def main() -> None:
        connection = Connection(chunk(BODY[:9], more=True))

        async def receive() -> Message:
            await asyncio.sleep(0)
            return await connection.receive() if connection.messages else chunk(BODY[9:])

        app = ASGIApp(StubModel(), body_timeout=0.01)
        await app(http_scope(), receive, connection.send)
        assert connection.status == 200
        await asyncio.sleep(0.03)

    asyncio.run(main())


@pytest.mark.parametrize("messages", [[], [chunk(BODY, more=True)]], ids=["at once", "midway"])
def test_client_lost_before_its_body_is_whole_gets_nothing(messages: Sequence[Message]) -> None:
    stub = StubModel()
    seen: list[Exchange] = []
    connection = talk(ASGIApp(stub, record=seen.append), http_scope(), *messages, DISCONNECT)
    assert connection.sent == []
    assert (stub.count, seen[0].code) == (0, "CANCELLED")


# Lost clients


class Waiting:
    """A predict function that waits until it is released or cancelled."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = False

    async def __call__(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.running.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return inputs


def test_waiting_outside_a_task_is_refused_clearly(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> Message:
        await asyncio.sleep(0)
        return chunk(BODY)

    async def main() -> int:
        connection = Connection()
        done = asyncio.Event()

        def step() -> None:
            with pytest.raises(StopIteration):
                ASGIApp(StubModel())(http_scope(), receive, connection.send).send(None)
            done.set()

        asyncio.get_running_loop().call_soon(step)
        await done.wait()
        return connection.status

    assert asyncio.run(main()) == 500
    assert "runs in an asyncio task" in caplog.text


def test_lost_client_takes_its_request_back() -> None:
    seen: list[Exchange] = []

    async def main() -> None:
        waiting = Waiting()
        connection = Connection(chunk(BODY), DISCONNECT)
        app = ASGIApp(StubModel(waiting), record=seen.append)
        await app(http_scope(), connection.receive, connection.send)
        assert waiting.cancelled
        assert connection.sent == []
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())
    assert [exchange.code for exchange in seen] == ["CANCELLED"]


def test_watched_client_gets_its_answer() -> None:
    async def main() -> None:
        waiting = Waiting()
        connection = Connection(chunk(BODY))
        app = ASGIApp(StubModel(waiting))
        task = asyncio.create_task(app(http_scope(), connection.receive, connection.send))
        await connection.waiting.wait()
        waiting.release.set()
        await task
        assert connection.content["outputs"] == [X]
        await connection.abandoned.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_disconnection_at_the_very_end_does_not_cancel_the_task() -> None:
    async def main() -> None:
        waiting = Waiting()
        connection = Connection(chunk(BODY))
        watched = asyncio.Event()

        async def receive() -> Message:
            if connection.messages:
                return await connection.receive()
            watched.set()
            await waiting.release.wait()
            return DISCONNECT

        app = ASGIApp(StubModel(waiting))
        task = asyncio.create_task(app(http_scope(), receive, connection.send))
        await watched.wait()
        waiting.release.set()
        await task
        assert connection.status == 200

    asyncio.run(main())


@pytest.mark.parametrize("error", [RuntimeError("odd"), asyncio.CancelledError()])
def test_server_that_cannot_tell_of_disconnection_is_let_be(error: BaseException) -> None:
    async def main() -> None:
        waiting = Waiting()
        connection = Connection(chunk(BODY))
        asked = asyncio.Event()

        async def receive() -> Message:
            if connection.messages:
                return await connection.receive()
            asked.set()
            raise error

        app = ASGIApp(StubModel(waiting))
        task = asyncio.create_task(app(http_scope(), receive, connection.send))
        await asked.wait()
        await asyncio.sleep(0)
        waiting.release.set()
        await task
        assert connection.status == 200

    asyncio.run(main())


def test_servable_that_turns_cancellation_into_an_error_is_not_answered_twice() -> None:
    class Stubborn(StubModel):
        async def infer(self, request: InferRequest) -> InferResponse:
            try:
                return await super().infer(request)
            except asyncio.CancelledError:
                return InferResponse("stub", "1", {})

    async def main() -> None:
        connection = Connection(chunk(BODY), DISCONNECT)
        app = ASGIApp(Stubborn(Waiting()))
        await app(http_scope(), connection.receive, connection.send)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert len(connection.sent) == 2

    asyncio.run(main())


def test_cancelling_the_task_itself_is_passed_on() -> None:
    seen: list[Exchange] = []

    async def main() -> None:
        waiting = Waiting()
        connection = Connection(chunk(BODY))
        app = ASGIApp(StubModel(waiting), record=seen.append)
        task = asyncio.create_task(app(http_scope(), connection.receive, connection.send))
        await waiting.running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting.cancelled
        assert connection.sent == []

    asyncio.run(main())
    assert [exchange.code for exchange in seen] == ["CANCELLED"]


def test_cancellation_within_the_servable_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(inputs: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.cancel("inside")
        return await future

    with caplog.at_level(logging.ERROR, "modelserve"):
        connection = talk(ASGIApp(StubModel(broken)), http_scope(), chunk(BODY))
    assert connection.status == 500
    assert "inside" in caplog.text


def test_client_lost_while_the_answer_is_sent_is_recorded() -> None:
    seen: list[Exchange] = []

    async def main() -> None:
        async def send(message: Message) -> None:
            raise OSError("gone")

        app = ASGIApp(StubModel(), record=seen.append)
        await app(http_scope(), Connection(chunk(BODY)).receive, send)

    asyncio.run(main())
    assert [(exchange.code, exchange.bytes_out) for exchange in seen] == [("CANCELLED", 0)]


def test_client_that_closes_its_socket_takes_its_request_back() -> None:
    cancelled = threading.Event()
    running = threading.Event()

    async def wait(inputs: Any) -> Any:
        running.set()
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    with serving.on_uvicorn(ASGIApp(StubModel(wait))) as url:
        port = httpx.URL(url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n"
            client.sendall(head.encode() + BODY)
            assert running.wait(5)
        assert cancelled.wait(5)


def test_too_large_body_is_answered_over_a_socket() -> None:
    with serving.on_uvicorn(ASGIApp(StubModel(), max_body_size=1000)) as url:
        declared = httpx.post(f"{url}{INFER}", content=bytes(100_000), trust_env=False)
        pieces = (bytes(1000) for _ in range(100))
        chunked = httpx.post(f"{url}{INFER}", content=pieces, trust_env=False)
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert set(declared.json()) == {"error"}


def test_slow_body_is_answered_over_a_socket() -> None:
    with serving.on_uvicorn(ASGIApp(StubModel(), body_timeout=0.05)) as url:
        port = httpx.URL(url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n"
            client.sendall(head.encode() + BODY[:9])
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")


# Prefixes


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("", "/v2", 200),
        ("/ml", "/ml/v2", 200),
        ("/ml/", "/ml/v2", 200),
        ("/ml", "/v2", 200),
        ("/a/b", "/a/b/v2", 200),
        ("/ml", "/mlv2", 404),
        ("/ml", "/ml", 200),
        ("/", "/v2", 200),
        ("/v2", "/v2/v2", 200),
        ("/é", "/é/v2", 200),
    ],
)
def test_prefix_is_taken_off_where_the_server_left_it(
    root_path: str, path: str, status: int
) -> None:
    app = ASGIApp(StubModel())
    assert get(app, path, root_path=root_path).status == status


@pytest.mark.parametrize(
    ("raw_path", "status"),
    [
        (b"/v2/models/a%20b", 200),
        (b"/v2/models/a%2Fb", 404),
        (b"/v2/models/a%2fb", 404),
        (None, 200),
    ],
)
def test_encoded_slash_is_no_separator(raw_path: bytes | None, status: int) -> None:
    app = ASGIApp(StubModel(name="a b"))
    assert get(app, "/v2/models/a b", raw_path=raw_path).status == status


async def host(scope: Scope, receive: Any, send: Any) -> None:
    await send({"type": "host", "scope": scope})


@pytest.mark.parametrize(
    ("path", "mine"),
    [
        ("/ml", True),
        ("/ml/", True),
        ("/ml/v2", True),
        ("/mlx", False),
        ("/", False),
        ("/x/ml/v2", False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("prefix", ["/ml", "/ml/"])
def test_mount_gives_away_its_prefix_only(path: str, mine: bool, kind: str, prefix: str) -> None:
    async def inner(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "inner", "scope": scope})

    scope = {"type": kind, "path": path, "root_path": ""}
    (message,) = talk(mount(host, prefix, inner), scope).sent
    if mine:
        assert message["type"] == "inner"
        assert message["scope"] == {"type": kind, "path": path, "root_path": "/ml"}
    else:
        assert message == {"type": "host", "scope": scope}


@pytest.mark.parametrize("path", ["/front/ml/v2", "/ml/v2"])
def test_mount_below_a_root_keeps_the_whole_path(path: str) -> None:
    app = mount(None, "/ml", StubModel())
    assert get(app, path, root_path="/front").status == 200


def test_mount_gives_lifespan_to_the_host() -> None:
    scope = {"type": "lifespan"}
    assert talk(mount(host, "/ml", StubModel()), scope).sent == [{"type": "host", "scope": scope}]


@pytest.mark.parametrize("path", ["", "/", "ml"])
def test_mount_without_a_prefix_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="a prefix is like"):
        mount(host, path, StubModel())


def test_mount_beside_nothing_answers_not_found() -> None:
    connection = get(mount(None, "/ml", StubModel()), "/")
    assert (connection.status, set(connection.content)) == (404, {"error"})


# Other scopes


@pytest.mark.parametrize(
    ("app", "path"),
    [(ASGIApp(StubModel()), "/v2"), (mount(None, "/ml", StubModel()), "/ml/v2")],
    ids=["alone", "mounted"],
)
def test_lifespan_is_answered_and_changes_nothing(app: Any, path: str) -> None:
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert talk(app, {"type": "lifespan"}, *events).sent == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]
    assert get(app, path).status == 200


@pytest.mark.parametrize("app", [ASGIApp(StubModel()), mount(None, "/ml", StubModel())])
def test_websocket_is_closed(app: Any) -> None:
    scope = {"type": "websocket", "path": "/", "root_path": ""}
    (message,) = talk(app, scope, {"type": "websocket.connect"}).sent
    assert message["type"] == "websocket.close"


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match='unknown ASGI scope type "other"'):
        talk(ASGIApp(StubModel()), {"type": "other"})


# Construction


class Measured(StubModel):
    """A servable that keeps metrics."""

    class metrics:
        @staticmethod
        def render(accept: str = "") -> tuple[bytes, str]:
            return b"{}", "application/json"


class OtherMetrics:
    def render(self, accept: str = "") -> tuple[bytes, str]:
        return b"[]", "application/json"


@pytest.mark.parametrize(
    ("servable", "metrics", "status"),
    [
        (Measured(), True, 200),
        (Measured(), False, 501),
        (StubModel(), True, 501),
        (StubModel(), OtherMetrics(), 200),
    ],
    ids=range(4),
)
def test_metrics_are_the_servables_own_or_given_ones(
    servable: Any, metrics: Any, status: int
) -> None:
    assert get(ASGIApp(servable, metrics=metrics), "/metrics").status == status


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_time_for_the_body_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="body_timeout"):
        ASGIApp(StubModel(), body_timeout=timeout)


def test_one_app_serves_several_loops_in_turn_and_at_once() -> None:
    app = ASGIApp(StubModel(latency=0.001))
    talk(app, http_scope(), chunk(BODY))
    statuses: list[int] = []

    def run() -> None:
        statuses.append(talk(app, http_scope(), chunk(BODY)).status)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert statuses == [200] * 4


def test_authenticator_that_breaks_is_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def authenticate(self, caller: Caller) -> Any:
            raise KeyError("secret")

    connection = talk(ASGIApp(StubModel(), authenticator=Broken()), http_scope())
    assert connection.status == 500
    assert "secret" not in connection.content["error"]
    assert "secret" in caplog.text


def test_receive_may_be_any_awaitable() -> None:
    """As granian's is: not a coroutine function."""

    async def main() -> int:
        connection = Connection(chunk(BODY))

        def receive() -> Awaitable[Message]:
            return asyncio.ensure_future(connection.receive())

        await ASGIApp(StubModel())(http_scope(), receive, connection.send)
        return connection.status

    assert asyncio.run(main()) == 200


# What is no servable


@pytest.mark.parametrize(
    ("thing", "name"),
    [(object(), "object"), ("models", "str"), (None, "NoneType"), (StubModel, "the class Stub")],
)
def test_what_cannot_infer_is_refused_at_once(thing: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{EXPECTED}.*; got {name}"):
        ASGIApp(thing)


@pytest.mark.parametrize("thing", [object(), "models", None, StubModel])
def test_mount_refuses_what_is_neither_application_nor_servable(thing: Any) -> None:
    with pytest.raises(TypeError, match=EXPECTED):
        mount(None, "/ml", thing)


def test_mount_refuses_an_application_that_cannot_be_called() -> None:
    beside: Any = StubModel()
    with pytest.raises(TypeError, match="app: expected an ASGI application or None, got StubModel"):
        mount(beside, "/ml", StubModel())
