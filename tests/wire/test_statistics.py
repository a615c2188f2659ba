"""Configurations, statistics and classes as Triton's client gets them: from both servers, and
through a gateway.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import onnx_models
import serving
from modelserve.client.clients import AsyncClient, Client
from modelserve.codecs._plans import FRAMES, HEADS
from modelserve.errors import InvalidInput, ModelNotFound
from modelserve.messages import InferRequest
from modelserve.repository.repository import ModelRepository
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer

with warnings.catch_warnings():
    # gevent, which the client brings, warns of its own imports.
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

CONFIG = """
max_batch_size: 8
output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }
parameters { key: "team" value: { string_value: "vision" } }
"""
X = np.array([[0.5, 0.25, 2.0, -1.0]], np.float32)
BEST = [b"2.000000:2:bird", b"0.500000:0:cat", b"0.250000:1:dog"]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    model = tmp_path / "models" / "c"
    for version in ("1", "2"):
        (model / version).mkdir(parents=True)
        (model / version / "model.onnx").write_bytes(onnx_models.identity(shape=("batch", 4)))
    (model / "labels.txt").write_text("cat\ndog\nbird\nfish\n")
    (model / "config.pbtxt").write_text(CONFIG)
    for memo in (FRAMES, HEADS):
        memo.clear()
    with ModelRepository(tmp_path / "models") as made:
        yield made


def gateway_to(url: str) -> Any:
    """Make an application that passes everything on, and closes its connections when it ends."""
    behind = AsyncClient(url)
    app = ASGIApp(behind)

    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await behind.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    return served


@pytest.fixture(params=["http1", "asgi", "gateway"])
def url(request: pytest.FixtureRequest, repository: ModelRepository) -> Iterator[str]:
    if request.param == "asgi":
        with serving.on_uvicorn(ASGIApp(repository)) as url:
            yield url
        return
    with serving.on_http1(HTTPServer(repository, http="127.0.0.1:0")) as url:
        if request.param == "http1":
            yield url
            return
        with serving.on_uvicorn(gateway_to(url), lifespan="on") as gateway:
            yield gateway


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def given(binary: bool = True) -> Any:
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X, binary_data=binary)
    return tensor


def wanted(count: int, binary: bool = True) -> Any:
    return triton.InferRequestedOutput("y", binary_data=binary, class_count=count)


def test_configuration(client: Any) -> None:
    found = client.get_model_config("c")
    assert (found["name"], found["max_batch_size"]) == ("c", 8)
    assert found["input"][0]["dims"] == [4]
    assert found["output"][0]["label_filename"] == "labels.txt"
    assert found["parameters"] == {"team": {"string_value": "vision"}}
    assert client.get_model_config("c", "2") == found
    for model, version in (("other", ""), ("c", "9")):
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_config(model, version)
        assert caught.value.status() == "404"


def test_statistics(client: Any) -> None:
    for rows in (1, 2, 1):
        tensor = triton.InferInput("x", [rows, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((rows, 4), np.float32))
        client.infer("c", [tensor])
    with pytest.raises(InferenceServerException):
        client.infer("c", [triton.InferInput("x", [1, 4], "FP32")])
    found = client.get_inference_statistics("c")
    assert found == client.get_inference_statistics("c", "2") == client.get_inference_statistics()
    (stats,) = found["model_stats"]
    assert (stats["name"], stats["version"]) == ("c", "2")
    assert (stats["inference_count"], stats["execution_count"]) == (4, 3)
    spent = stats["inference_stats"]
    assert spent["success"]["count"] == spent["compute_infer"]["count"] == 3
    for name in ("success", "compute_input", "compute_infer", "compute_output"):
        assert spent[name]["ns"] > 0
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(spent[name]["ns"] for name in parts) <= spent["success"]["ns"]
    sizes = [(b["batch_size"], b["compute_infer"]["count"]) for b in stats["batch_stats"]]
    assert sizes == [(1, 2), (2, 1)]
    with pytest.raises(InferenceServerException) as caught:
        client.get_inference_statistics("other")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_classes(client: Any, binary_in: bool, binary_out: bool) -> None:
    # Again and again: what comes often is read and written by forms that were learned.
    for count in [3, 1, 9, 3, 3, 1, 3] * 3:
        found = client.infer("c", [given(binary_in)], outputs=[wanted(count, binary_out)])
        (row,) = found.as_numpy("y").tolist()
        texts = [text if binary_out else text.encode() for text in row]
        assert texts[:3] == BEST[:count]
        assert found.get_output("y")["shape"] == [1, min(count, 4)]
        plain = client.infer("c", [given(binary_in)], outputs=[wanted(0, binary_out)])
        assert np.array_equal(plain.as_numpy("y"), X)
        everything = client.infer("c", [given(binary_in)])
        assert np.array_equal(everything.as_numpy("y"), X)


def test_a_request_among_many_that_come_together_gets_its_classes(url: str) -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X[0].tolist()}
    plain = {"inputs": [tensor]}
    classes = {**plain, "outputs": [{"name": "y", "parameters": {"classification": 2}}]}

    async def main() -> list[Any]:
        async with httpx.AsyncClient(base_url=url) as client:
            answers = []
            for _ in range(6):
                answers += await asyncio.gather(
                    *(
                        client.post("/v2/models/c/infer", json=classes if n % 4 == 3 else plain)
                        for n in range(16)
                    )
                )
            return [answer.json()["outputs"][0] for answer in answers]

    for number, output in enumerate(asyncio.run(main())):
        if number % 4 == 3:
            assert output["data"] == [text.decode() for text in BEST[:2]]
            assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
        else:
            assert (output["datatype"], output["data"]) == ("FP32", X[0].tolist())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "expected a number of classes from 1 on, got 0"),
        (-3, "expected a number of classes from 1 on, got -3"),
        ("3", 'expected a number of classes from 1 on, got "3"'),
        (True, "expected a number of classes from 1 on, got true"),
        (1.5, "expected a number of classes from 1 on, got 1.5"),
        ([3], "expected a boolean, number or string"),
        (None, "expected a boolean, number or string"),
    ],
)
def test_a_wrong_number_of_classes_is_the_client_s_fault(url: str, count: Any, text: str) -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X[0].tolist()}
    asked = [{"name": "y", "parameters": {"classification": count}}]
    for _ in range(4):
        answer = httpx.post(f"{url}/v2/models/c/infer", json={"inputs": [tensor], "outputs": asked})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("outputs[0].parameters.classification: ")
        assert text in answer.json()["error"]


def test_our_client_reaches_all_of_it(url: str) -> None:
    parameters = {"y": {"classification": 3}}
    with Client(url) as client:
        asked = InferRequest("c", {"x": X}, outputs=["y"], output_parameters=parameters)
        assert client.infer(asked).outputs["y"].tolist() == [BEST]
        wrong = {"y": {"classification": 0}}
        with pytest.raises(InvalidInput, match="number of classes"):
            client.infer(InferRequest("c", {"x": X}, outputs=["y"], output_parameters=wrong))
        (stats,) = client.statistics("c", "2")
        assert (stats.success.count, stats.fail.count, stats.inference_count) == (1, 1, 1)
        assert client.statistics() == client.statistics("c") == [stats]
        assert client.config("c")["max_batch_size"] == 8
        for ask in (client.config, client.statistics):
            with pytest.raises(ModelNotFound):
                ask("other")


def test_a_servable_that_knows_no_classes_is_helped_out() -> None:
    with (
        serving.on_uvicorn(ASGIApp(StubModel(lambda inputs: {"y": inputs["x"]}))) as url,
        Client(url) as client,
    ):
        parameters = {"y": {"classification": 2}}
        asked = InferRequest("stub", {"x": X}, outputs=["y"], output_parameters=parameters)
        for _ in range(4):
            assert client.infer(asked).outputs["y"].tolist() == [[b"2.000000:2", b"0.500000:0"]]
            plain = client.infer(InferRequest("stub", {"x": X}, outputs=["y"]))
            assert np.array_equal(plain.outputs["y"], X)
        texts = np.array([[b"a"]], np.object_)
        asked = InferRequest("stub", {"x": texts}, outputs=["y"], output_parameters=parameters)
        with pytest.raises(InvalidInput, match="has no classes"):
            client.infer(asked)


def test_a_model_called_stats_is_a_model_all_the_same(repository: ModelRepository) -> None:
    repository.add("stats", onnx_models.add_one())
    with serving.on_http1(HTTPServer(repository, http="127.0.0.1:0")) as url:
        for path, member in (
            ("stats", "model_stats"),
            ("stats/stats", "model_stats"),
            ("stats/versions/1", "inputs"),
            ("stats/config", "input"),
        ):
            assert member in httpx.get(f"{url}/v2/models/{path}").json()


def test_metrics_have_triton_s_names_too(repository: ModelRepository) -> None:
    with serving.on_http1(HTTPServer(repository, http="127.0.0.1:0")) as url:
        tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [0.0] * 8}
        answer = httpx.post(f"{url}/v2/models/c/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        stats = json.loads(httpx.get(f"{url}/v2/models/c/stats").text)["model_stats"][0]
    for line in (
        'nv_inference_request_success{model="c",version="2"} 1.0',
        'nv_inference_count{model="c",version="2"} 2.0',
        'nv_inference_exec_count{model="c",version="2"} 1.0',
        'nv_inference_pending_request_count{model="c",version="2"} 0.0',
        'nv_inference_request_failure{model="c",reason="BACKEND",version="2"} 0.0',
        'nv_inference_request_duration_us{model="c",version="2"} '
        f"{stats['inference_stats']['success']['ns'] // 1000}.0",
    ):
        assert line in lines
