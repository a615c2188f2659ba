"""TensorFlow Serving's and KServe v1's routes, over the ASGI application and the own server."""

import asyncio
import gzip
import importlib.util
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper, numpy_helper

import modelserve as ms
from modelserve.errors import MethodNotAllowed
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.routes import PROTOCOLS, NoSuchPath, Routes
from onnx_models import model, value

OK = {"error_code": "OK", "error_message": ""}
AVAILABLE = {"version": "123", "state": "AVAILABLE", "status": OK}
EVENT = {"ce-specversion": "1.0", "ce-id": "36077", "ce-source": "here", "ce-type": "com.example"}


def half_plus(number: float) -> bytes:
    """TensorFlow Serving's toy: y = x / 2 + number."""
    return model(
        [helper.make_node("Mul", ["x", "half"], ["h"]), helper.make_node("Add", ["h", "n"], ["y"])],
        [value("x", "FP32", ("batch",))],
        [value("y", "FP32", ("batch",))],
        [
            numpy_helper.from_array(np.array([0.5], np.float32), "half"),
            numpy_helper.from_array(np.array([number], np.float32), "n"),
        ],
    )


@ms.model(
    inputs=[
        ms.TensorSpec("tag", "BYTES", (-1,)),
        ms.TensorSpec("signal", "INT64", (-1, 5)),
        ms.TensorSpec("sensor", "INT64", (-1, 2, 2)),
    ],
    max_batch_size=8,
)
def tagged(tag: Any, signal: Any, sensor: Any) -> dict[str, Any]:
    """The three named inputs of TensorFlow Serving's documentation."""
    return {"tag": tag, "sum": signal.sum(axis=1), "raw_bytes": tag, "trace": sensor[:, 0, 0]}


@ms.model(
    inputs=[ms.TensorSpec("image", "BYTES", (-1,)), ms.TensorSpec("caption", "BYTES", (-1,))],
    outputs=[
        ms.TensorSpec("classes", "BYTES", (-1, 2)),
        ms.TensorSpec("scores", "FP32", (-1, 2)),
    ],
    max_batch_size=8,
)
def objects(image: Any, caption: Any) -> dict[str, Any]:
    classes = np.stack([image, caption], axis=1)
    return {"classes": classes, "scores": np.tile(np.float32([0.75, 0.25]), (len(image), 1))}


@ms.model(inputs=[ms.TensorSpec("a", "FP32", (-1,)), ms.TensorSpec("b", "FP32", (-1,))])
def total(a: Any, b: Any) -> dict[str, Any]:
    """Take columns of different lengths, and give one value."""
    return {"total": np.float32(a.sum() + b.sum())}


@ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1,))], max_batch_size=8)
def broken(x: Any) -> dict[str, Any]:
    raise RuntimeError("secret /path")


