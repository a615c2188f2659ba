"""TensorFlow Serving's bodies: its documents' examples, what is refused and where, and a law."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelserve.codecs import tfserving
from modelserve.errors import BackendError, InvalidInput
from modelserve.protocols import VersionInfo
from modelserve.tensors import DATATYPES, Signature, TensorSpec, numpy_dtype

X = Signature([TensorSpec("x", "FP32", (-1,))])
PAIRS = Signature([TensorSpec("default", "INT32", (-1, 2))])
TEXT = Signature([TensorSpec("text", "BYTES", (-1,))])
ANY_TEXT = Signature([TensorSpec("text", "BYTES", None)])
# The three named inputs of TensorFlow Serving's own documentation.
TAGGED = Signature(
    [
        TensorSpec("tag", "BYTES", (-1,)),
        TensorSpec("signal", "INT64", (-1, 5)),
        TensorSpec("sensor", "INT64", (-1, 2, 2)),
    ]
)
TAGGED_INPUTS = {
    "tag": np.array([b"foo", b"bar"], np.object_),
    "signal": np.array([[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]]),
    "sensor": np.array([[[1, 2], [3, 4]], [[4, 5], [6, 8]]]),
}


def decode(body: str | bytes, signature: Signature) -> tuple[dict[str, Any], bool]:
    body = body if isinstance(body, bytes) else body.encode()
    return tfserving.decode_predict(tfserving.read_document(body), signature)


def encode(outputs: dict[str, Any], *, rows: bool = True) -> str:
    return tfserving.encode_predict(outputs, rows=rows).decode()


def same(found: Any, expected: Any) -> bool:
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and bool(np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"))
    )


def texts(*values: bytes) -> Any:
    array = np.empty(len(values), np.object_)
    for index, value in enumerate(values):
        array[index] = value
    return array


F32 = np.float32
I32 = np.int32


@pytest.mark.parametrize(
    ("body", "signature", "expected", "rows"),
    [
        ('{"instances": [1.0, 2.0, 5.0]}', X, {"x": np.array([1, 2, 5], F32)}, True),
        ('{"instances": [1, 2.0, 0.5]}', X, {"x": np.array([1, 2, 0.5], F32)}, True),
        ('{"inputs": [3.0, 4.0]}', X, {"x": np.array([3, 4], F32)}, False),
        ('{"inputs": {"x": [3.0]}}', X, {"x": np.array([3], F32)}, False),
        ('{"instances": [{"x": 1.0}, {"x": 2.0}]}', X, {"x": np.array([1, 2], F32)}, True),
        (
            '{"signature_name": "serving_default", "instances": [3.0]}',
            X,
            {"x": np.array([3], F32)},
            True,
        ),
        ('{"signature_name": "", "instances": [3.0]}', X, {"x": np.array([3], F32)}, True),
        ('{"signature_name": null, "instances": [3.0]}', X, {"x": np.array([3], F32)}, True),
        ('{"instances": [3.0], "parameters": {"a": 1}}', X, {"x": np.array([3], F32)}, True),
        (
            '{"instances": [[1,2],[3,4],[5,6]]}',
            PAIRS,
            {"default": np.array([[1, 2], [3, 4], [5, 6]], I32)},
            True,
        ),
        (
            '{"instances": [[[1, 2]], [[3, 4]]]}',
            Signature([TensorSpec("x", "INT64", (-1, 1, 2))]),
            {"x": np.array([[[1, 2]], [[3, 4]]])},
            True,
        ),
        (
            '{"instances": ["foo", "bar", "baz"]}',
            TEXT,
            {"text": texts(b"foo", b"bar", b"baz")},
            True,
        ),
        (
            '{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]}',
            TEXT,
            {"text": texts(b"hello", b"world")},
            True,
        ),
        (
            '{"instances": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}',
            Signature([TensorSpec("text", "BYTES", (-1, 1))]),
            {"text": texts(b"hello", b"world").reshape(2, 1)},
            True,
        ),
        (
            '{"instances": [{"text": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}]}',
            ANY_TEXT,
            {"text": texts(b"hello", b"world").reshape(1, 2, 1)},
            True,
        ),
        ('{"instances": ["a", {"b64": "AAD/"}]}', TEXT, {"text": texts(b"a", b"\0\0\xff")}, True),
        ('{"instances": [{"b64": "aGVsbG8"}]}', TEXT, {"text": texts(b"hello")}, True),
        ('{"instances": [{"b64": "aGVs\\nbG8="}]}', TEXT, {"text": texts(b"hello")}, True),
        (
            '{"inputs": {"text": {"b64": "aGVsbG8="}}}',
            ANY_TEXT,
            {"text": texts(b"hello").reshape(())},
            False,
        ),
        ('{"inputs": {"b64": "aGVsbG8="}}', ANY_TEXT, {"text": texts(b"hello").reshape(())}, False),
        (
            '{"instances": [{"tag": "foo", "signal": [1,2,3,4,5], "sensor": [[1,2],[3,4]]},'
            ' {"tag": "bar", "signal": [3,4,1,2,5], "sensor": [[4,5],[6,8]]}]}',
            TAGGED,
            TAGGED_INPUTS,
            True,
        ),
        (
            '{"inputs": {"tag": ["foo", "bar"], "signal": [[1,2,3,4,5],[3,4,1,2,5]],'
            ' "sensor": [[[1,2],[3,4]],[[4,5],[6,8]]]}}',
            TAGGED,
            TAGGED_INPUTS,
            False,
        ),
        (
            '{"instances": [NaN, Infinity, -Infinity, 1.5]}',
            X,
            {"x": np.array([math.nan, math.inf, -math.inf, 1.5], F32)},
            True,
        ),
        (
            '{"inputs": 2.5}',
            Signature([TensorSpec("x", "FP64", ())]),
            {"x": np.array(2.5)},
            False,
        ),
        ('{"inputs": {}}', Signature([]), {}, False),
        (
            '{"instances": [true, false]}',
            Signature([TensorSpec("x", "BOOL", (-1,))]),
            {"x": np.array([True, False])},
            True,
        ),
        (
            '{"instances": [9223372036854775807, -9223372036854775808]}',
            Signature([TensorSpec("x", "INT64", (-1,))]),
            {"x": np.array([2**63 - 1, -(2**63)])},
            True,
        ),
        (
            '{"instances": [1.5, -2]}',
            Signature([TensorSpec("x", "BF16", (-1,))]),
            {"x": np.array([1.5, -2], ml_dtypes.bfloat16)},
            True,
        ),
        (
            '{"instances": [[], []]}',
            Signature([TensorSpec("x", "FP32", (-1, -1, 3))]),
            {"x": np.zeros((2, 0, 3), F32)},
            True,
        ),
        (
            '{"instances": [1, 2, 3, 4]}',
            Signature([TensorSpec("x", "FP32", (4,))]),
            {"x": np.array([1, 2, 3, 4], F32)},
            True,
        ),
        (
            '{"instances": [16777216, 1e30]}',
            X,
            {"x": np.array([16777216, 1e30], F32)},
            True,
        ),
    ],
)
def test_request_is_read(body: str, signature: Signature, expected: Any, rows: bool) -> None:
    inputs, row_form = decode(body, signature)
    assert row_form is rows
    assert inputs.keys() == expected.keys()
    for name, array in inputs.items():
        assert same(array, expected[name]), array
        assert not array.flags.writeable


OPTIONAL = Signature(
    [TensorSpec("x", "FP32", (-1,)), TensorSpec("bias", "FP32", (-1,), optional=True)]
)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"instances": [1.0]}', {"x"}),
        ('{"instances": [{"x": 1.0}]}', {"x"}),
        ('{"instances": [{"x": 1.0, "bias": 2.0}]}', {"x", "bias"}),
        ('{"inputs": {"x": [1.0]}}', {"x"}),
        ('{"inputs": [1.0]}', {"x"}),
    ],
)
def test_optional_input_may_be_left_out(body: str, names: set[str]) -> None:
    assert decode(body, OPTIONAL)[0].keys() == names


TWO = Signature([TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1, 2))])


@pytest.mark.parametrize(
    ("body", "signature", "text"),
    [
        ("", X, "the body is not valid JSON: "),
        ("instances = [1, 2]", X, "the body is not valid JSON: "),
        ('{"instances": [1.0}', X, "the body is not valid JSON: "),
        ('{"instances": [nan]}', X, "the body is not valid JSON: "),
        ('{"instances": [NaN, }', X, "the body is not valid JSON: "),
        (b'{"instances": ["\xff"]}', X, "the body is not valid JSON: "),
        (b'{"instances": [NaN, "\xff"]}', X, "the body is not valid JSON: "),
        ('{"instances": [NaN, "\\ud800"]}', X, "the body is not valid JSON: "),
        ('{"instances": [1e400]}', X, "the body is not valid JSON: "),
        ("[1.0]", X, "expected a JSON object, got a list"),
        ("null", X, "expected a JSON object, got null"),
        ("{}", X, 'expected either "instances" or "inputs", got neither'),
        (
            '{"instances": [1.0], "inputs": [1.0]}',
            X,
            'expected either "instances" or "inputs", got both',
        ),
        ('{"instances": []}', X, "instances: expected at least one instance, got none"),
        ('{"instances": 1.0}', X, "instances: expected a list, got 1.0"),
        ('{"instances": null}', X, "instances: expected a list, got null"),
        ('{"instances": {"x": [1.0]}}', X, "instances: expected a list, got an object"),
        ('{"signature_name": 5, "instances": [1]}', X, "signature_name: expected a string, got 5"),
        (
            '{"signature_name": "other", "instances": [1]}',
            X,
            'signature_name: "other" is not found; a model has one signature here, '
            '"serving_default"',
        ),
        ('{"instances": ["1"]}', X, 'instances[0]: expected a number for FP32, got "1"'),
        ('{"instances": [1, true]}', X, "instances[1]: expected a number for FP32, got true"),
        ('{"instances": [1, null]}', X, "instances[1]: expected a number for FP32, got null"),
        ('{"instances": [1, [1]]}', X, "instances[1]: expected a number for FP32, got a list"),
        (
            '{"instances": [[1]]}',
            X,
            "instances[0]: expected a single value, got shape [1]",
        ),
        (
            '{"instances": [1e39]}',
            X,
            "instances[0]: expected a number in the range of FP32, got 1e+39",
        ),
        (
            '{"instances": [0.5, 16777217]}',
            X,
            "instances[1]: 16777217 has no FP32 of its own, and would lose precision; write it "
            "with a decimal point to have it rounded",
        ),
        (
            '{"inputs": [9007199254740993]}',
            Signature([TensorSpec("x", "FP64", (-1,))]),
            "inputs[0]: 9007199254740993 has no FP64 of its own, and would lose precision; write "
            "it with a decimal point to have it rounded",
        ),
        ('{"instances": [[1,2],[3,4],[5,6,7]]}', PAIRS, "instances[2]: expected a list of 2 "),
        ('{"instances": [[1,2],[3,4],5]}', PAIRS, "instances[2]: expected a list of 2 elements"),
        ('{"instances": [[1,2,3]]}', PAIRS, "instances[0]: expected shape [2], got shape [3]"),
        (
            '{"instances": [[1,2],[3,[4]]]}',
            PAIRS,
            "instances[1][1]: expected an integer for INT32, got a list",
        ),
        (
            '{"instances": [[1,2],["a","b"]]}',
            PAIRS,
            'instances[1][0]: expected an integer for INT32, got "a"',
        ),
        (
            '{"instances": [[1, 2.5]]}',
            PAIRS,
            "instances[0][1]: expected an integer for INT32, got 2.5",
        ),
        (
            '{"instances": [[1, 2147483648]]}',
            PAIRS,
            "instances[0][1]: expected a number in the range of INT32, got 2147483648",
        ),
        (
            '{"instances": [[1, NaN]]}',
            PAIRS,
            "instances[0][1]: expected an integer for INT32, got nan",
        ),
        (
            '{"instances": [1.0, 2.0]}',
            TWO,
            "instances[0]: expected an object, since the model takes more than one input: a, b",
        ),
        (
            '{"inputs": [1.0, 2.0]}',
            TWO,
            "inputs: expected an object, since the model takes more than one input: a, b",
        ),
        ('{"instances": [{"a": 1}]}', TWO, 'instances[0]: "b" is missing'),
        ('{"instances": [{}]}', TWO, 'instances[0]: "a" is missing'),
        (
            '{"instances": [{"a": 1, "b": [1,2], "c": 3}]}',
            TWO,
            "instances[0].c: unknown input; the model takes a, b",
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, {"a": 1}]}',
            TWO,
            'instances[1]: "b" is missing',
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, {"a": 1, "b": [1,2], "c": 0}]}',
            TWO,
            "instances[1].c: unknown input; the model takes a, b",
        ),
        (
            '{"instances": [{"x": 1, "bias": 1}, {"x": 1}]}',
            OPTIONAL,
            'instances[1]: "bias" is missing here and in instances[0]',
        ),
        (
            '{"instances": [{"x": 1}, {"x": 1, "bias": 1}]}',
            OPTIONAL,
            'instances[1]: "bias" is here and not in instances[0]',
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, [1, 20, 30]]}',
            TWO,
            "instances[1]: expected an object, as instances[0]; got a list",
        ),
        (
            '{"instances": [["baz"], {"text": ["baz"]}]}',
            ANY_TEXT,
            "instances[1]: expected a value or a list, as instances[0]; got an object",
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, {"a": 1, "b": [1,2]}, {"a": 1, "b": [1]}]}',
            TWO,
            "instances[2].b: expected a list of 2 elements, as instances[0].b; got 1 elements",
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, {"a": "x", "b": [1,2]}]}',
            TWO,
            'instances[1].a: expected a number for FP32, got "x"',
        ),
        (
            '{"instances": [{"a": 1, "b": [1,2]}, {"a": 1, "b": [1,2.5]}]}',
            TWO,
            "instances[1].b[1]: expected an integer for INT64, got 2.5",
        ),
        ('{"inputs": {"a": [1], "b": [[1,2,3]]}}', TWO, "inputs.b: expected shape [-1, 2], got "),
        ('{"inputs": {"a": [1], "b": [[1,2],[1]]}}', TWO, "inputs.b[1]: expected a list of 2 "),
        ('{"inputs": {"a": [1], "b": [[1,"2"]]}}', TWO, "inputs.b[0][1]: expected an integer"),
        ('{"inputs": {"a": [1]}}', TWO, 'inputs: "b" is missing'),
        ('{"inputs": {"a": [1], "c": [1]}}', TWO, "inputs.c: unknown input; the model takes a, b"),
        ('{"inputs": null}', X, "inputs: expected shape [-1], got a single value"),
        ('{"inputs": "text"}', X, "inputs: expected shape [-1], got a single value"),
        ('{"instances": [{"b64": "aGVsbG8="}]}', X, "instances[0]: expected a number for FP32, "),
        (
            '{"instances": ["a", {"b64": "a?b="}]}',
            TEXT,
            "instances[1].b64: expected base64: ",
        ),
        ('{"instances": ["a", {"b64": "a"}]}', TEXT, "instances[1].b64: expected base64: "),
        (
            '{"inputs": ["a", {"b65": "a"}]}',
            TEXT,
            'inputs[1]: expected a string or {"b64": "..."}, got an object',
        ),
        ('{"inputs": ["a", {"b64": 5}]}', TEXT, 'inputs[1]: expected a string or {"b64": "..."}'),
        ('{"inputs": ["a", 1]}', TEXT, "inputs[1]: expected a string, got 1"),
        (
            '{"inputs": ["a", {"b64": ""}, 1]}',
            TEXT,
            'inputs[2]: expected a string or {"b64": "..."}, got 1',
        ),
        (
            '{"instances": [1.0]}',
            Signature([TensorSpec("x", "FP32", ())]),
            'instances: "x" is one value without rows; send it as "inputs"',
        ),
        (
            '{"instances": [1.0, 2.0]}',
            Signature([TensorSpec("x", "FP32", (4,))]),
            'instances: "x" takes 4 entries, got 2',
        ),
        (
            '{"instances": [' + "[" * 40 + "]" * 40 + "]}",
            ANY_TEXT,
            "instances: expected at most 32 axes",
        ),
        ('{"instances": [1.0]}', Signature([]), "the model does not say what it takes"),
    ],
)
def test_wrong_request_is_refused_by_place(
    body: str | bytes, signature: Signature, text: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body, signature)
    assert str(caught.value).startswith(text)


def test_deep_nesting_is_refused() -> None:
    for body in ("[" * 100_000, '{"instances": [NaN' + ", [" * 100_000):
        with pytest.raises(InvalidInput):
            decode(body, X)


# Answers


@pytest.mark.parametrize(
    ("outputs", "rows", "columns"),
    [
        (
            {"y": np.array([3.5, 4, 5.5], F32)},
            '{"predictions":[3.5,4.0,5.5]}',
            '{"outputs":[3.5,4.0,5.5]}',
        ),
        (
            {"y": np.array([[2.5, 3.0], [3.5, 4.0]], F32)},
            '{"predictions":[[2.5,3.0],[3.5,4.0]]}',
            '{"outputs":[[2.5,3.0],[3.5,4.0]]}',
        ),
        ({"y": np.arange(3, dtype=I32)}, '{"predictions":[0,1,2]}', '{"outputs":[0,1,2]}'),
        ({"y": np.array([True])}, '{"predictions":[true]}', '{"outputs":[true]}'),
        (
            {"s_bytes": texts(b"hello", b"world", b"tf", b"serving").reshape(2, 2)},
            '{"predictions":[[{"b64":"aGVsbG8="},{"b64":"d29ybGQ="}],'
            '[{"b64":"dGY="},{"b64":"c2VydmluZw=="}]]}',
            '{"outputs":[[{"b64":"aGVsbG8="},{"b64":"d29ybGQ="}],'
            '[{"b64":"dGY="},{"b64":"c2VydmluZw=="}]]}',
        ),
        ({"s": texts(b"a", "é".encode())}, '{"predictions":["a","é"]}', '{"outputs":["a","é"]}'),
        (
            {"s": texts(b"a", b"\xff")},
            '{"predictions":[{"b64":"YQ=="},{"b64":"/w=="}]}',
            '{"outputs":[{"b64":"YQ=="},{"b64":"/w=="}]}',
        ),
        (
            {"n_bytes": np.array([1], np.int8)},
            '{"predictions":[1]}',
            '{"outputs":[1]}',
        ),
        (
            {"a": np.array([8, 9.5]), "b": np.array([[1], [2]], F32), "c": texts(b"x", b"y")},
            '{"predictions":[{"a":8.0,"b":[1.0],"c":"x"},{"a":9.5,"b":[2.0],"c":"y"}]}',
            '{"outputs":{"a":[8.0,9.5],"b":[[1.0],[2.0]],"c":["x","y"]}}',
        ),
        (
            {"y": np.array([[math.nan, math.inf], [3, -math.inf]], F32)},
            '{"predictions":[[NaN,Infinity],[3.0,-Infinity]]}',
            '{"outputs":[[NaN,Infinity],[3.0,-Infinity]]}',
        ),
        (
            {"y": np.array([math.nan, 0.1], F32), "n": np.array([1, 2])},
            '{"predictions":[{"y":NaN,"n":1},{"y":0.1,"n":2}]}',
            '{"outputs":{"y":[NaN,0.1],"n":[1,2]}}',
        ),
        ({"y": np.array([0.1], np.float16)}, '{"predictions":[0.099975586]}', None),
        ({"y": np.array([1.5], ml_dtypes.bfloat16)}, '{"predictions":[1.5]}', None),
        ({"y": np.array([math.inf], ml_dtypes.bfloat16)}, '{"predictions":[Infinity]}', None),
        ({"y": np.array([0.2], F32)}, '{"predictions":[0.2]}', '{"outputs":[0.2]}'),
        ({"y": np.zeros((0, 2), F32)}, '{"predictions":[]}', '{"outputs":[]}'),
        (
            {"y": np.zeros((0, 2), F32), "z": np.zeros((0, 3), F32)},
            '{"predictions":[]}',
            '{"outputs":{"y":[],"z":[]}}',
        ),
        ({"y": np.array([1, 2], ">f4")}, '{"predictions":[1.0,2.0]}', '{"outputs":[1.0,2.0]}'),
        ({"y": np.arange(4.0)[::2]}, '{"predictions":[0.0,2.0]}', '{"outputs":[0.0,2.0]}'),
        ({"y": np.array(["a"])}, '{"predictions":["a"]}', '{"outputs":["a"]}'),
    ],
)
def test_response_is_written(outputs: Any, rows: str, columns: str | None) -> None:
    assert encode(outputs) == rows
    if columns is not None:
        assert encode(outputs, rows=False) == columns


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (np.array(0.2, F32), "0.2"),
        (np.array(7), "7"),
        (np.array(True), "true"),
        (np.array(math.nan), "NaN"),
        (np.array(-math.inf, F32), "-Infinity"),
        (texts(b"a").reshape(()), '"a"'),
    ],
)
def test_output_without_axes_is_one_value(output: Any, text: str) -> None:
    assert encode({"y": output}, rows=False) == f'{{"outputs":{text}}}'


@pytest.mark.parametrize(
    "code", ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d"]
)
def test_every_type_that_numpy_has_is_written(code: str) -> None:
    array = np.ones(2, code)
    one = {"?": "true", "e": "1.0", "f": "1.0", "d": "1.0"}.get(code, "1")
    assert encode({"a": array}) == f'{{"predictions":[{one},{one}]}}'
    assert encode({"a": array[0]}, rows=False) == f'{{"outputs":{one}}}'
    row = f'{{"a":{one},"b":[{one}]}}'
    assert encode({"a": array, "b": array.reshape(2, 1)}) == f'{{"predictions":[{row},{row}]}}'
    tokens = {"a": array, "b": np.array([math.nan, 1])}
    assert encode(tokens) == (f'{{"predictions":[{{"a":{one},"b":NaN}},{{"a":{one},"b":1.0}}]}}')


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"y": np.array(1.0)}, 'instances: the model\'s output "y" is one value, not one for each'),
        (
            {"y": np.zeros(2), "z": np.zeros(3)},
            'instances: the model\'s output "z" has 3 rows and "y" 2; send "inputs" instead',
        ),
    ],
)
def test_outputs_without_common_rows_have_no_row_form(outputs: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode(outputs)
    assert str(caught.value).startswith(text)


def test_output_that_is_no_tensor_is_the_model_s_fault() -> None:
    with pytest.raises(BackendError):
        encode({"y": np.array([1j])})


def test_finite_answer_is_json_that_every_parser_reads() -> None:
    body = tfserving.encode_predict({"y": np.array([1e-45, 3.4e38], F32)}, rows=True)
    (small, large) = json.loads(body)["predictions"]
    assert (F32(small), F32(large)) == (F32(1e-45), F32(3.4e38))


# The law: what is written as rows or columns is read as it was.

_NUMBERS = [name for name in DATATYPES if name != "BYTES"]


@st.composite
def tensors(draw: st.DrawFn, datatype: str, rows: int) -> Any:
    shape = (rows, *draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)))
    if datatype == "BYTES":
        flat = draw(st.lists(st.binary(max_size=6), min_size=math.prod(shape), max_size=1000))
        return texts(*flat[: math.prod(shape)]).reshape(shape)
    if datatype == "BF16":
        array = draw(hnp.arrays(F32, shape, elements=st.floats(width=16)))
        return array.astype(ml_dtypes.bfloat16)
    return draw(hnp.arrays(numpy_dtype(datatype), shape))


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 3))
    names = draw(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3, unique=True))
    names = [name for name in names if name != "b64"] or ["x"]
    return {
        f"{name}_bytes": draw(tensors(draw(st.sampled_from(DATATYPES)), rows)) for name in names
    }


@given(messages(), st.booleans())
def test_what_is_written_is_read_as_it_was(message: dict[str, Any], rows: bool) -> None:
    specs = []
    for name, array in message.items():
        datatype = tfserving_datatype(array)
        specs.append(TensorSpec(name, datatype, (-1, *array.shape[1:])))  # type: ignore[arg-type]
    body = tfserving.encode_predict(message, rows=rows)
    body = body.replace(b'{"predictions":', b'{"instances":', 1)
    body = body.replace(b'{"outputs":', b'{"inputs":', 1)
    inputs, row_form = decode(body, Signature(specs))
    assert row_form is rows
    assert list(inputs) == list(message)
    for name, array in message.items():
        assert same_bits(inputs[name], array), (body, inputs[name], array)


def tfserving_datatype(array: Any) -> str:
    from modelserve.tensors import datatype_of

    return datatype_of(array.dtype)


def same_bits(found: Any, expected: Any) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if expected.dtype.name == "bfloat16":
        found, expected = found.astype(F32), expected.astype(F32)
    return same(found, expected)


# Status and metadata


def test_status_has_the_newest_version_first() -> None:
    infos = [
        VersionInfo("m", "9", "UNLOADING"),
        VersionInfo("m", "10", "READY"),
        VersionInfo("m", "11", "LOADING"),
        VersionInfo("m", "8", "UNAVAILABLE", "unloaded"),
        VersionInfo("m", "7", "UNAVAILABLE", "the file is no model"),
    ]
    ok = {"error_code": "OK", "error_message": ""}
    assert json.loads(tfserving.encode_status(infos)) == {
        "model_version_status": [
            {"version": "11", "state": "LOADING", "status": ok},
            {"version": "10", "state": "AVAILABLE", "status": ok},
            {"version": "9", "state": "UNLOADING", "status": ok},
            {"version": "8", "state": "END", "status": ok},
            {
                "version": "7",
                "state": "END",
                "status": {
                    "error_code": "FAILED_PRECONDITION",
                    "error_message": "the file is no model",
                },
            },
        ]
    }


def test_metadata_has_the_form_of_a_signature_def() -> None:
    signature = Signature(
        [TensorSpec("x", "FP32", (-1, 4)), TensorSpec("s", "BYTES", ())],
        [TensorSpec("y", "INT64", None)],
    )
    info = VersionInfo("m", "123", "READY", signature=signature)
    assert json.loads(tfserving.encode_metadata(info)) == {
        "model_spec": {"name": "m", "signature_name": "", "version": "123"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {
                            "x": {
                                "dtype": "DT_FLOAT",
                                "tensor_shape": {
                                    "dim": [{"size": "-1", "name": ""}, {"size": "4", "name": ""}],
                                    "unknown_rank": False,
                                },
                                "name": "x",
                            },
                            "s": {
                                "dtype": "DT_STRING",
                                "tensor_shape": {"dim": [], "unknown_rank": False},
                                "name": "s",
                            },
                        },
                        "outputs": {
                            "y": {
                                "dtype": "DT_INT64",
                                "tensor_shape": {"dim": [], "unknown_rank": True},
                                "name": "y",
                            }
                        },
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_has_a_name_in_metadata(datatype: Any) -> None:
    signature = Signature([TensorSpec("x", datatype, (-1,))])
    body = tfserving.encode_metadata(VersionInfo("m", "1", "READY", signature=signature))
    assert '"dtype":"DT_' in body.decode()
