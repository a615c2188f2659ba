"""The same bytes to our server, to uvicorn, and through HAProxy: they agree on what a request is.

Where two of them accept, they have to have seen the same requests. What HAProxy refuses for its
framing we refuse too: else who stands behind it, or in its place, could be shown other requests.
"""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from modelserve.testing import StubModel
from modelserve.transports.serving import HTTPServer
from transports.http1.mutations import mutated
from transports.http1.rows import PROBE, PROBED, REFUSALS, ROWS, Row, chunked, get, sized
from transports.raw_http import BOUND, Answer, converse, peer_of

SEEDS = range(3 * int(os.environ.get("MODELSERVE_FUZZ", "1")))
MUTATIONS = 250
LONGEST_CHANGED = 600
AT_ONCE = 16
# Without a byte for so long, a server waits for more. Too short a time would show fewer answers,
# not others.
PATIENCE = 0.3

# Where a peer and we differ, and it is not about where a request ends.
EXCEPTIONS = {
    "haproxy": (
        # It completes a WebSocket's handshake itself, and refuses one without a key.
        rb"upgrade: *websocket",
        # It wants the target's host to be that of the header; RFC 9112 3.2.2 has a server go by
        # the target, and we look at neither.
        rb"://",
        # It refuses a body here, which HTTP/1.0 left open; we answer, and close as such clients
        # expect.
        rb"(get|head|delete) [^ ]* http/1\.0\r",
    ),
    "uvicorn": (
        # It loses the body of a request that asks for an upgrade.
        rb"upgrade:",
        # It takes trailers for headers, where its application still looks for them.
        rb"\r\n0+\r\ncontent-encoding",
        # It drops the scheme and authority of any target, not only of http.
        rb"ftp://",
        # It decodes the path without looking whether that can be done.
        rb"%",
    ),
}

CONFIGURATION = """
global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    timeout http-request 5s
    timeout http-keep-alive 5s
frontend f
    bind unix@{front} proto h1
    default_backend b
backend b
    server s {back}
"""


class Servers(NamedTuple):
    """Where to ask."""

    ours: str
    uvicorn: str
    haproxy: str


@pytest.fixture(scope="module")
def short_path() -> Iterator[Path]:
    # The path of a Unix socket has about a hundred characters; pytest's are longer.
    with TemporaryDirectory(prefix="ms-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def servers(runner: asyncio.Runner, short_path: Path) -> Iterator[Servers]:
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin") or shutil.which("haproxy")
    if binary is None:
        pytest.skip("haproxy is not installed")
    echo = StubModel(name="echo")
    ours = HTTPServer(echo, http="127.0.0.1:0", drain=0)
    theirs = HTTPServer(echo, http="127.0.0.1:0", server="uvicorn", drain=0)
    runner.run(ours.start())
    runner.run(theirs.start())
    front = short_path / "front"
    configuration = short_path / "haproxy.cfg"
    back = ours.url.removeprefix("http://")
    configuration.write_text(CONFIGURATION.format(front=front, back=back))
    with subprocess.Popen(
        [binary, "-db", "-f", configuration],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            runner.run(accepts(f"unix:{front}"))
            yield Servers(ours.url, theirs.url, f"unix:{front}")
        finally:
            process.terminate()
    runner.run(ours.stop())
    runner.run(theirs.stop())


async def accepts(url: str) -> None:
    async with asyncio.timeout(BOUND):
        while True:
            try:
                async with peer_of(url):
                    return
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.01)


def understood(answers: Sequence[Answer]) -> list[str]:
    """What a server took for a request, in order."""
    last = answers[-1] if answers else None
    refused = last is not None and last.status in REFUSALS and last.status != 405
    if refused and (answers[-1].closes or own_refusal(answers)):
        answers = answers[:-1]
    return [answer.told for answer in answers if answer.status < 500]


def own_refusal(answers: Sequence[Answer]) -> bool:
    """Whether HAProxy itself refuses the last one: with a page of its own."""
    return bool(answers) and answers[-1].headers.get("content-type") == "text/html"


def excepted(peer: str, data: bytes) -> bool:
    return any(re.search(pattern, data, re.IGNORECASE) for pattern in EXCEPTIONS[peer])


async def disagreements(servers: Servers, data: bytes, bodiless: Sequence[int] = ()) -> list[str]:
    """Return how the three disagree on these bytes."""
    ours, *others = await asyncio.gather(
        *(converse(url, [data], bodiless=bodiless, patience=PATIENCE) for url in servers)
    )
    found = []
    seen = understood(ours)
    for name, other in zip(("uvicorn", "haproxy"), map(understood, others), strict=True):
        both = min(len(seen), len(other))
        if seen[:both] != other[:both] and not excepted(name, data):
            found.append(f"{data!r}: we saw {seen}, {name} {other}")
    if seen and ours[-1].closes and ours[-1].status >= 400 and seen[-1] != PROBED:
        seen = seen[:-1]  # refused for its path, perhaps, with the body unread
    passed = len(understood(others[1]))
    if own_refusal(others[1]) and len(seen) > passed and not excepted("haproxy", data):
        found.append(f"{data!r}: we saw {seen}, and haproxy refused number {passed}")
    return found


async def all_disagreements(servers: Servers, rows: Sequence[Row]) -> list[str]:
    found: list[str] = []
    for batch in batched(rows, AT_ONCE):
        asked = (
            disagreements(servers, row.data if row.end == "cut" else row.data + PROBE, row.bodiless)
            for row in batch
        )
        found += chain.from_iterable(await asyncio.gather(*asked))
    return found


def batched(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def test_peers_agree_on_every_row(servers: Servers, runner: asyncio.Runner) -> None:
    assert not runner.run(all_disagreements(servers, ROWS))


@pytest.mark.parametrize("seed", SEEDS)
def test_peers_agree_on_changed_rows(seed: int, servers: Servers, runner: asyncio.Runner) -> None:
    rng = Random(seed)
    short = [row for row in ROWS if len(row.data) < LONGEST_CHANGED and not row.bodiless]
    changed = [row._replace(data=mutated(row.data, rng)) for row in rng.choices(short, k=MUTATIONS)]
    assert not runner.run(all_disagreements(servers, changed))


def test_peers_see_the_requests_at_all(servers: Servers, runner: asyncio.Runner) -> None:
    async def main() -> None:
        for url in servers:
            answers = await converse(url, [sized("a") + chunked("b") + PROBE])
            assert understood(answers) == ["200 a", "200 b", PROBED]
            answers = await converse(url, [get("/x", "a : b") + PROBE])
            assert understood(answers) == []

    runner.run(main())
