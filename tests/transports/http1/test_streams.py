"""Answers that come piece by piece: events, back-pressure, ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modelserve.errors import InvalidInput
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.http1 import Limits
from modelserve.transports.uvicorn_server import UvicornServer
from transports.http1.models import served, until
from transports.http1.rows import get
from transports.raw_http import BOUND, peer_of

PATH = "/v2/models/count/generate_stream"


class Counts(StubModel):
    """Counts without an end, or until it fails; keeps what became of it."""

    def __init__(self, *, text: str = "", most: int = 1 << 60, failure: Any = None) -> None:
        super().__init__(name="count")
        self._text, self._most, self._failure = text, most, failure
        self.given = 0
        self.ended = 0
        self.exchanges: list[Exchange] = []

    async def stream(self, request: Any) -> AsyncIterator[InferResponse]:
        try:
            while self.given < self._most:
                self.given += 1
                yield InferResponse("count", "1", {}, parameters={"text": self._text})
                await asyncio.sleep(0)
            if self._failure is not None:
                raise self._failure
        finally:
            self.ended += 1

    def record(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)


def asked(*headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {PATH} HTTP/{version}", "host: a", "content-length: 2", *headers, "", ""]
    return "\r\n".join(lines).encode() + b"{}"


def events(body: bytes) -> list[tuple[str, Any]]:
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


def test_answers_are_events_and_the_connection_goes_on(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Counts(most=3)
        async with served(model) as server, peer_of(server.url) as peer:
            answer = await peer.ask(asked())
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["transfer-encoding"] == "chunked"
            assert [data["model_version"] for _, data in events(answer.body)] == ["1"] * 3
            assert (await peer.ask(get("/v2/health/live"))).status == 200
        assert model.ended == 1
        assert [(e.code, e.bytes_out) for e in model.exchanges] == [("OK", len(answer.body))]

    runner.run(main())


def test_requests_sent_ahead_wait_for_the_end_of_a_stream(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served(Counts(most=2)) as server, peer_of(server.url) as peer:
            await peer.send(asked() + get("/v2/health/live") + asked())
            answers = [await peer.answer() for _ in range(3)]
            assert [answer.status for answer in answers] == [200, 200, 200]
            assert answers[1].body == b'{"live":true}'

    runner.run(main())


def test_an_old_client_gets_its_end_by_the_connection(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served(Counts(most=2)) as server, peer_of(server.url) as peer:
            await peer.send(asked("connection: keep-alive", version="1.0"))
            data = b""
            while piece := await peer.receive():
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            assert b"chunked" not in head
            assert b"connection: close" in head
            assert len(events(body)) == 2

    runner.run(main())


@pytest.mark.parametrize("first", [True, False])
def test_what_fails_at_once_has_a_status_and_later_an_event(
    first: bool, runner: asyncio.Runner
) -> None:
    async def main() -> None:
        model = Counts(most=0 if first else 2, failure=InvalidInput("enough"))
        async with served(model) as server, peer_of(server.url) as peer:
            answer = await peer.ask(asked())
            if first:
                assert (answer.status, answer.body) == (400, b'{"error":"enough"}')
            else:
                assert answer.status == 200
                assert events(answer.body)[-1] == ("error", {"error": "enough"})
            assert (await peer.ask(get("/v2/health/live"))).status == 200
        assert [exchange.code for exchange in model.exchanges] == ["INVALID_ARGUMENT"]

    runner.run(main())


def test_what_a_client_may_not_see_is_not_in_the_event(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        model = Counts(most=1, failure=RuntimeError("/home/secret"))
        async with served(model) as server, peer_of(server.url) as peer:
            answer = await peer.ask(asked("x-request-id: mine"))
            kind, data = events(answer.body)[-1]
            assert (kind, data) == ("error", {"error": "internal error; request id mine"})
        assert "secret" in caplog.text

    runner.run(main())


@asynccontextmanager
async def on_uvicorn(model: StubModel) -> AsyncIterator[str]:
    from modelserve.transports.address import Address

    address = Address("127.0.0.1:0")
    server = UvicornServer(ASGIApp(model), tls=None, drain=0.0)
    await server.start(address.bind())
    try:
        yield str(address)
    finally:
        await server.stop()


@asynccontextmanager
async def on_http1(model: StubModel) -> AsyncIterator[str]:
    async with served(model) as server:
        yield server.url


@pytest.mark.parametrize("serve", [on_http1, on_uvicorn])
def test_a_client_that_does_not_read_stops_the_model(
    serve: Callable[[StubModel], Any], runner: asyncio.Runner
) -> None:
    async def main() -> None:
        model = Counts(text="a" * 10_000)
        async with serve(model) as url, peer_of(url, receive_buffer=1 << 12) as peer:
            await peer.send(asked())
            await peer.receive()
            # It goes on until the buffers of both sides are full, which hold a few MB at most.
            held = -1
            while held != model.given:
                held = model.given
                await asyncio.sleep(0.1)
            assert held < 5_000
            assert not model.ended
            while model.given == held:
                assert await peer.receive()

    runner.run(main())


@pytest.mark.parametrize("serve", [on_http1, on_uvicorn])
def test_a_client_that_leaves_ends_the_model(
    serve: Callable[[StubModel], Any], runner: asyncio.Runner
) -> None:
    async def main() -> None:
        model = Counts(text="a" * 100)
        async with serve(model) as url:
            async with peer_of(url) as peer:
                await peer.send(asked())
                await peer.receive()
            await until(lambda: bool(model.ended and model.exchanges))
        assert [exchange.code for exchange in model.exchanges] == ["CANCELLED"]

    runner.run(main())


def test_a_client_that_takes_nothing_is_cut_off(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Counts(text="a" * 10_000)
        async with (
            served(model, limits=Limits(write_timeout=0.2)) as server,
            peer_of(server.url, receive_buffer=1 << 12) as peer,
        ):
            await peer.send(asked())
            await until(lambda: model.ended == 1)

    runner.run(main())


def test_a_server_that_stops_leaves_streams_their_time_and_cuts_the_rest_off(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        model = Counts(text="a")
        async with served(model, drain=0.1) as server, peer_of(server.url) as peer:
            await peer.send(asked())
            await peer.receive()
            asyncio.get_running_loop().call_soon(lambda: None)
            stopping = asyncio.create_task(server.stop())
            data = b"some"
            while data:
                try:
                    data = await peer.receive()
                except ConnectionError:
                    break
                assert b"\r\n0\r\n\r\n" not in data  # it does not look whole
            await stopping
            await until(lambda: model.ended == 1)

    runner.run(main())


class Slow(StubModel):
    """Gives nothing until it is let."""

    def __init__(self) -> None:
        super().__init__(name="count")
        self.entered = asyncio.Event()
        self.ended = asyncio.Event()

    async def stream(self, request: Any) -> AsyncIterator[InferResponse]:
        assert isinstance(request, InferRequest)
        self.entered.set()
        try:
            await asyncio.Event().wait()
            yield InferResponse("count", "1", {})
        finally:
            self.ended.set()


@pytest.mark.parametrize("serve", [on_http1, on_uvicorn])
def test_a_client_that_leaves_before_the_first_answer_ends_the_model(
    serve: Callable[[StubModel], Any], runner: asyncio.Runner
) -> None:
    async def main() -> None:
        model = Slow()
        async with serve(model) as url:
            async with peer_of(url) as peer:
                await peer.send(asked())
                await asyncio.wait_for(model.entered.wait(), BOUND)
            await asyncio.wait_for(model.ended.wait(), BOUND)

    runner.run(main())
