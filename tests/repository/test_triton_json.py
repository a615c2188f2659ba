"""Configurations in Triton's JSON, held against protobuf's own with Triton's schema."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format, text_format

from modelserve.errors import LoadError
from modelserve.repository.triton_config import read_config, read_json_config
from modelserve.repository.triton_json import completed

EVERYTHING = """
name: "resnet" platform: "onnxruntime_onnx" backend: "onnxruntime" runtime: "r"
version_policy: { specific: { versions: [1, 3] } }
max_batch_size: 32
input [
  { name: "image" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, -1, 224]
    reshape { shape: [1, 3] } allow_ragged_batch: true },
  { name: "mode" data_type: TYPE_STRING dims: 1 optional: true }
]
output { name: "scores" data_type: TYPE_BF16 dims: 9007199254740993 label_filename: "l.txt" }
optimization {
  graph { level: -1 } priority: PRIORITY_MAX eager_batching: true
  cuda { graphs: true graph_spec { batch_size: 2 input { key: "image" value { dim: [1, 2] } }
    graph_lower_bound { batch_size: 1 input { key: "image" value { dim: 1 } } } } }
  execution_accelerators { gpu_execution_accelerator [
    { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } ] }
  input_pinned_memory { enable: false }
}
dynamic_batching {
  preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 preserve_ordering: true
  priority_levels: 3 default_priority_level: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 max_queue_size: 64 }
}
instance_group [
  { count: 2 kind: KIND_CPU host_policy: "h" profile: ["a", "b"] passive: true
    rate_limiter { resources { name: "R" global: true count: 4 } priority: 2 } },
  { kind: KIND_GPU gpus: [0, 1] secondary_devices { kind: KIND_NVDLA device_id: 5 } }
]
cc_model_filenames { key: "7.5" value: "turing.onnx" }
metric_tags { key: "team" value: "vision" }
parameters { key: "alpha" value: { string_value: "0.5" } }
parameters { key: "empty" value: { } }
model_warmup {
  name: "first" batch_size: 8 count: 3
  inputs { key: "image" value { data_type: TYPE_FP32 dims: [3, 224] random_data: true } }
  inputs { key: "mode" value { data_type: TYPE_STRING dims: 1 input_data_file: "mode.bin" } }
}
model_transaction_policy { decoupled: true }
default_model_filename: "model.onnx"
"""
PARTS = [
    "",
    'name: "m"',
    "version_policy { all { } }",
    "version_policy { latest { num_versions: 2 } }",
    "dynamic_batching { }",
    "instance_group { }",
    "optimization { cuda { } }",
    "input { name: 'x' data_type: 11 dims: [ ] }",
    EVERYTHING,
]
# 64-bit numbers, which protobuf writes as text and Triton as numbers.
LONG = (
    *("dims", "shape", "versions", "dim", "device_id", "priority_levels"),
    *("max_queue_delay_microseconds", "default_priority_level", "default_timeout_microseconds"),
)


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's own schema, without the package around it, which wants gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def as_triton(message: Any) -> Any:
    """Write a message as Triton does: protobuf's JSON with every field, and numbers as numbers."""
    document = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )

    def mended(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: mended(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [mended(one, name) for one in value]
        return int(value) if name in LONG else value

    return mended(document)


@pytest.mark.parametrize("text", PARTS)
def test_a_text_is_written_as_triton_writes_it(schema: ModuleType, text: str) -> None:
    theirs = as_triton(text_format.Parse(text, schema.ModelConfig()))
    ours = read_config(text).document
    assert ours == theirs
    # Protobuf writes what is missing behind what is there; Triton in the schema's order.
    order = [field.name for field in schema.ModelConfig.DESCRIPTOR.fields]
    assert list(ours) == sorted(ours, key=order.index)


@pytest.mark.parametrize("text", PARTS)
def test_json_that_a_load_brings_is_written_alike(schema: ModuleType, text: str) -> None:
    message = text_format.Parse(text, schema.ModelConfig())
    theirs = as_triton(message)
    for names in (True, False):
        sent = json_format.MessageToJson(message, preserving_proto_field_name=names)
        assert read_json_config(sent).document == theirs
    assert read_json_config(json.dumps(theirs)).document == theirs


def test_protobuf_reads_what_is_written(schema: ModuleType) -> None:
    message = schema.ModelConfig()
    json_format.ParseDict(dict(read_config(EVERYTHING).document), message)
    assert message == text_format.Parse(EVERYTHING, schema.ModelConfig())


def test_what_is_not_known_is_left_out() -> None:
    text = "sequence_batching { } model_metrics { } of_the_future { x: 1 } " + EVERYTHING
    assert read_config(text).document == read_config(EVERYTHING).document


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('parameters: "x"', r"1:13: parameters: expected \"{\""),
        ("parameters { key: 'a' value { string_value: 1 } }", "string_value: expected a string"),
        ("optimization { priority: HIGH }", "priority: expected one of PRIORITY_DEFAULT"),
        ("metric_tags { key: 'a' value: 2 }", "value: expected a string"),
        ("instance_group { profile: 3 }", "profile: expected a string"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        read_config(text)


def test_what_is_left_out_has_its_default() -> None:
    assert completed({"name": "x"}, "Output") == {
        "name": "x",
        "data_type": "TYPE_INVALID",
        "dims": [],
        "label_filename": "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }
