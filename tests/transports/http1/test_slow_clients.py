"""Clients that do not say, or do not take, what they should: time, and memory, are bounded."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from modelserve.testing import StubModel
from modelserve.transports.http1 import Limits
from transports.http1.models import Held, large, served, until, upload, wanting_bytes
from transports.http1.rows import CHUNKED, chunk, get, post, sized
from transports.raw_http import Peer, peer_of

pytestmark = pytest.mark.usefixtures("quiet")

MIB = 1 << 20
LONG = 60.0
SHORT = 0.2
# Times are kept to within a quarter of the shortest, and the machine has others to serve.
SLACK = 3.0


async def dribble(peer: Peer, data: bytes) -> None:
    """Send the same again and again, until the server has enough."""
    with suppress(ConnectionError):
        while True:
            await peer.send(data)
            await asyncio.sleep(SHORT / 10)


async def given_up(peer: Peer, more: bytes, status: int) -> float:
    """Return after what time the server has refused and closed."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    sending = asyncio.create_task(dribble(peer, more)) if more else None
    try:
        answers = await peer.rest()
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.wait([sending])
    assert [answer.status for answer in answers] == [status] * (status > 0)
    assert all(answer.closes for answer in answers)
    return loop.time() - begun


HEADS = {
    "part of a method": (b"GE", b""),
    "part of a head": (b"GET /x HTTP/1.1\r\nhost: a\r\n", b""),
    "byte after byte": (b"GET /x HTTP/1.1\r\nhost: ", b"a"),
    "header after header": (b"GET /x HTTP/1.1\r\n", b"a: b\r\n"),
    "behind another": (b"\r\n" + b"POST", b""),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_does_not_end_is_given_up(kind: str, runner: asyncio.Runner) -> None:
    begun, more = HEADS[kind]

    async def main() -> None:
        limits = Limits(header_timeout=SHORT, idle_timeout=LONG, body_timeout=LONG)
        async with served(limits=limits) as server, peer_of(server.url) as peer:
            await peer.send(begun)
            assert SHORT * 0.7 < await given_up(peer, more, 408) < SHORT + SLACK

    runner.run(main())


_LARGE, _ = upload(10 * MIB)
BODIES = {
    "no body": (post(b"", "content-length: 10"), b""),
    "body byte by byte": (post(b"", "content-length: 10000"), b"a"),
    "no chunk": (post(b"", CHUNKED), b""),
    "chunk after chunk": (post(b"", CHUNKED), chunk(b"a")),
    "no last chunk": (post(chunk(b"a"), CHUNKED), b""),
    "trailer after trailer": (post(b"0\r\n", CHUNKED), b"a: b\r\n"),
    "large body": (_LARGE, b""),
    "large body, dribbled": (_LARGE, b"a" * 100),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_does_not_end_is_given_up(kind: str, runner: asyncio.Runner) -> None:
    begun, more = BODIES[kind]

    async def main() -> None:
        limits = Limits(body_timeout=SHORT, idle_timeout=LONG, header_timeout=LONG)
        async with served(limits=limits) as server, peer_of(server.url) as peer:
            await peer.send(begun)
            # It may take a while longer to close, so that the client sees the refusal.
            assert SHORT * 0.7 < await given_up(peer, more, 408) < SHORT + 2 + SLACK

    runner.run(main())


@pytest.mark.parametrize("before", [b"", get(), get() + b"\r\n"], ids=["new", "used", "empty line"])
def test_an_idle_connection_is_closed_without_a_word(before: bytes, runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(idle_timeout=SHORT, header_timeout=LONG, body_timeout=LONG)
        async with served(limits=limits) as server, peer_of(server.url) as peer:
            if before:
                assert (await peer.ask(before)).status == 404
            assert SHORT * 0.5 < await given_up(peer, b"", 0) < SHORT + SLACK

    runner.run(main())


def test_no_time_runs_while_a_request_is_answered(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(
            idle_timeout=SHORT, header_timeout=SHORT, body_timeout=SHORT, write_timeout=SHORT
        )
        model = Held()
        async with served(model, limits=limits) as server, peer_of(server.url) as peer:
            await peer.send(sized("a"))
            await model.wait_inside()
            # A connection that idles is closed meanwhile: so the times would have run.
            async with peer_of(server.url) as idle:
                await given_up(idle, b"", 0)
            model.gate.set()
            assert (await peer.answer()).told == "200 a"

    runner.run(main())


def test_a_used_connection_idles_from_its_last_answer(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(idle_timeout=4 * SHORT)
        async with served(limits=limits) as server, peer_of(server.url) as peer:
            loop = asyncio.get_running_loop()
            end = loop.time() + 8 * SHORT
            while loop.time() < end:
                assert (await peer.ask(get())).status == 404
                await asyncio.sleep(SHORT / 2)

    runner.run(main())


# Answers nobody takes


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files cannot be counted")
@pytest.mark.parametrize("last", [False, True], ids=["kept", "closing"])
def test_a_large_answer_that_nobody_takes_is_given_up(last: bool, runner: asyncio.Runner) -> None:
    async def main() -> None:
        asked = wanting_bytes(*(["connection: close"] if last else []))
        async with served(large(32 * MIB), limits=Limits(write_timeout=SHORT)) as server:
            before = open_files()
            async with peer_of(server.url, receive_buffer=4096) as peer:
                await peer.send(asked)
                # Others are answered meanwhile.
                async with peer_of(server.url) as other:
                    assert (await other.ask(get())).status == 404
                await until(lambda: open_files() == before + 1)
                received = 0
                with suppress(ConnectionError):
                    while data := await peer.receive():
                        received += len(data)
                assert received < 32 * MIB

    runner.run(main())


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_a_client_that_reads_slowly_gets_all(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(write_timeout=4 * SHORT, idle_timeout=LONG)
        size = 8 * MIB
        async with (
            served(large(size), limits=limits) as server,
            peer_of(server.url, receive_buffer=64 << 10) as peer,
        ):
            await peer.send(wanting_bytes("connection: close"))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            received = 0
            while data := await peer.receive(128 << 10):
                received += len(data)
                await asyncio.sleep(SHORT / 8)
            assert received > size
            # Longer than a client may take nothing at all: else this would prove nothing.
            assert loop.time() - begun > 4 * SHORT

    runner.run(main())


async def send_until_blocked(peer: Peer, data: bytes) -> int:
    """Send the same over and over, until the server reads no more; returns how often it went."""
    count = 0
    while True:
        try:
            async with asyncio.timeout(1.0):
                await asyncio.get_running_loop().sock_sendall(peer.socket, data)
        except TimeoutError:
            return count
        count += 1
        assert count < 100_000, "the server reads on and on"


def test_a_client_that_sends_ahead_and_does_not_read_waits(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = StubModel(lambda inputs: {"y": inputs["x"].repeat(20_000)}, name="echo")
        limits = Limits(write_timeout=LONG)
        async with (
            served(model, limits=limits) as server,
            peer_of(server.url) as peer,
        ):
            await send_until_blocked(peer, sized("a" * 10) * 50)
            # Each answer has more than 200 KiB: some fill the sockets, then there is an end.
            assert 0 < model.count < 200
            before = model.count
            # Who reads is served on.
            while not peer.reader.answers:
                peer.reader.feed(await peer.receive())
            while model.count <= before:
                peer.reader.feed(await peer.receive())

    runner.run(main())


def test_a_client_that_sends_far_ahead_of_a_slow_answer_waits(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with served(model) as server, peer_of(server.url) as peer:
            await peer.send(sized("a"))
            await model.wait_inside()
            ahead = get("/x", "a: " + "b" * 8000)
            count = await send_until_blocked(peer, ahead)
            # What the system holds for both ends, and the server for one connection.
            assert count * len(ahead) < 32 * MIB
            model.gate.set()
            assert (await peer.answer()).told == "200 a"
            for _ in range(count):
                assert (await peer.answer()).told == "404 /x"

    runner.run(main())
