"""What a hostile request costs before and while the servable answers it."""

import asyncio
import gzip
import json
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.messages import InferRequest, InferResponse
from modelserve.repository.repository import ModelRepository
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.routes import Reply, Request, Routes
from versioned_models import adds

X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
BODY = json.dumps({"inputs": [X]}).encode()
BINARY = {
    "name": "x",
    "datatype": "UINT8",
    "shape": [16],
    "parameters": {"binary_data_size": 16},
}
HEAD = json.dumps({"inputs": [BINARY]}).encode() + b" " * 10**6


class Body(bytearray):
    """A body whose end can be seen."""


class Looks(StubModel):
    """Tells whether a body is there while it answers."""

    def __init__(self) -> None:
        super().__init__(name="m")
        self.body: weakref.ref[Body] | None = None
        self.seen: list[bool] = []

    async def infer(self, request: InferRequest) -> InferResponse:
        assert self.body is not None
        self.seen.append(self.body() is not None)
        return await super().infer(request)


def ask(
    servable: Any, body: bytes, headers: Mapping[str, str] | None = None, path: str = "m"
) -> Reply:
    routes = Routes(servable)
    request = Request("POST", f"/v2/models/{path}/infer", (headers or {}).get)
    route = routes.open(request)
    request.body = body
    return asyncio.run(routes.answer(request, route))


def text(reply: Reply) -> str:
    error: str = json.loads(b"".join(reply.body))["error"]
    return error


# What is refused before a body is looked at


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"{", ""), (b"{", "gzip"), (gzip.compress(bytes(10**6)), "gzip"), (b"", "br")],
    ids=["JSON", "damaged", "long", "unknown encoding"],
)
@pytest.mark.parametrize("path", ["other", "m/versions/9"])
def test_an_unknown_model_is_refused_before_its_body_is_looked_at(
    path: str, body: bytes, encoding: str
) -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        reply = ask(repository, body, {"content-encoding": encoding}, path)
        assert reply.status == 404
        assert ask(repository, body, {"content-encoding": encoding}).status in (400, 501)


def test_what_a_servable_refuses_beforehand_is_refused_with_its_error() -> None:
    class Checks(StubModel):
        def check(self, model: str, version: str = "") -> None:
            if version:
                raise ModelNotFound(f'no version "{version}" of "{model}"')
            raise ModelNotReady("not yet")

    assert text(ask(Checks(), b"{", path="m/versions/2")) == 'no version "2" of "m"'
    assert ask(Checks(), b"{").status == ModelNotReady.http


def test_a_servable_without_a_check_is_asked_with_the_decoded_request() -> None:
    assert ask(StubModel(), b"{", path="other").status == 400
    assert ask(StubModel(), BODY, path="other").status == 404


# Decompression


def compressed(encoding: str, plain: bytes) -> bytes:
    return gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_grows_too_much_is_refused_before_it_is_whole(encoding: str) -> None:
    body = compressed(encoding, BODY + b" " * 2 * 10**7)
    assert 10_000 < len(body) < 30_000
    tracemalloc.start()
    try:
        reply = ask(StubModel(), body, {"content-encoding": encoding}, "stub")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status == 413
    assert text(reply) == (
        f"the decompressed body has more than {100 * len(body)} bytes and 100 times what was sent"
    )
    assert peak < 4 * 100 * len(body)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_body_may_grow_to_one_mebibyte(encoding: str) -> None:
    headers = {"content-encoding": encoding}
    body = compressed(encoding, BODY.ljust(2**20))
    assert 100 * len(body) < 2**20
    assert ask(StubModel(), body, headers, "stub").status == 200
    body = compressed(encoding, BODY.ljust(2**20 + 1))
    assert ask(StubModel(), body, headers, "stub").status == 413


# What is held while a request waits


REQUESTS: dict[str, tuple[Callable[[], Body], dict[str, str]]] = {
    "JSON": (lambda: Body(BODY), {}),
    "padded": (
        lambda: Body(HEAD + bytes(16)),
        {"inference-header-content-length": str(len(HEAD))},
    ),
    "compressed": (lambda: Body(gzip.compress(BODY)), {"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_routes_hold_no_body_while_the_servable_answers(kind: str) -> None:
    make, headers = REQUESTS[kind]
    servable = Looks()
    routes = Routes(servable)
    request = Request("POST", "/v2/models/m/infer", headers.get)
    route = routes.open(request)
    body = request.body = make()
    servable.body = weakref.ref(body)
    size = len(body)
    del body
    assert request.exchange is not None
    assert asyncio.run(routes.answer(request, route)).status == 200
    assert servable.seen == [False]
    assert request.exchange.bytes_in == size


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_application_holds_no_body_while_the_servable_answers(kind: str) -> None:
    make, headers = REQUESTS[kind]
    servable = Looks()
    statuses = []

    async def receive() -> Any:
        body = make()
        servable.body = weakref.ref(body)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/m/infer",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(ASGIApp(servable)(scope, receive, send))
    assert statuses == [200, None]
    assert servable.seen == [False]


def test_a_large_tensor_is_still_a_view_of_the_body() -> None:
    tensor = {**BINARY, "shape": [10**6], "parameters": {"binary_data_size": 10**6}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + bytes(10**6)
    servable = StubModel(name="m")
    headers = {"inference-header-content-length": str(len(head))}
    assert ask(servable, body, headers).status == 200
    assert np.shares_memory(servable.requests[0].inputs["x"], np.frombuffer(body, np.uint8))
