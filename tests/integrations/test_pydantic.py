"""Models of pydantic made from signatures: their fields, their strictness, their schemas."""

import json
import math
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from modelserve.integrations.pydantic import (
    JSONTensor,
    RequestModel,
    request_model,
    response_model,
)
from modelserve.tensors import DATATYPES, Signature, TensorSpec, numpy_dtype

X = TensorSpec("x", "FP32", (-1, 2))
IRIS = Signature([X], [TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 3))])


def errors(model: type[BaseModel], document: Any) -> list[dict[str, Any]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    found: Any = caught.value.errors(include_url=False)
    return found


def of(*specs: TensorSpec, **options: Any) -> type[RequestModel]:
    return request_model(Signature(specs), **options)


# Requests


def test_field_is_an_array_of_the_datatype() -> None:
    request = of(X)(x=[[1, 2], [3, 4]])
    assert request.x.dtype == np.float32
    assert request.x.tolist() == [[1, 2], [3, 4]]
    assert list(request.to_inputs()) == ["x"]
    assert request.to_inputs()["x"] is request.x


@pytest.mark.parametrize("datatype", DATATYPES)
def test_example_of_every_datatype_is_a_request(datatype: Any) -> None:
    model = of(TensorSpec("x", datatype, (-1, 2)), TensorSpec("one", datatype, ()))
    [example] = model.model_json_schema()["examples"]
    request = model.model_validate(example)
    assert request.x.dtype == numpy_dtype(datatype)
    assert request.x.shape == (1, 2)
    assert request.one.shape == ()


def test_array_is_taken_from_python() -> None:
    x = np.ones((3, 2), np.float32)
    assert of(X)(x=x).x is x
    assert of(TensorSpec("t", "BYTES", (-1,)))(t=np.array(["a"])).t.tolist() == [b"a"]
    assert of(TensorSpec("n", "FP32", ()))(n=np.float32(2)).n == 2


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones((3, 2)), "expected FP32, got FP64"),
        (np.ones((3, 3), np.float32), "expected shape (-1, 2), got (3, 3)"),
        (np.full((1, 2), np.nan, np.float32), "finite"),
    ],
)
def test_array_from_python_must_fit(array: Any, text: str) -> None:
    [error] = errors(of(X), {"x": array})
    assert text in error["msg"]
    assert error["loc"] == ("x",)


def test_all_that_is_wrong_is_told_with_its_place() -> None:
    model = of(X, TensorSpec("n", "INT32", (-1,)), TensorSpec("flag", "BOOL", ()))
    found = errors(model, {"x": [[1, 2], [3, "4"]], "n": [3.7], "z": 1})
    assert [(error["loc"], error["msg"]) for error in found] == [
        (("x", 1, 1), 'expected a number for FP32, got "4"'),
        (("n", 0), "expected an integer for INT32, got 3.7"),
        (("flag",), "Field required"),
        (("z",), "Extra inputs are not permitted"),
    ]
    assert [error["input"] for error in found] == ["4", 3.7, "an object", 1]


@pytest.mark.parametrize("document", [[], 1, "x", None, {"x": None}, {"x": {}}, {}])
def test_document_of_another_kind_is_refused(document: Any) -> None:
    assert errors(of(X), document)


def test_errors_hold_nothing_large_and_nothing_without_json() -> None:
    hostile: dict[str, Any] = {"x": [[math.nan] * 10**5] * 3, "y" * 10**6: math.inf}
    hostile |= {"z": {"deep": [math.nan] * 10**5}, "u": "\ud800" * 10**5}
    found = errors(of(X), hostile)
    assert len(found) == 4
    assert len(json.dumps(found, allow_nan=False, ensure_ascii=False).encode()) < 1000
    assert json.dumps(errors(of(X), {"\ud800": 1}), ensure_ascii=False).encode()
    [error] = errors(of(TensorSpec("x", "FP32")), {"x": [[math.nan] * 10**5] * 3})
    assert (error["loc"], error["input"]) == (("x", 0, 0), "nan")


