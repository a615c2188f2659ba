"""Requests to classify and regress, and which outputs answer them."""

import json
import math
from typing import Any

import numpy as np
import pytest

from modelserve.codecs import tfserving, tfserving_examples
from modelserve.errors import BackendError, InvalidInput
from modelserve.tensors import Signature, TensorSpec

F32 = np.float32
SCALAR = Signature([TensorSpec("x", "FP32", (-1,))])
COLUMN = Signature([TensorSpec("x", "FP32", (-1, 1))])
ROW = Signature([TensorSpec("x", "FP32", (-1, 3))])
RATED = Signature(
    [
        TensorSpec("names", "BYTES", (-1, -1)),
        TensorSpec("ratings", "FP32", (-1, 2)),
        TensorSpec("age", "INT64", (-1,), optional=True),
    ]
)


def decode(body: str, signature: Signature) -> tuple[dict[str, Any], int]:
    document = tfserving.read_document(body.encode())
    return tfserving_examples.decode_examples(document, signature)


@pytest.mark.parametrize(
    ("body", "signature", "expected"),
    [
        ('{"examples": [{"x": 1.0}, {"x": 2.0}]}', SCALAR, {"x": [1.0, 2.0]}),
        ('{"examples": [{"x": 1.0}, {"x": [2.0]}]}', COLUMN, {"x": [[1.0], [2.0]]}),
        ('{"examples": [{"x": [80.0]}]}', SCALAR, {"x": [80.0]}),
        (
            '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1}]}',
            SCALAR,
            {"x": [1.0]},
        ),
        ('{"examples": [{"x": [1, 2, NaN]}]}', ROW, {"x": [[1.0, 2.0, math.nan]]}),
        (
            '{"examples": [{"x": [1, 2, 3, 4]}]}',
            Signature([TensorSpec("x", "FP32", (-1, 2, 2))]),
            {"x": [[[1.0, 2.0], [3.0, 4.0]]]},
        ),
        (
            '{"examples": [{"x": [1, 2, 3, 4]}]}',
            Signature([TensorSpec("x", "FP32", (-1, -1, 2))]),
            {"x": [[[1.0, 2.0], [3.0, 4.0]]]},
        ),
        ('{"examples": [{"x": 1}]}', Signature([TensorSpec("x", "FP64")]), {"x": [1.0]}),
        ('{"examples": [{"x": [1]}]}', Signature([TensorSpec("x", "FP64")]), {"x": [[1.0]]}),
        (
            '{"examples": [{"x": [1, true, false]}]}',
            Signature([TensorSpec("x", "INT64", (-1, 3))]),
            {"x": [[1, 1, 0]]},
        ),
        (
            '{"examples": [{"x": true}]}',
            Signature([TensorSpec("x", "BOOL", (-1,))]),
            {"x": [True]},
        ),
        (
            '{"examples": [{"names": ["foo", {"b64": "aGVsbG8="}], "ratings": [8.0, 9.0],'
            ' "age": 20}, {"names": ["baz", "b"], "ratings": [6.0, -Infinity], "age": [3]}]}',
            RATED,
            {
                "names": [[b"foo", b"hello"], [b"baz", b"b"]],
                "ratings": [[8.0, 9.0], [6.0, -math.inf]],
                "age": [20, 3],
            },
        ),
        (
            '{"context": {"ratings": [1, 2]}, "examples": [{"names": "a"}, {"names": "b"}]}',
            RATED,
            {"names": [[b"a"], [b"b"]], "ratings": [[1.0, 2.0], [1.0, 2.0]]},
        ),
        ('{"context": {"x": 5.0}, "examples": [{}, {}, {}]}', SCALAR, {"x": [5.0, 5.0, 5.0]}),
    ],
)
def test_examples_are_read(body: str, signature: Signature, expected: Any) -> None:
    inputs, rows = decode(body, signature)
    assert inputs.keys() == expected.keys()
    for name, values in expected.items():
        assert len(inputs[name]) == rows
        assert not inputs[name].flags.writeable
        assert np.array_equal(
            inputs[name],
            np.array(values, inputs[name].dtype),
            equal_nan=inputs[name].dtype.kind == "f",
        )
    signature.validate(inputs, batched=True)


