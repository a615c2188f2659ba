"""The two JSON libraries give the same documents and refuse the same texts."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelserve.codecs import _json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = (
    r'[ ] { } , : " "a" \u d83d \ude00 \n \ true false null NaN Infinity - + . e E 0 1 9 00 '
    r"e400 e-400 18446744073709551615 -9223372036854775808 é"
)
TOKENS = st.lists(st.sampled_from([*WORDS.split(), " ", "\n", "\x00", "\x7f"]), max_size=12).map(
    "".join
)


def parsed(load: Any, data: bytes) -> Any:
    try:
        return ("parsed", repr(load(data)))
    except ValueError:
        return ("refused",)


def written(dump: Any, value: Any) -> Any:
    try:
        return ("written", json.loads(dump(value)))
    except (TypeError, ValueError):
        return ("refused",)


@given(VALUES.map(json.dumps) | TOKENS)
@example("18446744073709551616")
@example("-9223372036854775809")
@example("1e309")
@example('"\\ud800"')
@example('"\\ud83d\\ude00"')
@example("\ufeff1")
@example("-0")
@example("")
def test_the_same_texts_are_read(text: str) -> None:
    data = text.encode()
    assert parsed(_json.plain_loads, data) == parsed(_json.loads, data)


@given(st.binary(max_size=12))
def test_the_same_bytes_are_read(data: bytes) -> None:
    assert parsed(_json.plain_loads, data) == parsed(_json.loads, data)


@given(VALUES)
def test_what_both_write_is_the_same_document(value: Any) -> None:
    first, second = written(_json.plain_dumps, value), written(_json.fast_dumps, value)
    if first[0] == second[0] == "written":
        assert first == second


@given(st.text(st.characters(exclude_categories=[])))
def test_text_that_is_not_unicode_is_written_by_neither(text: str) -> None:
    first, second = written(_json.plain_dumps, [text]), written(_json.fast_dumps, [text])
    assert first == second
    assert (first == ("refused",)) == any("\ud800" <= char <= "\udfff" for char in text)


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, 1e-7, 1.5e30, np.nan, np.inf, -np.inf, -0.0], np.float32),
        np.array([0.1, 5e-324, 1.7976931348623157e308, np.nan], np.float64),
        np.array([[1.5, np.nan], [2.5, 3.5]], np.float32),
        np.array([2**63, 2**64 - 1], np.uint64),
        np.array([-(2**63)], np.int64),
        np.array([True, False]),
        np.array([], np.float32),
        np.zeros((2, 0), np.float64),
        np.zeros((0, 2), np.int8),
    ],
    ids=range(9),
)
def test_the_same_arrays_are_written(array: Any) -> None:
    plain, fast = (json.loads(dump({"a": array})) for dump in (_json.plain_dumps, _json.fast_dumps))
    assert plain == fast


@pytest.mark.parametrize("value", [np.float32(0.5), np.int8(-1), np.bool_(True)])
def test_the_same_scalars_are_written(value: Any) -> None:
    assert _json.plain_dumps([value]) == _json.fast_dumps([value])


def test_floats_in_lists_that_are_no_numbers_are_never_written_as_tokens() -> None:
    with pytest.raises(ValueError, match="JSON"):
        _json.plain_dumps([math.nan])
    assert _json.fast_dumps([math.nan]) == b"[null]"


@pytest.mark.parametrize("word", [b"true", b"false"])
@pytest.mark.parametrize("size", [0, 3, 500, 2043, 2044, 2045, 2047, 2048, 2049, 2052, 5000])
def test_a_boolean_is_seen_wherever_it_stands(word: bytes, size: int) -> None:
    assert not _json.may_hold_booleans(b"1" * size)
    assert not _json.may_hold_booleans(b"rl" + b"1" * size + b"lr")
    for at in {
        0,
        1,
        size // 2,
        size - 1,
        size,
        *range(1018, 1030),
        *range(size - 1030, size - 1018),
    }:
        if 0 <= at <= size:
            assert _json.may_hold_booleans(b"1" * at + word + b"1" * (size - at))


SCALARS = [np.float32(0.2), np.float64(0.1), np.float32(3), np.int8(-1), np.bool_(True)]


def test_scalars_are_written_alike() -> None:
    assert _json.plain_dumps(SCALARS) == _json.dumps(SCALARS) == b"[0.2,0.1,3.0,-1,true]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[NaN,Infinity,-Infinity]", "[nan, inf, -inf]"),
        ('{"a":NaN,"b":18446744073709551615}', "{'a': nan, 'b': 18446744073709551615}"),
        ('"NaN"', "'NaN'"),
        ("[1.5]", "[1.5]"),
    ],
)
def test_tokens_are_read_where_they_are_asked_for(text: str, expected: str) -> None:
    assert repr(_json.loads_with_tokens(text.encode())) == expected


@pytest.mark.parametrize("text", ["[nan]", "[NaN", "NaN NaN", "+Infinity", "[1e999,NaN]", "[NaN,]"])
def test_texts_with_other_tokens_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the libraries' own texts
        _json.loads_with_tokens(text.encode())


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3)))
def test_tokens_are_written_and_read(array: np.ndarray[Any, Any]) -> None:
    document = {"a": array, "b": [array.ravel()[0]], "c": ["null", "é"], "d": np.array([1, 2])}
    text = _json.dumps_with_tokens(document)
    assert b'"c":["null","\xc3\xa9"],"d":[1,2]}' in text
    plain = _json.loads_with_tokens(_json.plain_dumps_with_tokens(document))
    assert repr(_json.loads_with_tokens(text)) == repr(plain)
    found = _json.loads_with_tokens(text)
    assert np.array_equal(np.array(found["a"], np.float32), array, equal_nan=True)
    assert np.array_equal(np.float32(found["b"][0]), array.ravel()[0], equal_nan=True)
