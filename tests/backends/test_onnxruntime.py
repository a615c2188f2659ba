"""`InferenceSession`: loading, signatures, running, errors, closing."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnx_models
from modelserve.backends.onnxruntime import InferenceSession
from modelserve.errors import BackendError, InvalidInput, LoadError
from modelserve.protocols import Traits
from modelserve.tensors import DATATYPES, TensorSpec


def raw(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options)


class Foreign:
    """An array of another library: no numpy array, but DLPack says where its data is."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


# --- results


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_outputs_are_those_of_onnxruntime(rows: int) -> None:
    x = np.random.default_rng(1).standard_normal((rows, 64), np.float32)
    expected = raw(onnx_models.mlp()).run(["y"], {"x": x})[0]
    found = InferenceSession(onnx_models.mlp()).run({"x": x})
    assert list(found) == ["y"]
    np.testing.assert_array_equal(found["y"], expected)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_passes_unchanged(datatype: str) -> None:
    session = InferenceSession(onnx_models.identity(datatype))
    x = onnx_models.sample(datatype)
    y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_signature_names_every_datatype(datatype: str) -> None:
    signature = InferenceSession(onnx_models.identity(datatype)).signature
    assert signature.inputs == (TensorSpec("x", datatype, (-1, 2)),)
    assert signature.outputs == (TensorSpec("y", datatype, (-1, 2)),)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_non_contiguous_inputs_keep_their_values(datatype: str) -> None:
    session = InferenceSession(onnx_models.identity(datatype))
    x = np.repeat(onnx_models.sample(datatype), 2, axis=1)[:, ::2]
    assert not x.flags.c_contiguous
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)


@pytest.mark.parametrize("device_outputs", [False, True])
def test_read_only_inputs_are_taken(device_outputs: bool) -> None:
    x = onnx_models.sample("FP32")
    x.flags.writeable = False
    session = InferenceSession(onnx_models.identity())
    found = session.run({"x": x}, device_outputs=device_outputs)
    np.testing.assert_array_equal(found["y"], x)


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES"])
def test_no_rows_give_no_rows(datatype: str) -> None:
    x = onnx_models.sample(datatype)[:0]
    assert InferenceSession(onnx_models.identity(datatype)).run({"x": x})["y"].shape == (0, 2)


def test_foreign_byte_order_is_read_as_numbers() -> None:
    x = onnx_models.sample("FP32")
    found = InferenceSession(onnx_models.identity()).run({"x": x.astype(">f4")})
    np.testing.assert_array_equal(found["y"], x)


def test_subclasses_of_numpy_arrays_are_taken(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(3, 2))
    x[:] = 5
    found = InferenceSession(onnx_models.identity()).run({"x": x})
    np.testing.assert_array_equal(found["y"], np.full((3, 2), 5))
    assert type(found["y"]) is np.ndarray


def test_any_mapping_is_taken() -> None:
    x = onnx_models.sample("FP32")
    found = InferenceSession(onnx_models.identity()).run(MappingProxyType({"x": x}))
    np.testing.assert_array_equal(found["y"], x)


def test_bf16_is_computed() -> None:
    x = onnx_models.sample("BF16")
    y = InferenceSession(onnx_models.bf16_linear()).run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32) * 2)


def test_bf16_output_outlives_the_session() -> None:
    x = onnx_models.sample("BF16", (256, 2))
    session = InferenceSession(onnx_models.bf16_linear())
    y = session.run({"x": x})["y"]
    session.close()
    for _ in range(20):
        InferenceSession(onnx_models.bf16_linear()).run({"x": np.zeros_like(x)})
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32) * 2)


def test_several_inputs_and_outputs_keep_their_names() -> None:
    a = np.array([[1, 2]], np.float32)
    b = np.array([[10, 20]], np.int64)
    found = InferenceSession(onnx_models.two_in_three_out()).run({"b": b, "a": a})
    assert {name: value.tolist() for name, value in found.items()} == {
        "total": [[11.0, 22.0]],
        "difference": [[-9.0, -18.0]],
        "doubled": [[20, 40]],
    }


