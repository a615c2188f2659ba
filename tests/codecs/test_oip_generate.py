"""Flat objects in and out, as Triton's generate extension has them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.codecs.oip_generate import (
    decode_generate,
    encode_event,
    encode_failure,
    encode_generate,
)
from modelserve.errors import BackendError, InvalidInput
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import Signature, TensorSpec

TEXT = Signature(
    [
        TensorSpec("text_input", "BYTES", (-1, 1)),
        TensorSpec("tokens", "INT32", (-1, -1), True),
        TensorSpec("flag", "BOOL", None, True),
    ]
)


def decode(document: Any, signature: Signature = TEXT) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_generate(body, signature, model="m", version="3")


def test_members_are_inputs_where_the_model_has_them_and_else_parameters() -> None:
    request = decode({"text_input": "hi", "stream": False, "temperature": 0.5, "id": "a"})

    assert request.inputs["text_input"].tolist() == [[b"hi"]]
    assert (request.model, request.version, request.id) == ("m", "3", "a")
    assert request.parameters == {"stream": False, "temperature": 0.5}


def test_parameters_may_stand_in_an_object_of_their_own() -> None:
    request = decode(
        {"text_input": "hi", "parameters": {"top_k": 3, "tokens": [1, 2], "priority": 2}}
    )

    assert request.parameters == {"top_k": 3}
    assert request.priority == 2
    assert request.inputs["tokens"].tolist() == [[1, 2]]


def test_an_input_may_be_called_as_the_members_with_a_meaning() -> None:
    signature = Signature([TensorSpec("id", "INT8", (1,)), TensorSpec("parameters", "FP32", (2,))])

    request = decode({"id": 7, "parameters": [0.5, 1]}, signature)

    assert request.inputs["id"].tolist() == [7]
    assert request.inputs["parameters"].tolist() == [0.5, 1]
    assert request.id == ""


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((-1, 1), "a", (1, 1)),
        ((-1, 1), ["a"], (1, 1)),
        ((-1, 1), [["a"], ["b"]], (2, 1)),
        ((1,), "a", (1,)),
        ((), "a", ()),
        (None, "a", ()),
        (None, [["a", "b"]], (1, 2)),
        ((-1, -1, 2), ["a", "b"], (1, 1, 2)),
        ((-1,), [], (0,)),
    ],
)
def test_axes_that_a_value_lacks_are_put_in_front(shape: Any, value: Any, expected: Any) -> None:
    request = decode({"x": value}, Signature([TensorSpec("x", "BYTES", shape)]))

    assert request.inputs["x"].shape == expected
    assert not request.inputs["x"].flags.writeable


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"", "the body is not valid JSON"),
        (b'{"text_input": NaN}', "the body is not valid JSON"),
        (b"[" * 100_000, "the body is not valid JSON"),
        ([], "expected a JSON object, got a list"),
        ({"text_input": 3}, "text_input: expected a string, got 3"),
        ({"text_input": None}, "text_input: expected a string, got null"),
        ({"text_input": {"a": 1}}, "text_input: expected a string, got an object"),
        ({"text_input": [["a"], "b"]}, "text_input[1]: expected a list of 1 elements for shape"),
        ({"text_input": [[["a"]]]}, "text_input: expected at most 2 axes, got 3"),
        ({"tokens": [[1, 2.5]]}, "tokens[0][1]: expected an integer for INT32, got 2.5"),
        ({"tokens": [True]}, "tokens[0]: expected an integer for INT32, got true"),
        ({"tokens": 2**31}, "tokens: expected a number in the range of INT32, got 2147483648"),
        ({"other": [1]}, "other: expected a boolean, number or string, got a list"),
        ({"other": None}, "other: expected a boolean, number or string, got null"),
        ({"parameters": [1]}, "parameters: expected an object, got a list"),
        ({"parameters": {"a": {}}}, "parameters.a: expected a boolean, number or string"),
        ({"parameters": {"tokens": "a"}}, "parameters.tokens: expected an integer for INT32"),
        ({"a": 1, "parameters": {"a": 2}}, "parameters.a: stands there twice"),
        ({"tokens": 1, "parameters": {"tokens": 2}}, "parameters.tokens: stands there twice"),
        ({"timeout": -1}, "parameters.timeout: expected an integer from 0 to"),
        ({"id": 3}, "id: expected a string, got 3"),
        ({f"p{i}": 1 for i in range(1025)}, "expected at most 1024 members, got 1025"),
    ],
)
def test_a_wrong_request_is_refused_with_the_place(document: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(document)

    assert str(refused.value).startswith(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_value_is_a_tensor_or_refused(value: Any) -> None:
    try:
        request = decode({"tokens": value})
    except InvalidInput:
        return
    assert request.inputs["tokens"].ndim == 2


def answer(**outputs: Any) -> Any:
    response = InferResponse("m", "1", outputs, id="a", parameters={"more": True})
    return json.loads(encode_generate(response))


def test_an_answer_is_a_flat_object() -> None:
    found = answer(
        text_output=np.array([["hi"]], object),
        scores=np.array([[0.1, np.nan]], np.float32),
        grid=np.arange(4, dtype=np.int64).reshape(2, 2),
        words=np.array([[b"a"], [b"b"]], object),
        none=np.zeros((1, 0), np.int8),
        nan=np.array(np.nan),
        big=np.array([2**63 - 1]),
        yes=np.array([[True]]),
    )

    assert found == {
        "model_name": "m",
        "model_version": "1",
        "id": "a",
        "more": True,
        "text_output": "hi",
        "scores": [0.1, None],
        "grid": [[0, 1], [2, 3]],
        "words": [["a"], ["b"]],
        "none": [],
        "nan": None,
        "big": 2**63 - 1,
        "yes": True,
    }


def test_an_output_without_a_form_in_json_is_told() -> None:
    with pytest.raises(InvalidInput, match='outputs "x": element 0 is not UTF-8'):
        answer(x=np.array([b"\xff"], object))
    with pytest.raises(BackendError, match='output "x"'):
        answer(x=np.array([1j]))


def test_events_are_one_line_of_data_each() -> None:
    response = InferResponse("m", "1", {"x": np.array(["a\nb\r\n\u2028"], object)})

    event = encode_event(response)

    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert b"\r" not in event


def test_a_failure_is_an_event_of_its_own_kind() -> None:
    assert encode_failure("a\nb\ud800") == b'event: error\ndata: {"error":"a\\nb?"}\n\n'


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2), min_size=2))
def test_what_is_decoded_comes_back(rows: list[list[int]]) -> None:
    request = decode({"tokens": rows})

    assert answer(tokens=request.inputs["tokens"])["tokens"] == rows