class Answers:
    """Asks a server one request after the other."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None and not isinstance(body, bytes | str):
            body = json.dumps(body)
        return self._runner.run(self._client.request(method, path, content=body, **options))

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self("POST", path, body, **options)

    def get(self, path: str) -> httpx.Response:
        return self("GET", path)


@asynccontextmanager
async def asgi(servable: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(ms.ASGIApp(servable, **options))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


@asynccontextmanager
async def own(servable: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        ms.HTTPServer(servable, http="127.0.0.1:0", **options) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def repository() -> Iterator[ms.ModelRepository]:
    repo = ms.ModelRepository()
    repo.add("half_plus_two", half_plus(2), version=123)
    repo.add("half_plus_three", half_plus(3), version=123)
    for each in (tagged, objects, total, broken):
        repo.add(each)
    yield repo
    repo.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module", params=[asgi, own])
def ask(
    request: pytest.FixtureRequest, runner: asyncio.Runner, repository: ms.ModelRepository
) -> Iterator[Answers]:
    """The repository, served with default settings."""
    served = request.param(repository)
    yield Answers(runner, runner.run(served.__aenter__()))
    runner.run(served.__aexit__(None, None, None))


def with_routes(servable: Any, *protocols: Any, **options: Any) -> Callable[..., Any]:
    """Return what asks one request of a servable by the ASGI application."""

    def ask(method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with asgi(servable, protocols=protocols or PROTOCOLS, **options) as client:
                content = body if isinstance(body, bytes | None) else json.dumps(body)
                return await client.request(method, path, content=content, **more)

        return asyncio.run(run())

    return ask


# What TensorFlow Serving's document and tests show

TWO = "/v1/models/half_plus_two"
THREE = "/v1/models/half_plus_three"
TAGGED_ROWS = {
    "instances": [
        {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
        {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
    ]
}
TAGGED_COLUMNS = {
    "inputs": {
        "tag": ["foo", "bar"],
        "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
        "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
    }
}


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (f"{THREE}:predict", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [3.5, 4.0, 5.5]}),
        (f"{TWO}:predict", {"instances": [2.0, 3.0, 4.0]}, {"predictions": [3.0, 3.5, 4.0]}),
        (f"{TWO}:predict", {"inputs": [2.0, 3.0, 4.0]}, {"outputs": [3.0, 3.5, 4.0]}),
        (f"{TWO}:predict", {"inputs": {"x": [2.0]}}, {"outputs": [3.0]}),
        (f"{TWO}:predict", {"instances": [{"x": 2.0}]}, {"predictions": [3.0]}),
        (f"{TWO}/versions/123:predict", {"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
        (
            f"{TWO}/versions/123:predict",
            {"signature_name": "serving_default", "instances": [3.0, 4.0]},
            {"predictions": [3.5, 4.0]},
        ),
        (
            f"{TWO}/versions/123:predict",
            {"signature_name": "serving_default", "inputs": [3.0, 4.0]},
            {"outputs": [3.5, 4.0]},
        ),
        (f"{TWO}:PREDICT", {"instances": [2.0]}, {"predictions": [3.0]}),
        (
            f"{THREE}:regress",
            {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]},
            {"results": [3.5, 4.0]},
        ),
        (
            f"{TWO}/versions/123:regress",
            {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]},
            {"results": [42.0]},
        ),
        (f"{TWO}:regress", {"context": {"x": 2}, "examples": [{}, {}]}, {"results": [3.0, 3.0]}),
        (
            "/v1/models/objects:classify",
            {
                "signature_name": "classify_objects",
                "examples": [
                    {"image": {"b64": "aW1hZ2UgYnl0ZXM="}, "caption": "seaside"},
                    {"image": {"b64": "YXdlc29tZSBpbWFnZSBieXRlcw=="}, "caption": "mountains"},
                ],
            },
            {
                "results": [
                    [["image bytes", 0.75], ["seaside", 0.25]],
                    [["awesome image bytes", 0.75], ["mountains", 0.25]],
                ]
            },
        ),
        (
            "/v1/models/tagged:predict",
            TAGGED_ROWS,
            {
                "predictions": [
                    {"tag": "foo", "sum": 15, "raw_bytes": {"b64": "Zm9v"}, "trace": 1},
                    {"tag": "bar", "sum": 15, "raw_bytes": {"b64": "YmFy"}, "trace": 4},
                ]
            },
        ),
        (
            "/v1/models/tagged:predict",
            TAGGED_COLUMNS,
            {
                "outputs": {
                    "tag": ["foo", "bar"],
                    "sum": [15, 15],
                    "raw_bytes": [{"b64": "Zm9v"}, {"b64": "YmFy"}],
                    "trace": [1, 4],
                }
            },
        ),
        (
            "/v1/models/total:predict",
            {"inputs": {"a": [1.0, 2.0, 3.0], "b": [4.0]}},
            {"outputs": 10.0},
        ),
    ],
)
def test_documented_request_is_answered(ask: Answers, path: str, body: Any, answer: Any) -> None:
    response = ask.post(path, body)
    assert (response.status_code, response.json()) == (200, answer)
    assert response.headers["content-type"] == "application/json"


def test_status_of_all_versions_has_kserve_s_members_too(ask: Answers) -> None:
    response = ask.get(TWO)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "model_version_status": [AVAILABLE],
        "name": "half_plus_two",
        "ready": True,
    }


def test_status_of_one_version(ask: Answers) -> None:
    response = ask.get(f"{TWO}/versions/123")
    assert (response.status_code, response.json()) == (200, {"model_version_status": [AVAILABLE]})


@pytest.mark.parametrize("path", [f"{TWO}/metadata", f"{TWO}/versions/123/metadata"])
def test_metadata(ask: Answers, path: str) -> None:
    def info(name: str) -> dict[str, Any]:
        shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
        return {name: {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": name}}

    response = ask.get(path)
    assert response.status_code == 200
    assert response.json() == {
        "model_spec": {"name": "half_plus_two", "signature_name": "", "version": "123"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": info("x"),
                        "outputs": info("y"),
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


def test_head_has_no_body(ask: Answers) -> None:
    response = ask("HEAD", TWO)
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 100


def test_tokens_go_in_and_out(ask: Answers) -> None:
    response = ask.post(f"{TWO}:predict", b'{"instances": [NaN, Infinity, -Infinity, 1]}')
    assert response.status_code == 200
    assert response.text == '{"predictions":[NaN,Infinity,-Infinity,2.5]}'
    assert math.isnan(json.loads(response.text)["predictions"][0])


# What is refused

NOPE = "Model with name nope does not exist."


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v1/models/nope", None, 404, NOPE),
        ("GET", "/v1/models/nope/metadata", None, 404, NOPE),
        ("GET", "/v1/models/nope/versions/1", None, 404, NOPE),
        ("GET", "/v1/models/nope/versions/1/metadata", None, 404, NOPE),
        ("POST", "/v1/models/nope:predict", '{"instances": [1]}', 404, NOPE),
        ("POST", "/v1/models/nope:predict", "{", 404, NOPE),
        ("POST", "/v1/models/nope/versions/50:predict", '{"instances": [1]}', 404, NOPE),
        ("POST", "/v1/models/nope:classify", '{"examples": [{}]}', 404, NOPE),
        ("POST", "/v1/models/nope:explain", '{"instances": [1]}', 404, NOPE),
        ("GET", f"{TWO}/versions/99", None, 404, 'model "half_plus_two" has no version "99"'),
        ("GET", f"{TWO}/versions/99/metadata", None, 404, 'model "half_plus_two" has no version'),
        ("POST", f"{TWO}/versions/99:predict", '{"instances": [1]}', 404, "model "),
        ("GET", f"{TWO}/labels/canary", None, 404, 'model "half_plus_two" has no version labelled'),
        ("POST", f"{TWO}/labels/canary:predict", '{"instances": [1]}', 404, "model "),
        ("POST", f"{TWO}/labels/123:predict", '{"instances": [1]}', 404, "model "),
        ("GET", f"{TWO}/labels/123/metadata", None, 404, "model "),
        ("POST", f"{TWO}/versions/HELLO:regress", "{}", 400, "version: expected a number, got "),
        ("GET", f"{TWO}/versions/-1", None, 400, "version: expected a number, got "),
        (
            "POST",
            f"{TWO}/versions/18446744073709551615:regress",
            "{}",
            400,
            "version: expected a number below 10**18",
        ),
        ("POST", f"{TWO}:nope", "{}", 404, 'there is no verb ":nope" here; expected '),
        ("GET", f"{TWO}:nope", None, 404, "Model with name half_plus_two:nope does not exist."),
        ("POST", f"{TWO}/version/50:predict", "{}", 404, "there is no path "),
        ("POST", f"{TWO}/versions/50/labels/a:regress", "{}", 404, "there is no path "),
        ("GET", "/v1/foo", None, 404, "there is no path "),
        ("POST", "/v1/foo", "{}", 404, "there is no path "),
        ("GET", "/v1", None, 404, "there is no path "),
        ("GET", "/v1/models/", None, 200, ""),
        ("POST", "/v1/models", "{}", 405, "expected GET or HEAD, got POST"),
        ("POST", TWO, "{}", 405, "expected GET or HEAD, got POST"),
        ("DELETE", TWO, None, 405, "expected GET or HEAD, got DELETE"),
        ("POST", f"{TWO}/metadata", "{}", 405, "expected GET or HEAD, got POST"),
        ("GET", f"{TWO}:predict", None, 405, "expected POST, got GET"),
        ("PUT", f"{TWO}:predict", "{}", 405, "expected POST, got PUT"),
        ("GET", f"{TWO}:classify", None, 405, "expected POST, got GET"),
        ("GET", f"{TWO}/versions/123:regress", None, 405, "expected POST, got GET"),
        ("POST", f"{TWO}:predict", "", 400, "the body is not valid JSON: "),
        ("POST", f"{TWO}:predict", "instances = [1]", 400, "the body is not valid JSON: "),
        ("POST", f"{TWO}:predict", '{"instances": [1.0,]}', 400, "the body is not valid JSON: "),
        ("POST", f"{TWO}:predict", "[1.0]", 400, "expected a JSON object, got a list"),
        ("POST", f"{TWO}:predict", "{}", 400, 'expected either "instances" or "inputs", got '),
        ("POST", f"{TWO}:predict", '{"instances": [], "inputs": []}', 400, "expected either "),
        ("POST", f"{TWO}:predict", '{"instances": []}', 400, "instances: expected at least one"),
        (
            "POST",
            f"{TWO}:predict",
            '{"instances": [[1.0]]}',
            400,
            "instances[0]: expected a single",
        ),
        ("POST", f"{TWO}:predict", '{"instances": ["a"]}', 400, "instances[0]: expected a number"),
        ("POST", f"{TWO}:predict", '{"inputs": []}', 400, "inputs: expected 1 to 64 rows"),
        ("POST", f"{TWO}:predict", '{"inputs": {"z": [1.0]}}', 400, "inputs.z: unknown input; the"),
        (
            "POST",
            f"{TWO}:predict",
            '{"signature_name": "other", "instances": [1.0]}',
            400,
            'signature_name: "other" is not found',
        ),
        (
            "POST",
            "/v1/models/tagged:predict",
            json.dumps({"inputs": {**TAGGED_COLUMNS["inputs"], "tag": ["foo"]}}),
            400,
            'inputs[1] "signal": expected 1 rows as in the other inputs, got shape (2, 5)',
        ),
        (
            "POST",
            "/v1/models/total:predict",
            '{"instances": [{"a": 1.0, "b": 2.0}]}',
            400,
            'instances: the model\'s output "total" is one value',
        ),
        ("POST", f"{TWO}:classify", '{"examples": [{"x": 1.0}]}', 400, "the model cannot classify"),
        (
            "POST",
            "/v1/models/objects:regress",
            '{"examples": [{"image": "a", "caption": "b"}]}',
            400,
            "the model cannot regress: it gives ",
        ),
        ("POST", f"{TWO}:regress", '{"instances": [1.0]}', 400, "examples: expected a list, got "),
        ("POST", f"{TWO}:regress", '{"examples": [{"y": 1.0}]}', 400, "examples[0].y: unknown "),
        ("POST", f"{TWO}:explain", '{"instances": [1.0]}', 501, "what is served here explains no"),
        ("POST", "/v1/models/broken:predict", '{"instances": [1.0]}', 500, "the model failed; req"),
    ],
)
def test_wrong_request_is_refused(
    ask: Answers, method: str, path: str, body: str | None, status: int, text: str
) -> None:
    response = ask(method, path, body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    if status >= 400:
        document = response.json()
        assert list(document) == ["error"]
        assert document["error"].startswith(text), document
        assert "secret" not in document["error"]
    if status == 405:
        assert response.headers["allow"]


def test_unknown_verb_of_another_method_is_no_path() -> None:
    routes = Routes(StubModel())
    with pytest.raises(NoSuchPath):
        routes.find("POST", "/v1/models/stub:nope")
    with pytest.raises(MethodNotAllowed):
        routes.find("POST", "/v1/models/stub")


def test_name_may_have_reserved_characters() -> None:
    name = "modelname!#$%&'()*+,:;=?@[]"
    escaped = "modelname%21%23%24%25%26%27%28%29%2A%2B%2C%3A%3B%3D%3F%40%5B%5D"
    stub = StubModel(name=name, inputs=[ms.TensorSpec("x", "FP32", (-1,))], labels=[name])
    ask = with_routes(stub)
    assert ask("GET", f"/v1/models/{escaped}").json()["name"] == name
    for version in ("", "/versions/1", f"/labels/{escaped}"):
        path = f"/v1/models/{escaped}{version}"
        assert ask("GET", f"{path}/metadata").json()["model_spec"]["name"] == name
        answer = ask("POST", f"{path}:predict", {"instances": [1.5]})
        assert answer.json() == {"predictions": [1.5]}


def test_encoded_slash_is_no_separator_and_not_the_root() -> None:
    ask = with_routes(StubModel(name="a"))
    assert ask("GET", "/v1/models/a%2Fmetadata").status_code == 404


# KServe


def test_models_are_listed(ask: Answers) -> None:
    response = ask.get("/v1/models")
    names = ["broken", "half_plus_three", "half_plus_two", "objects", "tagged", "total"]
    assert (response.status_code, response.json()) == (200, {"models": names})


def test_server_is_alive(ask: Answers) -> None:
    response = ask.get("/")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_binary_event_is_answered_with_one(ask: Answers) -> None:
    response = ask.post(f"{TWO}:predict", {"instances": [2.0]}, headers=EVENT)
    assert (response.status_code, response.json()) == (200, {"predictions": [3.0]})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["ce-specversion"] == "1.0"
    assert response.headers["ce-source"] == "io.kserve.inference.half_plus_two"
    assert response.headers["ce-type"] == "io.kserve.inference.response"
    assert response.headers["ce-id"] not in ("", EVENT["ce-id"])
    assert response.headers["ce-time"].endswith("+00:00")


def test_structured_event_is_answered_with_one(ask: Answers) -> None:
    event = {name.removeprefix("ce-"): value for name, value in EVENT.items()}
    response = ask.post(
        f"{TWO}:predict",
        {**event, "data": {"instances": [2.0]}},
        headers={"content-type": "application/cloudevents+json"},
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert int(response.headers["content-length"]) == len(response.content)
    answer = response.json()
    assert answer["data"] == {"predictions": [3.0]}
    assert answer["specversion"] == "1.0"
    assert answer["type"] == "io.kserve.inference.response"
    assert answer["id"] != event["id"]


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        ({"ce-specversion": "1.0"}, {"instances": [2.0]}, "header ce-id: expected a text, got nu"),
        ({**EVENT, "ce-specversion": "9"}, {"instances": [2.0]}, "header ce-specversion: expected"),
        (
            {"content-type": "application/cloudevents+json"},
            {"instances": [2.0]},
            'specversion: expected "1.0", got null',
        ),
    ],
)
def test_what_is_no_event_is_refused(ask: Answers, headers: Any, body: Any, text: str) -> None:
    response = ask.post(f"{TWO}:predict", body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"].startswith(text)


class Explaining(StubModel):
    """Explains every prediction by the inputs' signs."""

    async def explain(self, request: InferRequest) -> InferResponse:
        signs = {name: np.sign(tensor) for name, tensor in request.inputs.items()}
        return InferResponse(self.name, self.version, signs)


