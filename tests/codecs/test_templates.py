"""Responses that are made alike are written, byte for byte, as if none had come before."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelserve.codecs import _templates, oip
from modelserve.errors import BackendError, InvalidInput
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import DATATYPES, numpy_dtype


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    _templates.TEMPLATES.clear()
    yield
    _templates.TEMPLATES.clear()


def outcome(response: InferResponse, wanted: Any, cached: bool) -> Any:
    request = None if wanted is None else InferRequest("m", {}, output_parameters=wanted)
    try:
        parts, head = oip.encode_response(response, request, cached=cached)
    except (InvalidInput, BackendError, TypeError) as error:
        return type(error), str(error)
    return [bytes(part) for part in parts], [type(part) for part in parts], head


def both_ways(response: InferResponse, wanted: Any = None) -> Any:
    plain = outcome(response, wanted, cached=False)
    for _ in range(3):
        assert outcome(response, wanted, cached=True) == plain
    return plain


def count_plain(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the documents written the plain way."""
    count = [0]
    plain = oip._assemble

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return plain(*arguments)

    monkeypatch.setattr(oip, "_assemble", counted)
    return count


def tensors(datatype: str) -> list[Any]:
    """Every layout there is."""
    if datatype == "BYTES":
        texts = np.array(["a", 'é"\n', ""])
        return [texts, texts.astype(object), np.char.encode(texts), texts.reshape(1, 3)]
    dtype = np.dtype(ml_dtypes.bfloat16) if datatype == "BF16" else numpy_dtype(datatype)
    plain = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    more: list[Any] = [
        plain,
        plain[::2],
        plain[::-1],
        plain.reshape(2, 3),
        plain.reshape(2, 3).T,
        plain.reshape(1, 2, 3)[:, :, 1:],
        plain[:0],
        plain[:0].reshape(0, 4),
        plain[0].reshape(()),
        plain[0],
        plain.tolist(),
        np.ones(20_000, dtype),
        np.ones((200, 200), dtype)[:, ::2],
    ]
    if datatype != "BF16":
        more.append(plain.astype(plain.dtype.newbyteorder(">")))
    if datatype in ("FP16", "FP32", "FP64"):
        more.append(np.array([np.nan, np.inf, -np.inf, -0.0, 0.1, 1e-7, 65504]).astype(dtype))
    elif "INT" in datatype:
        more.append(np.array([np.iinfo(dtype).max, np.iinfo(dtype).min], dtype))
    return more


WANTED: list[Any] = [
    None,
    {},
    {"": {"binary_data": True}},
    {"": {"binary_data": False}},
    {"": {}},
    {"y": {"binary_data": True}},
    {"y": {"binary_data": False}, "": {"binary_data": True}},
    {"y": {"a": 1}, "": {"binary_data": True}},
    {"z": {"binary_data": True}},
]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_both_ways_agree_on_every_layout_and_form(datatype: str) -> None:
    for y in tensors(datatype):
        for wanted in WANTED:
            for id in ("", "a", 'é"\n'):
                both_ways(InferResponse("m", "1", {"y": y}, id=id), wanted)


@pytest.mark.parametrize("wanted", WANTED)
def test_both_ways_agree_on_several_outputs(wanted: Any) -> None:
    y = np.array([[1.5, -2]], np.float32)
    z = np.array([True, False, True])
    for outputs in (
        {"y": y, "z": z},
        {"z": z, "y": y},
        {"y": y, "z": z, 'é"': np.arange(3, dtype=np.float16), "": y.T},
        {"y": y, "z": np.array(["a"], object)},
        {"y": y, "z": np.ones(1, complex)},
        {"y": np.ones(1, np.longdouble)},
        {},
    ):
        for id in ("", "a"):
            both_ways(InferResponse("m", "", outputs, id=id), wanted)
            both_ways(InferResponse('"m"', "é", outputs, id=id), wanted)
            both_ways(InferResponse("m", "1", outputs, id=id, parameters={"a": 1}), wanted)
            kept = {"y": {"b": 2}, "w": {}}
            both_ways(InferResponse("m", "1", outputs, id=id, output_parameters=kept), wanted)


