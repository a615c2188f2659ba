"""Where the time of a request went, told to who asks for it: over HTTP, on both servers."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

import modelserve as ms
from modelserve.transports.asgi import ASGIApp

INFER = "/v2/models/double/infer"
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}
NAMES = ["decode_us", "queue_us", "run_us", "batch_rows", "batch_requests", "reason"]

seen: list[dict[str, Any]] = []


@ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 2))], max_batch_size=8)
def double(x: Any, context: ms.Context) -> Any:
    seen.append(dict(context.parameters))
    return {"y": x * 2}


def through_asgi(body: Any, headers: dict[str, str]) -> httpx.Response:
    async def main() -> httpx.Response:
        async with ms.ModelRepository() as repo:
            repo.add(double)
            transport = httpx.ASGITransport(app=ASGIApp(repo))
            async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
                return await client.post(INFER, json=body, headers=headers)

    return asyncio.run(main())


def through_http1(body: Any, headers: dict[str, str]) -> httpx.Response:
    async def main() -> httpx.Response:
        async with ms.ModelRepository() as repo:
            repo.add(double)
            async with (
                ms.HTTPServer(repo, http="127.0.0.1:0") as server,
                httpx.AsyncClient(base_url=server.url) as client,
            ):
                return await client.post(INFER, json=body, headers=headers)

    return asyncio.run(main())


@pytest.fixture(params=[through_asgi, through_http1])
def post(request: pytest.FixtureRequest) -> Callable[..., httpx.Response]:
    def call(body: Any, **headers: str) -> httpx.Response:
        seen.clear()
        return request.param(  # type: ignore[no-any-return]
            body, {name.replace("_", "-"): value for name, value in headers.items()}
        )

    return call


def check_told(answer: httpx.Response) -> None:
    assert answer.status_code == 200
    told = answer.json()["parameters"]
    assert [name.removeprefix("explain_") for name in told] == NAMES
    assert (told["explain_batch_rows"], told["explain_batch_requests"]) == (1, 1)
    assert told["explain_reason"] == "idle"
    assert told["explain_decode_us"] > 0
    assert told["explain_run_us"] > 0
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf"decode;dur={number}, queue;dur={number}, run;dur={number}, encode;dur={number}, "
        'batch;desc="1 requests, 1 rows, idle"',
        answer.headers["server-timing"],
    )


def test_parameter_asks_and_is_not_the_models(post: Callable[..., httpx.Response]) -> None:
    check_told(post({"inputs": [X], "parameters": {"explain": True, "mode": "fast"}}))
    assert seen == [{"mode": "fast"}]


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_header_asks(post: Callable[..., httpx.Response], value: str) -> None:
    check_told(post({"inputs": [X]}, x_explain=value))


@pytest.mark.parametrize("parameters", [{}, {"explain": False}])
def test_who_does_not_ask_is_told_nothing(
    post: Callable[..., httpx.Response], parameters: Any
) -> None:
    answer = post({"inputs": [X], "parameters": parameters}, x_explain="0")
    assert answer.status_code == 200
    assert "parameters" not in answer.json()
    assert "server-timing" not in answer.headers


def test_other_values_are_refused(post: Callable[..., httpx.Response]) -> None:
    answer = post({"inputs": [X], "parameters": {"explain": "yes"}})
    assert answer.status_code == 400
    assert answer.json() == {"error": "parameters.explain: expected true or false, got str"}


def test_in_process_the_exchange_tells() -> None:
    async def main() -> dict[str, Any]:
        async with ms.ModelRepository() as repo:
            repo.add(double)
            request = ms.InferRequest("double", {"x": np.ones((3, 2), np.float32)})
            request.exchange = exchange = ms.Exchange("inprocess", "double")
            await repo.infer(request)
            repo.record(exchange)
            return exchange.explain()

    told = asyncio.run(main())
    assert json.loads(json.dumps(told)) == told
    assert list(told) == ["decode_us", "queue_us", "run_us", "encode_us", *NAMES[3:]]
    assert (told["batch_rows"], told["batch_requests"], told["decode_us"]) == (3, 1, 0.0)
