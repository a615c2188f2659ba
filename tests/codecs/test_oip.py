"""The Open Inference Protocol's messages: laws, golden bytes, and everything that is refused."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelserve.codecs import _json, _plans, _templates, oip
from modelserve.errors import BackendError, InvalidInput, Unsupported
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import DATATYPES, Signature, TensorSpec, numpy_dtype

JSON_DATATYPES = [name for name in DATATYPES if name != "BF16"]
INTEGERS = [name for name in DATATYPES if "INT" in name]
FLOATS = ["FP16", "FP32", "FP64"]
NUMBERS = INTEGERS + FLOATS


@pytest.fixture(scope="module", params=["orjson", "standard library"])
def json_library(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "standard library":
            for module in (oip, _plans):
                patch.setattr(module, "loads", _json.plain_loads)
            for module in (oip, _plans, _templates):
                patch.setattr(module, "dumps", _json.plain_dumps)
        else:
            assert oip.loads is _json.orjson.loads
        # What one library wrote is not compared with what the other does.
        _templates.TEMPLATES.clear()
        yield
        _templates.TEMPLATES.clear()


pytestmark = pytest.mark.usefixtures("json_library")


def tensor_body(datatype: Any, data: Any, shape: Any = None, **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": [1] if shape is None else shape}
    return json.dumps({"inputs": [{**tensor, "data": data, **more}]}).encode()


def raw_body(data: str, datatype: str = "FP32", shape: str = "[1]") -> bytes:
    """A body whose JSON no encoder would write."""
    return (
        f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}'
    ).encode()


def binary_body(
    blob: bytes, datatype: str = "FP32", shape: Any = (1,), size: Any = None
) -> tuple[bytes, int]:
    size = len(blob) if size is None else size
    tensor = {
        "name": "x",
        "datatype": datatype,
        "shape": list(shape),
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + blob, len(head)


def decode(body: bytes, header_length: Any = None) -> InferRequest:
    return oip.decode_request(body, model="m", header_length=header_length)


def refused(body: bytes, header_length: Any = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(body, header_length)
    return str(caught.value)


def equal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Same dtype, shape and values, NaN at the same places."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "O":
        return a.ravel().tolist() == b.ravel().tolist()
    return a.tobytes() == b.tobytes() or bool(np.array_equal(a, b, equal_nan=True))


# Laws

SHAPES = hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=3)


def tensors(datatype: str, *, text: bool, finite: bool) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        element = st.text().map(str.encode) if text else st.binary()
        return SHAPES.flatmap(
            lambda shape: st.lists(
                element, min_size=math.prod(shape), max_size=math.prod(shape)
            ).map(lambda items: objects(items, shape))
        )
    if datatype == "BF16":
        return hnp.arrays(np.uint16, SHAPES).map(lambda a: a.view(ml_dtypes.bfloat16))
    dtype = numpy_dtype(datatype)
    elements = hnp.from_dtype(dtype, allow_nan=not finite, allow_infinity=not finite)
    return hnp.arrays(dtype, SHAPES, elements=elements)


def objects(items: list[bytes], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(shape)


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_json_request_survives_the_way(datatype: str, data: st.DataObject) -> None:
    x = data.draw(tensors(datatype, text=True, finite=True))
    parts, header_length = oip.encode_request(InferRequest("m", {"x": x}), binary=False)
    assert header_length is None
    assert equal(decode(b"".join(parts)).inputs["x"], x)


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_binary_request_survives_the_way(datatype: str, data: st.DataObject) -> None:
    x = data.draw(tensors(datatype, text=False, finite=False))
    y = np.arange(3, dtype=np.int16)
    parts, header_length = oip.encode_request(InferRequest("m", {"x": x, "y": y}), binary=True)
    request = decode(b"".join(parts), header_length)
    assert equal(request.inputs["x"], x)
    assert equal(request.inputs["y"], y)


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_json_response_survives_the_way(datatype: str, data: st.DataObject) -> None:
    y = data.draw(tensors(datatype, text=True, finite=True))
    parts, header_length = oip.encode_response(InferResponse("m", "3", {"y": y}, id="a"))
    response = oip.decode_response(b"".join(parts), header_length=header_length)
    assert (response.model, response.version, response.id) == ("m", "3", "a")
    assert equal(response.outputs["y"], y)


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=25)
@given(data=st.data())
def test_binary_response_survives_the_way(datatype: str, data: st.DataObject) -> None:
    y = data.draw(tensors(datatype, text=False, finite=False))
    request = InferRequest("m", {}, output_parameters={"": {"binary_data": True}})
    parts, header_length = oip.encode_response(InferResponse("m", "3", {"y": y}), request)
    response = oip.decode_response(b"".join(parts), header_length=header_length)
    assert equal(response.outputs["y"], y)
    assert response.output_parameters == {}


PARAMETERS = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name not in ("timeout", "priority", "sequence_id")),
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)


@given(
    parameters=PARAMETERS,
    input_parameters=PARAMETERS,
    output_parameters=PARAMETERS,
    id=st.text(),
    priority=st.integers(0, 2**64 - 1),
    sequence_id=st.integers(1, 2**64 - 1) | st.text(min_size=1),
)
def test_members_of_a_request_survive_the_way(
    parameters: dict[str, Any],
    input_parameters: dict[str, Any],
    output_parameters: dict[str, Any],
    id: str,
    priority: int,
    sequence_id: int | str,
) -> None:
    request = InferRequest(
        "m",
        {"x": np.zeros(1, np.float32)},
        id=id,
        parameters=parameters,
        input_parameters={"x": input_parameters} if input_parameters else {},
        outputs=["y", "z"],
        output_parameters={"z": output_parameters} if output_parameters else {},
        priority=priority,
        sequence_id=sequence_id,
    )
    parts, _ = oip.encode_request(request, binary=False)
    got = decode(b"".join(parts))
    assert got.id == id
    assert got.parameters == {**parameters, "sequence_id": sequence_id}
    assert got.input_parameters == request.input_parameters
    assert got.output_parameters == request.output_parameters
    assert got.outputs == ["y", "z"]
    assert (got.priority, got.sequence_id) == (priority, sequence_id)


@given(st.binary())
def test_any_bytes_are_a_request_or_invalid(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(body)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(DATATYPES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "name", "binary_data_size"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TENSOR_DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON_VALUES | st.just("x"),
        "datatype": JSON_VALUES | st.sampled_from(DATATYPES),
        "shape": JSON_VALUES | st.lists(st.integers(-1, 3), max_size=3),
        "data": JSON_VALUES | st.lists(JSON_VALUES, max_size=4),
        "parameters": JSON_VALUES
        | st.fixed_dictionaries({"binary_data_size": JSON_VALUES | st.integers(-1, 9)}),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR_DOCUMENTS, max_size=2) | JSON_VALUES},
    optional={
        "id": JSON_VALUES,
        "outputs": st.lists(TENSOR_DOCUMENTS, max_size=2) | JSON_VALUES,
        "parameters": JSON_VALUES
        | st.dictionaries(
            st.sampled_from(["timeout", "priority", "sequence_id", "binary_data_output"]),
            JSON_VALUES,
        ),
    },
)


@given(document=DOCUMENTS, blob=st.none() | st.binary(max_size=12), cut=st.integers(0, 3))
def test_any_document_is_a_request_or_refused(document: Any, blob: bytes | None, cut: int) -> None:
    head = json.dumps(document).encode()
    body, header_length = (head, None) if blob is None else (head + blob, len(head) - cut)
    for read in (decode, lambda b, h: oip.decode_response(b, header_length=h)):
        with suppress(InvalidInput, Unsupported):
            read(body, header_length)


# Golden bytes


def test_request_of_the_protocols_own_example() -> None:
    body = b"""
    {
      "id" : "42",
      "inputs" : [
        { "name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32", "data" : [ 1, 2, 3, 4 ] },
        { "name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL", "data" : [ true ,false, true ] }
      ],
      "outputs" : [ { "name" : "output0" } ]
    }
    """
    request = oip.decode_request(body, model="mymodel")
    assert request.id == "42"
    assert equal(request.inputs["input0"], np.array([[1, 2], [3, 4]], np.uint32))
    assert equal(request.inputs["input1"], np.array([True, False, True]))
    assert request.outputs == ["output0"]


def test_response_of_the_protocols_own_example() -> None:
    response = InferResponse(
        "mymodel", "1", {"output0": np.array([[1.0, 1.1], [2.0, 2.25]], np.float32)}, id="42"
    )
    assert oip.encode_response(response) == (
        [
            b'{"model_name":"mymodel","model_version":"1","id":"42","outputs":[{"name":"output0",'
            b'"datatype":"FP32","shape":[2,2],"data":[1.0,1.1,2.0,2.25]}]}'
        ],
        None,
    )


def test_request_of_the_binary_extensions_own_example() -> None:
    head = b"""{
      "model_name" : "mymodel",
      "inputs" : [
        { "name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32",
          "parameters" : { "binary_data_size" : 16 } },
        { "name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL",
          "parameters" : { "binary_data_size" : 3 } }
      ],
      "outputs" : [ { "name" : "output0", "parameters" : { "binary_data" : true } } ]
    }"""
    blob = b"\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0" + b"\x01\0\x01"
    request = decode(head + blob, str(len(head)))
    assert equal(request.inputs["input0"], np.array([[1, 2], [3, 4]], np.uint32))
    assert equal(request.inputs["input1"], np.array([True, False, True]))
    assert request.output_parameters == {"output0": {"binary_data": True}}


def test_binary_response_is_head_and_little_endian_data() -> None:
    request = InferRequest("m", {}, output_parameters={"output0": {"binary_data": True}})
    response = InferResponse(
        "mymodel", "1", {"output0": np.array([1, 256], ">u4"), "output1": np.array([True])}
    )
    parts, header_length = oip.encode_response(response, request)
    head = (
        b'{"model_name":"mymodel","model_version":"1","outputs":[{"name":"output0","datatype":'
        b'"UINT32","shape":[2],"parameters":{"binary_data_size":8}},{"name":"output1","datatype":'
        b'"BOOL","shape":[1],"data":[true]}]}'
    )
    assert b"".join(parts) == head.ljust(header_length or 0) + b"\x01\0\0\0\0\x01\0\0"
    assert header_length == -(-len(head) // 8) * 8


def test_binary_bytes_elements_have_their_length_in_front() -> None:
    parts, _ = oip.encode_request(InferRequest("m", {"x": objects([b"ab", b"", b"\xff"], (3,))}))
    assert bytes(parts[1]) == b"\x02\0\0\0ab" + b"\0\0\0\0" + b"\x01\0\0\0\xff"


def test_bf16_is_the_upper_half_of_a_float() -> None:
    x = decode(*binary_body(b"\x80\x3f\x00\xc0", "BF16", [2])).inputs["x"]
    assert x.astype(np.float32).tolist() == [1.0, -2.0]


def test_large_tensors_are_written_as_views() -> None:
    x = np.arange(100_000, dtype=np.float32)
    parts, _ = oip.encode_request(InferRequest("m", {"x": x}))
    assert isinstance(parts[1], memoryview)
    assert np.shares_memory(np.frombuffer(parts[1], np.float32), x)


def test_binary_tensors_are_views_of_the_body() -> None:
    body, header_length = binary_body(np.arange(4, dtype=np.float32).tobytes(), shape=[2, 2])
    x = decode(body, header_length).inputs["x"]
    assert np.shares_memory(x, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_inputs_are_read_only(datatype: str, kind: Any) -> None:
    x = objects([b"a"], (1,)) if datatype == "BYTES" else np.ones(1, numpy_dtype(datatype))
    parts, header_length = oip.encode_request(InferRequest("m", {"x": x}), binary=True)
    got = decode(kind(b"".join(parts)), header_length).inputs["x"]
    assert not got.flags.writeable
    assert equal(got, x)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("datatype", JSON_DATATYPES)
def test_inputs_from_json_are_read_only(datatype: str, kind: Any) -> None:
    data = {"BOOL": [True], "BYTES": ["a"]}.get(datatype, [1])
    x = decode(kind(tensor_body(datatype, data))).inputs["x"]
    assert not x.flags.writeable
    assert x.dtype == numpy_dtype(datatype)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_empty_inputs_are_read_only(datatype: str) -> None:
    x = decode(*binary_body(b"", datatype, [2, 0])).inputs["x"]
    assert not x.flags.writeable
    assert x.shape == (2, 0)
    if datatype != "BF16":
        x = decode(tensor_body(datatype, [], [0, 3])).inputs["x"]
        assert not x.flags.writeable
        assert x.shape == (0, 3)


@pytest.mark.parametrize("size", [1, 4096, 4097, 9000])
def test_the_first_byte_that_is_no_boolean_is_named(size: int) -> None:
    right = bytes([0, 1]) * (size // 2) + bytes(size % 2)
    assert decode(*binary_body(right, "BOOL", [size])).inputs["x"].tobytes() == right
    for index in {0, size // 2, size - 1}:
        wrong = right[:index] + b"\x80" + right[index + 1 : -1] + b"\2" * (index < size - 1)
        text = f"inputs[0][{index}]: expected a byte of 0 or 1, got 128"
        assert refused(*binary_body(wrong, "BOOL", [size])) == text


# Scalars against datatypes


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("scalar", ["true", "false", "null", '"1"', "[1]", '{"a":1}'])
def test_no_number_is_refused_for_numbers(datatype: str, scalar: str) -> None:
    text = refused(raw_body(f"[1,{scalar}]", datatype, "[2]"))
    assert text.startswith("inputs[0].data[1]: expected a")


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("scalar", ["3.7", "1.0", "-0.0", "1e2", "1e300"])
def test_float_is_refused_for_integers(datatype: str, scalar: str) -> None:
    text = refused(raw_body(f"[1,{scalar}]", datatype, "[2]"))
    assert text.startswith(f"inputs[0].data[1]: expected an integer for {datatype}, got ")


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("scalar", [1, -7, 0, 0.5])
def test_numbers_are_taken_for_floats(datatype: str, scalar: float) -> None:
    x = decode(tensor_body(datatype, [scalar])).inputs["x"]
    assert equal(x, np.array([scalar], numpy_dtype(datatype)))


@pytest.mark.parametrize("scalar", ["1", "0", "1.0", "null", '"true"', "[true]"])
def test_only_booleans_are_taken_for_bool(scalar: str) -> None:
    text = refused(raw_body(f"[true,{scalar}]", "BOOL", "[2]"))
    assert text.startswith("inputs[0].data[1]: expected true or false, got ")


@pytest.mark.parametrize("scalar", ["1", "0.5", "true", "null", '["a"]'])
def test_only_strings_are_taken_for_bytes(scalar: str) -> None:
    text = refused(raw_body(f'["a",{scalar}]', "BYTES", "[2]"))
    assert text.startswith("inputs[0].data[1]: expected a string, got ")


@pytest.mark.parametrize(
    ("datatype", "number"),
    [(name, np.iinfo(numpy_dtype(name)).max + 1) for name in INTEGERS]
    + [(name, np.iinfo(numpy_dtype(name)).min - 1) for name in INTEGERS]
    + [("INT8", 300), ("INT64", 2**64), ("FP32", 1e39), ("FP16", 70000)],
)
def test_number_out_of_range_is_refused(datatype: str, number: float) -> None:
    text = refused(tensor_body(datatype, [[1], [number]], [2, 1]))
    assert text.startswith("inputs[0].data[1][0]: expected ")
    assert datatype in text


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_stay_exact_to_the_end_of_their_range(datatype: str) -> None:
    info = np.iinfo(numpy_dtype(datatype))
    data = [info.max, info.max - 1, info.min, 1]
    assert decode(tensor_body(datatype, data, [4])).inputs["x"].tolist() == data


@pytest.mark.parametrize("datatype", INTEGERS)
def test_output_integers_stay_exact(datatype: str) -> None:
    info = np.iinfo(numpy_dtype(datatype))
    y = np.array([info.max, info.max - 1, info.min], numpy_dtype(datatype))
    parts, _ = oip.encode_response(InferResponse("m", "1", {"y": y}))
    assert json.loads(parts[0])["outputs"][0]["data"] == y.tolist()


@pytest.mark.parametrize(
    "token", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1" * 400, "nan", "01", "1.", "+1"]
)
def test_numbers_json_does_not_have_are_refused(token: str) -> None:
    assert "not valid JSON" in refused(raw_body(f"[{token}]"))


def test_booleans_elsewhere_do_not_matter() -> None:
    body = json.loads(tensor_body("FP32", [1.5]))
    body["parameters"] = {"binary_data_output": True}
    assert decode(json.dumps(body).encode()).inputs["x"].tolist() == [1.5]


def test_fp16_is_taken_in_json() -> None:
    assert equal(decode(tensor_body("FP16", [0.1])).inputs["x"], np.array([0.1], np.float16))


def test_bf16_is_refused_in_json() -> None:
    assert "inputs[0].data: BF16 has no JSON form" in refused(tensor_body("BF16", [1.0]))


# Shapes and forms

MALFORMED_DATA = [
    ("FP32", [1, 2, 3], [2], "inputs[0].data: expected 2 elements for shape [2], got 3"),
    ("FP32", [], [1], "inputs[0].data: expected 1 elements for shape [1], got 0"),
    ("FP32", [1], [0], "inputs[0].data: expected 0 elements for shape [0], got 1"),
    ("FP32", [], [], "inputs[0].data: expected 1 elements for shape [], got 0"),
    ("FP32", [[1]], [1], "inputs[0].data[0]: expected a number for FP32, got a list"),
    ("FP32", [[1, 2], [3]], [2, 2], "inputs[0].data[1]: expected a list of 2 elements"),
    ("FP32", [[1, 2], 3], [2, 2], "inputs[0].data[1]: expected a list of 2 elements"),
    ("FP32", [1, [2, 3]], [2, 2], "inputs[0].data: expected 4 elements"),
    ("FP32", [[1, 2], [3, 4]], [4], "inputs[0].data: expected 4 elements"),
    ("FP32", [[1, 2, 3, 4]], [2, 2], "inputs[0].data: expected a list of 2 elements"),
    ("FP32", [[1, 2], [3, 4]], [2, 2, 1], "inputs[0].data[0][0]: expected a list of 1 elements"),
    ("FP32", [[[1]], [[2]]], [2, 1], "inputs[0].data[0][0]: expected a number for FP32, got a l"),
    (
        "FP32",
        [[1, 2], [3, "4"]],
        [2, 2],
        'inputs[0].data[1][1]: expected a number for FP32, got "4"',
    ),
    ("BYTES", [["a"], [1]], [2, 1], "inputs[0].data[1][0]: expected a string, got 1"),
    ("BOOL", [[True], [1]], [2, 1], "inputs[0].data[1][0]: expected true or false, got 1"),
    ("FP32", 5, [], "inputs[0].data: expected a list, got 5"),
    ("FP32", None, [1], "inputs[0].data: expected a list, got null"),
    ("FP32", "AAAA", [1], 'inputs[0].data: expected a list, got "AAAA"'),
    ("FP32", {"0": 1}, [1], "inputs[0].data: expected a list, got an object"),
    ("FP32", [1], [-1], "inputs[0].shape[0]: expected a size of 0 or more, got -1"),
    ("FP32", [1], [1, 1.0], "inputs[0].shape[1]: expected a size of 0 or more, got 1.0"),
    ("FP32", [1], [True], "inputs[0].shape[0]: expected a size of 0 or more, got true"),
    ("FP32", [1], ["1"], 'inputs[0].shape[0]: expected a size of 0 or more, got "1"'),
    ("FP32", [1], [None], "inputs[0].shape[0]: expected a size of 0 or more, got null"),
    ("FP32", [1], [2**64], "inputs[0].shape[0]: expected a size of 0 or more, got 1.8446744"),
    ("FP32", [1], 1, "inputs[0].shape: expected a list of sizes, got 1"),
    ("FP32", [1], {}, "inputs[0].shape: expected a list of sizes, got an object"),
    ("FP32", [1], [2**63 - 1, 2**63 - 1], "inputs[0].shape: expected at most 32 axes"),
    ("FP32", [], [2**62, 2**62, 0], "inputs[0].shape: expected at most 32 axes"),
    ("FP32", [1], [1] * 33, "inputs[0].shape: expected at most 32 axes"),
    ("FP32", [1], [2**40], "inputs[0].data: expected 1099511627776 elements"),
    ("FLOAT", [1], [1], "inputs[0].datatype: expected one of BOOL, UINT8"),
    ("fp32", [1], [1], 'got "fp32"'),
    (None, [1], [1], "inputs[0].datatype: expected one of"),
    (["FP32"], [1], [1], "got a list"),
]


@pytest.mark.parametrize(
    ("datatype", "data", "shape", "text"), MALFORMED_DATA, ids=range(len(MALFORMED_DATA))
)
def test_malformed_tensor_is_refused_with_its_place(
    datatype: Any, data: Any, shape: Any, text: str
) -> None:
    assert text in refused(tensor_body(datatype, data, shape))


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([1, 2, 3, 4], [2, 2]),
        ([[1, 2], [3, 4]], [2, 2]),
        ([[[1], [2]], [[3], [4]]], [2, 2, 1]),
        ([[1], [2], [3]], [3, 1]),
        ([5], []),
        ([], [0]),
        ([], [0, 4]),
        ([[], []], [2, 0]),
        ([], [2, 0]),
        ([[5]], [1, 1]),
        ([1], [1] * 32),
    ],
)
def test_flat_and_nested_lists_are_taken(data: Any, shape: Any) -> None:
    x = decode(tensor_body("INT32", data, shape)).inputs["x"]
    assert x.shape == tuple(shape)
    assert x.ravel().tolist() == np.array(data).ravel().tolist()


def with_member(**members: Any) -> bytes:
    return json.dumps({**json.loads(tensor_body("FP32", [1.0])), **members}).encode()


def without(member: str) -> bytes:
    document = json.loads(tensor_body("FP32", [1.0]))
    del document["inputs"][0][member]
    return json.dumps(document).encode()


X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}

MALFORMED_BODIES = [
    (b"", "the body is not valid JSON"),
    (b"{", "the body is not valid JSON"),
    (b"[]", "expected a JSON object, got a list"),
    (b"null", "expected a JSON object, got null"),
    (b"1", "expected a JSON object, got 1"),
    (b"{}", "inputs: expected a list of tensors, got null"),
    (b'{"inputs":{}}', "inputs: expected a list of tensors, got an object"),
    (b'{"inputs":[1]}', "inputs[0]: expected an object, got 1"),
    (b'{"inputs":[],"a":"\xff"}', "the body is not valid JSON"),
    (b'{"inputs":[],"a":"\xed\xa0\x80"}', "the body is not valid JSON"),
    (b'{"inputs":[],"a":"\\ud800"}', "the body is not valid JSON"),
    (b'\xef\xbb\xbf{"inputs":[]}', "the body is not valid JSON"),
    (b'{"inputs":[]}x', "the body is not valid JSON"),
    (b"[" * 100_000 + b"]" * 100_000, "the body is not valid JSON"),
    (b'{"inputs":' + b"[" * 100_000, "the body is not valid JSON"),
    (b'{"a":' * 100_000, "the body is not valid JSON"),
    (without("name"), "inputs[0].name: expected a name, got null"),
    (without("datatype"), "inputs[0].datatype: expected one of"),
    (without("shape"), "inputs[0].shape: expected a list of sizes, got null"),
    (without("data"), "inputs[0]: expected data, or binary_data_size in parameters"),
    (with_member(inputs=[{**X, "name": ""}]), 'inputs[0].name: expected a name, got ""'),
    (with_member(inputs=[{**X, "name": 1}]), "inputs[0].name: expected a name, got 1"),
    (with_member(inputs=[X, X]), 'inputs[1].name: "x" stands there twice'),
    (with_member(inputs=[{**X, "parameters": []}]), "inputs[0].parameters: expected an object"),
    (
        with_member(inputs=[{**X, "parameters": {"a": []}}]),
        "inputs[0].parameters.a: expected a boolean, number or string, got a list",
    ),
    (
        with_member(inputs=[{**X, "parameters": {"binary_data_size": 4}}]),
        "inputs[0]: expected data or binary_data_size, got both",
    ),
    (
        without("data").replace(b'"FP32"', b'"FP32","parameters":{"binary_data_size":4}'),
        "needs the header Inference-Header-Content-Length",
    ),
    (with_member(id=1), "id: expected a string, got 1"),
    (with_member(id={}), "id: expected a string, got an object"),
    (with_member(parameters=[]), "parameters: expected an object, got a list"),
    (with_member(parameters={"a": None}), "parameters.a: expected a boolean, number or string"),
    (with_member(parameters={"a": {}}), "got an object"),
    (with_member(parameters={"timeout": -1}), "parameters.timeout: expected an integer from 0"),
    (with_member(parameters={"timeout": 1.5}), "parameters.timeout: expected an integer"),
    (with_member(parameters={"timeout": True}), "parameters.timeout: expected an integer"),
    (with_member(parameters={"timeout": "1"}), "parameters.timeout: expected an integer"),
    (with_member(parameters={"timeout": 2**64}), "parameters.timeout: expected an integer"),
    (with_member(parameters={"priority": -1}), "parameters.priority: expected an integer"),
    (with_member(parameters={"priority": False}), "parameters.priority: expected an integer"),
    (with_member(parameters={"sequence_id": 1.5}), "parameters.sequence_id: expected a string or"),
    (with_member(parameters={"sequence_id": True}), "parameters.sequence_id: expected a string or"),
    (with_member(parameters={"sequence_id": -1}), "an integer from 0 to 18446744073709551615, got"),
    (with_member(parameters={"sequence_start": 1}), "parameters.sequence_start: expected true or"),
    (with_member(parameters={"sequence_end": "true"}), "parameters.sequence_end: expected true or"),
    (with_member(parameters={"binary_data_output": 1}), "parameters.binary_data_output: expected"),
    (with_member(outputs={}), "outputs: expected a list, got an object"),
    (with_member(outputs=["y"]), 'outputs[0]: expected an object, got "y"'),
    (with_member(outputs=[{}]), "outputs[0].name: expected a name, got null"),
    (with_member(outputs=[{"name": "y"}, {"name": "y"}]), 'outputs[1].name: "y" stands there twi'),
    (with_member(outputs=[{"name": "y", "parameters": 1}]), "outputs[0].parameters: expected an"),
    (
        with_member(outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        'outputs[0].parameters.binary_data: expected true or false, got "yes"',
    ),
]


@pytest.mark.parametrize(("body", "text"), MALFORMED_BODIES, ids=range(len(MALFORMED_BODIES)))
def test_malformed_body_is_refused_with_its_place(body: bytes, text: str) -> None:
    assert text in refused(body)


def test_error_texts_stay_short() -> None:
    long = "x" * 100_000
    body = with_member(inputs=[{**X, "name": long}, {**X, "name": long}])
    assert len(refused(body)) < 300
    assert len(refused(tensor_body("FP32", [long]))) < 300
    assert len(refused(with_member(parameters={long: None}))) < 300


@pytest.mark.parametrize("member", ["id", "parameters", "outputs"])
def test_null_counts_as_absent(member: str) -> None:
    request = decode(with_member(**{member: None}))
    assert (request.id, request.parameters, request.outputs) == ("", {}, None)


def test_empty_list_of_outputs_asks_for_all() -> None:
    assert decode(with_member(outputs=[])).outputs is None


def test_unknown_members_are_ignored() -> None:
    assert decode(with_member(model_name="other", more=[1])).model == "m"


SHARED = {"shared_memory_region": "a", "shared_memory_byte_size": 4}


@pytest.mark.parametrize(
    "member",
    [
        {"outputs": [{"name": "y", "parameters": SHARED}]},
        {"inputs": [{k: v for k, v in X.items() if k != "data"} | {"parameters": SHARED}]},
    ],
)
def test_what_is_not_offered_is_unsupported(member: Any) -> None:
    with pytest.raises(Unsupported, match=r"puts\[0\]\.parameters.*not offered here"):
        decode(with_member(**member))


def test_classes_come_in_json_unless_asked_for_in_binary() -> None:
    asked = [{"name": "y", "parameters": {"classification": 3}}]
    every = {"binary_data_output": True}
    request = decode(with_member(outputs=asked, parameters=every))
    assert request.output_parameters["y"] == {"classification": 3, "binary_data": False}
    asked[0]["parameters"]["binary_data"] = True  # type: ignore[index]  # a dict of ours
    request = decode(with_member(outputs=asked))
    assert request.output_parameters["y"] == {"classification": 3, "binary_data": True}


# Binary bodies

MALFORMED_BINARY = [
    (binary_body(b"\0" * 3), "inputs[0]: expected 4 bytes for FP32 of shape [1], got 3"),
    (binary_body(b"\0" * 8), "inputs[0]: expected 4 bytes for FP32 of shape [1], got 8"),
    (binary_body(b"\0" * 4, shape=[0]), "inputs[0]: expected 0 bytes for FP32 of shape [0]"),
    (binary_body(b"\0" * 4, size=0), "inputs[0]: expected 4 bytes for FP32"),
    (binary_body(b"\0" * 2, size=4), "binary_data_size: expected 4 bytes of binary data, got 2"),
    (binary_body(b"\0" * 9, size=4), "5 bytes follow the last binary tensor"),
    (binary_body(b"\0" * 4, size=-4), "binary_data_size: expected a number of bytes, got -4"),
    (binary_body(b"\0" * 4, size=4.0), "binary_data_size: expected a number of bytes, got 4.0"),
    (binary_body(b"\0" * 4, size=True), "binary_data_size: expected a number of bytes, got true"),
    (binary_body(b"\0" * 4, size="4"), 'binary_data_size: expected a number of bytes, got "4"'),
    (binary_body(b"\0" * 4, size=2**63), "binary_data_size: expected 9223372036854775808 bytes"),
    (binary_body(b"\0" * 4, "FP64"), "inputs[0]: expected 8 bytes for FP64"),
    (binary_body(b"\0" * 4, "BF16"), "inputs[0]: expected 2 bytes for BF16"),
    (binary_body(b"\x01\x02", "BOOL", [2]), "inputs[0][1]: expected a byte of 0 or 1, got 2"),
    (binary_body(b"\0" * 3, "BYTES"), "inputs[0]: expected at least 4 bytes for 1 elements"),
    (binary_body(b"\x05\0\0\0ab", "BYTES"), "inputs[0][0]: expected 5 bytes, got 2"),
    (binary_body(b"\xff\xff\xff\xff", "BYTES"), "inputs[0][0]: expected 4294967295 bytes, got 0"),
    (binary_body(b"\0\0\0\0a", "BYTES"), "inputs[0]: 1 bytes follow the last element"),
    (
        binary_body(b"\x02\0\0\0abcd", "BYTES", [2]),
        "inputs[0][1]: the data ends before its length",
    ),
    (binary_body(b"\0\0\0\0", "BYTES", [2**40]), "inputs[0]: expected at least 4398046511104"),
]


@pytest.mark.parametrize(("sent", "text"), MALFORMED_BINARY, ids=range(len(MALFORMED_BINARY)))
def test_malformed_binary_is_refused_with_its_place(sent: tuple[bytes, int], text: str) -> None:
    assert text in refused(*sent)


@pytest.mark.parametrize(
    "length", [-1, 10_000, "10001", "-2", "1.0", "x", "", "5 5", "٣", "1" * 30]
)
def test_wrong_header_length_is_refused(length: Any) -> None:
    text = refused(tensor_body("FP32", [1]), length)
    assert text.startswith("inference-header-content-length: expected ")


@pytest.mark.parametrize("length", [0, "00"])
def test_a_json_part_of_nothing_is_refused(length: Any) -> None:
    with pytest.raises(InvalidInput, match="expected a JSON part"):
        decode(b"\0\0\0\0", length)


def raw(
    body: bytes, shape: Any, datatype: Any = "FP32", *, batched: bool = True
) -> np.ndarray[Any, Any]:
    signature = Signature([TensorSpec("x", datatype, shape)])
    request = oip.decode_raw(body, signature, batched=batched, model="m", version="2")
    assert (request.model, request.version) == ("m", "2")
    assert request.output_parameters == {"": {"binary_data": True}}
    return request.inputs["x"]


@pytest.mark.parametrize(
    ("shape", "batched", "count", "expected"),
    [
        ((-1, 4), True, 4, (1, 4)),
        ((-1, 4), True, 12, (3, 4)),
        ((-1, -1), True, 5, (1, 5)),
        ((-1, -1, 2), True, 6, (1, 3, 2)),
        ((-1,), False, 3, (3,)),
        ((2, -1), False, 6, (2, 3)),
        ((2, 2), False, 4, (2, 2)),
        ((), False, 1, ()),
    ],
)
def test_a_body_of_one_tensor_has_the_shape_its_size_tells(
    shape: Any, batched: bool, count: int, expected: Any
) -> None:
    data = np.arange(count, dtype=np.float32)

    found = raw(data.tobytes(), shape, batched=batched)

    assert found.shape == expected
    assert found.ravel().tolist() == data.tolist()
    assert not found.flags.writeable


@pytest.mark.parametrize("shape", [(1,), (-1,), (-1, 1), (1, 1, -1), ()])
def test_a_body_of_bytes_is_one_element(shape: Any) -> None:
    found = raw(b"\xff\0 any", shape, "BYTES")

    assert found.ravel().tolist() == [b"\xff\0 any"]
    assert found.ndim == len(shape)


@pytest.mark.parametrize(
    ("body", "shape", "datatype", "batched", "text"),
    [
        (b"\0" * 15, (-1, 4), "FP32", True, "expected a multiple of 16 bytes, got 15"),
        (b"\0" * 8, (2, 2), "FP32", False, "expected 16 bytes for FP32 of shape [2, 2], got 8"),
        (b"\0" * 8, (-1, -1), "FP32", False, "2 of its axes are open: send a JSON part"),
        (b"\0" * 8, (-1, -1, -1), "FP32", True, "2 of its axes are open: send a JSON part"),
        (b"\0" * 8, None, "FP32", True, "its number of axes is open: send a JSON part"),
        (b"", (-1, 0), "FP32", True, "expected a multiple of 0 bytes, got 0"),
        (b"\2", (-1,), "BOOL", True, "expected a byte of 0 or 1, got 2"),
        (b"a", (2,), "BYTES", True, "a body without JSON holds one element"),
    ],
)
def test_a_body_of_one_tensor_that_tells_no_shape_is_refused(
    body: bytes, shape: Any, datatype: str, batched: bool, text: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        raw(body, shape, datatype, batched=batched)

    assert str(caught.value).startswith('inputs[0] "x"')
    assert text in str(caught.value)


@pytest.mark.parametrize("names", ["", "xy"])
def test_a_body_of_one_tensor_is_for_a_model_with_one_input(names: str) -> None:
    signature = Signature([TensorSpec(name, "FP32", (1,)) for name in names])

    with pytest.raises(InvalidInput, match=f"the model has {len(names)} inputs"):
        oip.decode_raw(b"\0\0\0\0", signature, batched=False, model="m")


def test_json_and_binary_inputs_go_together() -> None:
    y = {"name": "y", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}}
    head = json.dumps({"inputs": [X, y]}).encode()
    request = decode(head + b"\x01\xff", len(head))
    assert request.inputs["x"].tolist() == [1.0]
    assert request.inputs["y"].tolist() == [1, -1]
    assert request.input_parameters == {}


# What becomes of parameters


@pytest.mark.parametrize("data", [{}, {"data": None}])
def test_binary_tensor_without_elements_needs_no_header(data: Any) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [0, 2], **data}
    body = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 0}}]}).encode()
    for _ in range(3):
        request = oip.decode_request(body, model="m")
        assert request.inputs["x"].shape == (0, 2)


def test_timeout_becomes_a_deadline() -> None:
    before = monotonic()
    request = decode(with_member(parameters={"timeout": 2_000_000}))
    assert before + 2 <= (request.deadline or 0) <= monotonic() + 2
    assert request.parameters == {}


def test_timeout_of_zero_is_none() -> None:
    assert decode(with_member(parameters={"timeout": 0})).deadline is None


@pytest.mark.parametrize("longest", [10**16, 2**63 - 1, 2**64 - 1])
def test_timeout_beyond_all_clocks_is_none(longest: int) -> None:
    body = with_member(parameters={"timeout": longest})
    # The third is read by what was learnt from the others.
    found = [oip.decode_request(body, model="m") for _ in range(3)]
    assert [(request.deadline, request.parameters) for request in found] == [(None, {})] * 3


@pytest.mark.parametrize("around", [" %d", "%d\t ", " %d "])
def test_space_around_the_length_of_the_head_is_let_be(around: str) -> None:
    body = tensor_body("FP32", [1.0])
    request = oip.decode_request(body, model="m", header_length=around % len(body))
    assert request.inputs["x"].tolist() == [1.0]


def test_deadline_is_sent_as_what_is_left() -> None:
    parts, _ = oip.encode_request(
        InferRequest("m", {}, deadline=monotonic() + 5, priority=2), binary=False
    )
    parameters = json.loads(parts[0])["parameters"]
    assert 4_000_000 < parameters["timeout"] <= 5_000_000
    assert parameters["priority"] == 2


def test_past_deadline_is_sent_as_the_shortest_timeout() -> None:
    parts, _ = oip.encode_request(InferRequest("m", {}, deadline=monotonic() - 5), binary=False)
    assert json.loads(parts[0])["parameters"] == {"timeout": 1}


def test_request_parameter_decides_for_outputs_without_their_own() -> None:
    request = decode(
        with_member(
            parameters={"binary_data_output": True},
            outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        )
    )
    one = np.ones(1, np.int8)
    parts, header_length = oip.encode_response(
        InferResponse("m", "1", {"a": one, "b": one}), request
    )
    assert request.parameters == {}
    a, b = json.loads(parts[0])["outputs"]
    assert a["parameters"] == {"binary_data_size": 1}
    assert b["data"] == [1]
    assert header_length == len(parts[0])


def test_named_outputs_are_asked_for_in_binary_too() -> None:
    request = InferRequest("m", {}, outputs=["y"], output_parameters={"y": {"a": 1}})
    parts, _ = oip.encode_request(request)
    assert json.loads(parts[0])["outputs"] == [
        {"name": "y", "parameters": {"a": 1, "binary_data": True}}
    ]


# Outputs


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_number_in_a_json_output_is_null(dtype: Any) -> None:
    y = np.array([np.nan, np.inf, -np.inf, 0.5], dtype)
    parts, _ = oip.encode_response(InferResponse("m", "1", {"y": y}))
    assert b'"data":[null,null,null,0.5]' in parts[0]
    got = oip.decode_response(bytes(parts[0])).outputs["y"]
    assert equal(got, np.array([np.nan, np.nan, np.nan, 0.5], dtype))


def test_null_for_an_integer_is_refused_in_a_response() -> None:
    body = b'{"outputs":[{"name":"y","datatype":"INT8","shape":[1],"data":[null]}]}'
    with pytest.raises(InvalidInput, match=r"outputs\[0\]\.data\[0\]: expected an integer"):
        oip.decode_response(body)


def test_null_does_not_hide_another_wrong_element() -> None:
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2,1],"data":[[null],["a"]]}]}'
    with pytest.raises(InvalidInput, match=r"outputs\[0\]\.data\[1\]\[0\]: expected a number"):
        oip.decode_response(body)


def test_floats_are_written_with_the_shortest_digits() -> None:
    y = np.array([0.1, 1e-7, 16777216, 1.2345678], np.float32)
    parts, _ = oip.encode_response(InferResponse("m", "1", {"y": y}))
    assert json.loads(parts[0])["outputs"][0]["data"] == [0.1, 1e-7, 16777216.0, 1.2345678]


@pytest.mark.parametrize(
    "y",
    [
        np.arange(10, dtype=np.float32)[::2],
        np.arange(10, dtype=np.float32)[::-1],
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(4, dtype=">f4"),
        np.arange(4, dtype=">f2"),
        np.float32(3),
        [1.5, 2.5],
    ],
    ids=["strided", "reversed", "transposed", "big-endian", "big-endian half", "scalar", "list"],
)
@pytest.mark.parametrize("binary", [False, True])
def test_outputs_of_any_layout_are_written(y: Any, binary: bool) -> None:
    request = InferRequest("m", {}, output_parameters={"": {"binary_data": binary}})
    parts, header_length = oip.encode_response(InferResponse("m", "1", {"y": y}), request)
    got = oip.decode_response(b"".join(parts), header_length=header_length).outputs["y"]
    assert np.array_equal(got, y)
    assert got.shape == np.shape(y)


@pytest.mark.parametrize(
    "y",
    [
        objects([b"a", "é".encode()], (2,)),
        np.array(["a", "é"], np.object_),
        np.array(["a", "é"]),
        np.array([b"a", "é".encode()]),
    ],
    ids=["bytes", "str", "U", "S"],
)
@pytest.mark.parametrize("binary", [False, True])
def test_text_outputs_are_bytes_tensors(y: Any, binary: bool) -> None:
    request = InferRequest("m", {}, output_parameters={"": {"binary_data": binary}})
    parts, header_length = oip.encode_response(InferResponse("m", "1", {"y": y}), request)
    got = oip.decode_response(b"".join(parts), header_length=header_length).outputs["y"]
    assert got.tolist() == [b"a", "é".encode()]


def test_bytes_that_are_no_text_have_no_json_form() -> None:
    y = objects([b"a", b"\xff"], (2,))
    with pytest.raises(InvalidInput, match=r'outputs "y": element 1 is not UTF-8.*binary data'):
        oip.encode_response(InferResponse("m", "1", {"y": y}))


def test_bf16_output_has_no_json_form() -> None:
    y = np.ones(1, ml_dtypes.bfloat16)
    with pytest.raises(InvalidInput, match='outputs "y": BF16 has no JSON form'):
        oip.encode_response(InferResponse("m", "1", {"y": y}))


@pytest.mark.parametrize("y", [np.ones(1, np.complex64), objects([1, 2], (2,))])  # type: ignore[list-item]
@pytest.mark.parametrize("binary", [False, True])
def test_output_that_is_no_tensor_is_the_models_fault(y: Any, binary: bool) -> None:
    request = InferRequest("m", {}, output_parameters={"": {"binary_data": binary}})
    with pytest.raises(BackendError, match='output "y"'):
        oip.encode_response(InferResponse("m", "1", {"y": y}), request)


@pytest.mark.parametrize("x", [np.array([np.nan], np.float32), np.array([np.inf])])
def test_no_number_in_a_json_request_is_refused(x: Any) -> None:
    with pytest.raises(InvalidInput, match=r'inputs\[0\] "x": NaN and infinities'):
        oip.encode_request(InferRequest("m", {"x": x}), binary=False)


def test_response_parameters_are_written_and_read() -> None:
    response = InferResponse(
        "m",
        "1",
        {"y": np.ones(1, np.int8)},
        parameters={"a": True, "b": np.float32(0.5)},
        output_parameters={"y": {"c": "d"}},
    )
    parts, _ = oip.encode_response(response)
    got = oip.decode_response(bytes(parts[0]))
    assert got.parameters == {"a": True, "b": 0.5}
    assert got.output_parameters == {"y": {"c": "d"}}


def test_response_parameter_that_is_no_value_is_refused() -> None:
    response = InferResponse("m", "1", {}, parameters={"a": object()})
    with pytest.raises(TypeError):
        oip.encode_response(response)


def test_empty_parameters_of_an_output_do_not_matter() -> None:
    assert decode(with_member(outputs=[{"name": "y", "parameters": {}}])).output_parameters == {}


# Errors


@given(st.text(st.characters()))
def test_error_body_is_valid_json_whatever_the_text(text: str) -> None:
    body = oip.encode_error(text + "\ud800")
    assert json.loads(body.decode()) == {"error": text.encode(errors="replace").decode() + "?"}
    assert oip.decode_error(body) == json.loads(body)["error"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":1}', b"{}", b"\xff"])
def test_body_that_is_no_error_has_no_text(body: bytes) -> None:
    assert oip.decode_error(body) == ""


def test_real_output_larger_than_one_write_survives() -> None:
    y = np.random.default_rng(0).standard_normal((64, 1000)).astype(np.float32)
    for binary in (False, True):
        request = InferRequest("m", {}, output_parameters={"": {"binary_data": binary}})
        parts, header_length = oip.encode_response(InferResponse("m", "1", {"y": y}), request)
        got = oip.decode_response(b"".join(parts), header_length=header_length)
        assert equal(got.outputs["y"], y)


def test_codec_works_without_orjson(fresh_python: Callable[..., str]) -> None:
    code = """
import sys
sys.modules["orjson"] = None
from modelserve.codecs import _json, _plans, _templates, oip
assert oip.loads is _json.plain_loads
body = b'{"inputs":[{"name":"x","datatype":"INT8","shape":[2],"data":[1,2]}]}'
request = oip.decode_request(body, model="m")
(head,), _ = oip.encode_response(oip.InferResponse("m", "1", request.inputs))
print(head.decode())
"""
    assert fresh_python(code).strip() == (
        '{"model_name":"m","model_version":"1",'
        '"outputs":[{"name":"x","datatype":"INT8","shape":[2],"data":[1,2]}]}'
    )


def test_bf16_without_its_package_is_unsupported(fresh_python: Callable[..., str]) -> None:
    code = """
import sys
sys.modules["ml_dtypes"] = None
from modelserve.codecs import oip
from modelserve.errors import Unsupported
head = b'{"inputs":[{"name":"x","datatype":"BF16","shape":[1],' + (
    b'"parameters":{"binary_data_size":2}}]}'
)
try:
    oip.decode_request(head + bytes(2), model="m", header_length=len(head))
except Unsupported as error:
    print(error)
"""
    assert "modelserve[bf16]" in fresh_python(code)