def test_explanations_are_those_of_the_servable() -> None:
    seen: list[Exchange] = []
    servable = Explaining(inputs=[ms.TensorSpec("x", "FP32", (-1,))])
    ask = with_routes(servable, record=seen.append)
    answer = ask("POST", "/v1/models/stub:explain", {"instances": [-3.0, 2.0]}, headers=EVENT)
    assert answer.json() == {"explanations": [-1.0, 1.0]}
    assert answer.headers["ce-source"] == "io.kserve.inference.stub"
    assert [(exchange.model, exchange.code) for exchange in seen] == [("stub", "OK")]


@pytest.mark.skipif(importlib.util.find_spec("kserve") is None, reason="kserve is not installed")
def test_kserve_s_own_client_is_content(runner: asyncio.Runner) -> None:
    from kserve import InferenceRESTClient, RESTConfig

    async def main() -> None:
        stub = StubModel(name="iris", inputs=[ms.TensorSpec("x", "FP32", (-1, 2))])
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ms.HTTPServer(stub, http="127.0.0.1:0"))
            client = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
            stack.push_async_callback(client.close)
            assert await client.is_server_live(server.url) is True
            assert await client.is_model_ready(server.url, "iris") is True
            answer = await client.infer(server.url, {"instances": [[1.0, 2.0]]}, model_name="iris")
            assert answer == {"predictions": [[1.0, 2.0]]}
            with pytest.raises(httpx.HTTPStatusError, match=r"nope does not exist\., '404"):
                await client.is_model_ready(server.url, "nope")
            with pytest.raises(httpx.HTTPStatusError, match="'501"):
                await client.explain(server.url, "iris", {"instances": [[1.0, 2.0]]})
            await stub.aunload("iris")
            assert await client.is_model_ready(server.url, "iris") is False

    runner.run(main())


