"""Arrays as nested JSON lists: laws of the round trip, strictness, and places of what is wrong."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelserve.codecs.arrays import as_lists, decode_array, encode_arrays, parse, shown
from modelserve.errors import InvalidInput
from modelserve.tensors import DATATYPES, datatype_of, numpy_dtype

NUMBERS = [name for name in DATATYPES if name not in ("BYTES", "BF16")]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = numpy_dtype(draw(st.sampled_from(NUMBERS)))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    shape = draw(SHAPES)
    return draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **finite)))


def wrong(value: Any, datatype: str, shape: Any = None, **options: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        decode_array(value, datatype, shape, **options)
    return caught.value


@given(tensors())
def test_numbers_come_back_as_they_were(tensor: np.ndarray[Any, Any]) -> None:
    document = json.loads(encode_arrays({"x": tensor}))
    back = decode_array(document["x"], datatype_of(tensor.dtype), tensor.shape)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert np.array_equal(back, tensor)


@given(tensors())
def test_lists_are_what_is_encoded(tensor: np.ndarray[Any, Any]) -> None:
    assert as_lists(tensor) == json.loads(encode_arrays({"x": tensor}))["x"]


@given(arrays.arrays(np.object_, SHAPES, elements=st.binary(max_size=9)))
def test_bytes_come_back_through_base64(tensor: np.ndarray[Any, Any]) -> None:
    document = parse(encode_arrays({"x": tensor}, json_bytes="base64"))
    back = decode_array(document["x"], "BYTES", tensor.shape, json_bytes="base64")
    assert back.shape == tensor.shape
    assert back.tolist() == tensor.tolist()


def test_text_is_utf8() -> None:
    assert decode_array(["é"], "BYTES", (-1,)).tolist() == ["é".encode()]
    assert as_lists(np.array([["é".encode()]], np.object_)) == [["é"]]


@pytest.mark.parametrize("value", [[[1.0, 2.0]], [[]], 3.0, []])
def test_rank_may_be_open(value: Any) -> None:
    assert decode_array(value, "FP32").shape == np.array(value).shape


def test_empty_list_has_the_axes_wanted() -> None:
    assert decode_array([], "FP32", (-1, 4)).shape == (0, 4)


def test_array_is_read_only() -> None:
    for datatype, value in [("FP32", [1.0]), ("BYTES", ["a"]), ("BOOL", [True]), ("BF16", [1.0])]:
        assert not decode_array(value, datatype).flags.writeable
    assert not decode_array(["YQ=="], "BYTES", json_bytes="base64").flags.writeable


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "path", "text"),
    [
        ([[1, 2], [3]], "INT8", (-1, 2), "[1]", "expected a list of 2 elements"),
        ([[1], 2], "FP32", None, "[1]", "got 2"),
        ([[1, [2]]], "FP32", (-1, 2), "[0][1]", "expected a number for FP32, got a list"),
        ([[1, 2], [3, 3.7]], "INT32", (-1, 2), "[1][1]", "expected an integer for INT32, got 3.7"),
        ([1.0], "INT32", (-1,), "[0]", "expected an integer for INT32, got 1.0"),
        (["1"], "FP32", (-1,), "[0]", 'got "1"'),
        ([1, True], "FP32", (-1,), "[1]", "got true"),
        ([True], "UINT8", (-1,), "[0]", "got true"),
        ([1], "BOOL", (-1,), "[0]", "expected true or false, got 1"),
        ([1], "BYTES", (-1,), "[0]", "expected a string, got 1"),
        ([None], "FP64", (-1,), "[0]", "got null"),
        ([128], "INT8", (-1,), "[0]", "range of INT8"),
        ([-1], "UINT64", (-1,), "[0]", "range of UINT64"),
        ([1e39], "FP32", (-1,), "[0]", "range of FP32"),
        ([65520.0], "FP16", (-1,), "[0]", "range of FP16"),
        ([3.4e38], "BF16", (-1,), "[0]", "finite"),
        ([[0.0, math.nan]], "FP32", (-1, 2), "[0][1]", "expected a finite number, got nan"),
        ([-math.inf], "FP64", (-1,), "[0]", "got -inf"),
        ([1, 2, 3], "FP32", (2,), "", "expected shape [2], got shape [3]"),
        ([[1, 2]], "FP32", (-1,), "", "expected shape [-1], got shape [1, 2]"),
        (1.0, "FP32", (-1,), "", "expected shape [-1], got 1.0"),
        ([1.0], "FP32", (), "", "expected a single value, got shape [1]"),
        ("x", "FP32", (), "", 'expected a number for FP32, got "x"'),
        ({}, "FP32", (1,), "", "got an object"),
        ({"b64": "YQ=="}, "BYTES", (), "", "expected a string, got an object"),
        (["\ud800"], "BYTES", (-1,), "", "half of a pair"),
    ],
)
def test_what_is_wrong_is_named(
    value: Any, datatype: str, shape: Any, path: str, text: str
) -> None:
    error = wrong(value, datatype, shape)
    assert error.path == path
    assert text in str(error)


def test_base64_that_is_none_is_named() -> None:
    for value in ("YQ", "Y Q==", "é", "YQ==\n"):
        error = wrong([["YQ==", value]], "BYTES", (-1, 2), json_bytes="base64")
        assert error.path == "[0][1]"
        assert "expected base64" in str(error)


def test_nan_is_let_in_where_it_is_allowed() -> None:
    found = decode_array([None, math.nan, math.inf, 1], "FP32", (4,), allow_nan=True)
    assert np.array_equal(found, np.array([np.nan, np.nan, np.inf, 1], np.float32), equal_nan=True)
    assert "got null" in str(wrong([None], "INT8", (1,), allow_nan=True))


def test_nan_and_infinities_are_written_as_null() -> None:
    for dtype in (np.float16, np.float32, np.float64, numpy_dtype("BF16")):
        array = np.array([[np.nan, -np.inf, 1.5]], dtype)
        assert as_lists(array) == [[None, None, 1.5]]
    assert as_lists(np.array(np.nan)) is None


def test_floats_have_the_digits_of_their_precision() -> None:
    assert as_lists(np.array([0.1], np.float32)) == [0.1]
    assert as_lists(np.array(0.1, np.float32)) == 0.1


def test_any_layout_and_byte_order_is_written() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert as_lists(array) == [[0, 3], [1, 4], [2, 5]]


def test_bytes_that_are_no_text_have_no_json() -> None:
    with pytest.raises(UnicodeDecodeError):
        as_lists(np.array([b"\xff"], np.object_))


def test_deep_nesting_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert "at most 32 axes" in str(wrong(deep, "FP32"))
    with pytest.raises(ValueError, match=r"deep|depth"):
        parse(b"[" * 100_000)


def test_error_is_short_whatever_was_sent() -> None:
    assert len(str(wrong([10**4000], "FP64", (1,)))) < 300
    assert len(str(wrong(["x" * 10**6], "FP64", (1,)))) < 300


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (True, True),
        (5, 5),
        (2.5, 2.5),
        ("short", "short"),
        (math.nan, "nan"),
        (10**30, "a large integer"),
        ([1] * 9, "a list"),
        ({}, "an object"),
        ("\ud800", "?"),
    ],
)
def test_value_is_shown_in_a_few_words_of_json(value: Any, text: Any) -> None:
    assert shown(value) == text
    assert len(json.dumps(shown("x" * 10**6), allow_nan=False)) < 60
