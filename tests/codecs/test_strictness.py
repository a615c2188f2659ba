"""Every kind of JSON scalar against every datatype, by a table written by hand and by a law."""

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelserve.codecs import oip
from modelserve.errors import InvalidInput
from modelserve.tensors import DATATYPES, numpy_dtype

U8, U16, U32, U64 = "UINT8", "UINT16", "UINT32", "UINT64"
I8, I16, I32, I64 = "INT8", "INT16", "INT32", "INT64"
F16, F32, F64 = "FP16", "FP32", "FP64"
UNSIGNED = {U8, U16, U32, U64}
SIGNED = {I8, I16, I32, I64}
FLOATS = {F16, F32, F64}
NUMBERS = UNSIGNED | SIGNED | FLOATS
NONE: set[str] = set()

# JSON text: the datatypes that take it. BF16 takes none, having no JSON form.
VERDICTS: dict[str, set[str]] = {
    "0": NUMBERS,
    "1": NUMBERS,
    "-0": NUMBERS,
    "-1": SIGNED | FLOATS,
    "127": NUMBERS,
    "128": NUMBERS - {I8},
    "-128": SIGNED | FLOATS,
    "-129": SIGNED - {I8} | FLOATS,
    "255": NUMBERS - {I8},
    "256": NUMBERS - {I8, U8},
    "32767": NUMBERS - {I8, U8},
    "32768": NUMBERS - {I8, U8, I16},
    "-32768": SIGNED - {I8} | FLOATS,
    "-32769": SIGNED - {I8, I16} | FLOATS,
    "65504": NUMBERS - {I8, U8, I16},
    "65519": NUMBERS - {I8, U8, I16},
    "65520": NUMBERS - {I8, U8, I16, F16},
    "-65520": {I32, I64, F32, F64},
    "65535": NUMBERS - {I8, U8, I16, F16},
    "65536": {U32, U64, I32, I64, F32, F64},
    "2147483647": {U32, U64, I32, I64, F32, F64},
    "2147483648": {U32, U64, I64, F32, F64},
    "-2147483648": {I32, I64, F32, F64},
    "-2147483649": {I64, F32, F64},
    "4294967295": {U32, U64, I64, F32, F64},
    "4294967296": {U64, I64, F32, F64},
    "9223372036854775807": {U64, I64, F32, F64},
    "9223372036854775808": {U64, F32, F64},
    "-9223372036854775808": {I64, F32, F64},
    "-9223372036854775809": {F32, F64},
    "18446744073709551615": {U64, F32, F64},
    "18446744073709551616": {F32, F64},
    str(10**40): {F64},
    str(-(10**40)): {F64},
    "3.0": FLOATS,
    "-0.0": FLOATS,
    "3.7": FLOATS,
    "1e2": FLOATS,
    "1E2": FLOATS,
    "1e-50": FLOATS,
    "5e-324": FLOATS,
    "65504.0": FLOATS,
    "65519.99": FLOATS,
    "65520.0": {F32, F64},
    "3.4028234663852886e38": {F32, F64},
    "3.4028235677973364e38": {F32, F64},
    "3.4028235677973366e38": {F64},
    "1e39": {F64},
    "-1e39": {F64},
    "1.7976931348623157e308": {F64},
    "true": {"BOOL"},
    "false": {"BOOL"},
    '""': {"BYTES"},
    '"1"': {"BYTES"},
    '"a"': {"BYTES"},
    '"true"': {"BYTES"},
    '"NaN"': {"BYTES"},
    '"]"': {"BYTES"},
    '"\\u0000\\""': {"BYTES"},
    '"é"': {"BYTES"},
    "null": NONE,
    "{}": NONE,
    '{"a":1}': NONE,
    "[]": NONE,
    "[1]": NONE,
    "[true]": NONE,
    '["a"]': NONE,
    "[" * 500 + "]" * 500: NONE,
}
NOT_JSON = [
    *("NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1" * 400, "01", "1.", ".5", "+1"),
    *("-", "True", "None", "undefined", "'a'", '"\t"', '"\\ud800"', "[" * 2000 + "]" * 2000, "1 2"),
    *("1]", "1]]", "]", "1,", ",1", ""),
]
FILLER = {"BOOL": "true", "BYTES": '"b"'}
FORMS = {
    "flat": ("[6]", "[{},{},{},{},{},{}]", ["[0]", "[3]", "[5]"]),
    "nested": ("[3,2]", "[[{},{}],[{},{}],[{},{}]]", ["[0][0]", "[1][1]", "[2][1]"]),
}
POSITIONS = (0, 3, 5)


def text(datatype: str, form: str, elements: list[str]) -> bytes:
    shape, data, _ = FORMS[form]
    return (
        f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},'
        f'"data":{data.format(*elements)}}}]}}'
    ).encode()


