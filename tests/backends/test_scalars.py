"""Scalars read from the model's protocol buffer."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnx_models
from modelserve.backends.scalars import scalars_of

MIXED = onnx_models.model(
    [helper.make_node("Identity", [n], [n + "_out"]) for n in ("scalar", "open", "vector")],
    [
        onnx_models.value("scalar", "FP32", ()),
        onnx_models.value("open", "FP32", None),
        onnx_models.value("vector", "FP32", ("n",)),
    ],
    [
        onnx_models.value("scalar_out", "FP32", ()),
        onnx_models.value("open_out", "FP32", None),
        onnx_models.value("vector_out", "FP32", ("n",)),
    ],
)


def test_scalars_are_told_from_open_ranks_and_vectors(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MIXED)
    assert scalars_of(MIXED) == {"scalar", "scalar_out"}
    assert scalars_of(path) == {"scalar", "scalar_out"}


def test_weights_are_stepped_over() -> None:
    assert scalars_of(onnx_models.mlp()) == frozenset()


def test_sequence_types_are_no_scalars() -> None:
    assert scalars_of(onnx_models.zipmap_classifier()) == frozenset()


def test_missing_and_empty_files_have_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert scalars_of(tmp_path / "missing") == frozenset()
    assert scalars_of(tmp_path / "empty") == frozenset()


@pytest.mark.parametrize("length", range(0, len(MIXED), 7))
def test_cut_models_have_at_most_the_true_ones(length: int) -> None:
    assert scalars_of(MIXED[:length]) <= {"scalar", "scalar_out"}


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(content: bytes) -> None:
    assert isinstance(scalars_of(content), frozenset)


def test_agrees_with_onnx() -> None:
    graph = onnx.load_from_string(MIXED).graph
    expected = {
        info.name
        for info in (*graph.input, *graph.output)
        if info.type.tensor_type.HasField("shape") and not info.type.tensor_type.shape.dim
    }
    assert scalars_of(MIXED) == expected