# Which protocols there are


@pytest.mark.parametrize(
    ("protocols", "answers"),
    [
        (
            ("tfserving",),
            {
                ("GET", "/"): 404,
                ("GET", "/v2"): 404,
                ("GET", "/v1/models"): 400,
                ("POST", "/v1/models/stub:predict"): 200,
                ("POST", "/v1/models/stub/versions/1:predict"): 200,
                ("POST", "/v1/models/stub:explain"): 404,
                ("GET", "/v1/models/stub/metadata"): 200,
            },
        ),
        (
            ("kserve",),
            {
                ("GET", "/"): 200,
                ("GET", "/v2"): 404,
                ("GET", "/v1/models"): 200,
                ("POST", "/v1/models/stub:predict"): 200,
                ("POST", "/v1/models/stub/versions/1:predict"): 404,
                ("POST", "/v1/models/stub:classify"): 404,
                ("POST", "/v1/models/stub:explain"): 501,
                ("GET", "/v1/models/stub/metadata"): 404,
            },
        ),
        (
            ("oip",),
            {
                ("GET", "/"): 404,
                ("GET", "/v2"): 200,
                ("GET", "/v1/models"): 404,
                ("GET", "/v1/models/stub"): 404,
                ("POST", "/v1/models/stub:predict"): 404,
            },
        ),
        (
            ("oip", "tfserving", "kserve"),
            {("GET", "/v2"): 200, ("GET", "/v1/models"): 200, ("GET", "/v1/models/stub"): 200},
        ),
    ],
)
def test_routes_are_those_of_the_protocols_chosen(protocols: Any, answers: Any) -> None:
    ask = with_routes(StubModel(inputs=[ms.TensorSpec("x", "FP32", (-1,))]), *protocols)
    for (method, path), status in answers.items():
        body = {"instances": [1.0]} if method == "POST" else None
        assert ask(method, path, body).status_code == status, (method, path)