def outcome(body: bytes, cached: bool) -> Any:
    """Return a tensor's dtype, shape and elements, or the text that refuses it."""
    try:
        x = oip.decode_request(body, model="m", cached=cached).inputs["x"]
    except InvalidInput as error:
        return str(error)
    elements = x.ravel().tolist() if x.dtype == object else x.tobytes()
    return x.dtype, x.shape, elements, x.flags.writeable


def element(datatype: str, value: Any) -> Any:
    """Convert one JSON value in the plainest way, or return None where it is wrong."""
    if datatype == "BYTES":
        return value.encode() if type(value) is str else None
    if datatype == "BOOL":
        return np.bool_(value) if type(value) is bool else None
    if datatype == "BF16":
        return None
    kind = numpy_dtype(datatype).type
    if datatype in FLOATS:
        if type(value) not in (int, float):
            return None
        with np.errstate(over="ignore"):
            number = kind(float(value))
        return None if np.isinf(number) else number
    info = np.iinfo(numpy_dtype(datatype))
    return kind(value) if type(value) is int and info.min <= value <= info.max else None


def as_json(value: str) -> Any:
    """Parse as the protocol has it: an integer beyond 64 bits is a double."""
    parsed = json.loads(value)
    if type(parsed) is int and not -(2**63) <= parsed < 2**64:
        return float(parsed)
    return parsed


def both_ways(body: bytes) -> Any:
    """Return the outcome of the plain way, which is that of the shorter one too."""
    plain = outcome(body, cached=False)
    for _ in range(3):
        assert outcome(body, cached=True) == plain
    return plain


def known_frames(datatype: str) -> None:
    """Make sure that what surrounds the data came before, where it may be known."""
    filler = [FILLER.get(datatype, "1")] * 6
    for form in FORMS:
        both_ways(text(datatype, form, filler))


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("scalar", VERDICTS, ids=lambda scalar: scalar[:24])
def test_scalar_is_taken_or_refused_with_its_place(datatype: str, scalar: str) -> None:
    known_frames(datatype)
    for form, position in product(FORMS, range(3)):
        elements = [FILLER.get(datatype, "1")] * 6
        elements[POSITIONS[position]] = scalar
        got = both_ways(text(datatype, form, elements))
        if datatype == "BF16":
            assert got == "inputs[0].data: BF16 has no JSON form; send it as binary data"
        elif datatype in VERDICTS[scalar]:
            assert type(got) is tuple, got
            expected = [element(datatype, as_json(text)) for text in elements]
            if datatype == "BYTES":
                assert got[2] == expected
            else:
                assert got[2] == b"".join(value.tobytes() for value in expected)
        else:
            assert type(got) is str, got
            assert got.startswith(f"inputs[0].data{FORMS[form][2][position]}: expected "), got


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("scalar", NOT_JSON, ids=lambda scalar: scalar[:24])
def test_what_is_not_json_is_refused_for_every_datatype(datatype: str, scalar: str) -> None:
    known_frames(datatype)
    for form, position in product(FORMS, range(3)):
        elements = [FILLER.get(datatype, "1")] * 6
        elements[POSITIONS[position]] = scalar
        assert both_ways(text(datatype, form, elements)).startswith("the body is not valid JSON: ")


SHAPES = st.lists(st.integers(0, 3), max_size=3)
ELEMENTS = st.sampled_from(sorted(VERDICTS, key=len)[:-1])


def nested(flat: list[str], shape: list[int]) -> str:
    if not shape:
        return flat[0]
    step = math.prod(shape[1:])
    rows = [nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
    return f"[{','.join(rows)}]"


def place(index: int, shape: list[int]) -> str:
    return "".join(f"[{i}]" for i in np.unravel_index(index, shape))


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BF16"])
@settings(max_examples=60)
@given(shape=SHAPES, rows=st.booleans(), data=st.data())
def test_both_ways_are_the_plainest_one(
    datatype: str, shape: list[int], rows: bool, data: st.DataObject
) -> None:
    count = math.prod(shape)
    right = [scalar for scalar in VERDICTS if datatype in VERDICTS[scalar]]
    flat = data.draw(st.lists(st.sampled_from(right), min_size=count, max_size=count))
    for index in data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=2)):
        if index < count:
            flat[index] = data.draw(ELEMENTS)
    rows = rows and bool(shape)
    written = nested(flat, shape) if rows else f"[{','.join(flat)}]"
    body = (
        f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{written}}}]}}'
    ).encode()
    values = [element(datatype, as_json(scalar)) for scalar in flat]
    wrong = [index for index, value in enumerate(values) if value is None]
    got = both_ways(body)
    if not wrong:
        elements = values if datatype == "BYTES" else b"".join(v.tobytes() for v in values)
        assert got == (numpy_dtype(datatype), tuple(shape), elements, False)
    elif not (flat[0].startswith("[") and len(shape) > 1 and not rows):
        # Otherwise a list stands where rows would begin: it is the form that is wrong.
        where = place(wrong[0], shape if rows else [count])
        assert got.startswith(f"inputs[0].data{where}: expected "), got
