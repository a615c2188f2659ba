"""Memory shared by a supervisor and its workers: a page of words, and the pool of their metrics.

Every word has one writer, and is written with one store.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final

from modelserve.observe.pool import Pool

__all__ = ["Shared", "slots_for"]

_PAGE: Final = 4096
_GENERATION: Final = 0
_SLOTS: Final = 8  # the first word of the first slot
_BEAT, _FOLLOWED = 0, 1
_WIDTH: Final = 2


def slots_for(workers: int, spares: int) -> int:
    """Return how many processes there may be at once: while one is replaced, both are."""
    return 2 * (workers + spares)


class Shared:
    """Words and metrics that all processes of a server see.

    Args:
        descriptor: A file made by `create`; it stays the caller's.
        slots: How many processes there may be at once.

    Attributes:
        pool: The metrics.
    """

    def __init__(self, descriptor: int, slots: int) -> None:
        self._map = mmap.mmap(descriptor, _size(slots))
        view = memoryview(self._map)
        self._words = view[: _words(slots)].cast("q")
        self.pool = Pool(view[_words(slots) :], slots)

    @staticmethod
    def create(slots: int, directory: str | os.PathLike[str]) -> int:
        """Return the descriptor of a new file that no directory shows.

        Args:
            slots: How many processes there may be at once.
            directory: Where it is kept on systems that need a place for it.

        Raises:
            OSError: There is no room for it.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("modelserve")
        else:
            descriptor, path = tempfile.mkstemp(dir=directory)
            os.unlink(path)
        os.ftruncate(descriptor, _size(slots))
        return descriptor

    @property
    def generation(self) -> int:
        """Which desired state holds; written by the supervisor."""
        return self._words[_GENERATION]

    @generation.setter
    def generation(self, number: int) -> None:
        self._words[_GENERATION] = number

    def beat(self, slot: int, now: float) -> None:
        """Say that the process in a slot is alive at this point of `time.monotonic()`."""
        self._words[_SLOTS + slot * _WIDTH + _BEAT] = int(now * 1e9)

    def last_beat(self, slot: int) -> float:
        """Return when the process in a slot was last alive; 0 where it never said so."""
        return self._words[_SLOTS + slot * _WIDTH + _BEAT] / 1e9

    def follow(self, slot: int, generation: int) -> None:
        """Say which desired state the process in a slot has reached."""
        self._words[_SLOTS + slot * _WIDTH + _FOLLOWED] = generation

    def followed(self, slot: int) -> int:
        """Return which desired state the process in a slot has reached."""
        return self._words[_SLOTS + slot * _WIDTH + _FOLLOWED]

    def clear(self, slot: int) -> None:
        """Make a slot ready for its next process; the counts of the one before stay."""
        self.beat(slot, 0.0)
        self.follow(slot, 0)
        self.pool.release(slot)


def _words(slots: int) -> int:
    return -(-(_SLOTS + slots * _WIDTH) * 8 // _PAGE) * _PAGE


def _size(slots: int) -> int:
    return _words(slots) + Pool.size(slots)