def test_each_protocol_alone_has_its_own_form_of_a_model() -> None:
    stub = StubModel()
    status = {"version": "1", "state": "AVAILABLE", "status": OK}
    serving, kserve = with_routes(stub, "tfserving"), with_routes(stub, "kserve")
    assert serving("GET", "/v1/models/stub").json() == {"model_version_status": [status]}
    assert kserve("GET", "/v1/models/stub").json() == {"name": "stub", "ready": True}
    stub.state = "UNAVAILABLE"
    ended = {"version": "1", "state": "END", "status": OK}
    assert serving("GET", "/v1/models/stub").json() == {"model_version_status": [ended]}
    refused = kserve("GET", "/v1/models/stub")
    assert refused.status_code == 503
    assert refused.json() == {"error": "Model with name stub is not ready."}
    both = with_routes(stub)("GET", "/v1/models/stub")
    assert (both.status_code, both.json()["ready"]) == (200, False)


@pytest.mark.parametrize(
    ("protocols", "text"),
    [
        (("tfserving",), "Servable not found for request: Latest(nope)"),
        (("kserve",), "Model with name nope does not exist."),
        (("tfserving", "kserve"), "Model with name nope does not exist."),
    ],
)
def test_unknown_model_is_told_in_the_protocol_s_words(protocols: Any, text: str) -> None:
    ask = with_routes(StubModel(), *protocols)
    answer = ask("POST", "/v1/models/nope:predict", {"instances": [1]})
    assert (answer.status_code, answer.json()) == (404, {"error": text})


