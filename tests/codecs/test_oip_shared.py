"""Requests that name shared memory: the same as with the data in the body, and never by a plan."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.codecs import oip
from modelserve.codecs._plans import FRAMES, HEADS
from modelserve.codecs._templates import TEMPLATES
from modelserve.codecs.oip_shared import decode_shared, encode_shared
from modelserve.codecs.shared_memory import (
    Placements,
    SharedMemoryNeeded,
    decode_registration,
    encode_regions,
)
from modelserve.errors import InvalidInput, PayloadTooLarge
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import DATATYPES, datatype_of, numpy_dtype

LIMIT = 2**20


class Memory:
    """Regions in this process: byte arrays by name."""

    def __init__(self, regions: Mapping[str, bytes]) -> None:
        self.regions = {name: bytearray(content) for name, content in regions.items()}

    def window(self, region: str, offset: int, size: int, *, path: str) -> "Part":
        content = self.regions.get(region)
        if content is None:
            raise InvalidInput("no such region", path=f"{path}.shared_memory_region")
        if offset + size > len(content):
            raise InvalidInput("too small", path=f"{path}.shared_memory_byte_size")
        return Part(content, offset, size)


class Part:
    def __init__(self, content: bytearray, offset: int, size: int) -> None:
        self.content, self.offset, self.size = content, offset, size

    def read(self) -> bytes:
        return bytes(self.content[self.offset : self.offset + self.size])

    def write(self, content: Any) -> None:
        assert len(content) <= self.size
        self.content[self.offset : self.offset + len(content)] = content


@pytest.fixture(autouse=True)
def room_for_new_forms() -> Iterator[None]:
    """Other tests may have filled what remembers forms; and these leave nothing for others."""
    memos: Any = (FRAMES, HEADS, TEMPLATES)
    for memo in memos:
        memo.clear()
    yield
    for memo in memos:
        memo.clear()


def place(region: Any = "r", size: Any = 4, **more: Any) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_byte_size": size, **more}


def tensor(parameters: Any, datatype: str = "FP32", shape: Any = (1,), **more: Any) -> Any:
    return {
        "name": "x",
        "datatype": datatype,
        "shape": list(shape),
        "parameters": parameters,
        **more,
    }


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def decode(content: bytes, memory: Memory, *, limit: int = LIMIT, **options: Any) -> InferRequest:
    return decode_shared(content, Placements(memory, limit), model="m", **options)


def example(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([[b"a", "é".encode()], [b"", b"\xff" * 300]], np.object_)
    if datatype == "BF16":
        return np.array([[0.5, -1.25], [3.0, 100.0]], ml_dtypes.bfloat16)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype.startswith(("INT", "UINT")):
        info = np.iinfo(numpy_dtype(datatype))
        return np.array([[info.min, info.max], [0, 1]], numpy_dtype(datatype))
    return np.array([[0.5, -1.25], [3.0, 100.0]], numpy_dtype(datatype))


def serialized(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes an array has as a binary tensor."""
    parts, size = oip.encode_request(InferRequest("m", {"x": array}))
    return b"".join(parts)[size:]


# Inputs


@pytest.mark.parametrize("datatype", DATATYPES)
def test_input_is_what_it_would_be_in_the_body(datatype: str) -> None:
    array = example(datatype)
    content = serialized(array)
    memory = Memory({"r": b"xyz" + content + b"more"})
    parameters = place(size=len(content), shared_memory_offset=3)
    request = decode(body(tensor(parameters, datatype, array.shape)), memory)
    found = request.inputs["x"]
    assert (datatype_of(found.dtype), found.shape) == (datatype, array.shape)
    assert found.tolist() == array.tolist()
    assert request.input_parameters == {}


def test_input_cannot_be_written_and_does_not_change_with_the_region() -> None:
    memory = Memory({"r": np.float32(1).tobytes()})
    found = decode(body(tensor(place())), memory).inputs["x"]
    memory.regions["r"][:] = np.float32(2).tobytes()
    assert found.tolist() == [1.0]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 3


def test_other_parameters_of_an_input_stay() -> None:
    request = decode(body(tensor({**place(), "mine": 1})), Memory({"r": bytes(4)}))
    assert request.input_parameters == {"x": {"mine": 1}}


def test_it_stands_beside_binary_and_json_inputs() -> None:
    binary = {"name": "b", "datatype": "INT8", "shape": [3], "parameters": {"binary_data_size": 3}}
    data = {"name": "j", "datatype": "INT8", "shape": [2], "data": [4, 5]}
    last = {**binary, "name": "c"}
    head = body(binary, tensor(place()), data, last)
    memory = Memory({"r": np.float32(7).tobytes()})
    request = decode(head + b"\1\2\3\6\7\x08", memory, header_length=str(len(head)))
    assert {name: found.tolist() for name, found in request.inputs.items()} == {
        "b": [1, 2, 3],
        "x": [7.0],
        "j": [4, 5],
        "c": [6, 7, 8],
    }


