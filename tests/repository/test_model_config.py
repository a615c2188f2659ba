"""The configuration that a loaded version tells: its file's, completed by what is so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelserve as ms
import onnx_models
from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.repository.repository import ModelRepository
from modelserve.testing import StubModel
from versioned_models import tree


def told(servable: Any, model: str, version: str = "") -> dict[str, Any]:
    return dict(asyncio.run(servable.config(model, version)))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    with ModelRepository(tree(tmp_path / "models", {"m": {"1": 1.0, "2": 2.0}})) as made:
        yield made


def test_a_stored_model_without_a_file_is_completed_from_itself(
    repository: ModelRepository,
) -> None:
    batcher = repository._entries["m"].versions["2"].batcher
    assert batcher.max_batch_size == 64  # proven
    queue = {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": 0,
        "allow_timeout_override": False,
        "max_queue_size": 1024,
    }
    assert told(repository, "m") == {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 64,
        "input": [
            {
                "name": "x",
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NONE",
                "dims": [4],
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
                "is_non_linear_format_io": False,
            }
        ],
        "output": [
            {
                "name": "y",
                "data_type": "TYPE_FP32",
                "dims": [4],
                "label_filename": "",
                "is_shape_tensor": False,
                "is_non_linear_format_io": False,
            }
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "dynamic_batching": {
            "preferred_batch_size": [64],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": 0,
            "default_priority_level": 0,
            "default_queue_policy": queue,
            "priority_queue_policy": {},
        },
        "instance_group": [
            {
                "name": "m_0",
                "kind": "KIND_CPU",
                "count": 1,
                "gpus": [],
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": "model.onnx",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }


def configured(root: Path, text: str, model: bytes | None = None) -> ModelRepository:
    tree(root, {"m": {"1": 1.0}})
    if model is not None:
        (root / "m" / "1" / "model.onnx").write_bytes(model)
    (root / "m" / "config.pbtxt").write_text(text)
    return ModelRepository(root)


def test_what_the_file_says_comes_first(tmp_path: Path) -> None:
    text = """
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: 4 format: FORMAT_NONE }
    output { name: "y" data_type: TYPE_FP32 dims: 4 }
    version_policy { specific { versions: 1 } }
    instance_group [ { count: 2 kind: KIND_AUTO }, { name: "own" kind: KIND_CPU } ]
    dynamic_batching { preferred_batch_size: [2, 4] max_queue_delay_microseconds: 300 }
    parameters { key: "team" value: { string_value: "vision" } }
    """
    with configured(tmp_path, text) as repository:
        found = told(repository, "m")
    assert found["max_batch_size"] == 8
    assert found["version_policy"] == {"specific": {"versions": [1]}}
    groups = [(g["name"], g["kind"], g["count"]) for g in found["instance_group"]]
    assert groups == [("m_0", "KIND_CPU", 2), ("own", "KIND_CPU", 1)]
    assert found["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 300
    assert found["parameters"] == {"team": {"string_value": "vision"}}


def test_tensors_the_file_leaves_out_are_there(tmp_path: Path) -> None:
    text = 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 }'
    with configured(tmp_path, text) as repository:
        found = told(repository, "m")
    assert [(t["name"], t["dims"]) for t in found["input"]] == [("x", [4])]
    assert [(t["name"], t["dims"]) for t in found["output"]] == [("y", [4])]


def test_without_a_batch_all_axes_are_told(tmp_path: Path) -> None:
    with configured(tmp_path, "max_batch_size: 0") as repository:
        found = told(repository, "m")
    assert (found["max_batch_size"], found["input"][0]["dims"]) == (0, [-1, 4])
    assert "dynamic_batching" not in found


def test_what_is_not_done_here_is_not_told(tmp_path: Path) -> None:
    text = """
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: [2, 2] reshape { shape: 4 } }
    sequence_batching { }
    """
    with configured(tmp_path, text) as repository:
        found = told(repository, "m")
    assert found["input"][0]["dims"] == [4]
    assert "reshape" not in found["input"][0]
    assert "sequence_batching" not in found


def test_which_versions_are_kept_is_the_version_policy(tmp_path: Path) -> None:
    root = tree(tmp_path, {"m": {"1": 1.0, "3": 3.0}})
    for keep, policy in (
        ("all", {"all": {}}),
        (2, {"latest": {"num_versions": 2}}),
        (["3"], {"specific": {"versions": [3]}}),
    ):
        with ModelRepository(root, keep=keep) as repository:
            assert told(repository, "m")["version_policy"] == policy


def test_a_function_has_a_configuration_too() -> None:
    @ms.model(
        inputs=[ms.TensorSpec("text", "BYTES", (-1, 1)), ms.TensorSpec("n", "INT64", (-1,))],
        outputs=[ms.TensorSpec("y", "FP64", (-1, 3))],
        max_batch_size=16,
        instances=2,
        max_queue_delay=0.002,
    )
    def guess(text: Any, n: Any) -> Any:
        return np.zeros((len(text), 3))

    found = told(guess, "guess")
    guess.close()
    assert (found["platform"], found["backend"]) == ("", "python")
    assert found["default_model_filename"] == ""
    assert [(t["name"], t["data_type"], t["dims"]) for t in found["input"]] == [
        ("text", "TYPE_STRING", [1]),
        ("n", "TYPE_INT64", []),
    ]
    assert [(t["data_type"], t["dims"]) for t in found["output"]] == [("TYPE_FP64", [3])]
    assert found["instance_group"][0]["count"] == 2
    assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 2000


def test_a_generator_is_decoupled() -> None:
    @ms.model(inputs=[ms.TensorSpec("x", "FP32", (1,))])
    def counts(x: Any) -> Iterator[Any]:
        yield {"y": x}

    found = told(counts, "counts")
    counts.close()
    assert found["model_transaction_policy"] == {"decoupled": True}
    assert "dynamic_batching" not in found


def test_an_open_number_of_axes_is_one_of_any_size() -> None:
    with ModelRepository() as repository:
        repository.add("any", onnx_models.unknown_rank(), max_batch_size=0)
        assert told(repository, "any")["input"][0]["dims"] == [-1]


def test_an_added_file_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "iris.onnx").write_bytes(onnx_models.add_one())
    with ModelRepository() as repository:
        repository.add("iris", tmp_path / "iris.onnx")
        repository.add("bytes", onnx_models.add_one())
        assert told(repository, "iris")["default_model_filename"] == "iris.onnx"
        assert told(repository, "bytes")["default_model_filename"] == ""


def test_a_version_is_found_by_number_or_label(repository: ModelRepository) -> None:
    assert told(repository, "m", "2")["name"] == "m"
    for model, version in (("other", ""), ("m", "9"), ("m", "canary")):
        with pytest.raises(ModelNotFound):
            told(repository, model, version)
    with pytest.raises(ModelNotReady):
        told(repository, "m", "1")


def test_a_stub_tells_its_signature() -> None:
    stub = StubModel(inputs=[ms.TensorSpec("x", "INT8", (2,))])
    found = told(stub, "stub")
    assert (found["backend"], found["max_batch_size"]) == ("python", 0)
    assert found["input"][0]["dims"] == [2]
