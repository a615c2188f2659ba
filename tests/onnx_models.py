"""Small ONNX models for tests, as bytes. Made in memory: no binary files, no downloads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

Shape = Sequence[int | str | None] | None


def value(name: str, datatype: str = "FP32", shape: Shape = ("batch", 4)) -> onnx.ValueInfoProto:
    """Describe a graph input or output."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 21,
    ir_version: int = 10,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Serialize a graph; opset 21 and IR version 10 are read by every supported runtime."""
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(initializers))
    proto = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid("ai.onnx.ml", 3),
            helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=ir_version,
        producer_name="onnx_models",
    )
    if metadata:
        helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def mlp(*sizes: int, seed: int = 0, input_name: str = "x", output_name: str = "y") -> bytes:
    """Fully connected layers with Relu between: (batch, sizes[0]) -> (batch, sizes[-1])."""
    sizes = sizes or (64, 128, 64, 10)
    rng = np.random.default_rng(seed)
    nodes, weights, current = [], [], input_name
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        scale = np.float32(1 / np.sqrt(fan_in))
        weight = rng.standard_normal((fan_in, fan_out), np.float32) * scale
        bias = rng.standard_normal(fan_out, np.float32) * scale
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        weights.append(numpy_helper.from_array(bias, f"b{layer}"))
        linear = output_name if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [current, f"w{layer}", f"b{layer}"], [linear]))
        if not last:
            nodes.append(helper.make_node("Relu", [linear], [f"r{layer}"]))
            current = f"r{layer}"
    return model(
        nodes,
        [value(input_name, "FP32", ("batch", sizes[0]))],
        [value(output_name, "FP32", ("batch", sizes[-1]))],
        weights,
    )


def wide() -> bytes:
    """A weight-bound model of 67 MB: 64-2048-4096-2048-10, where batching pays 6-7 times."""
    return mlp(64, 2048, 4096, 2048, 10)


def weights(megabytes: float, *, layer: int = 2048) -> bytes:
    """A model of about `megabytes` MB: equal square layers of width `layer` behind 64 inputs."""
    count = max(1, round(megabytes * 1e6 / (4 * layer * layer)))
    return mlp(64, *[layer] * (count + 1), 10)


def identity(datatype: str = "FP32", shape: Shape = ("batch", 2)) -> bytes:
    """Give back input "x" as "y"."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", datatype, shape)],
        [value("y", datatype, shape)],
    )


def add_one(shape: Shape = ("batch", 4)) -> bytes:
    """Compute y = x + 1 in FP32."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    return model(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [value("x", "FP32", shape)],
        [value("y", "FP32", shape)],
        [one],
    )


def bf16_linear() -> bytes:
    """Multiply BF16 (batch, 2) by 2: computed in FP32 between two casts."""
    two = numpy_helper.from_array(np.array([2.0], np.float32), "two")
    return model(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "two"], ["twice"]),
            helper.make_node("Cast", ["twice"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [value("x", "BF16", ("batch", 2))],
        [value("y", "BF16", ("batch", 2))],
        [two],
    )


def string_exclaim() -> bytes:
    """Append "!" to every string: BYTES (batch, 1) -> BYTES (batch, 1)."""
    mark = helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"])
    return model(
        [helper.make_node("StringConcat", ["x", "mark"], ["y"])],
        [value("x", "BYTES", ("batch", 1))],
        [value("y", "BYTES", ("batch", 1))],
        [mark],
    )


def string_table() -> bytes:
    """Map known words to numbers (cat 1, dog 2, else -1): BYTES (batch, 1) -> INT64 (batch, 1)."""
    node = helper.make_node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        keys_strings=["cat", "dog"],
        values_int64s=[1, 2],
        default_int64=-1,
    )
    return model([node], [value("x", "BYTES", ("batch", 1))], [value("y", "INT64", ("batch", 1))])


def two_in_three_out() -> bytes:
    """FP32 a, INT64 b (batch, 2) -> total = a + b, difference = a - b, doubled = b + b."""
    return model(
        [
            helper.make_node("Cast", ["b"], ["bf"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "bf"], ["total"]),
            helper.make_node("Sub", ["a", "bf"], ["difference"]),
            helper.make_node("Add", ["b", "b"], ["doubled"]),
        ],
        [value("a", "FP32", ("batch", 2)), value("b", "INT64", ("batch", 2))],
        [
            value("total", "FP32", ("batch", 2)),
            value("difference", "FP32", ("batch", 2)),
            value("doubled", "INT64", ("batch", 2)),
        ],
    )


def optional_input() -> bytes:
    """Compute y = x * scale, where "scale" is an initializer (3) that a caller may override."""
    scale = numpy_helper.from_array(np.array([3.0], np.float32), "scale")
    return model(
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        [value("x", "FP32", ("batch", 2)), value("scale", "FP32", (1,))],
        [value("y", "FP32", ("batch", 2))],
        [scale],
    )


def fixed_batch(rows: int = 4) -> bytes:
    """An MLP layer whose axis 0 is written down: FP32 (rows, 3) -> (rows, 3)."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "w")
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", "FP32", (rows, 3))],
        [value("y", "FP32", (rows, 3))],
        [weight],
    )


