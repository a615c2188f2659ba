"""What a client that behaves is owed: order, keep-alive, `100 Continue`, and clear limits."""

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.http1 import Limits
from transports.http1.models import Held, Sums, large, served, until, upload, wanting_bytes
from transports.http1.rows import CHUNKED, END, chunk, chunked, get, head, post, sized, text
from transports.raw_http import Peer, Reader, peer_of

pytestmark = pytest.mark.usefixtures("quiet")

MIB = 1 << 20


# Keep-alive, order


def test_one_connection_carries_many_requests(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served() as server, peer_of(server.url) as peer:
            for number in range(200):
                assert (await peer.ask(sized(str(number)))).told == f"200 {number}"

    runner.run(main())


def test_a_client_of_http_1_0_is_told_that_the_connection_is_kept(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served() as server, peer_of(server.url) as peer:
            asked = sized("a", "connection: keep-alive", version="1.0")
            for _ in range(3):
                answer = await peer.ask(asked)
                assert answer.told == "200 a"
                assert answer.headers["connection"] == "keep-alive"
            assert (await peer.ask(sized("a", version="1.0"))).closes
            assert await peer.rest() == []

    runner.run(main())


def test_answers_come_in_the_order_of_the_requests(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async def answer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            # The earlier, the longer.
            await asyncio.sleep((20 - int(inputs["x"][0])) / 1000)
            return inputs

        async with (
            served(StubModel(answer, name="echo")) as server,
            peer_of(server.url) as peer,
        ):
            asked = [sized(str(number), f"x-request-id: r{number}") for number in range(20)]
            await peer.send(b"".join(asked) + get("/x", "connection: close"))
            answers = await peer.rest()
        assert [answer.told for answer in answers] == [*(f"200 {n}" for n in range(20)), "404 /x"]
        ids = [answer.headers["x-request-id"] for answer in answers[:-1]]
        assert ids == [f"r{number}" for number in range(20)]

    runner.run(main())


def test_connections_do_not_wait_for_each_other(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with (
            served(model) as server,
            peer_of(server.url) as first,
            peer_of(server.url) as second,
        ):
            await first.send(sized("a"))
            await model.wait_inside()
            assert (await second.ask(get())).told == "404 /x"
            model.gate.set()
            assert (await first.answer()).told == "200 a"

    runner.run(main())


def test_a_client_that_sends_far_ahead_does_not_keep_others_waiting(
    runner: asyncio.Runner,
) -> None:
    async def main() -> None:
        async with (
            served() as server,
            peer_of(server.url) as greedy,
            peer_of(server.url) as modest,
        ):
            count = 2000
            await greedy.send(get() * count)
            assert (await modest.ask(get("/y"))).told == "404 /y"
            received = 0
            while received < count:
                greedy.reader.feed(await greedy.receive())
                received = len(greedy.reader.answers)

    runner.run(main())


@pytest.mark.parametrize("target", ["/v2", "/v2/health/live", "/v2/models/echo", "/x"])
def test_head_is_answered_as_get_without_a_body(target: str, runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served() as server, peer_of(server.url) as peer:
            whole = await peer.ask(get(target))
            peer.reader = Reader(lambda number: True)
            bare = await peer.ask(head(f"HEAD {target} HTTP/1.1"))
            peer.reader = Reader()
            assert bare.status == whole.status
            assert bare.headers["content-length"] == str(len(whole.body))
            assert bare.headers["content-type"] == whole.headers["content-type"]
            assert (await peer.ask(sized("a"))).told == "200 a"

    runner.run(main())


@pytest.mark.parametrize("asked", [sized("a"), chunked("a"), get()], ids=["sized", "chunked", "-"])
def test_client_that_has_said_all_gets_its_answer(asked: bytes, runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served() as server, peer_of(server.url) as peer:
            await peer.send(asked)
            peer.finish()
            (answer,) = await peer.rest()
            assert answer.told in ("200 a", "404 /x")

    runner.run(main())


# 100 Continue


EXPECT = "expect: 100-continue"


@pytest.mark.parametrize("kind", ["sized", "chunked", "large"])
def test_continue_is_said_when_the_body_is_wanted(kind: str, runner: asyncio.Runner) -> None:
    async def main() -> None:
        body = text("a" if kind != "large" else "a" * 100_000)
        framing = CHUNKED if kind == "chunked" else f"content-length: {len(body)}"
        async with served() as server, peer_of(server.url) as peer:
            for _ in range(2):
                await peer.send(post(b"", framing, EXPECT))
                assert await peer.interim() == 100
                await peer.send(chunk(body) + END if kind == "chunked" else body)
                answer = await peer.answer()
                assert answer.status == 200
                assert answer.interim == (100,)

    runner.run(main())


REFUSED = {
    "unknown path": (head("POST /x HTTP/1.1", "content-length: 5", EXPECT), 404),
    "wrong method": (head("PUT /v2/models/echo/infer HTTP/1.1", "content-length: 5", EXPECT), 405),
    "too large": (post(b"", "content-length: 5000", EXPECT), 413),
    "no key": (post(b"", "content-length: 5", EXPECT), 401),
    "bad head": (post(b"", "content-length: x", EXPECT), 400),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_request_is_not_asked_for_its_body(why: str, runner: asyncio.Runner) -> None:
    asked, status = REFUSED[why]

    async def main() -> None:
        keys = APIKeys({"ada": (APIKeys.generate()[1], {"infer"})}) if why == "no key" else None
        async with (
            served(authenticator=keys, max_body_size=1000) as server,
            peer_of(server.url) as peer,
        ):
            answer = await peer.ask(asked)
            assert answer.status == status
            assert answer.interim == ()
            # The client may send the body all the same: it would be taken for a request.
            assert answer.closes
            assert await peer.rest() == []

    runner.run(main())


def test_a_client_of_http_1_0_is_not_told_to_continue(runner: asyncio.Runner) -> None:
    async def main() -> None:
        body = text("a")
        async with served() as server, peer_of(server.url) as peer:
            await peer.send(post(b"", f"content-length: {len(body)}", EXPECT, version="1.0"))
            answer = await peer.ask(body)
            assert answer.told == "200 a"
            assert answer.interim == ()

    runner.run(main())


# Bodies


def test_a_body_in_many_small_chunks(runner: asyncio.Runner) -> None:
    async def main() -> None:
        said = "a" * 5000
        body = text(said)
        chunks = [chunk(body[at : at + 3]) for at in range(0, len(body), 3)]
        async with served() as server, peer_of(server.url) as peer:
            await peer.send(post(b"", CHUNKED), *chunks)
            assert (await peer.ask(END)).told == f"200 {said}"

    runner.run(main())


async def told_sum(peer: Peer) -> int:
    answer = await peer.answer()
    assert answer.status == 200
    total: int = json.loads(answer.body)["outputs"][0]["data"][0]
    return total


@pytest.mark.parametrize("piece", [64 * MIB, 40_000], ids=["one piece", "dribbled"])
def test_a_body_of_64_mib(piece: int, runner: asyncio.Runner) -> None:
    async def main() -> None:
        data = np.arange(64 * MIB, dtype=np.uint32).astype(np.uint8)
        start, length = upload(data.size)
        async with served(Sums(), max_body_size=length) as server, peer_of(server.url) as peer:
            await peer.send(start)
            for at in range(0, data.size, piece):
                await peer.send(data[at : at + piece].tobytes())
            assert await told_sum(peer) == data.sum(dtype=np.uint64)
            # And the connection is as it was.
            assert (await peer.ask(get())).told == "404 /x"

    runner.run(main())


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("cut", [0, 1, 30_000, -1])
def test_bodies_around_the_size_that_is_received_in_place(
    size: int, cut: int, runner: asyncio.Runner
) -> None:
    async def main() -> None:
        data = np.arange(size, dtype=np.uint32).astype(np.uint8)
        start, _ = upload(size)
        body = data.tobytes()
        async with served(Sums()) as server, peer_of(server.url) as peer:
            for _ in range(2):
                # What follows comes in one piece with the body's end.
                await peer.send(start + body[:cut], body[cut:] + get("/next"))
                assert await told_sum(peer) == data.sum(dtype=np.uint64)
                assert (await peer.answer()).told == "404 /next"

    runner.run(main())


def test_a_large_body_behind_another_request(runner: asyncio.Runner) -> None:
    async def main() -> None:
        start, _ = upload(MIB)
        async with served(Sums()) as server, peer_of(server.url) as peer:
            await peer.send(get() * 3 + start + b"\1" * MIB + get("/y"))
            assert [(await peer.answer()).told for _ in range(3)] == ["404 /x"] * 3
            assert await told_sum(peer) == MIB
            assert (await peer.answer()).told == "404 /y"

    runner.run(main())


@pytest.mark.parametrize("size", [100, 70_000, 5 * MIB])
def test_a_large_answer_is_whole(size: int, runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served(large(size)) as server, peer_of(server.url) as peer:
            for _ in range(2):
                answer = await peer.ask(wanting_bytes())
                assert answer.status == 200
                told = int(answer.headers["inference-header-content-length"])
                assert len(answer.body) == told + size

    runner.run(main())


# Limits


async def refused(server_url: str, data: bytes, status: int) -> None:
    async with peer_of(server_url) as peer:
        with suppress(ConnectionError):
            await peer.send(data)
        answer = await peer.answer()
        assert answer.status == status
        assert answer.closes
        assert await peer.rest() == []


def test_limits_of_the_head_are_the_servers(runner: asyncio.Runner) -> None:
    async def main() -> None:
        limits = Limits(max_header_size=1000, max_headers=5)
        async with served(limits=limits) as server:
            for good in (get("/x", "a: " + "b" * 900), get("/x", *["a: b"] * 4)):
                async with peer_of(server.url) as peer:
                    assert (await peer.ask(good)).status == 404
            await refused(server.url, get("/x", "a: " + "b" * 1000), 431)
            await refused(server.url, get("/x", *["a: b"] * 5), 431)
            # Also when its end never comes.
            await refused(server.url, b"GET /x HTTP/1.1\r\na: " + b"b" * 2000, 431)

    runner.run(main())


OVER = {
    "sized": post(b"", f"content-length: {8 * MIB}") + bytes(8 * MIB),
    "chunked": post(b"", CHUNKED) + chunk(bytes(1000)) * 8000,
    "one chunk": post(b"", CHUNKED) + chunk(bytes(8 * MIB)),
}


@pytest.mark.parametrize("framing", OVER)
def test_a_client_that_sends_too_much_still_sees_the_refusal(
    framing: str, runner: asyncio.Runner
) -> None:
    async def main() -> None:
        async with served(max_body_size=MIB) as server, peer_of(server.url) as peer:
            sending = asyncio.create_task(peer.send(OVER[framing]))
            answer = await peer.answer()
            assert answer.status == 413
            assert answer.closes
            with suppress(ConnectionError):
                await sending
            assert await peer.rest() == []

    runner.run(main())


def test_a_body_of_just_the_size_allowed(runner: asyncio.Runner) -> None:
    body = text("a" * 1000)

    async def main() -> None:
        async with served(max_body_size=len(body)) as server:
            for framed in (
                post(body, f"content-length: {len(body)}"),
                post(chunk(body) + END, CHUNKED),
            ):
                async with peer_of(server.url) as peer:
                    assert (await peer.ask(framed)).status == 200
            await refused(server.url, post(body, f"content-length: {len(body) + 1}"), 413)
            await refused(server.url, post(chunk(body) + b"1\r\n", CHUNKED), 413)

    runner.run(main())


def test_one_connection_too_many_is_told_so(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served(limits=Limits(max_connections=2)) as server:
            async with peer_of(server.url) as first, peer_of(server.url) as second:
                assert (await first.ask(get())).status == 404
                assert (await second.ask(get())).status == 404
                async with peer_of(server.url) as third:
                    answer = await third.answer()
                    assert answer.status == 503
                    assert answer.closes
                    assert int(answer.headers["retry-after"]) >= 1
                    assert await third.rest() == []
                assert (await first.ask(get())).status == 404

            async def room() -> bool:
                async with peer_of(server.url) as peer:
                    with suppress(ConnectionError, EOFError):
                        return (await peer.ask(get())).status == 404
                return False

            found = False
            async with asyncio.timeout(5):
                while not found:
                    found = await room()

    runner.run(main())


def test_who_was_turned_away_takes_no_place(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with (
            served(limits=Limits(max_connections=1)) as server,
            peer_of(server.url) as first,
        ):
            assert (await first.ask(get())).status == 404
            async with peer_of(server.url) as one_too_many:
                assert (await one_too_many.answer()).status == 503
                first.socket.close()

                async def room() -> bool:
                    async with peer_of(server.url) as peer:
                        with suppress(ConnectionError, EOFError):
                            return (await peer.ask(get())).status == 404
                    return False

                # At once, not after the time that one gets to read the refusal.
                async with asyncio.timeout(1):
                    found = False
                    while not found:
                        found = await room()

    runner.run(main())


def test_a_crowd_that_is_turned_away_is_cut_off(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with (
            served(limits=Limits(max_connections=1)) as server,
            peer_of(server.url) as first,
        ):
            assert (await first.ask(get())).status == 404
            async with peer_of(server.url) as second:
                assert (await second.answer()).status == 503
                async with peer_of(server.url) as third:
                    with suppress(ConnectionError):
                        assert await third.rest() == []
            assert (await first.ask(get())).status == 404

    runner.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts system calls' effect")
def test_an_answer_is_sent_at_once(runner: asyncio.Runner) -> None:
    """Head and body of a small answer are one piece: no delayed acknowledgement comes between."""

    async def main() -> None:
        async with served() as server, peer_of(server.url) as peer:
            for _ in range(5):
                await peer.send(sized("a"))
                reader = Reader()
                reader.feed(await peer.receive())
                assert len(reader.answers) == 1

    runner.run(main())


def test_what_is_under_way_counts_once(runner: asyncio.Runner) -> None:
    async def main() -> None:
        model = Held()
        async with served(model) as server, peer_of(server.url) as peer:
            await peer.send(sized("a") + sized("b"))
            await model.wait_inside()
            await asyncio.sleep(0)
            assert model.begun == ["a"]
            model.gate.set()
            assert (await peer.answer()).told == "200 a"
            assert (await peer.answer()).told == "200 b"
            await until(lambda: model.begun == ["a", "b"])

    runner.run(main())
