"""Clients as people have them, over TCP, a Unix socket, TLS and mutual TLS."""

import asyncio
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

from modelserve.errors import Unauthenticated
from modelserve.messages import Principal
from modelserve.protocols import Caller
from modelserve.transports.http1 import Limits
from transports.http1.models import Sums, large, served, upload, wanting_bytes
from transports.http1.rows import CHUNKED, END, chunk, get, post, sized, text
from transports.raw_http import BOUND, Peer

pytestmark = pytest.mark.usefixtures("quiet")

MIB = 1 << 20
INFER = "/v2/models/echo/infer"
unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def mutual(authority: trustme.CA) -> ssl.SSLContext:
    """As above, and wants a certificate from the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def client_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def short_path() -> Iterator[Path]:
    # The path of a Unix socket has about a hundred characters; pytest's are longer.
    with TemporaryDirectory(prefix="ms-") as directory:
        yield Path(directory)


class Encrypted(Peer):
    """A connection under TLS, whose records are made by hand: they can be sent in pieces."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connected)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self.piece = 0
        """Bytes sent at once; 0 for all."""

    @classmethod
    async def connect(cls, url: str, context: ssl.SSLContext, piece: int = 0) -> "Encrypted":
        host, _, port = url.removeprefix("https://").rpartition(":")
        connected = socket.socket()
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
        peer = cls(connected, context)
        peer.piece = piece
        try:
            async with asyncio.timeout(BOUND):
                await peer.shake_hands()
        except BaseException:
            connected.close()
            raise
        return peer

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.flush()
                self._in.write(await super().receive())
        await self.flush()

    async def flush(self) -> None:
        data = self._out.read()
        size = self.piece or len(data) or 1
        await super().send(*[data[at : at + size] for at in range(0, len(data), size)])

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.tls.write(piece)
            await self.flush()

    async def receive(self, size: int = 1 << 16) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                data = await super().receive()
                if not data:
                    self._in.write_eof()
                    raise ConnectionResetError("closed without saying so") from None
                self._in.write(data)
            except ssl.SSLZeroReturnError:
                return b""


# The clients


def by_http_client(url: str, context: ssl.SSLContext | None) -> None:
    host = url.partition("://")[2]
    if context is None:
        connection: http.client.HTTPConnection = http.client.HTTPConnection(host, timeout=10)
    else:
        connection = http.client.HTTPSConnection(host, timeout=10, context=context)
    with closing(connection):
        for said in ("a", "b" * 200_000):
            # What has no length it sends in chunks.
            for body in (text(said), iter([text(said)])):
                connection.request("POST", INFER, body=body)
                answer = json.loads(connection.getresponse().read())
                assert answer["outputs"][0]["data"] == [said]
        connection.request("HEAD", "/v2")
        assert connection.getresponse().read() == b""
        connection.request("GET", "/x")
        assert connection.getresponse().status == 404


def by_httpx(url: str, context: ssl.SSLContext | None) -> None:
    with httpx.Client(base_url=url, verify=context or True, timeout=10) as client:
        for said in ("a", "b" * 200_000):
            answer = client.post(INFER, content=text(said))
            assert answer.json()["outputs"][0]["data"] == [said]
        assert client.head("/v2").content == b""
        assert client.post(INFER, content=iter([text("c")])).status_code == 200


X = np.arange(12, dtype=np.float32).reshape(3, 4)


def by_tritonclient(url: str, context: ssl.SSLContext | None) -> None:
    client_module = pytest.importorskip("tritonclient.http")
    client = client_module.InferenceServerClient(url.partition("://")[2])
    try:
        assert client.is_server_live()
        for binary in (True, False):
            given = client_module.InferInput("x", X.shape, "FP32")
            given.set_data_from_numpy(X, binary_data=binary)
            for compression in (None, "gzip"):
                result = client.infer("echo", [given], request_compression_algorithm=compression)
                np.testing.assert_array_equal(result.as_numpy("x"), X)
    finally:
        client.close()


def by_tritonclient_aio(url: str, context: ssl.SSLContext | None) -> None:
    client_module = pytest.importorskip("tritonclient.http.aio")

    async def main() -> None:
        async with client_module.InferenceServerClient(url.partition("://")[2]) as client:
            given = client_module.InferInput("x", X.shape, "FP32")
            given.set_data_from_numpy(X)
            results = await asyncio.gather(*(client.infer("echo", [given]) for _ in range(10)))
            for result in results:
                np.testing.assert_array_equal(result.as_numpy("x"), X)

    asyncio.run(main())


def curl(*arguments: str, body: bytes = b"") -> bytes:
    binary = shutil.which("curl")
    if binary is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        [binary, "-sS", "--max-time", "10", *arguments],
        input=body,
        capture_output=True,
        timeout=15,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_curl(url: str, context: ssl.SSLContext | None) -> None:
    # From a certain size on it expects 100 Continue, for a second.
    for said in ("a", "b" * 2_000_000):
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["--http1.0"]):
            shown = curl(*extra, "--data-binary", "@-", url + INFER, body=text(said))
            assert json.loads(shown)["outputs"][0]["data"] == [said]
    assert b"200 OK" in curl("-I", url + "/v2")


CLIENTS = [by_http_client, by_httpx, by_tritonclient, by_tritonclient_aio, by_curl]


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_are_served(client: Any, runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with served() as server:
            await asyncio.to_thread(client, server.url, None)

    runner.run(main())


@pytest.mark.parametrize("client", [by_http_client, by_httpx])
def test_clients_are_served_under_tls(
    client: Any,
    runner: asyncio.Runner,
    server_side: ssl.SSLContext,
    client_side: ssl.SSLContext,
) -> None:
    async def main() -> None:
        async with served(tls=server_side) as server:
            assert server.url.startswith("https://")
            await asyncio.to_thread(client, server.url, client_side)

    runner.run(main())


@unix_sockets
def test_clients_are_served_at_a_unix_socket(runner: asyncio.Runner, short_path: Path) -> None:
    path = short_path / "s"

    def ask() -> None:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://a", timeout=10) as client:
            assert client.post(INFER, content=text("a")).status_code == 200
        curl_answer = curl("--unix-socket", str(path), "http://a/v2/health/live")
        assert json.loads(curl_answer)["live"] is True

    async def main() -> None:
        async with served(http=f"unix:{path}"):
            await asyncio.to_thread(ask)
        assert not path.exists()

    runner.run(main())


# TLS by hand


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
