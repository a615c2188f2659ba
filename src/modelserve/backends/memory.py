"""Memory of large models: given back to the operating system, and without stalling other threads.

It concerns glibc. Elsewhere these functions do nothing: other allocators decide for themselves.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

__all__ = ["file_of", "prepare_large_load", "return_free_memory"]

_LARGEST_HEAP_BLOCK = (32 << 20) - (64 << 10)


def prepare_large_load() -> None:
    """Make glibc take the blocks of the coming load from its heaps instead of mapping each.

    A session is destroyed with the GIL held. Unmapping costs 70 us a MB, so unloading 260 MB would
    stop every Python thread for 18 ms; giving the blocks back to a heap takes 0.3 to 2 ms, and
    `return_free_memory` then does the costly part without the GIL. glibc moves its threshold by
    itself, up to 32 MB, when a mapped block is freed: that is done here ahead of the load. Blocks
    over 32 MB are always mapped.
    """
    if sys.platform == "linux":
        np.empty(_LARGEST_HEAP_BLOCK, np.uint8)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def return_free_memory() -> None:
    """Give free heap memory back to the operating system; callable from any thread.

    Takes about 0.1 ms a MB given back. The GIL is free meanwhile.
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
