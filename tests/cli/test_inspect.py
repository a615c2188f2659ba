"""`modelserve inspect` as a process: text, JSON, and what cannot be inspected."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import onnx_models

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_text(cli: Cli, model: Path) -> None:
    done = cli("inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("add.onnx  0.")
    assert lines[1:7] == [
        "inputs",
        "  x  FP32  [-1, 4]",
        "outputs",
        "  y  FP32  [-1, 4]",
        "batching   yes, proven by running rows together",
        "providers  CPU",
    ]
    assert "producer  onnx_models" in lines


def test_json(command: Cli, model: Path) -> None:
    done = command("inspect", model, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["metadata"].pop("producer") == "onnx_models"
    del shown["metadata"]
    tensor = {"datatype": "FP32", "shape": [-1, 4], "optional": False}
    assert shown == {
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
        "batching": True,
        "batching_reason": "",
        "providers": ["CPU"],
        "bytes": model.stat().st_size,
    }


def test_directory_of_a_version(command: Cli, models: Path) -> None:
    done = command("inspect", models / "add" / "1")
    assert done.returncode == 0
    assert done.stdout.startswith("model.onnx  ")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (onnx_models.optional_input(), "  scale  FP32  [1]  optional"),
        (onnx_models.unknown_rank(), "  x  FP32  any shape"),
        (onnx_models.string_table(), "  x  BYTES  [-1, 1]"),
    ],
    ids=["optional", "any shape", "strings"],
)
def test_input_is_described(command: Cli, tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert line in command("inspect", "m.onnx").stdout.splitlines()


def test_large_file_is_told_in_megabytes(command: Cli, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_models.mlp(512, 1024, 10))
    assert command("inspect", "m.onnx").stdout.startswith("m.onnx  2.1 MB\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            onnx_models.int8_dynamic(),
            'output "y" of a row depends on what its neighbours hold',
        ),
        (
            onnx_models.reduce_over_batch(),
            'output "y" of a row depends on what its neighbours hold',
        ),
    ],
    ids=["int8 with scales over the batch", "mean over the batch"],
)
def test_model_whose_rows_may_not_share_a_batch_says_why(
    command: Cli, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert f"batching   no: {reason}" in command("inspect", "m.onnx").stdout.splitlines()
    shown = json.loads(command("inspect", "m.onnx", "--json").stdout)
    assert (shown["batching"], shown["batching_reason"]) == (False, reason)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none.onnx", "none.onnx: no such file or directory"),
        ("models", "models: expected an ONNX file, or a directory that holds model.onnx"),
        ("models/add", "models/add: expected an ONNX file, or a directory that holds model.onnx"),
        ("noise.onnx", '"noise.onnx" is not an ONNX model, or not a whole one'),
    ],
)
def test_refusal_is_one_sentence(command: Cli, models: Path, path: str, sentence: str) -> None:
    (models.parent / "noise.onnx").write_bytes(b"noise")
    done = command("inspect", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"modelserve inspect: {sentence}\n"
