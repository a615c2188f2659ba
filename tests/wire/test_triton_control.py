"""Triton's own clients load models and change settings, over our server and over uvicorn."""

import asyncio
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving
from modelserve.repository.repository import ModelRepository
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from versioned_models import ROWS, added, adds, tree

with warnings.catch_warnings():
    # gevent, which the client brings, warns of its own imports.
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException

CONFIG = json.dumps(
    {
        "name": "m",
        "backend": "onnxruntime",
        "max_batch_size": 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
        "version_policy": {"latest": {"num_versions": 1}},
    }
)
LIMIT = 4 << 20


@pytest.fixture(scope="module", params=["http1", "uvicorn"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ModelRepository]]:
    root = tree(tmp_path_factory.mktemp("control") / "models", {"m": {"1": 1}})
    with ModelRepository(root) as repository:
        options: dict[str, Any] = {"admin": True, "uploads": True, "max_body_size": LIMIT}
        server = (
            serving.on_http1(HTTPServer(repository, http="127.0.0.1:0", **options))
            if request.param == "http1"
            else serving.on_uvicorn(ASGIApp(repository, **options))
        )
        with server as url:
            yield url.removeprefix("http://"), repository


@pytest.fixture
def client(served: tuple[str, ModelRepository]) -> Iterator[Any]:
    client = triton.InferenceServerClient(served[0])
    yield client
    client.load_model("m")
    client.close()


def number(client: Any, model: str = "m", version: str = "") -> float:
    given = triton.InferInput("x", ROWS.shape, "FP32")
    given.set_data_from_numpy(ROWS)
    return added({"y": client.infer(model, [given], model_version=version).as_numpy("y")})


def test_configuration_of_a_load(client: Any) -> None:
    client.load_model("m", config=CONFIG)
    assert number(client) == 1
    metadata = client.get_model_metadata("m")
    assert metadata["parameters"]["batching"] == "declared: up to 4 rows"
    client.load_model("m")
    assert client.get_model_metadata("m")["parameters"]["batching"].startswith("proven")


def test_files_of_a_load(client: Any) -> None:
    client.load_model("m", config=CONFIG, files={"file:7/model.onnx": adds(7)})
    assert (number(client), number(client, version="7")) == (7, 7)
    states = {entry["version"]: entry["state"] for entry in client.get_model_repository_index()}
    assert states == {"1": "UNAVAILABLE", "7": "READY"}
    client.load_model("m")
    assert number(client) == 1


def test_model_the_store_does_not_have(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="the store has no model"):
        client.load_model("fresh")
    client.load_model("fresh", config="{}", files={"file:2/model.onnx": adds(2)})
    assert client.is_model_ready("fresh")
    assert number(client, "fresh") == 2
    client.unload_model("fresh", unload_dependents=True)
    assert not client.is_model_ready("fresh")


def test_failed_load_leaves_what_serves(client: Any) -> None:
    for config, files, said in (
        (None, {"file:1/model.onnx": adds(1)}, "files need the model's configuration"),
        ("{", None, "config: not valid JSON"),
        (CONFIG, {"file:1/model.onnx": b"no"}, "not an ONNX model"),
        (CONFIG, {"file:../../x/model.onnx": b""}, "begins with a dot"),
    ):
        with pytest.raises(InferenceServerException, match=said) as caught:
            client.load_model("m", config=config, files=files)
        assert caught.value.status() == "400"
    assert number(client) == 1


def test_load_over_the_limit_is_413(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("m", config=CONFIG, files={"file:1/model.onnx": bytes(LIMIT)})
    assert caught.value.status() == "413"
    assert number(client) == 1


def test_the_asyncio_client(client: Any, served: tuple[str, ModelRepository]) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(served[0]) as aio:
            files = {"file:3/model.onnx": adds(3)}
            await aio.load_model("m", config=CONFIG, files=files)
            assert (await aio.get_log_settings())["log_verbose_level"] == 0
            settings = await aio.update_trace_settings("m", {"trace_rate": "9"})
            assert settings["trace_rate"] == "9"
            await aio.update_trace_settings("m", {"trace_rate": None})

    asyncio.run(main())
    assert number(client) == 3


def test_extensions_are_named(client: Any) -> None:
    extensions = client.get_server_metadata()["extensions"]
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(extensions)
    assert {"logging", "trace"} <= set(extensions)


def test_log_settings(client: Any, caplog: Any) -> None:
    logger = logging.getLogger("modelserve")
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        settings = client.get_log_settings()
        assert settings == {
            "log_file": "",
            "log_info": False,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }
        assert client.update_log_settings({"log_info": True})["log_info"] is True
        client.load_model("m", config=CONFIG)
        assert "version 1 answers now" in caplog.text
        with pytest.raises(InferenceServerException, match="log_file: it cannot be changed"):
            client.update_log_settings({"log_file": "/tmp/x"})
    finally:
        logger.setLevel(before)


def test_a_line_per_request(client: Any, caplog: Any) -> None:
    number(client)
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    number(client)
    client.update_log_settings({"log_verbose_level": 0})
    number(client)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "modelserve.access"]
    assert line.startswith('protocol=http model="m" version="1" code=OK rows=2')


def test_trace_settings(client: Any, caplog: Any) -> None:
    initial = {
        "trace_file": "",
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_mode": "triton",
    }
    assert client.get_trace_settings() == client.get_trace_settings("m") == initial
    changed = client.update_trace_settings(
        "m", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"}
    )
    assert changed["trace_count"] == "2"
    assert client.get_trace_settings() == initial
    for _ in range(7):
        number(client)
    assert client.get_trace_settings("m")["trace_count"] == "0"
    lines = [r.getMessage() for r in caplog.records if r.name == "modelserve.trace"]
    traces = json.loads(f"[{','.join(lines)}]")
    assert len(traces) == 2
    for trace in traces:
        assert (trace["model_name"], trace["model_version"], trace["code"]) == ("m", 1, "OK")
        names = [point["name"] for point in trace["timestamps"]]
        assert names[0] == "REQUEST_START"
        assert names[-1] == "REQUEST_END"
        assert bool(np.all(np.diff([point["ns"] for point in trace["timestamps"]]) >= 0))
    cleared = dict.fromkeys(("trace_level", "trace_rate", "trace_count"))
    assert client.update_trace_settings("m", cleared) == initial
    with pytest.raises(InferenceServerException, match="trace_file: it cannot be changed"):
        client.update_trace_settings(settings={"trace_file": "x"})
    with pytest.raises(InferenceServerException, match="there is no model"):
        client.get_trace_settings("nope")


def test_nothing_is_left_in_the_temporary_directory(
    client: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client.load_model("m", config=CONFIG, files={"file:3/model.onnx": adds(3)})
    assert number(client) == 3
    assert list(tmp_path.iterdir()) == []
