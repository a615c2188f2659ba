"""What a batch of so many rows takes, learned while serving."""

from __future__ import annotations

from typing import Final

__all__ = ["ServiceTime"]

_BUCKETS: Final = 24


class ServiceTime:
    """Seconds per batch by size, one estimate for each power of two.

    The estimate follows a shorter time at once and a longer one slowly: the question it answers is
    how long the model holds a thread, and a run that waited for the interpreter's lock looks long.

    Example:
        >>> times = ServiceTime()
        >>> times.update(1, 0.004)
        >>> times.predict(1)
        0.004
    """

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: list[float] = [0.0] * _BUCKETS

    def update(self, rows: int, seconds: float) -> None:
        """Take note of one run."""
        bucket = min(rows.bit_length(), _BUCKETS - 1)
        known = self._seconds[bucket]
        if not known:
            self._seconds[bucket] = seconds
        elif seconds < known:
            self._seconds[bucket] = 0.5 * (known + seconds)
        else:
            self._seconds[bucket] = known + 0.05 * (seconds - known)

    def known(self, rows: int) -> float | None:
        """Return the estimate for just this size, None while there is none."""
        return self._seconds[min(rows.bit_length(), _BUCKETS - 1)] or None

    def predict(self, rows: int) -> float | None:
        """Predict a run; from the next smaller size known, as if no row came for free.

        Returns:
            Seconds, or None while nothing of this size or smaller was measured.
        """
        bucket = min(rows.bit_length(), _BUCKETS - 1)
        for smaller in range(bucket, -1, -1):
            known = self._seconds[smaller]
            if known:
                return known * (1 << (bucket - smaller))
        return None
