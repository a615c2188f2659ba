"""TLS and mutual TLS: records as they come, what is no handshake, and who the client is."""

import asyncio
import json
import ssl
from contextlib import suppress
from typing import Any

import httpx
import pytest
import trustme

from modelserve.errors import Unauthenticated
from modelserve.messages import Principal
from modelserve.protocols import Caller
from modelserve.transports.http1 import Limits
from transports.http1.encrypted import Encrypted
from transports.http1.models import Sums, large, served, upload, wanting_bytes
from transports.http1.rows import CHUNKED, END, PROBE, ROWS, Row, chunk, get, post, sized, text
from transports.http1.verdicts import judge
from transports.raw_http import BOUND, Peer, Reader

pytestmark = pytest.mark.usefixtures("quiet")

MIB = 1 << 20
INFER = "/v2/models/echo/infer"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("piece", [0, 1, 100])
def test_records_may_come_in_pieces(
    piece: int,
    version: ssl.TLSVersion,
    runner: asyncio.Runner,
    server_side: ssl.SSLContext,
    client_side: ssl.SSLContext,
) -> None:
    client_side.maximum_version = version

    async def main() -> None:
        async with served(tls=server_side) as server:
            peer = await Encrypted.connect(server.url, client_side, piece)
            with peer.socket:
                assert peer.tls.version() == version.name.replace("_", ".")
                assert (await peer.ask(sized("a"))).told == "200 a"
                # Several requests in one record, one request in several, the end behind both.
                await peer.send(sized("b") + get() + sized("c")[:30], sized("c")[30:])
                told = [(await peer.answer()).told for _ in range(3)]
                assert told == ["200 b", "404 /x", "200 c"]
                body = text("d")
                await peer.send(post(b"", CHUNKED), chunk(body), END)
                assert (await peer.answer()).told == "200 d"
                await peer.send(get("/x", "connection: close"))
                (last,) = await peer.rest()
                assert last.closes

    runner.run(main())


def test_rows_of_the_table_have_the_same_verdict_under_tls(
    runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def ask(url: str, row: Row) -> None:
        peer = await Encrypted.connect(url, client_side)
        peer.reader = Reader(frozenset(row.bodiless).__contains__)
        with peer.socket:
            with suppress(ConnectionError):
                await peer.send(row.data if row.end == "cut" else row.data + PROBE)
                if row.end == "cut":
                    peer.finish()
            judge(row, await peer.rest())

    async def named(url: str, row: Row) -> None:
        try:
            await ask(url, row)
        except (AssertionError, TimeoutError, ssl.SSLError) as error:
            raise AssertionError(f"{row.name}: {error!r}") from error

    async def main() -> None:
        async with served(tls=server_side) as server:
            # Side by side: after a refusal it reads on for a while, as it cannot close its own
            # half alone.
            await asyncio.gather(*(named(server.url, row) for row in ROWS[::3]))

    runner.run(main())


@pytest.mark.parametrize("size", [100_000, 20 * MIB])
def test_large_bodies_and_answers_under_tls(
    size: int, runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def main() -> None:
        start, _ = upload(size)
        async with served(Sums(), tls=server_side) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                for _ in range(2):
                    await peer.send(start)
                    for at in range(0, size, 300_000):
                        await peer.send(b"\1" * min(300_000, size - at))
                    answer = await peer.answer()
                    assert json.loads(answer.body)["outputs"][0]["data"] == [size]
        async with served(large(size), tls=server_side) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                assert len((await peer.ask(wanting_bytes())).body) > size
                assert (await peer.ask(get())).told == "404 /x"

    runner.run(main())


def test_a_refusal_under_tls_reaches_a_client_that_still_sends(
    runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with served(tls=server_side, max_body_size=1000) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                await peer.send(post(bytes(100_000), "content-length: 200000"))
                assert (await peer.answer()).status == 413

    runner.run(main())


@pytest.mark.parametrize(
    "said",
    [get(), b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 600, b""],
    ids=["plain HTTP", "part of a hello", "no hello", "nothing"],
)
def test_what_is_no_handshake_ends_and_others_are_served(
    said: bytes, runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with served(tls=server_side) as server:
            host, _, port = server.url.removeprefix("https://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            writer.write_eof()
            async with asyncio.timeout(BOUND):
                assert b"HTTP/" not in await reader.read()
            writer.close()
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                assert (await peer.ask(get())).told == "404 /x"

    runner.run(main())


def test_a_damaged_record_ends_the_connection(
    runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with served(tls=server_side) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                assert (await peer.ask(get())).told == "404 /x"
                peer.tls.write(get())
                record = bytearray(peer._out.read())
                record[-1] ^= 1
                await Peer.send(peer, bytes(record))
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await peer.answer()

    runner.run(main())


def test_an_idle_connection_under_tls_is_closed(
    runner: asyncio.Runner, server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    async def main() -> None:
        async with served(tls=server_side, limits=Limits(idle_timeout=0.2)) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                assert (await peer.ask(get())).told == "404 /x"
                assert await peer.rest() == []

    runner.run(main())


# Mutual TLS


class Certificates:
    """Knows callers by the common name of their certificate."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def authenticate(self, caller: Caller) -> Principal:
        self.seen.append(caller.certificate)
        if caller.certificate is None:
            raise Unauthenticated("a certificate is needed")
        names = [name for part in caller.certificate["subject"] for _, name in part]
        return Principal(names[-1], frozenset({"infer"}))


def test_the_clients_certificate_reaches_the_authenticator(
    runner: asyncio.Runner,
    authority: trustme.CA,
    mutual: ssl.SSLContext,
    client_side: ssl.SSLContext,
) -> None:
    authority.issue_cert("ada.example", common_name="ada").configure_cert(client_side)

    async def main() -> None:
        authenticator = Certificates()
        model = Sums()
        async with served(model, tls=mutual, authenticator=authenticator) as server:
            peer = await Encrypted.connect(server.url, client_side)
            with peer.socket:
                # In one piece, with a head known from before, and with a body of its own.
                start, _ = upload(100_000)
                for asked in (upload(10)[0] + bytes(10),) * 2 + (start + bytes(100_000),):
                    assert (await peer.ask(asked)).status == 200
        assert [request.principal.name for request in model.requests] == ["ada"] * 3
        assert [*authenticator.seen[0]["subjectAltName"]] == [("DNS", "ada.example")]

    runner.run(main())


@pytest.mark.parametrize("own", [False, True], ids=["none", "of another authority"])
def test_a_client_without_a_certificate_of_ours_is_not_let_in(
    own: bool,
    runner: asyncio.Runner,
    mutual: ssl.SSLContext,
    client_side: ssl.SSLContext,
) -> None:
    if own:
        trustme.CA().issue_cert("ada.example").configure_cert(client_side)

    async def ask_once(url: str) -> None:
        peer = await Encrypted.connect(url, client_side)
        with peer.socket:
            await peer.ask(sized("a"))

    async def main() -> None:
        authenticator = Certificates()
        async with served(tls=mutual, authenticator=authenticator) as server:
            # Under TLS 1.3 the client learns of it only with the first answer.
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask_once(server.url)
        assert authenticator.seen == []

    runner.run(main())


def test_without_tls_the_authenticator_sees_no_certificate(runner: asyncio.Runner) -> None:
    async def main() -> None:
        authenticator = Certificates()
        async with (
            served(authenticator=authenticator) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            assert (await client.post(INFER, content=text("a"))).status_code == 401
        assert authenticator.seen == [None]

    runner.run(main())