def test_number_of_errors_is_bounded() -> None:
    assert len(errors(of(X), {f"unknown {n}": n for n in range(10**4)})) == 20


def test_braces_are_only_text() -> None:
    found = errors(of(TensorSpec("{0}{x!r}", "FP32", (2,))), {"{0}{x!r}": [1, "{y}"], "{z}": 1})
    assert [error["msg"] for error in found] == [
        'expected a number for FP32, got "{y}"', "Extra inputs are not permitted"
    ]  # fmt: skip
    assert [error["loc"] for error in found] == [("{0}{x!r}", 1), ("{z}",)]


def test_optional_input_may_be_left_out_or_null() -> None:
    model = of(X, TensorSpec("mask", "BOOL", (-1,), optional=True))
    for document in ({"x": [[1, 2]]}, {"x": [[1, 2]], "mask": None}):
        assert list(model.model_validate(document).to_inputs()) == ["x"]
    assert list(model.model_validate({"x": [[1, 2]], "mask": [True]}).to_inputs()) == ["x", "mask"]


def test_null_for_an_input_that_must_be_there_is_refused() -> None:
    [error] = errors(of(X), {"x": None})
    assert error["loc"] == ("x",)


def test_nan_is_let_in_where_it_is_allowed() -> None:
    assert errors(of(X), {"x": [[math.nan, 0]]})
    request = of(X, allow_nan=True).model_validate({"x": [[math.nan, None]]})
    assert np.isnan(request.x).all()
    assert json.loads(request.model_dump_json()) == {"x": [[None, None]]}


def test_bytes_are_text_or_base64() -> None:
    text = TensorSpec("t", "BYTES", (-1,))
    assert of(text)(t=["YQ=="]).t.tolist() == [b"YQ=="]
    request = of(text, json_bytes="base64")(t=["YQ=="])
    assert request.t.tolist() == [b"a"]
    assert request.model_dump_json() == '{"t":["YQ=="]}'


@pytest.mark.parametrize(
    "name",
    ["a.b", "class", "_hidden", "__dict__", "2d", "model_dump", "model_config", "json", "copy",
     "é", "input:0", "π/2", " ", "self", "_names", "to_inputs"],
)  # fmt: skip
def test_any_name_is_the_name_in_json(name: str) -> None:
    model = of(TensorSpec(name, "INT8", (-1,)), X)
    request = model.model_validate({name: [1], "x": [[1, 2]]})
    assert request.to_inputs()[name].tolist() == [1]
    assert json.loads(request.model_dump_json())[name] == [1]
    assert name in model.model_json_schema()["properties"]
    assert model(**{name: [1], "x": [[1, 2]]}) == request


def test_names_that_become_the_same_field_stay_apart() -> None:
    model = of(*(TensorSpec(name, "INT8", ()) for name in ("a.b", "a_b", "a/b")))
    document = {"a.b": 1, "a_b": 2, "a/b": 3}
    found = model.model_validate(document).to_inputs()
    assert {name: int(array) for name, array in found.items()} == document


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_names_of_any_text_work(names: list[str]) -> None:
    model = of(*(TensorSpec(name, "INT16", ()) for name in names))
    document = {name: number for number, name in enumerate(names)}
    found = model.model_validate(document).to_inputs()
    assert {name: int(array) for name, array in found.items()} == document


def test_request_of_one_row_has_no_first_axis() -> None:
    model = of(X, TensorSpec("age", "INT64", (-1,)), per_row=True)
    inputs = model.model_validate({"x": [1, 2], "age": 41}).to_inputs()
    assert inputs["x"].tolist() == [[1, 2]]
    assert inputs["age"].tolist() == [41]
    assert errors(model, {"x": [[1, 2]], "age": [41]})


@pytest.mark.parametrize("shape", [None, (), (3, 4)])
def test_input_without_rows_cannot_be_one_row(shape: Any) -> None:
    with pytest.raises(ValueError, match="per_row"):
        of(TensorSpec("x", "FP32", shape), per_row=True)