@pytest.mark.parametrize(
    ("body", "signature", "text"),
    [
        ("{}", SCALAR, "examples: expected a list, got null"),
        ('{"examples": {"x": 1}}', SCALAR, "examples: expected a list, got an object"),
        ('{"examples": []}', SCALAR, "examples: expected at least one example, got none"),
        ('{"examples": [1.0]}', SCALAR, "examples[0]: expected an object of features, got 1.0"),
        (
            '{"examples": [[{"x": 1}]]}',
            SCALAR,
            "examples[0]: expected an object of features, got a",
        ),
        ('{"examples": [{"x": 1}], "context": [1]}', SCALAR, "context: expected an object of feat"),
        ('{"examples": [{"x": 1}], "signature_name": ["a"]}', SCALAR, "signature_name: expected a"),
        ('{"examples": [{}]}', SCALAR, 'examples[0]: "x" is missing'),
        ('{"examples": [{"x": 1}, {}]}', SCALAR, 'examples[1]: "x" is missing'),
        ('{"examples": [{"y": 1}]}', SCALAR, "examples[0].y: unknown feature; the model takes x"),
        (
            '{"examples": [{"x": 1}], "context": {"y": 1}}',
            SCALAR,
            "context.y: unknown feature; the model takes x",
        ),
        (
            '{"examples": [{"x": 1}], "context": {"x": 1}}',
            SCALAR,
            "examples[0].x: stands in context, too",
        ),
        ('{"examples": [{"x": null}]}', SCALAR, "examples[0].x: expected a value or a list of "),
        ('{"examples": [{"x": [1, null, 2]}]}', ROW, "examples[0].x[1]: expected a value or a "),
        ('{"examples": [{"x": [[1, 2, 3]]}]}', ROW, "examples[0].x[0]: expected a value or a "),
        ('{"examples": [{"x": {"a": 1}}]}', SCALAR, "examples[0].x: expected a value or a list"),
        ('{"examples": [{"x": ["a"]}]}', SCALAR, "examples[0].x[0]: expected a number for FP32, "),
        ('{"examples": [{"x": [1, 2]}]}', SCALAR, "examples[0].x: expected the values of shape []"),
        ('{"examples": [{"x": [1, 2]}]}', ROW, "examples[0].x: expected the values of shape [3], "),
        ('{"examples": [{"x": [1, 2, 3]}, {"x": 1}]}', ROW, "examples[1].x: expected a list of 3 "),
        (
            '{"examples": [{"x": [1, 2, 3]}]}',
            Signature([TensorSpec("x", "FP32", (-1, -1, 2))]),
            "examples[0].x: expected the values of shape [-1, 2], got 3",
        ),
        (
            '{"examples": [{"names": "a"}], "context": {"ratings": [1, "b"]}}',
            RATED,
            'context.ratings[1]: expected a number for FP32, got "b"',
        ),
        (
            '{"examples": [{"names": "a"}], "context": {"ratings": [1]}}',
            RATED,
            "context.ratings: expected the values of shape [2], got 1",
        ),
        (
            '{"examples": [{"x": 1}]}',
            Signature([TensorSpec("x", "FP32", ())]),
            'examples: "x" is one value without rows; use predict',
        ),
        ('{"examples": [{"x": 1e39}]}', SCALAR, "examples[0].x[0]: expected a number in the range"),
    ],
)
def test_wrong_examples_are_refused_by_place(body: str, signature: Signature, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(body, signature)
    assert str(caught.value).startswith(text)


def test_context_is_not_repeated_beyond_a_bound() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))])
    document = {"context": {"x": [0.0] * 5000}, "examples": [{}] * 5000}
    with pytest.raises(InvalidInput, match=r"context\.x: expected at most 16777216 values"):
        tfserving_examples.decode_examples(document, signature)


# Answers

P = np.array([[0.25, 0.75], [0.5, 0.5]], F32)
LABEL = np.array([1, 0])


