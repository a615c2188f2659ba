"""What a hostile body costs to decode: work and memory are counted, never timed."""

import json
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from modelserve.codecs import oip
from modelserve.codecs._tensors import from_bytes, from_list, shape_of
from modelserve.errors import InvalidInput

X = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}


class Body(bytearray):
    """A body whose end can be seen."""


def refused(decode: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode()
    return str(caught.value)


def calls(function: Callable[[], Any]) -> int:
    """Count the functions called, those in C too."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def peak(function: Callable[[], Any]) -> int:
    """Return the most bytes it held at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shape",
    [[2**63] * 100_000, [0] + [2**63] * 100_000, [2**63] * 32, [0] + [2**63] * 31],
    ids=range(4),
)
def test_no_product_of_a_shape_grows_beyond_the_bound(shape: list[int]) -> None:
    def check() -> None:
        assert "expected at most 32 axes" in refused(lambda: shape_of(shape, "inputs[0]"))

    check()
    assert peak(check) < 50_000


@pytest.mark.parametrize("shape", [[2**63] * 100_000, ["x"] * 100_000], ids=["sizes", "text"])
def test_too_many_axes_are_refused_before_any_is_looked_at(shape: list[Any]) -> None:
    assert "expected at most 32 axes" in refused(lambda: shape_of(shape, "inputs[0]"))


@pytest.mark.parametrize("member", ["inputs", "outputs"])
def test_too_many_entries_of_a_request_are_refused_before_any_is_looked_at(member: str) -> None:
    document: dict[str, Any] = {"inputs": [X], member: [0] * 1025}
    body = json.dumps(document).encode()
    expected = f"{member}: expected at most 1024 entries, got 1025"
    assert refused(lambda: oip.decode_request(body, model="m")) == expected


def test_as_many_entries_as_allowed_are_taken() -> None:
    inputs = [{**X, "name": f"x{i}"} for i in range(1024)]
    outputs = [{"name": f"y{i}"} for i in range(1024)]
    parameters = {f"p{i}": i for i in range(1024)}
    body = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    request = oip.decode_request(body, model="m")
    assert list(request.inputs) == [f"x{i}" for i in range(1024)]
    assert request.outputs == [f"y{i}" for i in range(1024)]
    assert request.parameters == parameters


MANY = {f"p{i}": i for i in range(1025)}


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"inputs": [X], "parameters": MANY}, "parameters"),
        ({"inputs": [{**X, "parameters": MANY}]}, "inputs[0].parameters"),
        (
            {"inputs": [X], "outputs": [{"name": "y", "parameters": MANY}]},
            "outputs[0].parameters",
        ),
    ],
    ids=["request", "input", "output"],
)
def test_too_many_parameters_of_a_request_are_refused(document: Any, place: str) -> None:
    body = json.dumps(document).encode()
    expected = f"{place}: expected at most 1024 entries, got 1025"
    assert refused(lambda: oip.decode_request(body, model="m")) == expected


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"outputs": [0] * 1025}, "outputs"),
        ({"outputs": [X], "parameters": MANY}, "parameters"),
        ({"outputs": [{**X, "parameters": MANY}]}, "outputs[0].parameters"),
    ],
    ids=["outputs", "response", "output"],
)
def test_too_many_entries_of_a_response_are_refused(document: Any, place: str) -> None:
    body = json.dumps(document).encode()
    expected = f"{place}: expected at most 1024 entries, got 1025"
    assert refused(lambda: oip.decode_response(body)) == expected


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("FP32", 1.5, "x"),
        ("FP32", 1.5, True),
        ("FP16", 1, 1e9),
        ("INT8", 1, 300),
        ("INT64", 1, None),
        ("BOOL", True, 1),
        ("BYTES", "a", 1),
    ],
)
@pytest.mark.parametrize("index", [0, 49_999, 50_000, 99_998, 99_999])
def test_a_wrong_element_is_found_in_few_calls(
    datatype: str, good: Any, bad: Any, index: int
) -> None:
    data = [good] * 100_000
    data[index] = bad
    data[-1] = bad  # the first one counts

    def decode() -> str:
        return refused(lambda: from_list(data, datatype, (100_000,), 100_000, "inputs[0]"))

    assert decode().startswith(f"inputs[0].data[{index}]: expected ")
    # Encoding text is a call per element, once.
    assert calls(decode) < 400 + (100_000 if datatype == "BYTES" else 0)


def test_elements_that_the_body_cannot_hold_take_no_memory() -> None:
    body = bytes(4096)

    def decode() -> None:
        split = lambda: from_bytes(body, 0, 4096, "BYTES", (2**40,), 2**40, "inputs[0]")  # noqa: E731
        assert "expected at least" in refused(split)

    decode()
    assert peak(decode) < 50_000


def test_bytes_elements_are_listed_once() -> None:
    count = 100_000
    body = bytes(4 * count)
    most = peak(lambda: from_bytes(body, 0, len(body), "BYTES", (count,), count, "inputs[0]"))
    assert most < 1.5 * 8 * count


def test_text_elements_are_listed_once() -> None:
    count = 100_000
    data = [""] * count
    most = peak(lambda: from_list(data, "BYTES", (count,), count, "inputs[0]"))
    assert most < 1.5 * 8 * count


def padded(tensor: bytes, spaces: int) -> tuple[Body, int]:
    document = {
        "name": "x",
        "datatype": "UINT8",
        "shape": [len(tensor)],
        "parameters": {"binary_data_size": len(tensor)},
    }
    head = json.dumps({"inputs": [document], "outputs": [document]}).encode() + b" " * spaces
    return Body(head + tensor), len(head)


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_small_tensor_does_not_keep_a_large_body(side: str) -> None:
    body, head = padded(bytes(range(16)), 10**6)
    if side == "request":
        tensor = oip.decode_request(body, model="m", header_length=head).inputs["x"]
    else:
        tensor = oip.decode_response(body, header_length=head).outputs["x"]
    alive = weakref.ref(body)
    del body
    assert alive() is None
    assert tensor.tolist() == list(range(16))
    assert not tensor.flags.writeable


@pytest.mark.parametrize("spaces", [0, 10_000])
def test_a_tensor_that_is_much_of_its_body_is_a_view_of_it(spaces: int) -> None:
    body, head = padded(bytes(10_000), spaces)
    tensor = oip.decode_request(body, model="m", header_length=head).inputs["x"]
    assert np.shares_memory(tensor, np.frombuffer(body, np.uint8))
