"""The Open Inference Protocol's descriptions, there and back."""

import dataclasses
import json
from typing import Any

import pytest

from modelserve.codecs import oip_catalog
from modelserve.errors import InvalidInput
from modelserve.protocols import VersionInfo
from modelserve.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    [TensorSpec("x", "FP32", (-1, 4)), TensorSpec("mask", "BOOL", None, optional=True)],
    [TensorSpec("label", "BYTES", (-1,))],
)
INFO = VersionInfo(
    model="iris",
    version="3",
    state="READY",
    signature=SIGNATURE,
    platform="onnxruntime_onnx",
    max_batch_size=64,
    batching="declared",
    labels=("stable", "newest"),
    versions=("2", "3"),
)


@pytest.mark.parametrize("streams", [False, True])
def test_metadata_says_whether_a_model_streams(streams: bool) -> None:
    body = oip_catalog.encode_metadata(dataclasses.replace(INFO, streams=streams))
    assert json.loads(body)["parameters"].get("streams", False) is streams
    assert oip_catalog.decode_metadata(body).streams is streams


def test_metadata_has_the_protocols_members() -> None:
    document = json.loads(oip_catalog.encode_metadata(INFO))
    assert document["name"] == "iris"
    assert document["versions"] == ["2", "3"]
    assert document["platform"] == "onnxruntime_onnx"
    assert document["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "mask", "datatype": "BOOL", "shape": None, "optional": True},
    ]
    assert document["outputs"] == [{"name": "label", "datatype": "BYTES", "shape": [-1]}]


def test_metadata_survives_the_way() -> None:
    assert oip_catalog.decode_metadata(oip_catalog.encode_metadata(INFO)) == INFO


def test_metadata_without_a_signature_is_written() -> None:
    info = VersionInfo("iris", "1", "UNAVAILABLE")
    document = json.loads(oip_catalog.encode_metadata(info))
    assert (document["inputs"], document["outputs"], document["versions"]) == ([], [], ["1"])


def test_metadata_of_another_server_is_read() -> None:
    body = b"""{"name":"m","versions":["1"],"platform":"tensorrt_plan",
        "inputs":[{"name":"a","datatype":"INT64","shape":[-1,3]}],
        "outputs":[{"name":"b","datatype":"FP32","shape":[]}]}"""
    info = oip_catalog.decode_metadata(body)
    assert (info.model, info.version, info.versions) == ("m", "1", ("1",))
    assert info.signature == Signature(
        [TensorSpec("a", "INT64", (-1, 3))], [TensorSpec("b", "FP32", ())]
    )


def test_metadata_of_the_model_stays_in_its_process() -> None:
    told = dataclasses.replace(INFO, metadata={"producer": "a secret"})
    assert oip_catalog.encode_metadata(told) == oip_catalog.encode_metadata(INFO)
    assert oip_catalog.decode_metadata(oip_catalog.encode_metadata(told)).metadata == {}
    assert oip_catalog.encode_index([told]) == oip_catalog.encode_index([INFO])


TENSOR = {"name": "x", "datatype": "FP32", "shape": [1]}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "expected a JSON object"),
        ({"versions": "1"}, "versions: expected a list"),
        ({"inputs": {}}, "inputs: expected a list"),
        ({"inputs": [1]}, "inputs[0]: expected an object"),
        ({"inputs": [{**TENSOR, "shape": "4"}]}, "inputs[0].shape: expected a list of sizes"),
        ({"inputs": [{**TENSOR, "shape": [1.5]}]}, "inputs[0].shape: expected a list of sizes"),
        ({"inputs": [{**TENSOR, "shape": [-2]}]}, "inputs[0]: "),
        ({"inputs": [{**TENSOR, "name": 1}]}, "inputs[0]: "),
        ({"outputs": [{**TENSOR, "datatype": []}]}, "outputs[0]: "),
        ({"outputs": [{**TENSOR, "datatype": "FLOAT"}]}, "outputs[0]: "),
        ({"inputs": [TENSOR, TENSOR]}, "the same name"),
    ],
    ids=range(11),
)
def test_malformed_metadata_is_refused(document: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        oip_catalog.decode_metadata(json.dumps(document).encode())
    assert text in str(caught.value)


@pytest.mark.parametrize("parameters", [None, [], {"max_batch_size": "x"}])
def test_strange_parameters_of_metadata_do_not_matter(parameters: Any) -> None:
    body = json.dumps({"name": "m", "parameters": parameters}).encode()
    assert oip_catalog.decode_metadata(body).max_batch_size == 0


def test_index_survives_the_way() -> None:
    infos = [
        VersionInfo("a", "1", "READY"),
        VersionInfo("a", "2", "UNAVAILABLE", reason="broken"),
    ]
    assert oip_catalog.decode_index(oip_catalog.encode_index(infos)) == infos


def test_index_of_a_model_never_loaded_is_read() -> None:
    infos = oip_catalog.decode_index(b'[{"name":"a"}]')
    assert infos == [VersionInfo("a", "", "UNAVAILABLE")]


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"name":"a","state":"GOOD"}]'])
def test_malformed_index_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        oip_catalog.decode_index(body)


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", False), (b"{}", False), (b'{"ready":true}', True)]
)
def test_request_for_the_index_is_read(body: bytes, ready: bool) -> None:
    assert oip_catalog.decode_index_request(body) is ready


@pytest.mark.parametrize("ready", [False, True])
def test_request_for_the_index_survives_the_way(ready: bool) -> None:
    body = oip_catalog.encode_index_request(ready=ready)
    assert oip_catalog.decode_index_request(body) is ready


@pytest.mark.parametrize("body", [b"[]", b"x", b'{"ready":1}', b'{"ready":null}'])
def test_malformed_request_for_the_index_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        oip_catalog.decode_index_request(body)


@pytest.mark.parametrize(
    ("body", "ready"),
    [
        (oip_catalog.encode_ready(True), True),
        (oip_catalog.encode_ready(False, model="m"), False),
        (b"", True),
        (b"<html>", False),
        (b"{}", False),
    ],
    ids=range(5),
)
def test_readiness_is_read(body: bytes, ready: bool) -> None:
    assert oip_catalog.decode_ready(body) is ready


def test_live_and_server_bodies() -> None:
    assert json.loads(oip_catalog.encode_live()) == {"live": True}
    assert json.loads(oip_catalog.encode_server("s", "1", ["a"])) == {
        "name": "s",
        "version": "1",
        "extensions": ["a"],
    }
