"""Shared memory objects of a test's own, as a client makes them, gone when the test is over."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

DIRECTORY = Path("/dev/shm")

_numbers = count()


class Shared:
    """A shared memory object.

    Args:
        size: Its bytes, all zero.
    """

    def __init__(self, size: int) -> None:
        self.key = f"/modelserve-test-{os.getpid()}-{next(_numbers)}"
        self.path = DIRECTORY / self.key[1:]
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.descriptor, size)

    @property
    def size(self) -> int:
        """Its bytes."""
        return os.fstat(self.descriptor).st_size

    def put(self, content: bytes, offset: int = 0) -> None:
        """Change some of it, through a mapping as clients do."""
        if content:
            with mmap.mmap(self.descriptor, 0) as mapped:
                mapped[offset : offset + len(content)] = content

    def get(self, size: int, offset: int = 0) -> bytes:
        """Return some of it."""
        with mmap.mmap(self.descriptor, 0) as mapped:
            return mapped[offset : offset + size]

    def truncate(self, size: int) -> None:
        """Make it smaller or larger."""
        os.ftruncate(self.descriptor, size)

    def unlink(self) -> None:
        """Take its name away."""
        with suppress(FileNotFoundError):
            self.path.unlink()


@contextmanager
def shared(size: int) -> Iterator[Shared]:
    """Make a shared memory object for a while."""
    made = Shared(size)
    try:
        yield made
    finally:
        made.unlink()
        os.close(made.descriptor)


def open_in_this_process(path: Path) -> int:
    """Count the descriptors of this process that are of a file, unlinked or not."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            found += target.removesuffix(" (deleted)") == str(path)
    return found
