"""The proof that axis 0 is a batch, on real models."""

import numpy as np
import pytest

import onnx_models
from gated import GatedBackend
from modelserve.backends.onnxruntime import InferenceSession
from modelserve.execution.proof import prove_batch_axis, synthetic_inputs
from modelserve.tensors import Signature, TensorSpec


@pytest.mark.parametrize(
    "content",
    [
        onnx_models.mlp(),
        onnx_models.two_in_three_out(),
        onnx_models.string_exclaim(),
        onnx_models.bf16_linear(),
        onnx_models.identity("INT64"),
        onnx_models.identity("BOOL"),
        onnx_models.identity("FP16"),
    ],
    ids=["mlp", "several", "strings", "bf16", "int64", "bool", "fp16"],
)
def test_rows_that_do_not_touch_each_other_may_share_a_batch(content):
    assert prove_batch_axis(InferenceSession(content)) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (onnx_models.fixed_batch(), 'axis 0 of input "x" is fixed at 4'),
        (onnx_models.scalar(), 'input "x" has no axis'),
        (onnx_models.unknown_rank(), 'the number of axes of input "x" is open'),
        (onnx_models.column_sum(), 'axis 0 of output "y" is fixed at 3'),
        (
            onnx_models.reduce_over_batch(),
            'output "y" of a row depends on what its neighbours hold',
        ),
        (onnx_models.optional_input(), 'axis 0 of input "scale" is fixed at 1'),
    ],
    ids=["fixed", "scalar", "rank", "sum", "mean", "optional"],
)
def test_the_reason_against_a_batch_can_be_read(content, reason):
    assert prove_batch_axis(InferenceSession(content)) == reason


@pytest.mark.parametrize("seed", range(3))
def test_dynamic_quantization_is_found_out(seed):
    reason = prove_batch_axis(InferenceSession(onnx_models.int8_dynamic(seed=seed)))
    assert reason.startswith('output "y" of a row')


def test_more_than_rounding_between_batch_sizes_has_its_own_reason():
    def by_size(inputs):
        return {"y": inputs["x"] * (1.0 if len(inputs["x"]) == 1 else 1.01)}

    assert "changes with the size of the batch" in prove_batch_axis(GatedBackend(by_size))


def test_integers_of_the_neighbours_are_varied_too():
    signature = Signature([TensorSpec("x", "INT64", (-1, 4))], [TensorSpec("y", "INT64", (-1, 4))])

    def largest(inputs):
        return {"y": inputs["x"] + inputs["x"].sum()}

    backend = GatedBackend(largest)
    backend.signature = signature
    assert prove_batch_axis(backend) != ""


def test_a_model_that_fails_on_made_up_rows_is_not_batched():
    session = InferenceSession(onnx_models.fails_on_other_than_0_or_1())
    assert prove_batch_axis(session) == "the model cannot be run on made-up rows: BackendError"


def test_real_samples_are_used_where_made_up_rows_would_fail():
    session = InferenceSession(onnx_models.string_table())
    words = np.array([[b"cat"], [b"dog"], [b"cow"], [b"cat"]], np.object_)
    assert prove_batch_axis(session, {"x": words}) == ""


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_samples_are_repeated(count):
    x = np.random.default_rng(0).standard_normal((count, 64), np.float32)
    assert prove_batch_axis(InferenceSession(onnx_models.mlp()), {"x": x}) == ""


def test_one_sample_still_finds_the_mean_over_the_batch():
    session = InferenceSession(onnx_models.reduce_over_batch())
    assert prove_batch_axis(session, {"x": np.array([[1, 2, 3]], np.float32)}) != ""


def test_no_samples_prove_nothing():
    session = InferenceSession(onnx_models.mlp())
    assert prove_batch_axis(session, {"x": np.zeros((0, 64), np.float32)}) != ""


def test_a_model_without_inputs_is_not_batched():
    backend = GatedBackend()
    backend.signature = Signature([])
    assert prove_batch_axis(backend) == "the model has no inputs"


def test_a_number_beside_infinity_is_a_difference():
    def overflow(inputs):
        out = inputs["x"].copy()
        out[0] = np.inf if len(out) > 1 else 1.0
        return {"y": out}

    assert prove_batch_axis(GatedBackend(overflow)) != ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_same_special_value_is_no_difference(value):
    def special(inputs):
        return {"y": np.full_like(inputs["x"], value)}

    assert prove_batch_axis(GatedBackend(special)) == ""


def test_made_up_inputs_fit_the_signature():
    specs = [
        TensorSpec("a", "FP16", (-1, 3)),
        TensorSpec("b", "INT8", (-1, -1)),
        TensorSpec("c", "BYTES", (-1,)),
        TensorSpec("d", "BOOL", None),
        TensorSpec("e", "FP32", (1,), optional=True),
    ]
    signature = Signature(specs)
    inputs = synthetic_inputs(signature, 5)
    assert sorted(inputs) == ["a", "b", "c", "d"]
    assert signature.validate(inputs, batched=True)[1] == 5