DTYPES = st.sampled_from([numpy_dtype(name) for name in DATATYPES if name not in ("BF16", "BYTES")])


@settings(max_examples=150)
@given(
    outputs=st.dictionaries(
        st.text(max_size=3),
        DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
        max_size=3,
    ),
    wanted=st.dictionaries(
        st.sampled_from(["", "y", "z"]),
        st.fixed_dictionaries({}, optional={"binary_data": st.booleans()}),
    ),
    id=st.text(max_size=9),
)
def test_both_ways_agree_on_any_numbers(outputs: Any, wanted: Any, id: str) -> None:
    both_ways(InferResponse("m", "1", outputs, id=id), wanted)


def test_responses_that_differ_in_one_thing_do_not_share_a_template() -> None:
    one = np.ones((1, 2), np.float32)
    arrays = [one, one.T, one[0], one.astype("f8"), one.astype("i4"), one.astype(">f4"), one > 0]
    kinds = [
        InferResponse(model, version, {name: array}, id=id)
        for model in ("m", "n")
        for version in ("1", "2")
        for name in ("y", "z")
        for array in arrays
        for id in ("", "a", "b")
    ]
    chance = random.Random(0)
    for _ in range(3000):
        response = chance.choice(kinds)
        wanted = chance.choice(WANTED)
        assert outcome(response, wanted, True) == outcome(response, wanted, False)


@pytest.mark.parametrize("binary", [False, True])
def test_a_response_made_alike_is_not_written_the_plain_way(
    binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = count_plain(monkeypatch)
    for number in range(10):
        y = np.full((1, 3), number, np.float32)
        response = InferResponse("m", "1", {"y": y}, id=f"{number}")
        parts, head = oip.encode_response(
            response, InferRequest("m", {}, output_parameters={"": {"binary_data": binary}})
        )
        got = oip.decode_response(b"".join(parts), header_length=head)
        assert got.id == f"{number}"
        assert got.outputs["y"].tolist() == y.tolist()
    assert count == [1]


def test_the_switch_turns_the_memory_off(monkeypatch: pytest.MonkeyPatch) -> None:
    count = count_plain(monkeypatch)
    for _ in range(4):
        oip.encode_response(InferResponse("m", "1", {"y": np.ones(1)}), cached=False)
    assert count == [4]
    assert len(_templates.TEMPLATES) == 0


def test_memory_stays_within_its_bounds_whatever_comes() -> None:
    for size in range(1200):
        response = InferResponse("m" * 300, "1", {"y": np.zeros(size, np.int8)})
        for _ in range(2):
            oip.encode_response(response)
    assert 0 < len(_templates.TEMPLATES) <= 512
    assert _templates.TEMPLATES.size <= 256 * 1024


def test_a_large_output_is_a_view_and_a_small_one_a_copy() -> None:
    binary = InferRequest("m", {}, output_parameters={"": {"binary_data": True}})
    for size, kind in ((10, bytes), (100_000, memoryview)):
        y = np.zeros(size, np.float32)
        for _ in range(3):
            parts, _ = oip.encode_response(InferResponse("m", "1", {"y": y}), binary)
            assert type(parts[1]) is kind


def test_every_thread_gets_its_own_answer() -> None:
    def work(thread: int) -> None:
        for number in range(200):
            value = thread * 1000 + number
            y = np.full((1, 1 + number % 5), value, np.float64)
            response = InferResponse("m", "1", {"y": y}, id=f"{value}")
            parts, _ = oip.encode_response(response)
            document = json.loads(b"".join(parts))
            assert document["id"] == f"{value}"
            assert document["outputs"][0]["data"] == y.ravel().tolist()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
