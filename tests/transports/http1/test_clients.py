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

from transports.http1.models import served
from transports.http1.rows import text

pytestmark = pytest.mark.usefixtures("quiet")

MIB = 1 << 20
INFER = "/v2/models/echo/infer"
unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")


@pytest.fixture
def short_path() -> Iterator[Path]:
    # The path of a Unix socket has about a hundred characters; pytest's are longer.
    with TemporaryDirectory(prefix="ms-") as directory:
        yield Path(directory)


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
