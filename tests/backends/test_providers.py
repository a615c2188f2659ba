"""Provider names, defaults and the check for clashing distributions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelserve.backends.providers import _is_outdated, resolve_providers

KNOWN = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("name", ["cuda", "CUDA", "CUDAExecutionProvider", "cudaexecutionprovider"])
def test_names_are_taken_with_or_without_suffix_in_any_case(name: str) -> None:
    chosen, missing = resolve_providers([name], known=KNOWN, available=KNOWN)
    assert chosen == [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    assert missing == []


def test_options_go_along_as_text() -> None:
    wanted = [("tensorrt", {"trt_fp16_enable": True, "device_id": 1}), "cpu"]
    chosen, _ = resolve_providers(wanted, known=KNOWN, available=KNOWN)
    assert chosen == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "True", "device_id": "1"}),
        ("CPUExecutionProvider", {}),
    ]


def test_wanted_order_is_kept() -> None:
    chosen, _ = resolve_providers(["cuda", "tensorrt"], known=KNOWN, available=KNOWN)
    assert [name for name, _ in chosen] == [
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
        "CPUExecutionProvider",
    ]


def test_wanted_provider_outside_the_build_is_missing() -> None:
    chosen, missing = resolve_providers(["cuda"], known=KNOWN, available=["CPUExecutionProvider"])
    assert chosen == [("CPUExecutionProvider", {})]
    assert missing == ["CUDAExecutionProvider"]


def test_default_takes_what_is_available_and_misses_nothing() -> None:
    chosen, missing = resolve_providers(None, known=KNOWN, available=KNOWN)
    assert chosen == [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    assert missing == []


def test_registered_provider_unknown_to_the_build_is_taken() -> None:
    available = ["CPUExecutionProvider", "NewExecutionProvider"]
    chosen, _ = resolve_providers(["new"], known=KNOWN, available=available)
    assert chosen[0] == ("NewExecutionProvider", {})


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cudda'; one of CPU, CUDA, Tensorrt"):
        resolve_providers(["cudda"], known=KNOWN, available=KNOWN)


@pytest.mark.parametrize("available", [KNOWN, KNOWN[2:]])
def test_provider_named_twice_is_refused(available: list[str]) -> None:
    with pytest.raises(ValueError, match="CUDA stands twice"):
        resolve_providers(["cuda", "CUDA"], known=KNOWN, available=available)


def test_two_distributions_are_reported(tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from modelserve.backends.providers import load_runtime\n"
        "load_runtime()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
        env=environment,
    )
    assert "RuntimeWarning: onnxruntime and onnxruntime-gpu are installed together" in done.stderr
    assert "pip uninstall onnxruntime onnxruntime-gpu" in done.stderr


def test_one_distribution_is_no_reason_to_warn(environment: dict[str, str]) -> None:
    code = "from modelserve.backends.providers import load_runtime; load_runtime()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
        env=environment,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("version", "outdated"),
    [("1.9.0", True), ("1.23.2", True), ("1.24.0", False), ("1.32.0", False), ("2.0.0", False)],
)
def test_versions_that_read_outside_the_directory_are_outdated(
    version: str, outdated: bool
) -> None:
    assert _is_outdated(version) is outdated