def reduce_over_batch() -> bytes:
    """Subtract the mean over axis 0, so axis 0 is not a batch: (batch, 3) -> (batch, 3)."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    return model(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x", "FP32", ("batch", 3))],
        [value("y", "FP32", ("batch", 3))],
        [axes],
    )


def column_sum() -> bytes:
    """Sum over axis 0, so the output has no batch axis at all: (batch, 3) -> (3,)."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    return model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [value("x", "FP32", ("batch", 3))],
        [value("y", "FP32", (3,))],
        [axes],
    )


def unknown_rank() -> bytes:
    """Give back x of any rank."""
    return identity("FP32", None)


def scalar() -> bytes:
    """Give back a scalar, shape ()."""
    return identity("FP32", ())


def fails_on_other_than_0_or_1() -> bytes:
    """Give back FP32 x (batch, 1); fails at run time when a row holds a value other than 0 or 1.

    A Gather with an index out of range is an error inside the kernel, after all input checks.
    """
    table = numpy_helper.from_array(np.array([10.0, 20.0], np.float32), "table")
    return model(
        [
            helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["y"]),
        ],
        [value("x", "FP32", ("batch", 1))],
        [value("y", "FP32", ("batch", 1))],
        [table],
    )


def zipmap_classifier() -> bytes:
    """A classifier as skl2onnx exports it by default: labels, and a sequence of maps.

    Three classes (5, 7, 9); the probabilities of a row are the row itself.
    """
    probabilities = helper.make_value_info(
        "probabilities",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ())
            )
        ),
    )
    return model(
        [
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
            helper.make_node(
                "ZipMap",
                ["x"],
                ["probabilities"],
                domain="ai.onnx.ml",
                classlabels_int64s=[5, 7, 9],
            ),
        ],
        [value("x", "FP32", ("batch", 3))],
        [value("label", "INT64", ("batch",)), probabilities],
    )


def sequence_output() -> bytes:
    """Split x into a sequence of tensors, which the protocol cannot carry."""
    pieces = helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)
    return model(
        [helper.make_node("SplitToSequence", ["x"], ["pieces"], axis=0)], [value("x")], [pieces]
    )


def external(location: str = "weights.bin", size: int = 512) -> tuple[bytes, bytes]:
    """Compute y = x + w with w = 0, 1, 2, ... kept outside: (model, content of `location`)."""
    content = np.arange(size, dtype=np.float32).tobytes()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        weight.external_data.add(key=key, value=text)
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", "FP32", ("batch", size))],
        [value("y", "FP32", ("batch", size))],
        [weight],
    )
    return proto, content


def save_external(directory: Path, name: str = "model.onnx") -> Path:
    """Write the model of `external` and its data into a directory; returns the model's path."""
    proto, content = external()
    (directory / "weights.bin").write_bytes(content)
    path = directory / name
    path.write_bytes(proto)
    return path


def int8_dynamic(fan_in: int = 16, fan_out: int = 4, seed: int = 0) -> bytes:
    """One layer, dynamically quantized: the activation scale is taken over the whole batch."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 127, (fan_in, fan_out), dtype=np.int8)
    return model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            helper.make_node("MatMulInteger", ["xq", "w", "xz", "wz"], ["yi"]),
            helper.make_node("Cast", ["yi"], ["yf"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["xs", "ws"], ["scale"]),
            helper.make_node("Mul", ["yf", "scale"], ["y"]),
        ],
        [value("x", "FP32", ("batch", fan_in))],
        [value("y", "FP32", ("batch", fan_out))],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.int8(0), "wz"),
            numpy_helper.from_array(np.float32(0.01), "ws"),
        ],
    )


def sample(datatype: str, shape: tuple[int, ...] = (3, 2), seed: int = 0) -> np.ndarray[Any, Any]:
    """Values of a datatype that a wrong conversion would change."""
    rng = np.random.default_rng(seed)
    if datatype == "BYTES":
        words = np.array(["plain", "", "grüß", "a b", "日本", "x" * 40], np.object_)
        return np.resize(words, shape)
    if datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if datatype == "BF16":
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    dtype = np.dtype({"FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower()))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