def test_empty_tensor_takes_nothing() -> None:
    request = decode(body(tensor(place(size=0), shape=(0, 4))), Memory({"r": b""}))
    assert request.inputs["x"].shape == (0, 4)


REFUSED: list[tuple[Any, str]] = [
    (tensor(place(size=8)), "inputs[0].parameters.shared_memory_byte_size: expected 4 bytes for"),
    (tensor(place(size=0)), "inputs[0].parameters.shared_memory_byte_size: expected 4 bytes for"),
    (tensor(place(size=-4)), "byte_size: expected a number of bytes, got -4"),
    (tensor(place(size=4.0)), "byte_size: expected a number of bytes, got 4.0"),
    (tensor(place(size=True)), "byte_size: expected a number of bytes, got true"),
    (tensor(place(size="4")), 'byte_size: expected a number of bytes, got "4"'),
    (tensor(place(size=2**63)), "byte_size: expected a number of bytes, got 9223372036854775808"),
    (tensor(place(size=10**30)), "byte_size: expected a number of bytes, got 1e+30"),
    (
        tensor({"shared_memory_region": "r"}),
        "byte_size: expected a number of bytes, got null",
    ),
    (
        tensor({"shared_memory_byte_size": 4}),
        "inputs[0].parameters.shared_memory_region: expected the name of a region, got null",
    ),
    (tensor({"shared_memory_offset": 0}), "expected the name of a region, got null"),
    (tensor(place("")), 'shared_memory_region: expected the name of a region, got ""'),
    (tensor(place(1)), "shared_memory_region: expected the name of a region, got 1"),
    (tensor(place("q")), "inputs[0].parameters.shared_memory_region: no such region"),
    (
        tensor(place(shared_memory_offset=-1)),
        "inputs[0].parameters.shared_memory_offset: expected a number of bytes, got -1",
    ),
    (tensor(place(shared_memory_offset=2**63)), "shared_memory_offset: expected a number of"),
    (tensor(place(shared_memory_offset="0")), "shared_memory_offset: expected a number of"),
    (tensor(place(shared_memory_offset=False)), "shared_memory_offset: expected a number of"),
    (tensor(place(shared_memory_offset=2**62)), "shared_memory_byte_size: too small"),
    (tensor(place(), data=[1.0]), "inputs[0]: expected data or shared memory, got both"),
    (
        tensor({**place(), "binary_data_size": 4}),
        "inputs[0]: expected binary_data_size or shared memory, got both",
    ),
    (tensor(place(), "FP99"), "inputs[0].datatype: expected one of"),
    (tensor(place(), shape=(2**60,)), "inputs[0].shape: expected at most"),
    (tensor(place(size=3), "BOOL", (3,)), "inputs[0][2]: expected a byte of 0 or 1, got 9"),
    (tensor(place(size=6), "BYTES"), "inputs[0][0]: expected 151585024 bytes, got 2"),
    (tensor(place(size=3), "BYTES"), "inputs[0]: expected at least 4 bytes for 1 elements, got 3"),
]


@pytest.mark.parametrize(("document", "text"), REFUSED)
def test_what_is_wrong_is_told_with_its_place(document: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body(document), Memory({"r": b"\0\1\x09\x09\0\0"}))
    assert text in str(caught.value)


def test_inputs_count_together_against_the_limit() -> None:
    inputs = [{**tensor(place()), "name": str(number)} for number in range(3)]
    memory = Memory({"r": bytes(4)})
    assert len(decode(body(*inputs), memory, limit=12).inputs) == 3
    with pytest.raises(PayloadTooLarge, match="more than the 11 bytes allowed"):
        decode(body(*inputs), memory, limit=11)


# Outputs


def asked(*outputs: Any) -> bytes:
    data = {"name": "i", "datatype": "INT8", "shape": [1], "data": [1]}
    return body(data, outputs=outputs)


def answered(
    content: bytes, memory: Memory, outputs: Mapping[str, Any], **more: Any
) -> tuple[dict[str, Any], bytes]:
    placements = Placements(memory, LIMIT)
    request = decode_shared(content, placements, model="m")
    assert not any("shared" in name for kept in request.output_parameters.values() for name in kept)
    parts, size = encode_shared(InferResponse("m", "1", outputs, **more), request, placements)
    whole = b"".join(parts)
    return json.loads(whole[:size]), b"" if size is None else whole[size:]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_output_is_written_and_the_answer_says_where(datatype: str) -> None:
    array = example(datatype)
    content = serialized(array)
    memory = Memory({"r": b"." * (len(content) + 9)})
    wanted = {"name": "x", "parameters": place(size=len(content) + 4, shared_memory_offset=5)}
    document, rest = answered(asked(wanted), memory, {"x": array})
    assert document["outputs"] == [
        {
            "name": "x",
            "datatype": datatype,
            "shape": [2, 2],
            "parameters": place(size=len(content), shared_memory_offset=5),
        }
    ]
    assert rest == b""
    assert bytes(memory.regions["r"]) == b"....." + content + b"...."


