"""The best classes of an output: their order, their text, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelserve.errors import BackendError, InvalidInput
from modelserve.execution.classification import (
    Classes,
    best_classes,
    classified_response,
    classifies,
)
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import TensorSpec

NUMBERS = ("<f2", "<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8")
ROW = np.array([[0.5, 0.25, 0.5, 0.125]], np.float32)


def asking(count: Any, *, outputs: list[str] | None = None, name: str = "y") -> InferRequest:
    return InferRequest(
        "m",
        {},
        outputs=outputs or ["y"],
        output_parameters={name: {"classification": count}},
    )


def best(array: Any, count: Any, classes: Classes, names: tuple[str, ...] = ()) -> Any:
    request = asking(count)
    return classes.best({"y": array}, request, classes.wanted(request), names)["y"].tolist()


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda dtype: arrays.arrays(
            dtype, st.tuples(st.integers(1, 3), st.integers(1, 300)), fill=st.nothing()
        )
    ),
    st.integers(1, 320),
)
def test_the_best_are_the_first_of_numpy_s_stable_order(scores: Any, count: int) -> None:
    found = best_classes(scores, count)
    assert found.shape == (len(scores), min(count, scores.shape[1]))
    for row, texts in zip(scores, found.tolist(), strict=True):
        values = row.tolist()
        # Descending, equal ones by index, NaN behind all numbers: in Python's own integers and
        # floats, which neither wrap nor round.
        order = sorted(
            range(len(values)),
            key=lambda at: (
                values[at] != values[at],
                -values[at] if values[at] == values[at] else 0,
                at,
            ),
        )
        form = "%f:%d" if scores.dtype.kind == "f" else "%d:%d"
        assert texts == [(form % (values[at], at)).encode() for at in order[:count]]


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, float("nan")]), min_size=65, max_size=90))
def test_ties_and_nan_keep_their_order_among_many(values: list[float]) -> None:
    scores = np.array([values])
    for count in (1, 3, 9):
        assert best_classes(scores, count).tolist() == best_classes(scores, 90)[:, :count].tolist()


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        (ROW, [b"0.500000:0", b"0.500000:2"]),
        (np.array([[7, -3]]), [b"7:0", b"-3:1"]),
        (np.array([[1e20, 1e-9]]), [b"100000000000000000000.000000:0", b"0.000000:1"]),
        (np.array([[np.nan, -np.inf, np.inf]]), [b"inf:2", b"-inf:1"]),
        (np.array([[1, 2]], ml_dtypes.bfloat16), [b"2.000000:1", b"1.000000:0"]),
        (np.array([[2**64 - 1, 0]], np.uint64), [b"18446744073709551615:0", b"0:1"]),
    ],
)
def test_values_are_written_as_c_writes_them(scores: Any, texts: list[bytes]) -> None:
    assert best_classes(scores, 2).tolist() == [texts]


def test_a_class_without_a_name_has_none() -> None:
    assert best_classes(ROW, 4, ("cat", "", "bird")).tolist() == [
        [b"0.500000:0:cat", b"0.500000:2:bird", b"0.250000:1", b"0.125000:3"]
    ]


def test_what_follows_the_batch_is_one_row_of_classes() -> None:
    scores = np.arange(12).reshape(2, 3, 1, 2)
    assert best_classes(scores, 1).tolist() == [[b"5:5"], [b"11:5"]]
    assert best_classes(scores, 1, rows=False).tolist() == [b"11:11"]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_nothing_has_no_best(shape: tuple[int, ...]) -> None:
    found = best_classes(np.zeros(shape), 2)
    assert found.shape == (shape[0], min(2, int(np.prod(shape[1:]))))


@pytest.mark.parametrize(
    ("spec", "batched", "shape"),
    [
        ((-1, 4), True, [[b"0.500000:0"]]),
        ((1, 4), False, [b"0.500000:0"]),
        ((-1, 4), False, [[b"0.500000:0"]]),
        (None, False, [[b"0.500000:0"]]),
    ],
)
def test_axis_0_is_rows_where_it_is_a_batch_or_may_have_any_size(
    spec: tuple[int, ...] | None, batched: bool, shape: Any
) -> None:
    assert best(ROW, 1, Classes([TensorSpec("y", "FP32", spec)], batched=batched)) == shape


def test_labels_of_an_output_go_before_names_of_a_model() -> None:
    names = ("a", "b", "c", "d")
    assert best(ROW, 1, Classes(), names) == [[b"0.500000:0:a"]]
    assert best(ROW, 1, Classes(labels={"y": ("own",)}), names) == [[b"0.500000:0:own"]]
    assert best(ROW, 2, Classes(labels={"y": ("own",)})) == [[b"0.500000:0:own", b"0.500000:2"]]


def test_names_of_another_number_of_classes_are_not_this_output_s() -> None:
    assert best(ROW, 1, Classes(), ("a", "b")) == [[b"0.500000:0"]]


def test_other_outputs_stay_as_they_are() -> None:
    request = asking(1, outputs=["z", "y"])
    classes = Classes()
    found = classes.best({"z": ROW, "y": ROW}, request, classes.wanted(request))
    assert found["z"] is ROW
    assert found["y"].tolist() == [[b"0.500000:0"]]


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (-1, "-1"), (1.0, "1.0"), ("3", '"3"'), (True, "true"), (10**60, None)],
)
def test_a_number_of_classes_is_a_whole_number_from_1_on(count: Any, shown: str | None) -> None:
    if shown is None:
        assert Classes().wanted(asking(count)) == {"y": count}
        return
    with pytest.raises(InvalidInput) as caught:
        Classes().wanted(asking(count, outputs=["z", "y"]))
    assert str(caught.value) == (
        f"outputs[1].parameters.classification: expected a number of classes from 1 on, got {shown}"
    )


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL"])
def test_what_is_no_number_has_no_classes(datatype: Any) -> None:
    message = rf'outputs\[0\].*expected an output of numbers; "y" is {datatype}'
    with pytest.raises(InvalidInput, match=message):
        Classes([TensorSpec("y", datatype, (-1,))]).wanted(asking(1))
    array = np.array([b"a"], np.object_) if datatype == "BYTES" else np.array([True])
    with pytest.raises(InvalidInput, match=message):
        best(array, 1, Classes())


def test_an_output_of_no_datatype_is_the_model_s_fault() -> None:
    with pytest.raises(BackendError, match='output "y"'):
        best(np.array([1j]), 1, Classes())


def test_only_who_asks_is_asking() -> None:
    assert classifies(asking(1))
    assert not classifies(InferRequest("m", {}))
    assert not classifies(InferRequest("m", {}, output_parameters={"y": {"binary_data": True}}))


def test_a_response_is_made_anew_with_classes_in_it() -> None:
    response = InferResponse("m", "2", {"y": ROW}, id="a", parameters={"p": 1})
    found = classified_response(response, asking(1))
    assert found.outputs["y"].tolist() == [[b"0.500000:0"]]
    assert (found.model, found.version, found.id, found.parameters) == ("m", "2", "a", {"p": 1})
    assert response.outputs["y"] is ROW
