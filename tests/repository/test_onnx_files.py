"""The walk through a model finds every file it names, and at worst says no."""

from __future__ import annotations

import io
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelserve.errors import LoadError
from modelserve.repository.onnx_files import external_files, relative_name


def external(name: str, *, key: str = "location", **more: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key=key, value=more.pop("location", name))
    for other, value in more.items():
        tensor.external_data.add(key=other, value=value)
    return tensor


def graph(*nodes: Any, initializer: Any = (), sparse: Any = ()) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), "g", [], [], initializer=list(initializer), sparse_initializer=list(sparse)
    )


def node(**attributes: Any) -> onnx.NodeProto:
    made = onnx.NodeProto(op_type="Constant")
    for name, value in attributes.items():
        made.attribute.append(helper.make_attribute(name, value))
    return made


def found(model: onnx.ModelProto) -> tuple[str, ...]:
    return external_files(io.BytesIO(model.SerializeToString()))


def test_model_without_external_data_names_no_file() -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    assert found(helper.make_model(graph(initializer=[weights]))) == ()


def test_files_are_found_wherever_a_tensor_may_stand() -> None:
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"))
    attribute = onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.append(onnx.SparseTensorProto(values=external("attribute.values")))
    holder = onnx.NodeProto(op_type="X", attribute=[attribute])
    model = helper.make_model(
        graph(
            node(value=external("constant")),
            node(several=[external("first"), external("second")]),
            node(body=graph(initializer=[external("subgraph")])),
            node(branches=[graph(node(body=graph(initializer=[external("deep")])))]),
            holder,
            initializer=[external("weights")],
            sparse=[sparse],
        )
    )
    function = model.functions.add(name="f", domain="d")
    function.node.append(node(value=external("function")))
    function.attribute_proto.append(helper.make_attribute("default", external("default")))
    training = model.training_info.add()
    training.algorithm.CopyFrom(graph(initializer=[external("algorithm")]))
    training.initialization.CopyFrom(graph(initializer=[external("initialization")]))
    assert found(model) == tuple(
        sorted(
            [
                *("values", "indices", "attribute.values", "constant", "first", "second"),
                *("subgraph", "deep", "weights", "function", "default", "algorithm"),
                "initialization",
            ]
        )
    )


def test_offset_and_length_are_not_taken_for_files() -> None:
    tensor = external("w", offset="0", length="8", checksum="abc")
    assert found(helper.make_model(graph(initializer=[tensor]))) == ("w",)


def test_location_is_found_when_the_value_stands_before_the_key() -> None:
    entry = b"\x12\x01w" + b"\x0a\x08location"
    tensor = b"\x70\x01" + b"\x6a" + bytes([len(entry)]) + entry
    body = b"\x2a" + bytes([len(tensor)]) + tensor
    assert external_files(io.BytesIO(b"\x3a" + bytes([len(body)]) + body)) == ("w",)


def test_shared_file_is_named_once_in_its_plain_form() -> None:
    tensors = [external("a", location="./d//w.bin"), external("b", location="d/w.bin")]
    assert found(helper.make_model(graph(initializer=tensors))) == ("d/w.bin",)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../w",
        "a/../../w",
        "a\\..\\..\\w",
        "\\\\host\\share",
        "C:\\w",
        "C:w",
        "",
        ".",
    ],
)
def test_location_outside_of_the_directory_is_refused(location: str) -> None:
    model = helper.make_model(graph(initializer=[external("w", location=location)]))
    with pytest.raises(LoadError, match="inside the model's directory"):
        found(model)


def test_external_tensor_without_a_file_is_refused() -> None:
    model = helper.make_model(graph(initializer=[external("w", key="offset")]))
    with pytest.raises(LoadError, match="no file is named"):
        found(model)


def test_model_without_a_graph_is_refused() -> None:
    with pytest.raises(LoadError, match="holds no graph"):
        external_files(io.BytesIO(b""))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x3a", "cut off at byte 1"),
        (b"\x3a\x05\x0a", "ends behind its message"),
        (b"\x3a" + b"\xff" * 11, "a number of over 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x00", "field number 0"),
        (b"\x09\x00\x00", "cut off at byte 0"),
        (b"\x0d\x00\x00", "cut off at byte 0"),
    ],
)
def test_malformed_bytes_are_refused_with_their_place(data: bytes, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        external_files(io.BytesIO(data))


def test_endless_nesting_is_refused() -> None:
    def wrap(data: bytes, tag: int) -> bytes:
        size, length = len(data), bytearray()
        while size >= 0x80:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([tag]) + bytes(length) + bytes([size]) + data

    data = b""
    for _ in range(100):
        data = wrap(wrap(wrap(data, 0x32), 0x2A), 0x0A)  # graph in attribute in node
    with pytest.raises(LoadError, match="messages deep"):
        external_files(io.BytesIO(wrap(data, 0x3A)))


@given(st.binary(max_size=200))
def test_any_bytes_give_names_or_a_load_error(data: bytes) -> None:
    try:
        names = external_files(io.BytesIO(b"\x3a" + bytes([len(data) & 0x7F]) + data))
    except LoadError:
        return
    assert all(relative_name(name) == name for name in names)


@given(st.data())
def test_damaged_model_gives_names_or_a_load_error(data: st.DataObject) -> None:
    model = helper.make_model(graph(node(value=external("c")), initializer=[external("w")]))
    damaged = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        names = external_files(io.BytesIO(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except LoadError:
        return
    assert all(relative_name(name) == name for name in names)


def test_tensors_larger_than_the_window_are_skipped() -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [100_000], bytes(400_000), raw=True)
    model = helper.make_model(graph(initializer=[weights, external("behind")]))
    assert found(model) == ("behind",)