def test_outputs_go_each_its_own_way() -> None:
    numbers = np.array([1, 2], np.int8)
    outputs = dict.fromkeys("abc", numbers)
    content = asked(
        {"name": "a", "parameters": {"binary_data": True}},
        {"name": "b", "parameters": {**place(size=2), "binary_data": True}},
        {"name": "c"},
    )
    memory = Memory({"r": bytes(4)})
    document, rest = answered(content, memory, outputs)
    a, b, c = document["outputs"]
    assert a["parameters"] == {"binary_data_size": 2}
    assert (b["parameters"], "data" in b) == (place(size=2), False)
    assert c["data"] == [1, 2]
    assert (rest, bytes(memory.regions["r"])) == (b"\1\2", b"\1\2\0\0")


def test_output_keeps_its_own_parameters() -> None:
    wanted = {"name": "x", "parameters": place(size=1)}
    document, _ = answered(
        asked(wanted),
        Memory({"r": bytes(1)}),
        {"x": np.ones(1, np.int8)},
        output_parameters={"x": {"unit": "m"}},
    )
    assert document["outputs"][0]["parameters"] == {"unit": "m", **place(size=1)}


def test_nothing_is_written_where_one_output_has_no_room() -> None:
    content = asked(
        {"name": "a", "parameters": place(size=4)},
        {"name": "b", "parameters": place(size=7, shared_memory_offset=8)},
    )
    memory = Memory({"r": b"." * 16})
    outputs = {"a": np.ones(1, np.float32), "b": np.ones((1, 2), np.float32)}
    with pytest.raises(InvalidInput) as caught:
        answered(content, memory, outputs)
    assert str(caught.value) == (
        "outputs[1].parameters.shared_memory_byte_size: "
        'expected at least 8 bytes for "b", FP32 of shape [1, 2], got 7'
    )
    assert bytes(memory.regions["r"]) == b"." * 16


def test_nothing_is_written_where_another_output_has_no_form() -> None:
    content = asked({"name": "a", "parameters": place(size=4)}, {"name": "b"})
    memory = Memory({"r": b"...."})
    outputs = {"a": np.ones(1, np.float32), "b": example("BF16")}
    with pytest.raises(InvalidInput, match="BF16 has no JSON form"):
        answered(content, memory, outputs)
    assert bytes(memory.regions["r"]) == b"...."


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (place("q"), "outputs[0].parameters.shared_memory_region: no such region"),
        (place(size=99), "outputs[0].parameters.shared_memory_byte_size: too small"),
        (place(size=None), "outputs[0].parameters.shared_memory_byte_size: expected a boolean"),
        (place(size=-1), "outputs[0].parameters.shared_memory_byte_size: expected a number"),
        ({"shared_memory_byte_size": 1}, "outputs[0].parameters.shared_memory_region: expected"),
    ],
)
def test_wrong_place_of_an_output_is_told_before_anything_runs(parameters: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(asked({"name": "x", "parameters": parameters}), Memory({"r": bytes(4)}))
    assert text in str(caught.value)


def test_classes_go_there_too() -> None:
    content = asked({"name": "x", "parameters": {**place(size=16), "classification": 2}})
    memory = Memory({"r": bytes(16)})
    assert decode(content, memory).output_parameters["x"]["classification"] == 2
    document, _ = answered(content, memory, {"x": np.array([b"0.5:1"], np.object_)})
    (output,) = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1])
    assert output["parameters"]["shared_memory_byte_size"] == 9
    assert memory.regions["r"] == b"\x05\0\0\0" + b"0.5:1" + bytes(7)


# Laws


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=6),
    st.binary(min_size=32, max_size=32),
)
def test_any_placement_is_read_right_or_refused(
    places: list[tuple[int, int, bool]], content: bytes
) -> None:
    inputs = [
        {
            **tensor(place(size=size, shared_memory_offset=offset), "UINT8", (size,)),
            "name": str(number),
        }
        for number, (offset, size, _) in enumerate(places)
    ]
    memory = Memory({"r": content})
    fits = all(offset + size <= 32 for offset, size, _ in places)
    try:
        request = decode(body(*inputs), memory)
    except InvalidInput:
        assert not fits
        return
    assert fits
    assert [found.tobytes() for found in request.inputs.values()] == [
        content[offset : offset + size] for offset, size, _ in places
    ]


# The learned ways


def remembered() -> int:
    return len(FRAMES) + len(HEADS)


