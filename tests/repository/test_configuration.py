"""Directories made for other servers, loaded as they are."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import InvalidInput, LoadError
from modelserve.protocols import VersionInfo
from modelserve.repository.configuration import configured
from modelserve.repository.repository import ModelRepository
from modelserve.repository.versions import VersionOptions
from onnx_models import fixed_batch, string_table, two_in_three_out
from versioned_models import ROWS, adds, answer, described, states, tree

TENSORS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


def triton(root: Path, text: str, *versions: int, name: str = "m") -> Path:
    tree(root, {name: {str(number): number for number in versions or (1,)}})
    (root / name / "config.pbtxt").write_text(text)
    return root


def info(repository: ModelRepository, name: str = "m", version: str = "") -> VersionInfo:
    return asyncio.run(repository.describe(name, version))


def reason(root: Path) -> str:
    """Load a directory whose model "m" does not load; return what the index says of it."""
    with ModelRepository(root) as repository:
        found = described(asyncio.run(repository.index()), "1")
        assert found.state == "UNAVAILABLE"
        with pytest.raises(LoadError):
            repository.load("m")
        return found.reason


def test_a_triton_directory_loads_as_it_is(tmp_path: Path) -> None:
    text = f"""
    name: "m"
    platform: "onnxruntime_onnx"
    max_batch_size: 8
    {TENSORS}
    instance_group [ {{ count: 2 kind: KIND_CPU }} ]
    dynamic_batching {{
      max_queue_delay_microseconds: 100
      default_queue_policy {{ max_queue_size: 5 }}
    }}
    """
    with ModelRepository(triton(tmp_path, text)) as repository:
        assert answer(repository) == 1
        loaded = info(repository)
        assert (loaded.max_batch_size, loaded.batching) == (8, "declared: up to 8 rows")
        version = repository._control.entries["m"].default
        assert version is not None
        assert len(version.batcher.backends) == 2
        assert version.batcher.max_queue_delay == 100e-6
        with pytest.raises(InvalidInput, match="1 to 8 rows"):
            repository.predict("m", np.zeros((9, 4), np.float32))


def test_preferred_sizes_are_not_used_and_it_is_said_why(tmp_path: Path, caplog: Any) -> None:
    text = f"max_batch_size: 8 {TENSORS} dynamic_batching {{ preferred_batch_size: [ 4 ] }}"
    with caplog.at_level("INFO", "modelserve"), ModelRepository(triton(tmp_path, text)) as found:
        assert answer(found) == 1
    assert "preferred_batch_size is not used: the sizes that serve best are measured" in caplog.text


def test_backend_stands_for_platform(tmp_path: Path) -> None:
    with ModelRepository(triton(tmp_path, 'backend: "onnxruntime"')) as repository:
        assert answer(repository) == 1


def test_without_a_batch_size_every_request_runs_alone(tmp_path: Path) -> None:
    text = """
    input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }
    output { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] }
    """
    with ModelRepository(triton(tmp_path, text)) as repository:
        assert answer(repository) == 1
        assert info(repository).max_batch_size == 0


def test_what_the_file_leaves_out_is_the_repositorys(tmp_path: Path) -> None:
    with ModelRepository(triton(tmp_path, "max_batch_size: 4"), instances=3) as repository:
        version = repository._control.entries["m"].default
        assert version is not None
        assert len(version.batcher.backends) == 3


@pytest.mark.parametrize(
    ("policy", "loaded"),
    [
        ("latest { num_versions: 2 }", {"3", "20"}),
        ("all { }", {"1", "3", "20"}),
        ("specific { versions: [ 1, 3, 99 ] }", {"1", "3"}),
    ],
)
def test_the_version_policy_of_the_file_is_followed(
    policy: str, loaded: set[str], tmp_path: Path
) -> None:
    text = f"max_batch_size: 8 version_policy: {{ {policy} }}"
    with ModelRepository(triton(tmp_path, text, 1, 3, 20)) as repository:
        found = states(asyncio.run(repository.index()))
        assert {version for version, state in found.items() if state == "READY"} == loaded
        assert answer(repository) == int(max(loaded, key=int))


def test_fields_that_are_not_used_are_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"""
    max_batch_size: 8 {TENSORS}
    optimization {{ cuda {{ graphs: true }} }}
    response_cache {{ enable: true }}
    """
    with (
        caplog.at_level(logging.INFO, "modelserve.repository"),
        ModelRepository(triton(tmp_path, text)),
    ):
        (record,) = [r for r in caplog.records if "not used" in r.message]
    assert "optimization" in record.message
    assert "response_cache" in record.message


def test_a_file_for_another_name_is_refused(tmp_path: Path) -> None:
    assert 'is for a model named "other"' in reason(triton(tmp_path, 'name: "other"'))


@pytest.mark.parametrize(
    "text", ['platform: "tensorflow_savedmodel"', 'backend: "python"', 'platform: "ensemble"']
)
def test_a_file_for_another_runtime_is_refused(text: str, tmp_path: Path) -> None:
    assert "run by onnxruntime" in reason(triton(tmp_path, text))


def test_a_malformed_file_is_refused_with_its_place(tmp_path: Path) -> None:
    said = reason(triton(tmp_path, "max_batch_size: 8\ninput {"))
    assert 'model "m": config.pbtxt:' in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ('input { name: "z" data_type: TYPE_FP32 dims: 4 }', 'input "z" FP32 (-1, 4)'),
        ('input { name: "x" data_type: TYPE_INT64 dims: 4 }', 'input "x" INT64 (-1, 4)'),
        ('input { name: "x" data_type: TYPE_FP32 dims: 5 }', 'input "x" FP32 (-1, 5)'),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ 4, 1 ] }', 'input "x" FP32 (-1, 4, 1)'),
        ('output { name: "y" data_type: TYPE_FP32 dims: 5 }', 'output "y" FP32 (-1, 5)'),
    ],
)
def test_declared_tensors_that_differ_are_refused(tensors: str, said: str, tmp_path: Path) -> None:
    found = reason(triton(tmp_path, f"max_batch_size: 8 {tensors}"))
    assert f"declares {said}; the model has " in found


def test_open_dimensions_fit_all(tmp_path: Path) -> None:
    text = 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: -1 }'
    with ModelRepository(triton(tmp_path, text)) as repository:
        assert answer(repository) == 1


def test_a_reshaped_tensor_is_served_as_the_model_has_it(tmp_path: Path) -> None:
    text = """
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
    """
    with ModelRepository(triton(tmp_path, text)) as repository:
        assert answer(repository) == 1


def test_a_configuration_that_turns_bad_leaves_what_is_loaded_serving(tmp_path: Path) -> None:
    with ModelRepository(triton(tmp_path, "max_batch_size: 8")) as repository:
        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: many")
        with pytest.raises(LoadError):
            repository.load("m")
        assert answer(repository) == 1
        assert not asyncio.run(repository.ready())
        (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 8")
        repository.load("m")
        assert asyncio.run(repository.ready())


# ---------------------------------------------------------------------- warm-up


def options(root: Path, text: str) -> VersionOptions:
    root.mkdir(exist_ok=True)
    path = root / "config.pbtxt"
    path.write_text(text)
    return configured("m", path, VersionOptions())[0]


def warm_up(inputs: str, batch_size: int = 3) -> str:
    return f"""
    max_batch_size: 8
    model_warmup [ {{ name: "w" batch_size: {batch_size} inputs {{ {inputs} }} }} ]
    """


def entry(name: str, datatype: str, dims: str, data: str) -> str:
    return f'key: "{name}" value {{ data_type: {datatype} dims: {dims} {data} }}'


def test_warm_up_inputs_are_made_as_the_file_says(tmp_path: Path) -> None:
    zero = options(tmp_path, warm_up(entry("x", "TYPE_FP32", "[ 4 ]", "zero_data: true")))
    assert np.array_equal(zero.warm_up_inputs["x"], np.zeros((3, 4), np.float32))
    random = options(tmp_path, warm_up(entry("x", "TYPE_FP32", "[ 4 ]", "random_data: true")))
    made: Any = random.warm_up_inputs["x"]
    assert (made.shape, made.dtype, len(np.unique(made)) > 1) == ((3, 4), np.float32, True)
    text = options(tmp_path, warm_up(entry("x", "TYPE_STRING", "[ 1 ]", "zero_data: true")))
    assert text.warm_up_inputs["x"].tolist() == [[b""], [b""], [b""]]


def test_warm_up_inputs_are_read_from_the_models_directory(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "raw").write_bytes(ROWS.tobytes())
    text = warm_up(entry("x", "TYPE_FP32", "[ 4 ]", 'input_data_file: "raw"'), batch_size=2)
    assert np.array_equal(options(tmp_path, text).warm_up_inputs["x"], ROWS)
    (tmp_path / "warmup" / "raw").write_bytes(ROWS.tobytes()[:-1])
    with pytest.raises(LoadError, match='"raw" is missing or does not fill'):
        options(tmp_path, text)


def test_missing_warm_up_data_makes_the_version_unavailable(tmp_path: Path) -> None:
    text = warm_up(entry("x", "TYPE_FP32", "[ 4 ]", 'input_data_file: "raw"'))
    said = reason(triton(tmp_path, text))
    assert '"raw" is missing' in said
    assert str(tmp_path) not in said


def test_a_warmed_up_model_serves(tmp_path: Path) -> None:
    text = warm_up(entry("x", "TYPE_FP32", "[ 4 ]", "random_data: true"))
    with ModelRepository(triton(tmp_path, text)) as repository:
        assert answer(repository) == 1


def test_a_failing_warm_up_is_logged_and_the_model_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = warm_up(entry("x", "TYPE_FP32", "[ 5 ]", "zero_data: true"))
    with (
        caplog.at_level(logging.WARNING, "modelserve.repository"),
        ModelRepository(triton(tmp_path, text)) as repository,
    ):
        assert answer(repository) == 1
    assert "was not warmed up" in caplog.text


# ---------------------------------------------------------------------- other trees


def test_a_tensorflow_serving_directory_loads_as_it_is(tmp_path: Path) -> None:
    tree(tmp_path, {"half_plus_two": {"0": 5, "00000123": 1, "1700000001": 3, "1700000000": 2}})
    (tmp_path / "models.config").write_text("model_config_list {}")
    (tmp_path / "half_plus_two" / "1700000001" / "assets").mkdir()
    (tmp_path / "half_plus_two" / "tmp-export").mkdir()
    with ModelRepository(tmp_path) as repository:
        assert answer(repository, "half_plus_two") == 3
        assert list(states(asyncio.run(repository.index()), "half_plus_two")) == [
            "0",
            "1700000000",
            "1700000001",
        ]
        repository.load("half_plus_two", 0)
        assert answer(repository, "half_plus_two", "0") == 5


def test_models_of_all_kinds_live_in_one_directory(tmp_path: Path) -> None:
    models = {"words": string_table(), "many": two_in_three_out(), "fixed": fixed_batch(4)}
    for name, content in models.items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").write_bytes(content)
    with ModelRepository(tmp_path) as repository:
        words = np.array([[b"cat"], [b"eel"]], np.object_)
        assert repository.predict("words", words)["y"].tolist() == [[1], [-1]]
        with pytest.raises(TypeError, match='"a", "b"'):
            repository.predict("many", ROWS)
        assert repository.predict("fixed", np.ones((4, 3), np.float32))["y"].sum() == 24
        assert info(repository, "fixed").max_batch_size == 0


def test_a_directory_without_an_onnx_file_is_unavailable_and_others_serve(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"tensorflow's")
    tree(tmp_path, {"n": {"1": 1}})
    assert "model.onnx" in reason(tmp_path)
    with ModelRepository(tmp_path) as repository:
        assert answer(repository, "n") == 1


def test_a_version_published_beside_a_configuration_obeys_it(tmp_path: Path) -> None:
    with ModelRepository(triton(tmp_path, f"max_batch_size: 8 {TENSORS}")) as repository:
        repository.publish("m", adds(2))
        assert answer(repository) == 2
        assert info(repository).max_batch_size == 8
