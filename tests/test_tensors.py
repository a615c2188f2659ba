"""Datatypes, specifications, signatures: what fits, what is converted, and how a refusal reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelserve.errors import InvalidInput
from modelserve.tensors import (
    DATATYPES,
    Datatype,
    Signature,
    TensorSpec,
    as_bytes_tensor,
    as_tensor,
    datatype_of,
    numpy_dtype,
)

X = np.zeros((2, 4), np.float32)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def one(datatype: Datatype = "FP32", shape: Any = (-1, 4), **options: Any) -> Signature:
    return Signature([TensorSpec("x", datatype, shape, **options)])


def refusal(signature: Signature, inputs: Any, *, batched: bool = False) -> str:
    with pytest.raises(InvalidInput) as caught:
        signature.validate(inputs, batched=batched)
    assert str(caught.value).startswith(f"{caught.value.path}: ")
    return str(caught.value)


# Datatypes


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_is_that_of_its_dtype(datatype: Datatype) -> None:
    assert datatype_of(numpy_dtype(datatype)) == datatype


@pytest.mark.parametrize("dtype", [">f4", "<f4", np.float32, "float32"], ids=repr)
def test_byte_order_and_spelling_of_a_dtype_do_not_matter(dtype: Any) -> None:
    assert datatype_of(dtype) == "FP32"


@pytest.mark.parametrize("dtype", ["U3", "S3", "O"])
def test_text_and_objects_are_bytes(dtype: str) -> None:
    assert datatype_of(dtype) == "BYTES"


def test_bfloat16_is_ml_dtypes() -> None:
    assert numpy_dtype("BF16") == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", [np.complex64, "M8[s]", [("a", "f4")]])
def test_dtype_without_a_datatype_is_refused(dtype: Any) -> None:
    with pytest.raises(InvalidInput, match="has no datatype"):
        datatype_of(dtype)


def test_unknown_datatype_of_a_message_names_the_one_meant() -> None:
    with pytest.raises(InvalidInput, match=r'^unknown datatype "float32"; use "FP32"$'):
        numpy_dtype("float32")


# Specifications


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("float32", '"FP32"'),
        ("fp32", '"FP32"'),
        ("torch.float16", '"FP16"'),
        ("torch.long", '"INT64"'),
        ("tensor(double)", '"FP64"'),
        ("tensor(int64)", '"INT64"'),
        ("TYPE_FP32", '"FP32"'),
        ("TYPE_STRING", '"BYTES"'),
        ("float", '"FP32" or "FP64"'),
        (np.float32, '"FP32"'),
        (np.dtype(np.int8), '"INT8"'),
        (np.bool_, '"BOOL"'),
        (str, '"BYTES"'),
        (int, '"INT64"'),
    ],
    ids=repr,
)
def test_datatype_by_another_name_is_refused_with_the_protocols(said: Any, meant: str) -> None:
    with pytest.raises(ValueError, match="unknown datatype") as caught:
        TensorSpec("x", said)
    assert str(caught.value) == f'tensor "x": unknown datatype {said!r}; use {meant}'


@pytest.mark.parametrize("said", ["", "FP8", "complex64", None, 7], ids=repr)
def test_datatype_of_no_meaning_is_refused_with_all_there_are(said: Any) -> None:
    with pytest.raises(ValueError, match=r"one of BOOL, UINT8, .*, BYTES$"):
        TensorSpec("x", said)


@pytest.mark.parametrize("size", [None, "batch", 4.0])
def test_size_that_is_no_integer_is_refused_and_minus_one_proposed(size: Any) -> None:
    with pytest.raises(ValueError, match=r'^tensor "x": .* -1 where any size will do; got \('):
        TensorSpec("x", "FP32", (size, 4))


def test_size_below_minus_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes are >= 0 or -1, got \(-2, 4\)"):
        TensorSpec("x", "FP32", (-2, 4))


@pytest.mark.parametrize("shape", [4, np.int64(4), "4"], ids=repr)
def test_shape_that_is_no_tuple_is_refused(shape: Any) -> None:
    with pytest.raises(TypeError, match="shape is a tuple"):
        TensorSpec("x", "FP32", shape)


def test_shape_becomes_a_tuple_of_int() -> None:
    shape = TensorSpec("x", "FP32", [np.int64(-1), 4]).shape  # type: ignore[arg-type]  # on purpose
    assert shape == (-1, 4)
    assert [type(size) for size in shape] == [int, int]


@pytest.mark.parametrize("name", ["", None, 3])
def test_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="non-empty str"):
        TensorSpec(name, "FP32")


# Signatures: what fits


@given(hnp.arrays(hnp.floating_dtypes(sizes=32, endianness="="), SHAPES))
def test_array_that_fits_is_passed_on_as_it_is(x: Any) -> None:
    inputs = {"x": x}
    found, rows = one(shape=x.shape).validate(inputs, batched=False)
    assert found is inputs
    assert rows == 1


@given(SHAPES, SHAPES)
def test_shape_fits_where_every_fixed_size_is_met(
    expected: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    # Size 0 stands for an open one here: there are few enough equal shapes as it is.
    spec = tuple(size or -1 for size in expected)
    fits = len(spec) == len(shape) and all(
        size in (-1, n) for size, n in zip(spec, shape, strict=False)
    )
    signature, inputs = one(shape=spec), {"x": np.zeros(shape, np.float32)}
    if fits:
        assert signature.validate(inputs, batched=False)[0] is inputs
    else:
        said, _, _hint = refusal(signature, inputs).partition("; axis 0")
        assert said == f'inputs[0] "x": expected shape {spec}, got {shape}'


@given(SHAPES)
def test_open_number_of_axes_takes_any_shape(shape: tuple[int, ...]) -> None:
    inputs = {"x": np.zeros(shape, np.float32)}
    assert one(shape=None).validate(inputs, batched=False)[0] is inputs


@given(st.integers(0, 9), st.integers(0, 9))
def test_rows_are_those_all_inputs_agree_on(a: int, b: int) -> None:
    signature = Signature([TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT8", (-1,))])
    inputs = {"a": np.zeros((a, 2), np.float32), "b": np.zeros(b, np.int8)}
    if a == b:
        assert signature.validate(inputs, batched=True) == (inputs, a)
    else:
        said = refusal(signature, inputs, batched=True)
        assert said == f'inputs[1] "b": expected {a} rows as in the other inputs, got shape ({b},)'


def test_scalar_has_no_rows() -> None:
    said = refusal(one(shape=None), {"x": np.float32(1)}, batched=True)
    assert said == 'inputs[0] "x": expected shape (rows, ...), got ()'


@given(hnp.arrays(hnp.integer_dtypes(sizes=32, endianness=">"), SHAPES))
def test_foreign_byte_order_is_converted_and_values_kept(x: Any) -> None:
    found, _ = one("INT32", x.shape).validate({"x": x}, batched=False)
    assert found["x"].dtype.isnative
    np.testing.assert_array_equal(found["x"], x)


def test_conversion_leaves_the_callers_mapping_alone() -> None:
    inputs = {"x": [[1, 2, 3, 4]]}
    found, _ = one().validate(inputs, batched=False)
    assert inputs == {"x": [[1, 2, 3, 4]]}
    assert found["x"].dtype == np.float32


def test_optional_input_may_be_left_out() -> None:
    signature = Signature([TensorSpec("x", "FP32"), TensorSpec("y", "FP32", optional=True)])
    inputs = {"x": X}
    assert signature.validate(inputs, batched=True) == (inputs, 2)


# Signatures: refusals


def test_misspelt_input_is_named_beside_the_missing_one() -> None:
    signature = Signature([TensorSpec("bytes", "BYTES")])
    said = refusal(signature, {"byte": np.array(["a"])})
    assert said == 'inputs: "bytes" is missing; "byte" is unknown'


def test_all_missing_inputs_are_named() -> None:
    signature = Signature([TensorSpec(name, "FP32") for name in "abc"])
    assert refusal(signature, {"b": X}) == 'inputs: "a", "c" are missing'


def test_unknown_inputs_are_named_up_to_a_few() -> None:
    said = refusal(one(), {f"u{i}": X for i in range(1000)})
    expected = 'inputs: "x" is missing; "u0", "u1", "u2", "u3", "u4", ... are unknown'
    assert said == expected


def test_a_name_is_shown_up_to_a_length() -> None:
    long = "n" * 100_000
    assert len(refusal(one(), {long: X})) < 200
    assert len(refusal(one(), {"x": X, long: X})) < 200


def test_one_input_too_many_is_told_what_the_model_takes() -> None:
    said = refusal(one(), {"x": X, "z": X})
    assert said == 'inputs[1] "z": unknown input; the model takes x'


@pytest.mark.parametrize("optional", [True, False])
def test_none_is_a_missing_input(optional: bool) -> None:
    assert refusal(one(optional=optional), {"x": None}) == 'inputs: "x" is missing'


@pytest.mark.parametrize(
    ("datatype", "x", "said"),
    [
        ("FP32", X.astype(np.float64), "FP32, got FP64; convert it with .astype(np.float32)"),
        ("FP32", X.astype(np.int64), "FP32, got INT64; convert it with .astype(np.float32)"),
        ("INT32", X.astype(">i8"), "INT32, got INT64; convert it with .astype(np.int32)"),
        ("FP32", X.astype(ml_dtypes.bfloat16), "FP32, got BF16"),
        ("INT64", X, "INT64, got FP32"),
        ("FP32", X.astype(object), "FP32, got BYTES"),
        ("FP32", X.astype(str), "FP32, got BYTES"),
        ("BYTES", X, "BYTES, got FP32"),
        ("FP32", X.astype(np.complex64), "FP32, got complex64"),
        ("BOOL", X.astype(np.uint8), "BOOL, got UINT8"),
    ],
)
def test_wrong_datatype_is_told_in_the_protocols_words(
    datatype: Datatype, x: Any, said: str
) -> None:
    assert refusal(one(datatype), {"x": x}) == f'inputs[0] "x": expected {said}'


@given(
    st.sampled_from([d for d in DATATYPES if d not in ("BF16", "BYTES")]),
    hnp.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf" and dtype.itemsize <= 8),
)
def test_conversion_that_is_proposed_is_accepted(datatype: Datatype, dtype: Any) -> None:
    x = np.zeros((1, 4), dtype)
    if datatype_of(dtype) == datatype:
        return
    said = refusal(one(datatype), {"x": x})
    _, proposed, name = said.partition("convert it with .astype(np.")
    if proposed:
        converted = x.astype(getattr(np, name.removesuffix(")")))
        assert one(datatype).validate({"x": converted}, batched=True)[1] == 1


def test_array_of_another_library_with_dtypes_of_its_own_is_refused() -> None:
    class Theirs:
        def __repr__(self) -> str:
            return "theirs.float32"

    x = SimpleNamespace(dtype=Theirs(), shape=(1, 4), __dlpack__=lambda: None)
    said = refusal(one(), {"x": x})
    assert said == 'inputs[0] "x": expected FP32, got theirs.float32; give a numpy array'


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two outputs have the same name"):
        Signature([], [TensorSpec("y", "FP32"), TensorSpec("y", "INT8")])


def test_equal_signatures_have_equal_hashes() -> None:
    assert one() == one()
    assert hash(one()) == hash(one())
    assert one() != one(shape=(-1, 5))
    assert one() != "x"


# Python values


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_integers_become_what_the_model_takes(values: list[int]) -> None:
    for datatype in ("INT32", "INT64", "FP64"):
        found = as_tensor(values, datatype)
        assert found.dtype == numpy_dtype(datatype)
        assert found.tolist() == values


@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from(["INT8", "UINT8", "UINT64", "INT64"]))
def test_integer_out_of_range_never_wraps(value: int, datatype: Datatype) -> None:
    limits = np.iinfo(numpy_dtype(datatype))
    if limits.min <= value <= limits.max:
        assert as_tensor([value], datatype).tolist() == [value]
    else:
        with pytest.raises(InvalidInput, match=r"^x: "):
            as_tensor([value], datatype, path="x")


@pytest.mark.parametrize(
    ("value", "datatype", "said"),
    [
        ([0.5], "INT64", "expected INT64, got FP64 values"),
        (["a"], "FP32", "expected FP32, got BYTES values"),
        ([None], "FP32", "expected FP32, got Python object values"),
        ([300], "UINT8", "a value is out of the range of UINT8"),
        ([1], "BYTES", "element 0 is int; BYTES takes bytes or str"),
    ],
)
def test_value_of_another_kind_is_refused(value: Any, datatype: Datatype, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        as_tensor(value, datatype, path='inputs[0] "x"')
    assert str(caught.value) == f'inputs[0] "x": {said}'


def test_ragged_list_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be made a FP32 tensor"):
        as_tensor([[1], [1, 2]], "FP32")


def test_empty_list_has_the_models_datatype() -> None:
    assert as_tensor([], "INT8").dtype == np.int8


# Text


@given(st.lists(st.text() | st.binary()), st.booleans())
def test_text_becomes_bytes_and_bytes_stay(values: list[str | bytes], twice: bool) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    try:
        expected = [v.encode() if isinstance(v, str) else v for v in values]
    except UnicodeEncodeError:
        return  # half a character: not what is tested here
    found = as_bytes_tensor(array)
    assert found.tolist() == expected
    assert as_bytes_tensor(found) is found


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
def test_text_keeps_its_shape(shape: tuple[int, ...]) -> None:
    assert as_bytes_tensor(np.full(shape, "ü")).shape == shape


class Frame:
    """What tells a data frame from an array."""

    columns = ("b", "a")

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return np.ones((1, 2))

    __array__ = to_numpy


def test_a_data_frame_is_refused_for_the_names_of_its_columns() -> None:
    signature = Signature([TensorSpec("x", "FP64", (-1, 2))])
    with pytest.raises(InvalidInput, match=r'^inputs\[0\] "x": a data frame.*\.to_numpy\(\)$'):
        signature.validate({"x": Frame()}, batched=True)


def test_a_row_without_its_batch_axis_is_told_how_to_get_one() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, 2))])
    with pytest.raises(InvalidInput, match=r"got \(2,\); axis 0 counts the rows: x\[None\] makes"):
        signature.validate({"x": np.zeros(2, np.float32)}, batched=True)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([np.float32, np.int64, np.float64]),
            st.lists(st.integers(0, 3), max_size=3).map(tuple),
            st.sampled_from(["x", "y", "z"]),
            st.booleans(),
        ),
        max_size=3,
    )
)
def test_the_short_check_says_rows_only_where_validation_says_the_same(given_inputs):
    signature = Signature([TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "INT64", (-1,))])
    inputs = {}
    for dtype, shape, name, as_list in given_inputs:
        array = np.zeros(shape, dtype)
        inputs[name] = array.tolist() if as_list else array
    rows = signature.rows_of(inputs)
    if rows >= 0:
        validated, expected = signature.validate(inputs, batched=True)
        assert (validated is inputs, rows) == (True, expected)


def test_the_short_check_knows_plain_inputs():
    signature = Signature([TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "INT64", (-1,))])
    inputs = {"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int64)}
    assert signature.rows_of(inputs) == 3
    assert signature.rows_of({**inputs, "y": np.zeros(2, np.int64)}) == -1
    assert signature.rows_of({**inputs, "x": np.zeros((3, 2), ">f4")}) == -1


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", "BYTES", (-1, 1)),
        TensorSpec("x", "FP32", (-1, -1)),
        TensorSpec("x", "FP32"),
        TensorSpec("x", "FP32", (2, 1)),
        TensorSpec("x", "FP32", (-1, 1), optional=True),
    ],
)
def test_the_short_check_leaves_the_rest_to_validation(spec):
    array = np.zeros((2, 1), np.float32 if spec.datatype == "FP32" else np.object_)
    assert Signature([spec]).rows_of({"x": array}) == -1
    assert Signature([]).rows_of({}) == -1