def test_short_cut_gives_what_validation_gives() -> None:
    model = of(X, TensorSpec("t", "BYTES", (-1,), optional=True), per_row=True)
    for document in ({"x": [1, 2], "t": "a"}, {"x": [1, 2]}, {"x": [1, 2], "t": None}):
        expected = model.model_validate(document).to_inputs()
        found = model.inputs_of(document)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert array.dtype == expected[name].dtype
            assert array.shape == expected[name].shape
            assert array.tolist() == expected[name].tolist()
    with pytest.raises(ValidationError, match="expected a number"):
        model.inputs_of({"x": [1, "2"], "t": "a"})
    with pytest.raises(ValidationError):
        model.inputs_of([])


def test_requests_are_equal_by_their_arrays() -> None:
    model = of(X)
    assert model(x=[[1, 2]]) == model(x=[[1, 2]])
    assert model(x=[[1, 2]]) != model(x=[[1, 3]])
    assert model(x=[[1, 2]]) != [[1, 2]]


# Responses


def test_response_is_written_with_its_outputs() -> None:
    model = response_model(IRIS)
    outputs = {"scores": np.array([[0.1, 0.2, 0.7]], np.float32), "label": np.array([2])}
    response = model.from_outputs(outputs)
    assert json.loads(response.model_dump_json()) == {"label": [2], "scores": [[0.1, 0.2, 0.7]]}
    assert response.model_dump()["label"] is outputs["label"]
    assert model.model_validate_json(response.model_dump_json()) == response


def test_response_of_one_row_has_no_first_axis() -> None:
    text = TensorSpec("text", "BYTES", (-1,))
    model = response_model(Signature([], [*IRIS.outputs, text]), per_row=True)
    response = model.from_outputs(
        {
            "label": np.array([2]),
            "scores": np.array([[0, np.nan, 1]], np.float32),
            "text": np.array([b"a"], np.object_),
        }
    )
    assert json.loads(response.model_dump_json()) == {
        "label": 2, "scores": [0, None, 1], "text": "a"
    }  # fmt: skip


def test_response_leaves_out_what_it_does_not_name() -> None:
    model = response_model(Signature([], [TensorSpec("y", "FP32", (-1,))]))
    response = model.from_outputs({"y": np.zeros(1, np.float32), "z": np.zeros(1)})
    assert response.model_dump_json() == '{"y":[0.0]}'


def test_outputs_that_do_not_make_a_response_are_refused() -> None:
    with pytest.raises(ValueError, match='output "label" is missing'):
        response_model(IRIS).from_outputs({"scores": np.zeros((1, 3))})
    with pytest.raises(ValueError, match="expected one row"):
        response_model(IRIS, per_row=True).from_outputs(
            {"label": np.zeros(2), "scores": np.zeros((2, 3))}
        )


def test_unknown_outputs_make_no_response() -> None:
    with pytest.raises(ValueError, match="outputs are not known"):
        response_model(Signature([X]))


# Schemas


def test_schema_names_shapes_ranges_and_datatypes() -> None:
    model = of(
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("n", "UINT8", (-1,)),
        TensorSpec("m", "FP16", (2,)),
        TensorSpec("b", "BYTES", ()),
        TensorSpec("o", "BOOL", (-1,), optional=True),
        name="IrisRequest",
    )
    schema = model.model_json_schema()
    assert schema["title"] == "IrisRequest"
    assert schema["required"] == ["x", "n", "m", "b"]
    assert schema["additionalProperties"] is False
    fields = schema["properties"]
    assert fields["x"] == {
        "title": "x",
        "description": "FP32, shape [-1, 4]",
        "type": "array",
        "items": {
            "type": "array",
            "minItems": 4,
            "maxItems": 4,
            "items": {"type": "number", "format": "float"},
        },
    }
    assert fields["n"]["items"] == {"type": "integer", "minimum": 0, "maximum": 255}
    assert fields["m"]["items"] == {"type": "number", "minimum": -65504, "maximum": 65504}
    assert fields["b"] == {
        "title": "b", "description": "BYTES, a single value", "type": "string"
    }  # fmt: skip
    assert {"type": "null"} in fields["o"]["anyOf"]