def test_decoding_without_memory_says_that_it_is_needed() -> None:
    for content in (body(tensor(place())), asked({"name": "x", "parameters": place()})):
        for _ in range(5):
            with pytest.raises(SharedMemoryNeeded, match="not offered here"):
                oip.decode_request(content, model="m")
    assert remembered() == 0


def test_binary_bodies_that_name_memory_are_never_learned() -> None:
    binary = {"name": "b", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}}
    for head in (
        body(binary, tensor(place())),
        body(binary, outputs=[{"name": "x", "parameters": place()}]),
    ):
        for _ in range(5):
            with pytest.raises(SharedMemoryNeeded):
                oip.decode_request(head + b"\1", model="m", header_length=len(head))
            decode(head + b"\1", Memory({"r": bytes(4)}), header_length=len(head))
    assert remembered() == 0


def test_learned_frames_are_not_for_bodies_that_name_memory() -> None:
    plain = {"name": "i", "datatype": "INT8", "shape": [1], "data": [1]}
    placed = tensor(place(), "FP32")
    outputs = [{"name": "x", "parameters": place()}]
    variants = [
        body(plain, placed),
        body(placed, plain),
        body(plain, outputs=outputs),
        body({**plain, "parameters": place("r", 1)}),
        # The frame of the plain body, with what could pass for data in between.
        body(plain).replace(b"[1]}]", b'[1]}],"outputs":%s,"n":[{"o":[1]}]' % dumped(outputs)),
    ]
    for _ in range(5):
        oip.decode_request(body(plain), model="m")
    assert remembered() == 1
    for content in variants:
        with pytest.raises((SharedMemoryNeeded, InvalidInput)):
            oip.decode_request(content, model="m")


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_learned_heads_are_not_for_bodies_that_name_memory() -> None:
    binary = {"name": "b", "datatype": "INT8", "shape": [4], "parameters": {"binary_data_size": 4}}
    head = body(binary)
    for _ in range(5):
        oip.decode_request(head + bytes(4), model="m", header_length=len(head))
    assert remembered() == 1
    placed = body({**binary, "parameters": place()})
    with pytest.raises(SharedMemoryNeeded):
        oip.decode_request(placed + bytes(4), model="m", header_length=len(placed))


def test_learned_templates_are_not_for_answers_that_go_to_memory() -> None:
    outputs = {"x": np.ones((1, 2), np.float32)}
    response = InferResponse("m", "1", outputs)
    for _ in range(5):
        oip.encode_response(response, InferRequest("m", {}))
    assert len(TEMPLATES) == 1
    memory = Memory({"r": bytes(8)})
    for _ in range(5):
        document, _ = answered(asked({"name": "x", "parameters": place(size=8)}), memory, outputs)
        assert "data" not in document["outputs"][0]
    assert bytes(memory.regions["r"]) == outputs["x"].tobytes()
    plain, _ = oip.encode_response(response, InferRequest("m", {}))
    assert json.loads(b"".join(plain))["outputs"][0]["data"] == [1.0, 1.0]


# Control


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the body is not valid JSON"),
        (b"[]", "expected a JSON object, got a list"),
        (b"{}", "key: expected the name of shared memory, got null"),
        (b'{"key":""}', 'key: expected the name of shared memory, got ""'),
        (b'{"key":7,"byte_size":1}', "key: expected the name of shared memory, got 7"),
        (b'{"key":"k"}', "byte_size: expected a number of bytes, got null"),
        (b'{"key":"k","byte_size":0}', "byte_size: expected a number of bytes, got 0"),
        (b'{"key":"k","byte_size":-1}', "byte_size: expected a number of bytes, got -1"),
        (b'{"key":"k","byte_size":1.5}', "byte_size: expected a number of bytes, got 1.5"),
        (b'{"key":"k","byte_size":true}', "byte_size: expected a number of bytes, got true"),
        (b'{"key":"k","byte_size":9223372036854775808}', "byte_size: expected a number"),
        (b'{"key":"k","byte_size":1,"offset":-1}', "offset: expected a number of bytes, got -1"),
        (b'{"key":"k","byte_size":1,"offset":"0"}', 'offset: expected a number of bytes, got "0"'),
        (b'{"key":"\\ud800","byte_size":1}', "the body is not valid JSON"),
        (b"[" * 5000, "the body is not valid JSON"),
    ],
)
def test_wrong_registrations_are_refused(content: bytes, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_registration(content)
    assert text in str(caught.value)


def test_registration_needs_no_offset() -> None:
    assert decode_registration(b'{"key":"/k","byte_size":5}') == ("/k", 0, 5)
    assert decode_registration(b'{"key":"/k","byte_size":5,"offset":3}') == ("/k", 3, 5)


def test_no_regions_are_an_empty_list() -> None:
    assert encode_regions([]) == b"[]"
