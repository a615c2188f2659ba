"""Triton's own clients with their shared memory utilities, against both servers."""

import asyncio
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import numpy as np
import pytest

import serving
from modelserve.security.authentication import APIKeys
from modelserve.tensors import DATATYPES, numpy_dtype
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from shared_memory import Shared

with warnings.catch_warnings():
    # gevent, which the client brings, warns of its own imports.
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient import utils
    from tritonclient.utils import shared_memory as triton_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is for Linux")

_names = count()


def on_http1() -> AbstractContextManager[str]:
    return serving.on_http1(HTTPServer(StubModel(name="echo"), http="127.0.0.1:0"))


def on_uvicorn() -> AbstractContextManager[str]:
    return serving.on_uvicorn(ASGIApp(StubModel(name="echo"), admin=True))


@pytest.fixture(scope="module", params=[on_http1, on_uvicorn])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with request.param() as url:
        yield url.removeprefix("http://")


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(address)
    yield client
    client.unregister_system_shared_memory()
    client.close()


@contextmanager
def region(client: Any, size: int) -> Iterator[tuple[str, Any]]:
    """Make and register a region as the client's examples do."""
    name = f"r{next(_names)}"
    key = Shared(1)  # for a key of its own
    key.unlink()
    handle = triton_memory.create_shared_memory_region(name, key.key, size)
    try:
        client.register_system_shared_memory(name, key.key, size)
        yield name, handle
        client.unregister_system_shared_memory(name)
    finally:
        triton_memory.destroy_shared_memory_region(handle)


def example(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([[b"a", "é".encode()], [b"", b"x" * 5000]], np.object_)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype.startswith(("INT", "UINT")):
        info = np.iinfo(numpy_dtype(datatype))
        return np.array([[info.min, info.max], [0, 1]], numpy_dtype(datatype))
    # Triton's clients have BF16 as FP32.
    wide = np.float32 if datatype == "BF16" else numpy_dtype(datatype)
    return np.array([[0.5, -1.25], [3.0, 100.0]], wide)


def put(handle: Any, array: np.ndarray[Any, Any], datatype: str) -> int:
    """Write a tensor as the client's examples do; returns its bytes."""
    if datatype == "BYTES":
        array = utils.serialize_byte_tensor(array)
    elif datatype == "BF16":
        array = (array.view(np.uint32) >> 16).astype(np.uint16)
    triton_memory.set_shared_memory_region(handle, [array])
    return len(array.item()) if array.dtype == np.object_ else array.nbytes


def got(handle: Any, datatype: str) -> Any:
    if datatype == "BF16":
        raw = triton_memory.get_contents_as_numpy(handle, np.uint16, [2, 2])
        return (raw.astype(np.uint32) << 16).view(np.float32)
    dtype = np.object_ if datatype == "BYTES" else numpy_dtype(datatype)
    return triton_memory.get_contents_as_numpy(handle, dtype, [2, 2])


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tensors_there_and_back(client: Any, datatype: str) -> None:
    array = example(datatype)
    with region(client, 8192) as (first, sent), region(client, 8192) as (second, answered):
        size = put(sent, array, datatype)
        x = triton.InferInput("x", [2, 2], datatype)
        x.set_shared_memory(first, size)
        wanted = triton.InferRequestedOutput("x", binary_data=True)
        wanted.set_shared_memory(second, 8192)
        for _ in range(3):
            result = client.infer("echo", [x], outputs=[wanted])
        output = result.get_output("x")
        assert (output["datatype"], output["shape"]) == (datatype, [2, 2])
        assert output["parameters"] == {
            "shared_memory_region": second,
            "shared_memory_byte_size": size,
        }
        assert "data" not in output
        assert got(answered, datatype).tolist() == array.tolist()


@pytest.mark.parametrize("binary", [False, True])
def test_beside_tensors_in_the_body(client: Any, binary: bool) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with region(client, 64) as (name, handle):
        triton_memory.set_shared_memory_region(handle, [x], offset=8)
        inputs = [
            triton.InferInput("a", [2], "INT64").set_data_from_numpy(np.array([1, 2]), binary),
            triton.InferInput("x", [2, 3], "FP32").set_shared_memory(name, 24, 8),
            triton.InferInput("b", [1], "INT64").set_data_from_numpy(np.array([3]), binary),
        ]
        outputs = [
            triton.InferRequestedOutput(each, binary_data=binary) for each in ("a", "x", "b")
        ]
        outputs[2].set_shared_memory(name, 8, 40)
        result = client.infer("echo", inputs, outputs=outputs, request_id="i")
        assert result.as_numpy("a").tolist() == [1, 2]
        assert result.as_numpy("x").tolist() == x.tolist()
        assert triton_memory.get_contents_as_numpy(handle, np.int64, [1], 40).tolist() == [3]
        outputs[2].unset_shared_memory()
        result = client.infer("echo", inputs, outputs=outputs)
        assert result.as_numpy("b").tolist() == [3]


def test_status_and_errors(client: Any) -> None:
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory("nobody")
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("nobody")
    with region(client, 64) as (name, handle):
        (found,) = client.get_system_shared_memory_status(name)
        assert found == {"name": name, "key": handle._shm_key, "offset": 0, "byte_size": 64}
        with pytest.raises(utils.InferenceServerException, match="already registered") as caught:
            client.register_system_shared_memory(name, handle._shm_key, 64)
        assert caught.value.status() == "400"
        with pytest.raises(utils.InferenceServerException, match="expected at most the 64 bytes"):
            client.register_system_shared_memory("more", handle._shm_key, 65)
        x = triton.InferInput("x", [1], "FP32").set_shared_memory(name, 4)
        wanted = triton.InferRequestedOutput("x")
        wanted.set_shared_memory(name, 2)
        with pytest.raises(utils.InferenceServerException, match="expected at least 4 bytes"):
            client.infer("echo", [x], outputs=[wanted])
    with pytest.raises(utils.InferenceServerException, match="there is no region") as caught:
        client.get_system_shared_memory_status(name)
    assert caught.value.status() == "404"
    with pytest.raises(utils.InferenceServerException, match="GPU memory") as caught:
        client.register_cuda_shared_memory("c", b"AAAA", 0, 64)
    assert caught.value.status() == "501"


def test_asyncio_client(address: str, client: Any) -> None:
    x = np.arange(4, dtype=np.float32)

    async def main(name: str) -> Any:
        made = triton_aio.InferenceServerClient(address)
        try:
            status = await made.get_system_shared_memory_status(name)
            sent = triton_aio.InferInput("x", [4], "FP32").set_shared_memory(name, 16)
            wanted = triton_aio.InferRequestedOutput("x")
            wanted.set_shared_memory(name, 16, 16)
            await made.infer("echo", [sent], outputs=[wanted])
        finally:
            await made.close()
        return status

    with region(client, 32) as (name, handle):
        triton_memory.set_shared_memory_region(handle, [x])
        assert asyncio.run(main(name))[0]["name"] == name
        found = triton_memory.get_contents_as_numpy(handle, np.float32, [4], 16)
        assert found.tolist() == x.tolist()


def test_with_keys() -> None:
    key, hashed = APIKeys.generate()
    keys = APIKeys({"owner": (hashed, {"admin", "infer"})})
    headers = {"authorization": f"Bearer {key}"}
    app = ASGIApp(StubModel(name="echo"), admin=True, authenticator=keys)
    with serving.on_uvicorn(app) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        with pytest.raises(utils.InferenceServerException) as caught:
            client.get_system_shared_memory_status()
        assert caught.value.status() == "401"
        assert client.get_system_shared_memory_status(headers=headers) == []
        client.close()
