"""What hostile or odd clients do across the parts of the server: together, ahead, by halves."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

import onnx_models
from modelserve.messages import Exchange
from modelserve.repository.repository import ModelRepository
from modelserve.testing import StubModel
from modelserve.transports.address import Address
from modelserve.transports.http1 import connection
from modelserve.transports.http1.limits import Limits
from modelserve.transports.http1.server import HTTP1Server
from modelserve.transports.routes import routes_of
from modelserve.transports.serving import HTTPServer
from transports.http1.models import Held, large, served, until, wanting_bytes
from transports.http1.rows import sized
from transports.raw_http import peer_of

pytestmark = pytest.mark.usefixtures("quiet")


class Reluctant(Held):
    """The model "echo", which holds what does not say "quick" and runs no rows."""

    async def _answer(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return inputs if inputs["x"].ravel()[0] == b"quick" else await super()._answer(inputs)

    def row_runner(self, model: str, version: str) -> None:
        return None


async def left_alone(server: HTTPServer, model: Reluctant, *sent: bytes) -> int:
    """Send and close our half; returns how many answers came before the server gave up."""
    async with peer_of(server.url) as peer:
        # Its head is known from now on.
        assert (await peer.ask(sized("quick"))).status == 200
        await peer.send(b"".join(sent))
        peer.finish()
        answers = await peer.rest()
        await until(lambda: len(model.cancelled) == 1)
        return len(answers)


def test_client_gone_with_what_was_gathered_is_not_worked_for(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HALF_CLOSED", 0.1)

    async def main() -> None:
        model = Reluctant()
        async with served(model) as server:
            assert await left_alone(server, model, sized("slow!")) == 0

    runner.run(main())


def test_client_gone_is_not_worked_for_whichever_of_its_requests_it_is(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HALF_CLOSED", 0.1)

    async def main() -> None:
        model = Reluctant()
        async with served(model) as server:
            sent = (sized("quick"), sized("quick"), sized("slow!"))
            assert await left_alone(server, model, *sent) == 2

    runner.run(main())


def test_client_done_with_sending_gets_all_answers_however_slowly_it_takes_them(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        size = 4 << 20
        async with served(large(size)) as server, peer_of(server.url, receive_buffer=4096) as peer:
            connections = server._listener._connections  # type: ignore[attr-defined]
            await peer.send(wanting_bytes() * 3)
            await until(lambda: any(c._blocked for c in connections))
            peer.finish()
            answers = await peer.rest()
            assert [len(answer.body) > size for answer in answers] == [True] * 3

    runner.run(main())


class Counting(ModelRepository):
    """Counts runs of gathered rows."""

    ran = 0

    def row_runner(self, model: str, version: str) -> Any:
        runner = super().row_runner(model, version)
        return runner and Counted(self, runner)


class Counted:
    """A runner of rows whose runs are counted."""

    def __init__(self, counting: Counting, runner: Any) -> None:
        self.version = runner.version
        self.most_rows = runner.most_rows
        self._counting = counting
        self._runner = runner

    def run_rows(self, *request: Any) -> Any:
        ran = self._runner.run_rows(*request)
        self._counting.ran += ran is not None
        return ran


def test_answers_that_cannot_be_written_together_are_not_made_twice_for_long(
    runner: asyncio.Runner,
) -> None:
    tensor = {"name": "x", "datatype": "FP16", "shape": [1, 2], "data": [1.5, 2.5]}
    body = json.dumps({"inputs": [tensor]}).encode()
    lines = "POST /v2/models/half/infer HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", "", ""
    sent = "\r\n".join(lines).encode() + body

    async def main() -> None:
        with Counting() as repository:
            repository.add("half", onnx_models.identity("FP16"), max_batch_size=8)
            async with (
                served(repository) as server,
                peer_of(server.url) as one,
                peer_of(server.url) as other,
            ):
                for _ in range(20):
                    for peer in (one, other):
                        peer.socket.send(sent)  # both arrive in one turn
                    for peer in (one, other):
                        assert (await peer.answer()).status == 200
            assert repository.ran == 1

    runner.run(main())


def test_record_that_fails_stops_neither_the_connection_nor_the_clock(
    runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[Any] = []

    def fail(exchange: Exchange) -> None:
        raise ArithmeticError("the disk is full")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: failed.append(what))
        limits = Limits(body_timeout=0.05)
        server = HTTP1Server(routes_of(StubModel(name="echo"), record=fail), limits=limits)
        address = Address("127.0.0.1:0")
        await server.start(address.bind())
        try:
            async with peer_of(str(address)) as peer:
                assert (await peer.ask(sized("a"))).told == "200 a"
                assert (await peer.ask(sized("b"))).told == "200 b"
            for _ in range(2):
                async with peer_of(str(address)) as peer:
                    await peer.send(sized("a")[:-1])
                    assert [answer.status for answer in await peer.rest()] == [408]
        finally:
            await server.stop()
            asyncio.get_running_loop().set_exception_handler(None)
        # The others were logged where the model had answered.
        assert [type(what["exception"]) for what in failed] == [ArithmeticError] * 2

    runner.run(main())
    assert "the disk is full" in caplog.text
    caplog.clear()