def test_bounds_of_64_bits_are_left_to_the_format() -> None:
    """In FastAPI's documents they would be floats, and so other numbers."""
    fields = of(TensorSpec("i", "INT64", ()), TensorSpec("u", "UINT64", ())).model_json_schema()[
        "properties"
    ]
    assert {"minimum", "maximum"}.isdisjoint(fields["i"])
    assert fields["i"]["format"] == "int64"
    assert fields["u"]["minimum"] == 0
    assert "maximum" not in fields["u"]


def test_schema_says_base64_and_null() -> None:
    schema = of(
        TensorSpec("b", "BYTES", (-1,)), X, json_bytes="base64", allow_nan=True
    ).model_json_schema()
    assert schema["properties"]["b"]["items"]["contentEncoding"] == "base64"
    inner = schema["properties"]["x"]["items"]["items"]
    assert {"type": "null"} in inner["anyOf"]


def test_example_may_be_given() -> None:
    model = of(X, TensorSpec("n", "INT8", ()), examples={"x": [[5.1, 3.5]]})
    assert model.model_json_schema()["examples"] == [{"x": [[5.1, 3.5]], "n": 0}]


def test_wrong_example_is_refused() -> None:
    with pytest.raises(ValueError, match='the example of "x": expected shape'):
        of(X, examples={"x": [5.1, 3.5]})
    with pytest.raises(ValueError, match=r"examples of \['y'\]"):
        of(X, examples={"y": 1})


def test_example_of_a_large_array_is_small() -> None:
    model = of(TensorSpec("image", "UINT8", (-1, 3, 224, 224)))
    assert len(json.dumps(model.model_json_schema())) < 1000


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-300, 300), st.floats(-5, 5), st.text(max_size=2)
)
DOCUMENTS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
SPECS = [
    TensorSpec("x", datatype, shape)
    for datatype in ("FP32", "INT8", "BOOL", "BYTES")
    for shape in ((), (-1,), (2,), (-1, 2))
]


def allows(schema: Any, value: Any) -> bool:
    """Whether a schema allows a value; for what stands in the schemas of arrays."""
    match schema["type"]:
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
            return (
                isinstance(value, list)
                and least <= len(value) <= most
                and all(allows(schema["items"], one) for one in value)
            )
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "integer":
            whole = type(value) is int
            return whole and schema["minimum"] <= value <= schema["maximum"]
    raise AssertionError(schema)


def is_even(value: Any) -> bool:
    """Whether lists beside one another are equally long, which no schema can say."""
    lengths = {len(one) if isinstance(one, list) else -1 for one in value}
    return len(lengths) < 2


@given(DOCUMENTS, st.sampled_from(SPECS))
def test_what_is_taken_is_what_the_schema_allows(value: Any, spec: TensorSpec) -> None:
    model = of(spec)
    try:
        model.model_validate({"x": value})
    except ValidationError:
        taken = False
    else:
        taken = True
    schema = model.model_json_schema()["properties"]["x"]
    allowed = allows(schema, value) and (not isinstance(value, list) or is_even(value))
    assert taken == allowed


# The annotation in models of one's own


class Query(BaseModel):
    user: str
    x: Annotated[np.ndarray, JSONTensor("FP32", (-1, 2))]
    mask: Annotated[np.ndarray, JSONTensor("BOOL", (-1,))] | None = None


def test_array_stands_beside_other_fields() -> None:
    query = Query.model_validate({"user": "me", "x": [[1, 2]]})
    assert query.x.tolist() == [[1, 2]]
    assert query.model_dump_json() == '{"user":"me","x":[[1.0,2.0]],"mask":null}'
    [error] = errors(Query, {"user": "me", "x": [[1, None]]})
    assert error["loc"] == ("x", 0, 1)


@pytest.mark.parametrize(
    "arguments", [("float32", None), ("FP32", (-2,)), ("FP32", (1,), "hex")], ids=repr
)
def test_annotation_that_cannot_be_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"datatype|sizes|json_bytes"):
        JSONTensor(*arguments)
