"""A bounded memory of what was worked out for keys that come again; it knows no protocol."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Final, Generic, TypeVar

__all__ = ["Memo"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MARKS: Final = 4
"""Keys seen once that are remembered, for each value held."""
_RELUCTANCE: Final = 16
"""Of how many keys that are due one gets in where another must go for it."""


class Memo(Generic[K, V]):
    """Values by key, the oldest of which go when there are too many.

    A key that never comes again (it holds an id, say) should cost next to nothing and push nothing
    out: callers keep a value only for a key that is `due`, from its second coming on. A key seen
    once leaves its hash behind and nothing else. Where more keys come again than there is room for,
    one in sixteen gets in, so that values are not made only to be pushed out. `get` takes no lock.

    Args:
        entries: Values held at most.
        size: Sum of the values' sizes, as `keep` was told them, at most.

    Example:
        >>> memo: Memo[bytes, int] = Memo(entries=2, size=100)
        >>> memo.due(b"a"), memo.due(b"a")
        (False, True)
        >>> memo.keep(b"a", 1, size=10)
        >>> memo.get(b"a")
        1
    """

    __slots__ = (
        "_crowded",
        "_entries",
        "_limit",
        "_lock",
        "_seen",
        "_sizes",
        "_values",
        "get",
        "size",
    )

    def __init__(self, *, entries: int, size: int) -> None:
        self._crowded = 0  # keys that were due since room ran out; 0 while there is some
        self._entries = entries
        self._limit = size
        self._lock = Lock()
        self._seen: set[int] = set()
        self._sizes: dict[K, int] = {}
        self._values: dict[K, V] = {}
        # The dict's own method: a hit is one call into C.
        self.get: Callable[[K], V | None] = self._values.get
        """Return the value of a key, or None."""
        self.size = 0
        """Sum of the sizes of the values held."""

    def __len__(self) -> int:
        return len(self._values)

    def due(self, key: K) -> bool:
        """Note that a key came; return whether a value is worth making for it."""
        mark = hash(key)
        seen = self._seen
        if mark in seen:
            if not self._crowded:
                return True
            self._crowded += 1
            return self._crowded % _RELUCTANCE == 0
        if len(seen) >= _MARKS * self._entries:
            seen.clear()
        seen.add(mark)
        return False

    def keep(self, key: K, value: V, *, size: int) -> None:
        """Hold a value, in the place of the key's old one; one beyond the bound is not held."""
        with self._lock:
            self._drop(key)
            if size > self._limit:
                return
            while len(self._values) >= self._entries or self.size + size > self._limit:
                self._drop(next(iter(self._values)))
                self._crowded = self._crowded or 1
            self._values[key] = value
            self._sizes[key] = size
            self.size += size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self._sizes.clear()
            self._seen.clear()
            self._crowded = 0
            self.size = 0

    def _drop(self, key: K) -> None:
        if self._values.pop(key, None) is not None:
            self.size -= self._sizes.pop(key)
