"""Memory of large models: loaded without a copy under the interpreter lock, given back after use.

Holds no model and no session.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

__all__ = ["file_of", "return_free_memory"]


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def return_free_memory() -> None:
    """Give free heap memory back to the operating system; callable from any thread.

    Takes about 0.1 ms a MB given back. The GIL is free meanwhile. It concerns glibc, which keeps
    freed blocks up to 32 MB; other allocators decide for themselves, and nothing is done.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@contextmanager
def file_of(content: bytes) -> Iterator[str]:
    """Give the path of a file with this content for a while, in memory where the system can.

    The file stands alone: nothing can be read relative to it.
    """
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("model")
        try:
            _write_all(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    import tempfile  # where Linux has no need of it, a start need not wait for it

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "model.onnx")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            _write_all(descriptor, content)
        finally:
            os.close(descriptor)
        yield path


def _write_all(descriptor: int, content: bytes) -> None:
    # One write moves at most 2 GB on Linux.
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view[: 1 << 30]) :]
