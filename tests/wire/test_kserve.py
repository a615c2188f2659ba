"""KServe's own client, in both versions of the protocol, against both servers.

The package is large and wants versions of its own of much else: it is no part of the extra `test`.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import serving
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from wire import golden_repository
from wire.golden_asks import values
from wire.golden_models import DATATYPES

kserve = pytest.importorskip("kserve")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module", params=["http1", "asgi"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("models")
    golden_repository.write(directory)
    logging.getLogger("modelserve").setLevel(logging.CRITICAL)
    with golden_repository.repository(directory) as repo:
        if request.param == "asgi":
            running = serving.on_uvicorn(ASGIApp(repo))
        else:
            running = serving.on_http1(HTTPServer(repo, http="127.0.0.1:0"))
        with running as url:
            yield url
    logging.getLogger("modelserve").setLevel(logging.NOTSET)


class Calls:
    """The client's methods, each awaited at once."""

    def __init__(self, runner: asyncio.Runner, url: str, protocol: str) -> None:
        self.runner = runner
        self.url = url
        self.client = runner.run(self._make(protocol))

    async def _make(self, protocol: str) -> Any:
        config = kserve.inference_client.RESTConfig(protocol=protocol)
        return kserve.InferenceRESTClient(config)

    def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        return self.runner.run(getattr(self.client, name)(self.url, *args, **options))

    def infer(self, model: str, data: Any) -> Any:
        return self("infer", data, model_name=model)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def v2(runner: asyncio.Runner, url: str) -> Iterator[Calls]:
    calls = Calls(runner, url, "v2")
    yield calls
    runner.run(calls.client.close())


@pytest.fixture(scope="module")
def v1(runner: asyncio.Runner, url: str) -> Iterator[Calls]:
    calls = Calls(runner, url, "v1")
    yield calls
    runner.run(calls.client.close())


def request_of(
    model: str, array: Any, datatype: str = "FP32", *, binary: bool = False, **options: Any
) -> Any:
    given = kserve.InferInput("x", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return kserve.InferRequest(model, [given], **options)


def plain(array: Any) -> Any:
    flat = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    return list(array.shape), flat


ONE = np.array([[1, 2, 3, 4]], np.float32)


def test_health_is_read(v2: Calls) -> None:
    assert v2("is_server_live") is True
    assert v2("is_server_ready") is True
    assert v2("is_model_ready", "add_one") is True
    assert v2("is_model_ready", "nope") is False


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_there_and_back(
    v2: Calls, datatype: str, binary_in: bool, binary_out: bool
) -> None:
    if datatype == "FP16" and not (binary_in and binary_out):
        pytest.skip("the client refuses FP16 in JSON")
    model, x = f"echo_{datatype.lower()}", values(datatype)
    request = request_of(
        model,
        x,
        datatype,
        binary=binary_in,
        parameters={"binary_data_output": True} if binary_out else None,
    )
    response = v2.infer(model, request)
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("y", datatype)
    assert plain(output.as_numpy()) == plain(x)


@pytest.mark.parametrize("binary", [False, True])
def test_empty_tensors_go_there_and_back(v2: Calls, binary: bool) -> None:
    request = request_of("echo_fp32", np.empty((0, 2), np.float32), binary=binary)
    response = v2.infer("echo_fp32", request)
    assert response.outputs[0].shape == [0, 2]


def test_the_answer_names_request_and_model(v2: Calls) -> None:
    response = v2.infer("add_one", request_of("add_one", ONE, request_id="7"))
    # It does not read the version.
    assert (response.id, response.model_name) == ("7", "add_one")
    assert response.outputs[0].as_numpy().tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize("binary", [False, True])
def test_outputs_are_asked_for_by_name(v2: Calls, binary: bool) -> None:
    a = kserve.InferInput("a", [1, 2], "FP32")
    a.set_data_from_numpy(np.array([[1, 2]], np.float32), binary_data=True)
    b = kserve.InferInput("b", [1, 2], "INT64")
    b.set_data_from_numpy(np.array([[2**62, -3]]), binary_data=False)
    wanted = [kserve.protocol.infer_type.RequestedOutput("doubled", {"binary_data": binary})]
    request = kserve.InferRequest("arithmetic", [a, b], request_outputs=wanted)
    response = v2.infer("arithmetic", request)
    assert [output.name for output in response.outputs] == ["doubled"]
    assert response.outputs[0].as_numpy().tolist() == [[-(2**63), -6]]


def test_a_dict_is_taken_as_it_is(v2: Calls) -> None:
    data = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ONE.tolist()}]}
    response = v2.infer("add_one", data)
    assert response.outputs[0].data == [2, 3, 4, 5]


def test_parameters_reach_the_model(v2: Calls) -> None:
    request = request_of("tells", np.ones(1, np.float32), parameters={"a": "b", "c": 7, "d": True})
    response = v2.infer("tells", request)
    assert response.outputs[0].data == ['{"a": "b", "c": 7, "d": true}']


def test_errors_are_readable(v2: Calls) -> None:
    with pytest.raises(httpx.HTTPStatusError, match='there is no model "nope"') as caught:
        v2.infer("nope", request_of("nope", ONE))
    assert caught.value.response.status_code == 404
    with pytest.raises(httpx.HTTPStatusError, match=r'inputs\[0\] "x": expected shape'):
        v2.infer("add_one", request_of("add_one", ONE[:, :3]))
    with pytest.raises(httpx.HTTPStatusError, match="the model failed; request id"):
        v2.infer("raises", request_of("raises", np.ones(1, np.float32)))


def test_readiness_is_read_in_version_1(v1: Calls) -> None:
    assert v1("is_model_ready", "add_one") is True
    with pytest.raises(httpx.HTTPStatusError, match="nope") as caught:
        v1("is_model_ready", "nope")
    assert caught.value.response.status_code == 404


def test_liveness_is_read_in_version_1(v1: Calls) -> None:
    assert v1("is_server_live") is True


def test_instances_get_predictions(v1: Calls) -> None:
    data = {"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    assert v1.infer("add_one", data)["predictions"] == [[2, 3, 4, 5], [6, 7, 8, 9]]


def test_errors_are_readable_in_version_1(v1: Calls) -> None:
    for data, text in (({}, "instances"), ({"instances": [[1, "a"]]}, r"instances\[0\]")):
        with pytest.raises(httpx.HTTPStatusError, match=text) as caught:
            v1.infer("add_one", data)
        assert caught.value.response.status_code == 400
