"""How connections end: the server's drain, and clients that leave while their request waits."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from gated import GatedBackend
from modelserve.repository.repository import ModelRepository
from modelserve.transports.serving import HTTPServer
from transports.http1.models import Held, large, served, until, wanting_bytes
from transports.http1.rows import CHUNKED, END, chunk, get, post, sized, text
from transports.raw_http import Peer, peer_of

pytestmark = pytest.mark.usefixtures("quiet")


async def refuses(server: HTTPServer) -> None:
    """Wait until new connections are refused."""
    async with asyncio.timeout(5):
        while True:
            try:
                async with peer_of(server.url) as peer:
                    with suppress(ConnectionError):
                        assert await peer.rest() == []
            except ConnectionRefusedError:
                return


def test_a_drain_answers_what_is_under_way_and_closes_what_idles(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with (
            served(model, drain=30.0) as server,
            peer_of(server.url) as busy,
            peer_of(server.url) as idle,
            peer_of(server.url) as new,
        ):
            assert (await idle.ask(get())).status == 404
            await busy.send(sized("a") + sized("b"))
            await model.wait_inside()
            stopping = asyncio.create_task(server.stop())
            assert await idle.rest() == []
            assert await new.rest() == []
            await refuses(server)
            assert not stopping.done()
            model.gate.set()
            answer = await busy.answer()
            assert answer.told == "200 a"
            # So the client knows that what it sent behind was not begun.
            assert answer.closes
            assert await busy.rest() == []
            await stopping
            assert model.begun == ["a"]

    runner.run(main())


BODY = text("a")
HALVES = {
    "sized": (post(BODY[:5], f"content-length: {len(BODY)}"), BODY[5:]),
    "chunked": (post(b"", CHUNKED), chunk(BODY) + END),
    "expecting": (post(b"", f"content-length: {len(BODY)}", "expect: 100-continue"), BODY),
    "head": (
        post(b"", f"content-length: {len(BODY)}")[:20],
        post(BODY, f"content-length: {len(BODY)}")[20:],
    ),
}


@pytest.mark.parametrize("kind", HALVES)
def test_a_request_that_has_begun_to_arrive_is_answered_in_the_drain(
    kind: str, runner: asyncio.Runner
) -> None:
    first, second = HALVES[kind]

    async def main() -> None:
        async with served(drain=30.0) as server, peer_of(server.url) as peer:
            # The server has read it when it answers what came later, on another connection.
            await peer.send(first)
            async with peer_of(server.url) as other:
                assert (await other.ask(get())).status == 404
            stopping = asyncio.create_task(server.stop())
            await refuses(server)
            answer = await peer.ask(second)
            assert answer.told == "200 a"
            assert answer.closes
            await stopping

    runner.run(main())


def test_what_outlasts_the_drain_is_told_so(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with served(model, drain=0.05) as server, peer_of(server.url) as peer:
            await peer.send(sized("a"))
            await model.wait_inside()
            await server.stop()
            answer = await peer.answer()
            assert answer.status == 503
            assert answer.closes
            assert await peer.rest() == []
            await until(lambda: model.cancelled == ["a"])

    runner.run(main())


def test_giving_up_ends_the_drain(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with served(model, drain=1000.0) as server, peer_of(server.url) as peer:
            await peer.send(sized("a"))
            await model.wait_inside()
            stopping = asyncio.create_task(server.stop())
            await refuses(server)
            server.give_up()
            assert (await peer.answer()).status == 503
            await stopping

    runner.run(main())


def test_a_client_that_does_not_read_does_not_hold_the_server(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with (
            served(large(32 << 20), drain=0.05) as server,
            peer_of(server.url, receive_buffer=4096) as peer,
        ):
            await peer.send(wanting_bytes())
            assert await peer.receive(1)
            async with asyncio.timeout(5):
                await server.stop()

    runner.run(main())


# Clients that leave


def leave(peer: Peer) -> None:
    peer.socket.close()


def reset(peer: Peer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


LEAVING = pytest.mark.parametrize("gone", [leave, reset])


@LEAVING
def test_a_request_whose_client_left_is_cancelled(
    gone: Callable[[Peer], None], runner: asyncio.Runner
) -> None:
    async def main() -> None:
        model = Held()
        async with served(model) as server:
            async with peer_of(server.url) as peer:
                await peer.send(sized("a") + sized("b"))
                await model.wait_inside()
                gone(peer)
                await until(lambda: model.cancelled == ["a"])
            model.gate.set()
            async with peer_of(server.url) as peer:
                assert (await peer.ask(sized("c"))).told == "200 c"
        assert model.begun == ["a", "c"]

    runner.run(main())


def row(value: float) -> bytes:
    tensor = f'{{"name":"x","datatype":"FP32","shape":[1,1],"data":[{value:g}]}}'
    body = f'{{"inputs":[{tensor}]}}'.encode()
    asked = post(body, f"content-length: {len(body)}")
    return asked.replace(b"/models/echo/", b"/models/m/")


@LEAVING
def test_a_waiting_request_whose_client_left_costs_no_run(
    gone: Callable[[Peer], None], runner: asyncio.Runner
) -> None:
    async def main() -> None:
        backend = GatedBackend()
        async with ModelRepository() as repository:
            repository.add("m", backend, warm_up=False)
            backend.runs.clear()
            async with (
                served(repository) as server,
                peer_of(server.url) as first,
                peer_of(server.url) as leaves,
                peer_of(server.url) as stays,
            ):
                backend.hold()
                await first.send(row(1))
                await asyncio.to_thread(backend.wait_inside)
                await leaves.send(row(2))
                await stays.send(row(3))
                await waiting(server, 2)
                gone(leaves)
                await waiting(server, 1)
                backend.release()
                for peer in (first, stays):
                    assert (await peer.answer()).status == 200
        assert np.concatenate(backend.runs).tolist() == [1, 3]

    runner.run(main())


async def waiting(server: HTTPServer, count: int) -> None:
    """Wait until so many requests are in the queue, as the metrics tell."""
    async with asyncio.timeout(5):
        while True:
            async with peer_of(server.url) as peer:
                shown = (await peer.ask(get("/metrics"))).body.decode()
            queued = [
                float(line.rpartition(" ")[2])
                for line in shown.splitlines()
                if line.startswith("modelserve_queue_depth") and "{" in line
            ]
            if sum(queued) == count:
                return
