"""Triton's own HTTP clients, synchronous and asyncio, against the ASGI application."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import serving
from modelserve.errors import BackendError
from modelserve.security.authentication import APIKeys
from modelserve.tensors import DATATYPES, TensorSpec, numpy_dtype
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp

with warnings.catch_warnings():
    # gevent, which the client brings, warns of its own imports.
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException

KEY, HASH = APIKeys.generate()


@pytest.fixture(scope="module")
def stub() -> StubModel:
    return StubModel(
        name="echo",
        version="3",
        labels=["stable"],
        outputs=[TensorSpec("x", "FP32", (-1, 4))],
    )


@pytest.fixture(scope="module")
def address(stub: StubModel) -> Iterator[str]:
    with serving.on_uvicorn(ASGIApp(stub, admin=True)) as url:
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(address)
    yield client
    client.close()


@asynccontextmanager
async def aio_client(address: str) -> AsyncIterator[Any]:
    client = triton_aio.InferenceServerClient(address)
    try:
        yield client
    finally:
        await client.close()


def example(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([["a", "é"], ["", "x" * 70_000]], np.object_)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype.startswith(("INT", "UINT")):
        info = np.iinfo(numpy_dtype(datatype))
        return np.array([[info.min, info.max], [0, 1]], numpy_dtype(datatype))
    return np.array([[0.5, -1.25], [3.0, 100.0]], numpy_dtype(datatype))


def plain(array: Any) -> Any:
    """Values to compare: text is text, whether a client gives it as str or bytes."""
    flat = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    return (array.shape, flat)


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BF16", "FP16")])
def test_every_datatype_goes_there_and_back(
    client: Any, datatype: str, binary_in: bool, binary_out: bool
) -> None:
    x = example(datatype)
    given = triton.InferInput("x", x.shape, datatype)
    given.set_data_from_numpy(x, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("x", binary_data=binary_out)
    result = client.infer("echo", [given], outputs=[wanted])
    assert plain(result.as_numpy("x")) == plain(x)
    assert result.get_output("x")["datatype"] == datatype
    assert ("data" in result.get_output("x")) is not binary_out


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_go_as_binary_data(client: Any, datatype: str) -> None:
    x = example(datatype)
    given = triton.InferInput("x", x.shape, datatype)
    given.set_data_from_numpy(x)
    result = client.infer("echo", [given])
    got = result.as_numpy("x")
    assert np.array_equal(got.astype(np.float32), x.astype(np.float32))


def test_all_outputs_come_binary_when_none_is_named(client: Any, stub: StubModel) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    y = np.arange(3, dtype=np.int64)
    inputs = [triton.InferInput("x", x.shape, "FP32"), triton.InferInput("y", y.shape, "INT64")]
    inputs[0].set_data_from_numpy(x)
    inputs[1].set_data_from_numpy(y)
    result = client.infer("echo", inputs, request_id="r1", model_version="stable")
    assert np.array_equal(result.as_numpy("x"), x)
    assert np.array_equal(result.as_numpy("y"), y)
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("r1", "3")
    assert stub.requests[-1].parameters == {}


def test_parameters_reach_the_model(client: Any, stub: StubModel) -> None:
    given = triton.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    client.infer(
        "echo",
        [given],
        sequence_id=7,
        sequence_start=True,
        priority=2,
        timeout=10_000_000,
        parameters={"mine": "a"},
        headers={"traceparent": "00-1-2-01"},
    )
    request = stub.requests[-1]
    assert (request.sequence_id, request.priority, request.trace) == (7, 2, "00-1-2-01")
    assert request.deadline is not None
    assert request.parameters["mine"] == "a"
    assert request.parameters["sequence_start"] is True


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1, 1_000, 100_000])
def test_compressed_requests_and_answers_are_read(client: Any, algorithm: str, size: int) -> None:
    x = np.arange(size, dtype=np.float32)
    given = triton.InferInput("x", x.shape, "FP32")
    given.set_data_from_numpy(x)
    result = client.infer(
        "echo",
        [given],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(result.as_numpy("x"), x)


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_aio_client_reads_answers_though_it_takes_compressed_ones(
    address: str, size: int
) -> None:
    async def main() -> None:
        x = np.arange(size, dtype=np.int64)
        given = triton.InferInput("x", x.shape, "INT64")
        given.set_data_from_numpy(x, binary_data=False)
        wanted = triton.InferRequestedOutput("x", binary_data=False)
        async with aio_client(address) as client:
            for algorithm in (None, "gzip", "deflate"):
                result = await client.infer(
                    "echo", [given], outputs=[wanted], response_compression_algorithm=algorithm
                )
                assert np.array_equal(result.as_numpy("x"), x)
            with pytest.raises(InferenceServerException, match="there is no model"):
                await client.infer("nope", [given], response_compression_algorithm="gzip")

    asyncio.run(main())


def test_descriptions(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "3")
    assert not client.is_model_ready("echo", "9")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "modelserve"
    metadata = client.get_model_metadata("echo")
    assert metadata["versions"] == ["3"]
    assert metadata["outputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_repository_index() == [
        {"name": "echo", "version": "3", "state": "READY", "reason": ""}
    ]


def test_load_and_unload(client: Any) -> None:
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    client.load_model("echo")
    assert client.is_model_ready("echo")


def wrong_model(client: Any) -> Any:
    return client.infer("nope", [ones()])


def wrong_version(client: Any) -> Any:
    return client.infer("echo", [ones()], model_version="9")


def wrong_shape(client: Any) -> Any:
    given = ones()
    given.set_shape([2])
    return client.infer("echo", [given])


def wrong_metadata(client: Any) -> Any:
    return client.get_model_metadata("nope")


def ones() -> Any:
    given = triton.InferInput("x", [1], "FP32")
    return given.set_data_from_numpy(np.ones(1, np.float32))


ERRORS: Mapping[Callable[[Any], Any], str] = {
    wrong_model: 'there is no model "nope"',
    wrong_version: 'model "echo" has no version "9"',
    wrong_shape: "inputs[0]: expected 8 bytes for FP32 of shape [2], got 4",
    wrong_metadata: 'there is no model "nope"',
}


@pytest.mark.parametrize(("call", "text"), ERRORS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_errors_are_readable(client: Any, call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert caught.value.message() == text


@pytest.mark.parametrize(("call", "text"), ERRORS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_errors_are_readable_with_asyncio(
    address: str, call: Callable[[Any], Any], text: str
) -> None:
    async def main() -> None:
        async with aio_client(address) as client:
            with pytest.raises(InferenceServerException) as caught:
                await call(client)
            assert caught.value.message() == text

    asyncio.run(main())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES", "BOOL"])
def test_asyncio_client_gets_answers(address: str, datatype: str, binary: bool) -> None:
    x = example(datatype)

    async def main() -> Any:
        async with aio_client(address) as client:
            assert await client.is_server_ready()
            given = triton_aio.InferInput("x", x.shape, datatype)
            given.set_data_from_numpy(x, binary_data=binary)
            wanted = triton_aio.InferRequestedOutput("x", binary_data=binary)
            results = await asyncio.gather(
                *(client.infer("echo", [given], outputs=[wanted]) for _ in range(8))
            )
            return [result.as_numpy("x") for result in results]

    for got in asyncio.run(main()):
        assert plain(got) == plain(x)


def test_failing_model_does_not_show_why() -> None:
    stub = StubModel(name="echo", fail_every=1, error=BackendError("secret"))
    with serving.on_uvicorn(ASGIApp(stub)) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(
            InferenceServerException, match="the model failed; request id"
        ) as caught:
            client.infer("echo", [ones()])
        client.close()
    assert "secret" not in str(caught.value)


def test_key_goes_in_a_header() -> None:
    app = ASGIApp(StubModel(name="echo"), authenticator=APIKeys({"ada": (HASH, ["infer"])}))
    with serving.on_uvicorn(app) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(InferenceServerException, match="an API key is needed"):
            client.infer("echo", [ones()])
        result = client.infer("echo", [ones()], headers={"Authorization": f"Bearer {KEY}"})
        client.close()
    assert result.as_numpy("x").tolist() == [1.0]
