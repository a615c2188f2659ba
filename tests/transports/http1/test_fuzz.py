"""Conversations with a few bytes changed, by a seed: whatever comes, the server goes on as it was.

`MODELSERVE_FUZZ=N` runs N times as many.
"""

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from modelserve.testing import StubModel
from modelserve.transports.http1 import Limits
from modelserve.transports.serving import HTTPServer
from transports.http1.mutations import mutated
from transports.http1.rows import chunk, chunked, get, head, post, sized
from transports.raw_http import Answer, peer_of

SEEDS = range(2 * int(os.environ.get("MODELSERVE_FUZZ", "1")))
CONVERSATIONS = 400
AT_ONCE = 32
# A client that says nothing more is waited for so long.
TIMEOUT = 0.2
MOST_GROWTH = 48 << 20

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def url(runner: asyncio.Runner) -> Iterator[str]:
    limits = Limits(
        header_timeout=TIMEOUT, body_timeout=TIMEOUT, idle_timeout=TIMEOUT, write_timeout=TIMEOUT
    )
    server = HTTPServer(
        StubModel(name="echo"), http="127.0.0.1:0", limits=limits, max_body_size=1 << 20, drain=0
    )
    runner.run(server.start())
    yield server.url
    runner.run(server.stop())


def binary(rng: Random) -> bytes:
    """Return a request whose tensors are bytes behind the JSON, as the answer's are to be."""
    rows = rng.choice((1, 3, 64))
    tensor = {
        "name": "x",
        "datatype": rng.choice(("FP32", "INT32")),
        "shape": [rows, 4],
        "parameters": {"binary_data_size": rows * 16},
    }
    said = {"inputs": [tensor], "parameters": {"binary_data_output": rng.random() < 0.5}}
    told = json.dumps(said).encode()
    body = told + rng.randbytes(rows * 16)
    length = f"inference-header-content-length: {len(told)}"
    if rng.random() < 0.3:
        return post(chunk(body) + b"0\r\n\r\n", "transfer-encoding: chunked", length)
    return post(body, f"content-length: {len(body)}", length)


def conversation(rng: Random) -> bytes:
    """Return one to five valid requests."""
    kinds = (
        lambda: get(),
        lambda: get("/v2/health/live"),
        lambda: get("/v2/models/echo", "x-request-id: 7"),
        lambda: get("/x", "connection: close"),
        lambda: get("/x", "connection: keep-alive", version="1.0"),
        lambda: head("DELETE /v2/models/echo/infer HTTP/1.1"),
        lambda: sized("hello"),
        lambda: sized("hello", "expect: 100-continue"),
        lambda: sized("x" * rng.choice((500, 70_000))),
        lambda: chunked("hello"),
        lambda: chunked("hello", extension=b';a="b"', end=b"0\r\na: b\r\n\r\n"),
        lambda: binary(rng),
        lambda: binary(rng),
    )
    return b"".join(rng.choice(kinds)() for _ in range(rng.choice((1, 1, 2, 3, 5))))


def pieces(data: bytes, rng: Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    ends = [0, *cuts, len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


async def talk(url: str, data: bytes, rng: Random) -> list[Answer]:
    """Send something; end in one of the ways clients do; return the answers of who read them."""
    async with peer_of(url) as peer:
        way = rng.random()
        with suppress(ConnectionError):
            await peer.send(*pieces(data, rng))
        if way < 0.1:  # gone, without a word
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return []
        if way < 0.2:  # gone
            return []
        if way < 0.8:
            with suppress(OSError):
                peer.finish()
        return await peer.rest()


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def rounds(url: str, seed: int) -> None:
    async def one(number: int) -> None:
        rng = Random(f"{seed} {number}")
        data = mutated(conversation(rng), rng)
        try:
            answers = await talk(url, data, rng)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"after {data[:2000]!r}") from error
        for answer in answers:
            assert 200 <= answer.status < 600, data
            assert answer.status != 500, (data, answer.body)

    for at in range(0, CONVERSATIONS, AT_ONCE):
        await asyncio.gather(*map(one, range(at, min(at + AT_ONCE, CONVERSATIONS))))


async def settle(files: int) -> None:
    """Wait until no connection is left."""
    async with asyncio.timeout(10):
        while True:
            if open_files() <= files:
                return
            await asyncio.sleep(0.01)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files cannot be counted")
@pytest.mark.parametrize("seed", SEEDS)
def test_server_goes_on_whatever_comes(seed: int, url: str, runner: asyncio.Runner) -> None:
    async def main() -> None:
        files = open_files()
        await rounds(url, seed)
        await settle(files)
        async with peer_of(url) as peer:
            assert (await peer.ask(sized("hello"))).told == "200 hello"
        await settle(files)

    runner.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_what_comes(url: str, runner: asyncio.Runner) -> None:
    runner.run(rounds(url, -1))
    before = resident()
    runner.run(rounds(url, -2))
    assert resident() - before < MOST_GROWTH
