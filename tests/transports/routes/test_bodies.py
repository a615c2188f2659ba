"""Bodies that are compressed, or have no JSON part, over both of our ways to serve HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpcore
import numpy as np
import pytest

from modelserve.tensors import TensorSpec
from modelserve.testing import StubModel
from modelserve.transports.routes.bodies import accepted
from modelserve.transports.serving import HTTPServer


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ("", False)),
        ("gzip", ("gzip", True)),
        ("deflate", ("deflate", True)),
        (" GZip ; q=0.5", ("gzip", True)),
        ("gzip, identity", ("gzip", True)),
        ("gzip, deflate", ("gzip", False)),
        ("deflate, gzip;q=1.0, *;q=0.5", ("gzip", False)),
        ("gzip;q=0.5, deflate", ("deflate", False)),
        ("gzip;q=0, deflate", ("deflate", False)),
        ("gzip, deflate, br, zstd", ("gzip", False)),
        ("br", ("", False)),
        ("*", ("gzip", False)),
        ("identity", ("", False)),
        ("gzip;q=0", ("", False)),
        ("gzip;q=0.000", ("", False)),
        ("gzip;q=high", ("", False)),
        ("gzip;q=nan", ("", False)),
        ("gzip;q=", ("", False)),
        (",,;,gzip", ("gzip", False)),
        (";q=1" * 50, ("", False)),
    ],
)
def test_what_a_client_takes(header: str, expected: Any) -> None:
    assert accepted(header) == expected


class Answer:
    def __init__(self, found: httpcore.Response) -> None:
        self.status = found.status
        self.headers = {k.decode().lower(): v.decode() for k, v in found.headers}
        self.body = found.content

    @property
    def plain(self) -> bytes:
        coding = self.headers.get("content-encoding")
        if coding is None:
            return self.body
        return gzip.decompress(self.body) if coding == "gzip" else zlib.decompress(self.body)


async def _over_http1(stub: StubModel, asks: Callable[..., Any]) -> None:
    async with HTTPServer(stub, http="127.0.0.1:0") as server:
        await asks(server.url)


async def _over_uvicorn(stub: StubModel, asks: Callable[..., Any]) -> None:
    async with HTTPServer(stub, http="127.0.0.1:0", server="uvicorn") as server:
        await asks(server.url)


over_both = pytest.mark.parametrize("served", [_over_http1, _over_uvicorn])


def conversation(
    served: Any, stub: StubModel, *asked: tuple[bytes, dict[str, str]], path: str = "echo"
) -> list[Answer]:
    """Post bodies with headers to a model, one after the other."""
    answers = []

    async def asks(url: str) -> None:
        async with httpcore.AsyncConnectionPool() as pool:
            for body, headers in asked:
                answers.append(
                    Answer(
                        await pool.request(
                            "POST",
                            f"{url}/v2/models/{path}/infer",
                            headers={"content-type": "application/json", **headers},
                            content=body,
                        )
                    )
                )

    asyncio.run(served(stub, asks))
    return answers


def body_of(count: int, *, binary: bool = False) -> bytes:
    tensor = {"name": "x", "datatype": "INT64", "shape": [count], "data": list(range(count))}
    parameters = {"binary_data_output": True} if binary else {}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


@over_both
@pytest.mark.parametrize("count", [1, 10_000, 100_000])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_who_asks_for_a_compressed_answer_gets_one(
    served: Any, count: int, binary: bool, coding: str
) -> None:
    stub = StubModel(name="echo")
    body = body_of(count, binary=binary)

    plain, packed = conversation(served, stub, (body, {}), (body, {"accept-encoding": coding}))

    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == coding
    assert packed.headers["vary"] == "accept-encoding"
    assert packed.plain == plain.body
    for name in ("content-type", "inference-header-content-length"):
        assert packed.headers.get(name) == plain.headers.get(name)


@over_both
@pytest.mark.parametrize(
    ("count", "binary", "compressed"),
    [(1, False, False), (10_000, False, True), (10_000, True, False), (100_000, False, False)],
)
def test_who_would_take_a_compressed_answer_gets_one_where_it_pays(
    served: Any, count: int, binary: bool, compressed: bool
) -> None:
    stub = StubModel(name="echo")
    body = body_of(count, binary=binary)

    plain, answer = conversation(
        served, stub, (body, {}), (body, {"accept-encoding": "gzip, deflate, br"})
    )

    assert ("content-encoding" in answer.headers) is compressed
    assert answer.plain == plain.body


@over_both
def test_an_error_is_never_compressed(served: Any) -> None:
    headers = {"accept-encoding": "gzip"}

    wrong, unknown = (
        conversation(served, StubModel(name="echo"), (b"{", headers))[0],
        conversation(served, StubModel(name="echo"), (body_of(1), headers), path="nope")[0],
    )

    assert (wrong.status, unknown.status) == (400, 404)
    assert "error" in json.loads(wrong.body)
    assert "error" in json.loads(unknown.body)


def raw_model() -> StubModel:
    return StubModel(name="echo", inputs=[TensorSpec("x", "FP32", (-1,))])


@over_both
def test_a_body_may_be_one_tensor_alone(served: Any) -> None:
    x = np.arange(3, dtype=np.float32)
    headers = {"inference-header-content-length": "0"}
    with_id = {**headers, "x-request-id": "mine", "content-encoding": "gzip"}

    answers = conversation(
        served,
        raw_model(),
        (x.tobytes(), headers),
        (x.tobytes(), headers),
        (gzip.compress(x.tobytes()), with_id),
    )

    for answer in answers:
        assert answer.status == 200
        size = int(answer.headers["inference-header-content-length"])
        assert answer.body[size:] == x.tobytes()
        assert json.loads(answer.body[:size])["outputs"][0]["shape"] == [3]
    assert answers[2].headers["x-request-id"] == "mine"


@over_both
@pytest.mark.parametrize(
    ("body", "path", "status", "text"),
    [
        (b"\0\0\0", "echo", 400, "expected a multiple of 4 bytes, got 3"),
        (b"\0\0\0\0", "nope", 404, "there is no model"),
    ],
)
def test_a_body_of_one_tensor_is_refused_like_any_other(
    served: Any, body: bytes, path: str, status: int, text: str
) -> None:
    headers = {"inference-header-content-length": "0"}

    (answer,) = conversation(served, raw_model(), (body, headers), path=path)

    assert answer.status == status
    assert text in json.loads(answer.body)["error"]