def classes(outputs: dict[str, Any], rows: int = 2, names: tuple[str, ...] = ()) -> Any:
    return json.loads(tfserving_examples.encode_classes(outputs, rows, names=names))["results"]


INDEXED = [[["0", 0.25], ["1", 0.75]], [["0", 0.5], ["1", 0.5]]]
NAMED = [[["cat", 0.25], ["dog", 0.75]], [["cat", 0.5], ["dog", 0.5]]]
STRINGS = np.array([["cat", "dog"], ["cat", "dog"]], np.object_)


@pytest.mark.parametrize(
    ("outputs", "names", "expected"),
    [
        ({"p": P}, (), INDEXED),
        ({"p": P}, ("cat", "dog"), NAMED),
        ({"p": P}, ("cat",), [[["cat", 0.25], ["1", 0.75]], [["cat", 0.5], ["1", 0.5]]]),
        ({"label": LABEL, "probabilities": P}, ("cat", "dog"), NAMED),
        ({"scores": P, "logits": P * 9}, (), INDEXED),
        ({"scores": P, "classes": STRINGS}, (), NAMED),
        ({"p": P, "animals": STRINGS}, ("x", "y"), NAMED),
        ({"p": P, "words": STRINGS[:, :1]}, (), INDEXED),
        ({"classes": STRINGS}, (), [[["cat", 0.0], ["dog", 0.0]]] * 2),
        ({"p": P.astype(np.float16)}, (), INDEXED),
        ({"p": P.astype(np.float64)}, (), INDEXED),
        ({"scores": np.array([[12.0], [7.0]], F32)}, (), [[["0", 12.0]], [["0", 7.0]]]),
    ],
)
def test_classes_are_pairs_of_label_and_score(outputs: Any, names: Any, expected: Any) -> None:
    assert classes(outputs, names=names) == expected


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"y": np.zeros(2, F32)},
        {"label": LABEL},
        {"p": P, "q": P},
        {"p": P[:1]},
        {"p": P.astype(np.int64)},
        {"p": P[:, :, None]},
        {"words": STRINGS},
    ],
)
def test_what_has_no_scores_cannot_classify(outputs: Any) -> None:
    with pytest.raises(InvalidInput, match=r"the model cannot classify: it gives .*; expected one"):
        classes(outputs)


def test_score_that_is_no_number_is_a_token() -> None:
    body = tfserving_examples.encode_classes({"p": np.array([[math.nan, 1]], F32)}, 1)
    assert body == b'{"results":[[["0",NaN],["1",1.0]]]}'


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.array([0.2, 0.9], F32)},
        {"y": np.array([[0.2], [0.9]], F32)},
        {"y": np.array([0.2, 0.9])},
        {"outputs": np.array([0.2, 0.9], F32), "other": np.zeros(2, F32)},
        {"y": np.array([0.2, 0.9], F32), "label": LABEL, "p": P},
    ],
)
def test_values_are_one_number_for_each_example(outputs: Any) -> None:
    assert tfserving_examples.encode_values(outputs, 2) == b'{"results":[0.2,0.9]}'


def test_values_may_be_tokens() -> None:
    values = np.array([0.2, math.inf, 1, -math.inf, math.nan], F32)
    body = tfserving_examples.encode_values({"y": values}, 5)
    assert body == b'{"results":[0.2,Infinity,1.0,-Infinity,NaN]}'


@pytest.mark.parametrize(
    "outputs",
    [{}, {"p": P}, {"label": LABEL}, {"a": np.zeros(2), "b": np.zeros(2)}, {"y": np.zeros(3)}],
)
def test_what_has_not_one_number_cannot_regress(outputs: Any) -> None:
    with pytest.raises(InvalidInput, match=r"the model cannot regress: it gives .*; expected one"):
        tfserving_examples.encode_values(outputs, 2)


def test_output_that_is_no_tensor_is_the_model_s_fault() -> None:
    with pytest.raises(BackendError):
        tfserving_examples.encode_values({"y": np.array([1j])}, 1)
