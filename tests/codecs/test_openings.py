"""What was learnt from bodies that open with an id or a timeout is for bodies that open alike."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from modelserve.codecs import _plans, oip
from modelserve.codecs.oip_rows import read_row
from modelserve.errors import InvalidInput

IN_JSON = b'"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
IN_BINARY = (
    b'"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}'
)
DATA = np.arange(4, dtype=np.float32).tobytes()
FORMS = [b"{", b'{"id":"a%d",', b'{"parameters":{"timeout":%d000000},']


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    for memo in (_plans.HEADS, _plans.FRAMES):
        memo.clear()
    yield
    for memo in (_plans.HEADS, _plans.FRAMES):
        memo.clear()


def teach(form: bytes) -> None:
    for number in range(1, 5):
        opening = form % number if b"%" in form else form
        oip.decode_request(opening + IN_JSON, model="m")
        head = opening + IN_BINARY
        oip.decode_request(head + DATA, model="m", header_length=len(head))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opening", [b"", b"},", b'{"id":"a",{', b'{"id":"a",},', b'{"id":"a"'])
def test_what_only_looks_like_the_rest_of_a_known_body_is_no_json(
    form: bytes, opening: bytes
) -> None:
    teach(form)
    with pytest.raises(InvalidInput, match="not valid JSON"):
        oip.decode_request(opening + IN_JSON, model="m")
    head = opening + IN_BINARY
    with pytest.raises(InvalidInput, match="not valid JSON"):
        oip.decode_request(head + DATA, model="m", header_length=len(head))
    assert read_row(opening + IN_JSON, 0, None) is None
    assert read_row(head + DATA, 0, len(head)) is None


def test_plain_bodies_are_read_as_rows() -> None:
    teach(FORMS[0])
    assert read_row(b"{" + IN_JSON, 0, None) is not None
    assert read_row(b"{" + IN_BINARY + DATA, 0, len(IN_BINARY) + 1) is not None


@pytest.mark.parametrize("shape", [[1, 2, 3], [1, 1, 6], [1, 6, 1]])
def test_rows_of_more_axes_are_nested_as_their_shape_or_not_at_all(shape: list[int]) -> None:
    def body(data: object) -> bytes:
        tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": data}
        return json.dumps({"inputs": [tensor]}).replace('"data": ', '"data":').encode()

    flat = list(range(6))
    for _ in range(4):
        oip.decode_request(body(flat), model="m")
    assert read_row(body(flat), 0, None) is not None
    with pytest.raises(InvalidInput):
        oip.decode_request(body([flat]), model="m")
    assert read_row(body([flat]), 0, None) is None


@pytest.mark.parametrize("size", [-1, 0, "1", 10**18])
def test_size_that_cannot_be_is_no_row(size: int | str) -> None:
    head = (
        b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"UINT8","parameters":'
        b'{"binary_data_size":%d}}]}'
    )
    count = len(head % (100, 100)) + 2
    known = head % (count, count)
    for _ in range(3):
        oip.decode_request(known + bytes(count), model="m", header_length=len(known))
    assert read_row(known + bytes(count), 0, len(known)) is not None
    assert read_row(known + b"!", 0, size) is None