def test_event_is_none_where_kserve_is_not_spoken() -> None:
    ask = with_routes(StubModel(inputs=[ms.TensorSpec("x", "FP32", (-1,))]), "tfserving")
    answer = ask("POST", "/v1/models/stub:predict", {"instances": [1.0]}, headers=EVENT)
    assert answer.status_code == 200
    assert "ce-id" not in answer.headers


class Bare:
    """A servable that is nothing else."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("bare", "1", request.inputs)

    async def stream(self, request: Any) -> Any:
        yield await self.infer(request)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/bare"),
        ("GET", "/v1/models/bare/metadata"),
        ("POST", "/v1/models/bare:predict"),
        ("POST", "/v1/models/bare:explain"),
    ],
)
def test_what_describes_nothing_offers_none_of_it(method: str, path: str) -> None:
    answer = with_routes(Bare())(method, path, {} if method == "POST" else None)
    assert answer.status_code == 501


# What all inference requests have in common

STUB = "/v1/models/stub:predict"
SPECS = [ms.TensorSpec("x", "FP32", (-1,))]


def test_exchange_is_recorded() -> None:
    seen: list[Exchange] = []
    ask = with_routes(StubModel(inputs=SPECS), record=seen.append)
    ask("POST", STUB, {"instances": [1.0]}, headers={"x-request-id": "mine"})
    ask("POST", STUB, {"instances": ["a"]})
    ask("POST", "/v1/models/nope:predict", {"instances": [1.0]})
    ask("GET", "/v1/models/stub")
    assert [(e.protocol, e.model, e.version, e.code) for e in seen] == [
        ("http", "stub", "1", "OK"),
        ("http", "stub", "", "INVALID_ARGUMENT"),
        ("http", "nope", "", "NOT_FOUND"),
    ]
    assert seen[0].id == "mine"
    assert seen[0].bytes_in == len(b'{"instances": [1.0]}')
    assert seen[0].bytes_out == len(b'{"predictions":[1.0]}')
    assert seen[0].decode > 0
    assert seen[0].encode > 0


def test_headers_are_those_of_every_inference_request() -> None:
    stub = StubModel(inputs=SPECS)
    headers = {"x-request-id": "mine", "traceparent": "00-1", "idempotency-key": "k"}
    answer = with_routes(stub)(
        "POST", STUB, {"instances": [1.0]}, headers={**headers, "x-explain": "1"}
    )
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["server-timing"].startswith("decode;dur=")
    (request,) = stub.requests
    assert (request.id, request.trace, request.idempotency_key) == ("mine", "00-1", "k")
    assert request.deadline is None


@pytest.mark.parametrize(
    ("timeout", "status"), [("0.000001", 504), ("soon", 400), ("0", 400), ("10", 200)]
)
def test_deadline_is_kept(timeout: str, status: int, repository: ms.ModelRepository) -> None:
    ask = with_routes(repository)
    headers = {"x-request-timeout": timeout}
    answer = ask("POST", f"{TWO}:predict", {"instances": [1.0]}, headers=headers)
    assert answer.status_code == status


def test_request_whose_client_is_gone_is_taken_back(runner: asyncio.Runner) -> None:
    async def main() -> None:
        entered, left = asyncio.Event(), asyncio.Event()
        closed: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()

        async def held(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
            return inputs

        stub = StubModel(held, inputs=SPECS)
        stub.record = closed.set_result  # type: ignore[attr-defined]  # as a repository has it
        async with ms.HTTPServer(stub, http="127.0.0.1:0") as server:
            port = int(server.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            body = b'{"instances": [1.0]}'
            head = f"POST {STUB} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await entered.wait()
            writer.transport.abort()
            await left.wait()
            assert (await closed).code == "CANCELLED"

    runner.run(main())


def test_body_may_be_compressed() -> None:
    ask = with_routes(StubModel(inputs=SPECS), max_body_size=1000)
    body = gzip.compress(b'{"instances": [1.0]}')
    headers = {"content-encoding": "gzip"}
    assert ask("POST", STUB, body, headers=headers).json() == {"predictions": [1.0]}
    large = gzip.compress(json.dumps({"instances": [1.0] * 1000}).encode())
    assert ask("POST", STUB, large, headers=headers).status_code == 413
    assert ask("POST", STUB, b"no gzip", headers=headers).status_code == 400
    assert ask("POST", STUB, body, headers={"content-encoding": "br"}).status_code == 501


def test_answer_is_compressed_where_that_is_asked_for() -> None:
    ask = with_routes(StubModel(inputs=SPECS))
    answer = ask("POST", STUB, {"instances": [1.0]}, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == {"predictions": [1.0]}
    refused = ask("POST", STUB, {}, headers={"accept-encoding": "gzip"})
    assert refused.status_code == 400
    assert "content-encoding" not in refused.headers


def test_body_has_a_limit(runner: asyncio.Runner) -> None:
    async def main() -> None:
        for served in (asgi, own):
            async with served(StubModel(inputs=SPECS), max_body_size=100) as client:
                answer = await client.post(STUB, content=json.dumps({"instances": [1.0] * 100}))
                assert answer.status_code == 413
                assert list(answer.json()) == ["error"]

    runner.run(main())


def test_caller_needs_the_scope() -> None:
    key, hashed = APIKeys.generate()
    reader, hashed_reader = APIKeys.generate()
    keys = APIKeys({"ada": (hashed, {"infer"}), "bob": (hashed_reader, {"read"})})
    ask = with_routes(StubModel(inputs=SPECS), authenticator=keys)
    body = {"instances": [1.0]}
    for path in (STUB, "/v1/models/stub:classify", "/v1/models/stub:explain"):
        assert ask("POST", path, body).status_code == 401
        assert ask("POST", path, body, headers={"x-api-key": reader}).status_code == 403
    assert ask("POST", STUB, body, headers={"x-api-key": key}).status_code == 200
    # Whoever may ask a model may know what it takes.
    for path in ("/v1/models/stub", "/v1/models/stub/metadata", "/v1/models/stub/versions/1"):
        assert ask("GET", path).status_code == 401
        assert ask("GET", path, headers={"x-api-key": key}).status_code == 200
        assert ask("GET", path, headers={"x-api-key": reader}).status_code == 200
    assert ask("GET", "/v1/models", headers={"x-api-key": key}).status_code == 403
    assert ask("GET", "/v1/models", headers={"x-api-key": reader}).status_code == 200
    assert ask("GET", "/").status_code == 200


# Versions, labels and classes of stored models


def stored(directory: Path, versions: Mapping[str, bytes], **files: str) -> Path:
    for version, content in versions.items():
        place = directory / "m" / version
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(content)
    for name, text in files.items():
        (directory / "m" / name.replace("_txt", ".txt")).write_text(text, "utf-8")
    return directory


def test_versions_and_labels_are_named_in_the_path(tmp_path: Path) -> None:
    directory = stored(tmp_path, {"1": half_plus(1), "2": half_plus(2), "3": half_plus(3)})
    repo = ms.ModelRepository(directory)
    repo.label("m", {"canary": 2})
    ask = with_routes(repo)
    body = {"instances": [0.0]}
    for path, prediction in [("", 3.0), ("/versions/3", 3.0), ("/labels/canary", 2.0)]:
        answer = ask("POST", f"/v1/models/m{path}:predict", body)
        assert answer.json() == {"predictions": [prediction]}
    assert ask("POST", "/v1/models/m/versions/1:predict", body).status_code == 503
    # The newest first; and the one that was never loaded is not waited for.
    found = ask("GET", "/v1/models/m").json()["model_version_status"]
    assert [(each["version"], each["state"]) for each in found] == [
        ("3", "AVAILABLE"),
        ("2", "AVAILABLE"),
    ]
    (found,) = ask("GET", "/v1/models/m/labels/canary").json()["model_version_status"]
    assert found == {"version": "2", "state": "AVAILABLE", "status": OK}
    (found,) = ask("GET", "/v1/models/m/versions/1").json()["model_version_status"]
    assert found == {"version": "1", "state": "END", "status": OK}
    spec = ask("GET", "/v1/models/m/labels/canary/metadata").json()["model_spec"]
    assert spec["version"] == "2"
    repo.close()


def test_version_that_failed_says_why(tmp_path: Path) -> None:
    directory = stored(tmp_path, {"1": half_plus(1), "2": b"no model"})
    repo = ms.ModelRepository(directory, keep="all")
    failed, good = with_routes(repo)("GET", "/v1/models/m").json()["model_version_status"]
    assert (good["version"], good["state"]) == ("1", "AVAILABLE")
    assert (failed["version"], failed["state"]) == ("2", "END")
    assert failed["status"]["error_code"] == "FAILED_PRECONDITION"
    assert failed["status"]["error_message"]
    assert str(tmp_path) not in failed["status"]["error_message"]
    key, hashed = APIKeys.generate()
    guarded = with_routes(repo, authenticator=APIKeys({"ada": (hashed, {"infer"})}))
    answer = guarded("GET", "/v1/models/m", headers={"x-api-key": key}).json()
    hidden = {"error_code": "FAILED_PRECONDITION", "error_message": ""}
    assert answer["model_version_status"][0]["status"] == hidden
    repo.close()


def test_model_that_is_only_stored_is_not_ready(tmp_path: Path) -> None:
    repo = ms.ModelRepository(stored(tmp_path, {"7": half_plus(1)}), load="none")
    ask = with_routes(repo)
    assert ask("POST", "/v1/models/m:predict", {"instances": [1.0]}).status_code == 503
    assert ask("GET", "/v1/models").json() == {"models": []}
    assert ask("GET", "/v1/models/m").json() == {
        "model_version_status": [{"version": "7", "state": "END", "status": OK}],
        "name": "m",
        "ready": False,
    }
    repo.close()


def scores(metadata: dict[str, str] | None = None) -> bytes:
    """Give back the scores it is given."""
    return model(
        [helper.make_node("Identity", ["x"], ["p"])],
        [value("x", "FP32", ("batch", 2))],
        [value("p", "FP32", ("batch", 2))],
        metadata=metadata,
    )


@pytest.mark.parametrize(
    ("metadata", "files", "labels"),
    [
        (None, {}, ["0", "1"]),
        ({"classes": "cat,dog"}, {}, ["cat", "dog"]),
        ({"class_names": '["cat", "dog"]'}, {}, ["cat", "dog"]),
        ({"classes": "a,b"}, {"labels_txt": "cat\nhound dog\n"}, ["cat", "hound dog"]),
    ],
)
def test_classes_have_the_names_that_the_model_has(
    tmp_path: Path, metadata: Any, files: Any, labels: list[str]
) -> None:
    repo = ms.ModelRepository(stored(tmp_path, {"1": scores(metadata)}, **files))
    answer = with_routes(repo)("POST", "/v1/models/m:classify", {"examples": [{"x": [0.25, 0.75]}]})
    first, second = labels
    assert answer.json() == {"results": [[[first, 0.25], [second, 0.75]]]}
    repo.close()


def test_gateway_passes_it_on(runner: asyncio.Runner, repository: ms.ModelRepository) -> None:
    async def main() -> None:
        async with (
            ms.HTTPServer(repository, http="127.0.0.1:0", protocols=("oip",)) as server,
            ms.AsyncClient(server.url) as remote,
            asgi(remote) as client,
        ):
            answer = await client.post(f"{TWO}:predict", json={"instances": [2.0]})
            assert answer.json() == {"predictions": [3.0]}
            answer = await client.get(TWO)
            assert answer.json()["model_version_status"] == [AVAILABLE]
            answer = await client.post("/v1/models/nope:predict", json={"instances": [2.0]})
            assert (answer.status_code, answer.json()) == (404, {"error": NOPE})

    runner.run(main())
