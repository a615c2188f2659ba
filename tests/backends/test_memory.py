"""What large models leave behind: nothing."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from modelserve.backends import memory
from modelserve.backends.memory import file_of
from modelserve.backends.onnxruntime import InferenceSession


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("content", [b"", b"some content" * 1000])
def test_file_of_holds_the_content(content: bytes) -> None:
    with file_of(content) as path:
        assert Path(path).read_bytes() == content


def test_file_of_is_a_real_file_where_there_is_no_memory_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    with file_of(b"content") as path:
        assert Path(path).read_bytes() == b"content"
        assert [entry.name for entry in Path(path).parent.iterdir()] == ["model.onnx"]
    assert not Path(path).parent.exists()


def test_session_from_bytes_works_where_there_is_no_memory_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    y = InferenceSession(onnx_models.add_one()).run({"x": np.zeros((1, 4), np.float32)})["y"]
    assert y.tolist() == [[1.0] * 4]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_descriptor_is_left_open() -> None:
    InferenceSession(onnx_models.mlp()).close()
    before = descriptors()
    InferenceSession(onnx_models.mlp()).close()
    assert descriptors() == before


def test_closing_drops_the_session_at_once() -> None:
    session = InferenceSession(onnx_models.mlp())
    session.run({"x": np.zeros((1, 64), np.float32)})
    inner = weakref.ref(session._session)
    gc.disable()
    try:
        session.close()
        assert inner() is None
    finally:
        gc.enable()


def test_other_platforms_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    assert memory._malloc_trim.__wrapped__() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_closed_model_leaves_no_resident_memory(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """In a process of its own: what other tests left in the heap would blur it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.mlp(64, 2048, 2048, 2048, 10))
    code = f"""
import threading
import numpy as np
from modelserve.backends.onnxruntime import InferenceSession
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def cycle(environment: dict[str, str]):
    session = InferenceSession({str(path)!r})
    session.run({{"x": np.zeros((1, 64), np.float32)}})
    session.close()
InferenceSession({onnx_models.add_one()!r}).close()
before = resident()
for _ in range(8):
    thread = threading.Thread(target=cycle)
    thread.start()
    thread.join()
print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=18,
        env=environment,
    )
    assert int(done.stdout) < path.stat().st_size / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_free_memory_is_returned_while_other_threads_run() -> None:
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        memory.return_free_memory()
        seen = ticks
        while ticks == seen:
            assert thread.is_alive()
    finally:
        done.set()
        thread.join()
    assert ticks > seen