@pytest.mark.parametrize("device_outputs", [False, True])
def test_only_requested_outputs_come_in_the_order_asked(device_outputs: bool) -> None:
    inputs = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 2), np.int64)}
    session = InferenceSession(onnx_models.two_in_three_out())
    found = session.run(inputs, ["doubled", "total"], device_outputs=device_outputs)
    assert {name: value.tolist() for name, value in found.items()} == {
        "doubled": [[2, 2]],
        "total": [[2.0, 2.0]],
    }
    assert list(found) == ["doubled", "total"]


def test_threads_get_their_own_results() -> None:
    session = InferenceSession(onnx_models.mlp())
    inputs = [np.full((2, 64), n / 4, np.float32) for n in range(8)]
    expected = [session.run({"x": x})["y"] for x in inputs]
    wrong: list[int] = []
    gate = threading.Barrier(len(inputs))

    def call(n: int) -> None:
        gate.wait()
        answers = [session.run({"x": inputs[n]})["y"] for _ in range(200)]
        wrong.extend(n for answer in answers if not np.array_equal(answer, expected[n]))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_the_private_binding_the_public_method_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Public:
        """onnxruntime's session without the attribute behind its public face."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._inner = inner(*arguments, **options)

        def __getattr__(self, name: str) -> Any:
            if name == "_sess":
                raise AttributeError(name)
            return getattr(self._inner, name)

    inner = onnxruntime.InferenceSession
    x = np.ones((2, 64), np.float32)
    expected = InferenceSession(onnx_models.mlp()).run({"x": x})["y"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", Public)
    session = InferenceSession(onnx_models.mlp())
    np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


# --- text


def test_text_is_taken_as_str_and_as_utf8() -> None:
    session = InferenceSession(onnx_models.string_exclaim())
    x = np.array([["grüß"], ["日本".encode()], [b""]], np.object_)
    y = session.run({"x": x})["y"]
    assert y.tolist() == [["grüß!"], ["日本!"], ["!"]]
    assert y.dtype == np.object_


def test_text_in_numbers_out() -> None:
    session = InferenceSession(onnx_models.string_table())
    x = np.array([[b"dog"], ["cat"], ["cow"]], np.object_)
    assert session.run({"x": x})["y"].tolist() == [[2], [1], [-1]]


def test_fixed_width_text_is_taken() -> None:
    session = InferenceSession(onnx_models.string_exclaim())
    assert session.run({"x": np.array([["a"], ["bc"]])})["y"].tolist() == [["a!"], ["bc!"]]


@pytest.mark.parametrize("bad", [b"\xff", "\udc80", 3])
def test_an_element_that_is_no_text_is_named(bad: object) -> None:
    session = InferenceSession(onnx_models.string_exclaim())
    with pytest.raises(InvalidInput, match=r'^inputs "x"\[1\]: '):
        session.run({"x": np.array([["fine"], [bad]], np.object_)})


def test_text_inputs_are_not_changed() -> None:
    x = np.array([[b"a"], ["b"]], np.object_)
    InferenceSession(onnx_models.string_exclaim()).run({"x": x})
    assert x.tolist() == [[b"a"], ["b"]]


def test_text_models_give_host_arrays_when_device_outputs_are_asked() -> None:
    session = InferenceSession(onnx_models.string_exclaim(), device_outputs=True)
    assert session.run({"x": np.array([["a"]], np.object_)})["y"].tolist() == [["a!"]]


# --- shapes and optional inputs


def test_fixed_sizes_stay_in_the_signature() -> None:
    signature = InferenceSession(onnx_models.fixed_batch(4)).signature
    assert signature.inputs[0].shape == (4, 3)


def test_unknown_rank_is_none() -> None:
    session = InferenceSession(onnx_models.unknown_rank())
    assert session.signature.inputs[0].shape is None
    assert session.run({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)


def test_scalar_has_the_empty_shape() -> None:
    session = InferenceSession(onnx_models.scalar())
    assert session.signature.inputs[0].shape == ()
    assert session.signature.outputs[0].shape == ()
    assert session.run({"x": np.array(3, np.float32)})["y"].shape == ()
    assert session.warm_up() > 0


def test_overridable_initializer_is_an_optional_input() -> None:
    session = InferenceSession(onnx_models.optional_input())
    assert session.signature.inputs[1] == TensorSpec("scale", "FP32", (1,), optional=True)
    x = np.ones((1, 2), np.float32)
    assert session.run({"x": x})["y"].tolist() == [[3.0, 3.0]]
    scaled = session.run({"x": x, "scale": np.array([5], np.float32)})
    assert scaled["y"].tolist() == [[5.0, 5.0]]


def test_optional_input_does_not_stand_in_for_a_missing_one() -> None:
    session = InferenceSession(onnx_models.optional_input())
    with pytest.raises(BackendError, match="inputs x are missing"):
        session.run({"scale": np.array([5], np.float32)})


def test_zipmap_becomes_a_matrix_with_classes_ascending() -> None:
    session = InferenceSession(onnx_models.zipmap_classifier())
    assert session.signature.outputs[1] == TensorSpec("probabilities", "FP32", (-1, -1))
    x = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    found = session.run({"x": x})
    np.testing.assert_array_equal(found["probabilities"], x)
    assert found["probabilities"].dtype == np.float32
    assert found["label"].tolist() == [1, 0]


def test_zipmap_of_no_rows_is_empty() -> None:
    session = InferenceSession(onnx_models.zipmap_classifier())
    assert session.run({"x": np.zeros((0, 3), np.float32)})["probabilities"].size == 0


def test_sequence_output_is_refused_at_load() -> None:
    with pytest.raises(LoadError, match=r'output "pieces" is a seq\(tensor\(float\)\)'):
        InferenceSession(onnx_models.sequence_output())


def test_datatype_outside_the_protocol_is_refused_at_load() -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT8E4M3FN, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT8E4M3FN, ["n"])
    content = onnx_models.model([helper.make_node("Identity", ["x"], ["y"])], [info], [out])
    with pytest.raises(LoadError, match=r'input "x" is a tensor\(float8e4m3fn\)'):
        InferenceSession(content)


def test_text_beside_bf16_is_refused_at_load() -> None:
    content = onnx_models.model(
        [helper.make_node("Identity", [n], [m]) for n, m in (("a", "c"), ("b", "d"))],
        [onnx_models.value("a", "BYTES"), onnx_models.value("b", "BF16")],
        [onnx_models.value("c", "BYTES"), onnx_models.value("d", "BF16")],
    )
    with pytest.raises(LoadError, match="cannot bind BYTES"):
        InferenceSession(content)


# --- binding


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BYTES"])
def test_every_datatype_passes_through_the_binding(datatype: str) -> None:
    session = InferenceSession(onnx_models.identity(datatype), device_outputs=True)
    x = onnx_models.sample(datatype)
    y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_bound_outputs_outlive_session_and_inputs() -> None:
    session = InferenceSession(onnx_models.add_one())
    y = session.run({"x": np.full((1024, 4), 6, np.float32)}, device_outputs=True)["y"]
    session.close()
    for _ in range(20):
        InferenceSession(onnx_models.add_one()).run(
            {"x": np.zeros((1024, 4), np.float32)}, device_outputs=True
        )
    assert (y == 7).all()


def test_bound_runs_of_a_multi_output_model_equal_plain_ones() -> None:
    session = InferenceSession(onnx_models.two_in_three_out())
    inputs = {
        "a": onnx_models.sample("FP32", (5, 2)),
        "b": np.arange(10, dtype=np.int64).reshape(5, 2),
    }
    plain, bound = session.run(inputs), session.run(inputs, device_outputs=True)
    assert list(plain) == list(bound)
    for name, value in plain.items():
        np.testing.assert_array_equal(bound[name], value)


def test_scalar_passes_through_the_binding() -> None:
    session = InferenceSession(onnx_models.scalar(), device_outputs=True)
    y = session.run({"x": np.array(3, np.float32)})["y"]
    assert (y.shape, float(y)) == ((), 3.0)


def test_arrays_of_other_libraries_on_the_host_are_taken_by_dlpack() -> None:
    x = onnx_models.sample("FP32")
    found = InferenceSession(onnx_models.identity()).run({"x": Foreign(x)})
    np.testing.assert_array_equal(found["y"], x)


def test_wrong_datatype_through_the_binding_is_an_error() -> None:
    session = InferenceSession(onnx_models.identity(), device_outputs=True)
    with pytest.raises(BackendError, match="data type"):
        session.run({"x": onnx_models.sample("FP64")})


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs a GPU"
)
def test_tensors_stay_on_the_gpu() -> None:
    cupy = pytest.importorskip("cupy")
    session = InferenceSession(onnx_models.add_one(), providers=["cuda"], strict_providers=True)
    y = session.run({"x": cupy.ones((3, 4), cupy.float32)}, device_outputs=True)["y"]
    assert isinstance(y, cupy.ndarray)
    assert y.get().tolist() == np.full((3, 4), 2).tolist()


# --- errors of run


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "inputs x are missing"),
        ({"y": np.ones((1, 64), np.float32)}, "Invalid input name"),
        ({"x": np.ones((1, 64), np.float32), "z": np.ones(1)}, "Invalid input name"),
        ({"x": np.ones((1, 64), np.float64)}, "data type"),
        ({"x": np.ones((1, 63), np.float32)}, "Got: 63 Expected: 64"),
        ({"x": np.ones(64, np.float32)}, "Invalid rank"),
        ({"x": None}, "data type"),
    ],
)
def test_inputs_that_do_not_fit_fail_cleanly(inputs: dict[str, Any], text: str) -> None:
    session = InferenceSession(onnx_models.mlp())
    with pytest.raises(BackendError, match=text) as caught:
        session.run(inputs)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_failing_kernel_is_a_backend_error_with_its_cause() -> None:
    session = InferenceSession(onnx_models.fails_on_other_than_0_or_1())
    with pytest.raises(BackendError, match="indices element out of data bounds") as caught:
        session.run({"x": np.array([[7]], np.float32)})
    assert type(caught.value.__cause__).__name__ == "InvalidArgument"


def test_session_runs_on_after_a_failure() -> None:
    session = InferenceSession(onnx_models.fails_on_other_than_0_or_1())
    with pytest.raises(BackendError):
        session.run({"x": np.array([[7]], np.float32)})
    assert session.run({"x": np.array([[1]], np.float32)})["y"].tolist() == [[20.0]]


@pytest.mark.parametrize("device_outputs", [False, True])
def test_unknown_output_is_an_error(device_outputs: bool) -> None:
    session = InferenceSession(onnx_models.identity())
    with pytest.raises(BackendError, match="nope"):
        session.run({"x": onnx_models.sample("FP32")}, ["nope"], device_outputs=device_outputs)


def test_failures_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    session = InferenceSession(onnx_models.fails_on_other_than_0_or_1())
    with pytest.raises(BackendError):
        session.run({"x": np.array([[7]], np.float32)})
    with pytest.raises(LoadError):
        InferenceSession(b"no model")
    assert capfd.readouterr() == ("", "")


# --- loading


def test_path_and_bytes_load_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.mlp())
    x = np.ones((1, 64), np.float32)
    expected = InferenceSession(onnx_models.mlp()).run({"x": x})["y"]
    for model in (path, str(path)):
        np.testing.assert_array_equal(InferenceSession(model).run({"x": x})["y"], expected)


def test_ort_format_loads_from_path_and_bytes(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(onnx_models.add_one(), options)
    path = tmp_path / "model.ort"
    for model in (path, path.read_bytes()):
        y = InferenceSession(model).run({"x": np.zeros((1, 4), np.float32)})["y"]
        assert y.tolist() == [[1.0] * 4]


def test_file_that_is_no_model_is_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_bytes(b"root:x:0:0:root:/root:/bin/sh")
    with pytest.raises(LoadError, match=r'^"passwd" is not an ONNX model, or not a whole one$'):
        InferenceSession(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "graph"),
        (b"no model at all", "not an ONNX model, or not a whole one$"),
        (onnx_models.mlp()[:1000], "not an ONNX model, or not a whole one$"),
        (onnx_models.model([], [], [], opset=99), "[Oo]pset 99"),
        (onnx_models.model([], [], [], ir_version=99), "IR version: 99"),
    ],
)
def test_unreadable_models_are_load_errors(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for model in (content, path):
        with pytest.raises(LoadError, match=text) as caught:
            InferenceSession(model)
        assert str(tmp_path) not in str(caught.value)
        assert "onnxruntime_src" not in str(caught.value)
        assert "/proc" not in str(caught.value)


def test_unknown_operator_is_a_load_error() -> None:
    content = onnx_models.model(
        [helper.make_node("Nope", ["x"], ["y"], domain="com.microsoft")],
        [onnx_models.value("x")],
        [onnx_models.value("y")],
    )
    with pytest.raises(LoadError, match="Nope"):
        InferenceSession(content)


def test_missing_file_is_named_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"^model\.onnx: no such file$") as caught:
        InferenceSession(tmp_path / "model.onnx")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such file"):
        InferenceSession(tmp_path)


# --- external data


def total(session: InferenceSession) -> list[float]:
    return session.run({"x": np.zeros((1, 512), np.float32)})["y"][0, :3].tolist()


def test_external_data_beside_the_file_is_found(tmp_path: Path) -> None:
    assert total(InferenceSession(onnx_models.save_external(tmp_path))) == [0.0, 1.0, 2.0]


def test_external_data_is_given_with_bytes() -> None:
    content, data = onnx_models.external()
    assert total(InferenceSession(content, external_data={"weights.bin": data})) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ready", [False, True])
def test_model_given_as_bytes_does_not_read_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    content, data = onnx_models.external()
    (tmp_path / "weights.bin").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    options = onnxruntime.SessionOptions() if ready else None
    if options is not None:
        options.log_severity_level = 4
    with pytest.raises(LoadError, match=r"xternal data|No such file"):
        InferenceSession(content, session_options=options)


@pytest.mark.parametrize("location", ["../weights.bin", "absolute", "link.bin", "missing.bin"])
def test_external_data_outside_the_directory_is_refused(tmp_path: Path, location: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    outside = tmp_path / "weights.bin"
    content, data = onnx_models.external(str(outside) if location == "absolute" else location)
    outside.write_bytes(data)
    if location == "link.bin":
        (inside / location).symlink_to(outside)
    path = inside / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"xternal data|No such file") as caught:
        InferenceSession(path)
    assert str(tmp_path) not in str(caught.value)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = onnx_models.save_external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(LoadError, match="out of bounds"):
        InferenceSession(path)


def test_external_data_with_a_path_is_a_wrong_argument(tmp_path: Path) -> None:
    path = onnx_models.save_external(tmp_path)
    with pytest.raises(ValueError, match="external_data goes with a model given as bytes"):
        InferenceSession(path, external_data={"weights.bin": b""})


# --- options


def test_mapping_sets_configuration_entries_and_attributes() -> None:
    session = InferenceSession(
        onnx_models.mlp(),
        session_options={"session.disable_prepacking": 1, "enable_mem_pattern": False},
    )
    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.enable_mem_pattern is False


def test_ready_session_options_are_used_as_they_are() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = InferenceSession(onnx_models.mlp(), session_options=options)
    used = session._session.get_session_options()
    assert (used.intra_op_num_threads, used.log_severity_level) == (2, 3)


def test_threads_and_optimization_reach_onnxruntime() -> None:
    session = InferenceSession(
        onnx_models.mlp(), intra_op_threads=2, inter_op_threads=3, graph_optimization="basic"
    )
    options = session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 3)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.graph_optimization_level == level


def test_one_thread_is_the_default() -> None:
    options = InferenceSession(onnx_models.mlp())._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="no attribute 'colour'"):
        InferenceSession(onnx_models.mlp(), session_options={"colour": 1})


def test_unknown_optimization_is_refused() -> None:
    with pytest.raises(ValueError, match="one of none, basic, extended, layout, all"):
        InferenceSession(onnx_models.mlp(), graph_optimization="some")  # type: ignore[arg-type]


# --- providers


def test_cpu_session_may_run_inline_shared_and_again() -> None:
    session = InferenceSession(onnx_models.mlp())
    assert session.providers == ("CPU",)
    assert session.traits == Traits(inline=True, shared=True, repeatable=True, synthetic=True)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there"
)
class TestMissingProvider:
    def test_falls_back_with_a_warning(self) -> None:
        with pytest.warns(RuntimeWarning, match=r"provider CUDA is not.*running on CPU") as caught:
            session = InferenceSession(onnx_models.mlp(), providers=["cuda"])
        assert session.providers == ("CPU",)
        assert caught[0].filename == __file__

    def test_is_an_error_when_strict(self) -> None:
        with pytest.raises(LoadError, match="provider CUDA"):
            InferenceSession(onnx_models.mlp(), providers=["CUDA"], strict_providers=True)


class Accelerated:
    """onnxruntime's session as an accelerator's build would give it, computing on the CPU."""

    starts, is_listed = True, True

    def __init__(self, model: Any, options: Any, providers: Any, enable_fallback: int) -> None:
        self._asked = [name for name, _ in providers]
        if not self.starts and "CUDAExecutionProvider" in self._asked:
            raise RuntimeError("CUDA failure 35: driver version is insufficient")
        self._inner = SESSION(
            model, options, providers=["CPUExecutionProvider"], enable_fallback=enable_fallback
        )

    def get_providers(self) -> list[str]:
        return [name for name in self._asked if self.is_listed or "CUDA" not in name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


SESSION = onnxruntime.InferenceSession


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> type[Accelerated]:
    session = type("Session", (Accelerated,), {})
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return session


def test_best_available_provider_is_the_default(accelerated: type[Accelerated]) -> None:
    assert InferenceSession(onnx_models.mlp()).providers == ("CUDA", "CPU")


def test_accelerated_session_gets_a_thread_of_its_own(accelerated: type[Accelerated]) -> None:
    traits = InferenceSession(onnx_models.mlp()).traits
    assert traits == Traits(inline=False, shared=False, repeatable=True, synthetic=True)


def test_accelerator_that_does_not_start_falls_back(accelerated: type[Accelerated]) -> None:
    accelerated.starts = False
    with pytest.warns(RuntimeWarning, match="provider CUDA is not in .* or failed to start"):
        session = InferenceSession(onnx_models.mlp())
    assert session.providers == ("CPU",)


def test_accelerator_that_does_not_start_is_an_error_when_strict(
    accelerated: type[Accelerated],
) -> None:
    accelerated.starts = False
    with pytest.raises(LoadError, match="CUDA failure 35"):
        InferenceSession(onnx_models.mlp(), strict_providers=True)


def test_accelerator_dropped_without_a_word_is_reported(accelerated: type[Accelerated]) -> None:
    accelerated.is_listed = False
    with pytest.warns(RuntimeWarning, match="provider CUDA"):
        InferenceSession(onnx_models.mlp(), providers=["cuda"])


def test_bad_model_is_not_blamed_on_the_accelerator(accelerated: type[Accelerated]) -> None:
    with pytest.raises(LoadError, match="not an ONNX model"):
        InferenceSession(b"no model", providers=["cuda"])


# --- life


def test_session_is_closed_at_the_end_of_a_with_block() -> None:
    with InferenceSession(onnx_models.add_one()) as session:
        assert session.run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [[1.0] * 4]
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.zeros((1, 4), np.float32)})


def test_session_is_closed_when_a_with_block_fails() -> None:
    with pytest.raises(KeyError), InferenceSession(onnx_models.add_one()) as session:
        raise KeyError
    assert repr(session) == "<InferenceSession 'model' (closed)>"


def test_metadata_tells_what_the_model_says() -> None:
    proto = onnx.load_from_string(onnx_models.add_one())
    helper.set_model_props(proto, {"author": "me"})
    proto.model_version = 7
    metadata = InferenceSession(proto.SerializeToString()).metadata
    assert metadata == {
        "producer": "onnx_models",
        "graph": "test",
        "version": "7",
        "author": "me",
    }


def test_absent_model_version_is_left_out() -> None:
    assert "version" not in InferenceSession(onnx_models.mlp()).metadata


@pytest.mark.parametrize("datatype", DATATYPES)
def test_warm_up_runs_on_zeros(datatype: str) -> None:
    session = InferenceSession(onnx_models.identity(datatype))
    assert session.warm_up() > 0
    assert session.warm_up_skipped == ""


def test_warm_up_skips_a_model_that_fails_on_zeros() -> None:
    """A Reshape to 7 columns cannot take one row of 4."""
    shape = onnx.numpy_helper.from_array(np.array([-1, 7], np.int64), "shape")
    content = onnx_models.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [onnx_models.value("x")],
        [onnx_models.value("y", "FP32", ("n", 7))],
        [shape],
    )
    session = InferenceSession(content)
    assert session.warm_up() == 0.0
    assert "does not take zeros" in session.warm_up_skipped
    assert session.warm_up({"x": np.zeros((7, 4), np.float32)}) > 0
    assert session.warm_up_skipped == ""


def test_warm_up_on_given_inputs_reports_failure() -> None:
    session = InferenceSession(onnx_models.fails_on_other_than_0_or_1())
    with pytest.raises(BackendError):
        session.warm_up({"x": np.array([[9]], np.float32)})


@pytest.mark.parametrize("datatype", ["FP32", "BF16"])
def test_closed_session_refuses_to_run(datatype: str) -> None:
    session = InferenceSession(onnx_models.identity(datatype))
    session.close()
    session.close()
    with pytest.raises(BackendError, match=r"^the session is closed$"):
        session.run({"x": onnx_models.sample(datatype)})
    with pytest.raises(BackendError, match="closed"):
        session.warm_up()
    assert "closed" in repr(session)


def test_closing_while_others_run_fails_only_later_calls() -> None:
    session = InferenceSession(onnx_models.mlp())
    x = np.ones((64, 64), np.float32)
    expected = session.run({"x": x})["y"]
    started, finished = threading.Event(), []

    def call() -> None:
        try:
            while True:
                np.testing.assert_array_equal(session.run({"x": x})["y"], expected)
                started.set()
        except BackendError as error:
            finished.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    assert started.wait(10)
    session.close()
    thread.join(10)
    assert len(finished) == 1
    assert "the session is closed" in finished[0]


def test_import_loads_no_runtime(environment: dict[str, str]) -> None:
    code = (
        "import sys; import modelserve.backends.onnxruntime; "
        "assert 'onnxruntime' not in sys.modules and 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=15, env=environment)


def test_missing_runtime_names_the_command_that_installs_it(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from modelserve.backends.onnxruntime import InferenceSession\n"
        "try: InferenceSession(b'')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
        env=environment,
    )
    assert 'pip install "modelserve[cpu]"' in done.stdout
    assert "modelserve[gpu]" in done.stdout
