"""What a batch of so many rows takes, learned while serving.

A model of the time and nothing else: what to do about it is decided in `pacing`.
"""

from __future__ import annotations

from bisect import bisect_left
from math import sqrt
from typing import Final

__all__ = ["ServiceTime", "step_of"]

# Sizes up to this are told apart one by one, larger ones in four steps to the doubling.
_SINGLE: Final = 8
# So far from the usual error one run may move an estimate: further and it was disturbed.
_CLIP: Final = 3.0
_GAIN: Final = 0.06
_SPREAD_GAIN: Final = 0.1
# Standard errors, about, that a size seen seldom is judged longer by.
_DOUBT: Final = 0.5
# Contradictions between sizes are resolved every so many runs: each costs a few microseconds.
_REPAIR_EVERY: Final = 16
# A size not seen for so many runs is learned anew, faster.
_STALE: Final = 256


def step_of(rows: int) -> int:
    """Return the size a batch is counted under: its own up to 8, then 10, 12, 14, 16, 20, ..."""
    if rows <= _SINGLE:
        return rows if rows > 0 else 1
    shift = (rows - 1).bit_length() - 3
    return ((rows - 1 >> shift) + 1) << shift


class _Size:
    """What is known of one size."""

    __slots__ = ("count", "least", "rows", "seconds", "seen", "spread")

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows = rows
        self.seconds = seconds
        self.spread = 0.1 * seconds
        self.least = seconds
        self.count = 1
        self.seen = 0


class ServiceTime:
    """Seconds per batch by size, for batches of one shape.

    A run that waited for the interpreter or for a neighbour looks long. One run therefore moves an
    estimate by no more than thrice the usual error, which grows only while the errors go on: a
    single outlier leaves no trace, and a machine that became slower for good is believed after some
    tens of runs. Not thread-safe.

    Example:
        >>> times = ServiceTime()
        >>> times.update(1, 0.004)
        >>> times.update(4, 0.007)
        >>> round(times.predict(3), 6), times.predict(8)
        (0.006, 0.014)
    """

    __slots__ = (
        "_contradicted",
        "_curve",
        "_excess",
        "_mean",
        "_order",
        "_rows",
        "_runs",
        "_sizes",
        "_variance",
    )

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._order: list[_Size] = []
        self._rows: list[int] = []
        self._curve: list[float] = []
        """Estimates by size as `predict` uses them: never falling."""
        self._contradicted = False
        self._runs = 0
        self._excess = 0.2
        self._mean = 1.0
        self._variance = 0.0

    @property
    def runs(self) -> int:
        """Runs that were taken note of."""
        return self._runs

    @property
    def sizes(self) -> list[tuple[int, float, int]]:
        """Sizes measured, ascending: rows, seconds, and how often."""
        return [(size.rows, size.seconds, size.count) for size in self._order]

    @property
    def surely(self) -> list[tuple[int, float, int]]:
        """As `sizes`, with seconds that are the longer the less often a size was seen."""
        return [
            (size.rows, size.seconds + _DOUBT * size.spread / sqrt(size.count), size.count)
            for size in self._order
        ]

    @property
    def largest(self) -> int:
        """The largest size measured; 0 before the first run."""
        return self._rows[-1] if self._rows else 0

    def update(self, rows: int, seconds: float) -> None:
        """Take note of one run."""
        self._runs += 1
        step = rows if 0 < rows <= _SINGLE else step_of(rows)
        size = self._sizes.get(step)
        if size is None:
            self._add(step, seconds * step / (rows or 1))
            return
        expected = size.seconds
        if rows != step and rows > 0:
            expected = min(expected, self.predict(rows) or expected)
        if self._runs - size.seen > _STALE:
            size.count = min(size.count, 3)
            size.spread = max(size.spread, 0.25 * size.seconds)
        size.count += 1
        size.seen = self._runs
        if seconds < size.least:
            size.least = 0.5 * (size.least + seconds)
        else:
            size.least += 0.05 * (seconds - size.least)
        # Outliers count here, for they keep those behind waiting.
        ratio = min(seconds / expected, 10.0) if expected > 0 else 1.0
        self._mean += 0.01 * (ratio - self._mean)
        self._variance += 0.01 * ((ratio - self._mean) ** 2 - self._variance)
        # How far runs lie above the estimate: a step up at each that lies above the quantile, a
        # ninth of it down at the others, so that one in ten lies above.
        excess = self._excess
        if seconds > expected * (1.0 + excess):
            self._excess = excess + 0.09 * excess + 0.0009
        elif excess > 0.01:
            self._excess = excess - 0.01 * excess
        if size.count <= _SINGLE and seconds < 0.8 * expected:
            size.seconds *= seconds / expected  # the first ones were disturbed
            size.spread = 0.1 * size.seconds
        else:
            self._follow(size, seconds - expected)
        self._settle(size)

    def _follow(self, size: _Size, error: float) -> None:
        bound = _CLIP * size.spread
        distance = error if error >= 0 else -error
        if distance > bound:
            distance = bound
            error = bound if error > 0 else -bound
        size.seconds += error * (_GAIN if size.count > 15 else 1.0 / (size.count + 1))
        size.spread += _SPREAD_GAIN * (distance - size.spread)
        least = 0.005 * size.seconds
        if size.spread < least:
            size.spread = least

    def known(self, rows: int) -> float | None:
        """Return the estimate for just this size, None while there is none."""
        size = self._sizes.get(step_of(rows))
        return None if size is None else size.seconds

    def count(self, rows: int) -> int:
        """Return how many runs of just this size were seen."""
        size = self._sizes.get(step_of(rows))
        return 0 if size is None else size.count

    def age(self, rows: int) -> int:
        """Return how many runs ago just this size was seen; all of them where it never was."""
        size = self._sizes.get(step_of(rows))
        return self._runs if size is None else self._runs - size.seen

    def predict(self, rows: int) -> float | None:
        """Predict a run: between measured sizes by a straight line, never less for more rows.

        Beyond the largest size known no row comes for free; below the smallest all cost as much.

        Returns:
            Seconds, or None while nothing was measured.
        """
        known = self._rows
        place = bisect_left(known, rows)
        if place == len(known):
            return self._curve[-1] * rows / known[-1] if known else None
        above = known[place]
        if above == rows or not place:
            return self._curve[place]
        below = known[place - 1]
        low = self._curve[place - 1]
        return low + (self._curve[place] - low) * (rows - below) / (above - below)

    def upper(self, rows: int) -> float | None:
        """Predict what nine runs in ten stay below; see `predict`."""
        seconds = self.predict(rows)
        return None if seconds is None else seconds * (1.0 + self._excess)

    def hopeful(self, rows: int) -> float:
        """Predict a run as short as the few runs seen leave possible; 0.0 while there is none."""
        seconds = self.predict(rows) or 0.0
        size = self._sizes.get(step_of(rows))
        if size is None:
            return seconds
        count = size.count if self._runs - size.seen <= _STALE else min(size.count, 3)
        return seconds - size.spread / sqrt(count)

    def upper_of(self, batches: float) -> tuple[float, float]:
        """Return what to multiply an estimate with for so many runs, one after the other.

        Returns:
            The factor for their sum as a rule, outliers included, and the one that nine sums in
            ten stay below.
        """
        usual = max(1.0, self._mean) * batches
        spread = 1.3 * sqrt(self._variance * batches)
        return usual, max(usual + spread, usual + self._excess)

    def shortest(self, rows: int) -> float | None:
        """Predict how long an undisturbed run holds its thread; see `predict`.

        A shorter run counts at once and a longer one slowly: runs on a thread of their own wait for
        the interpreter's lock, which says nothing about the model.
        """
        seconds = self.predict(rows)
        if seconds is None:
            return None
        size = self._order[min(bisect_left(self._rows, rows), len(self._rows) - 1)]
        return seconds * size.least / size.seconds if size.least < size.seconds else seconds

    def _add(self, step: int, seconds: float) -> None:
        size = self._sizes[step] = _Size(step, seconds)
        size.seen = self._runs
        place = bisect_left(self._rows, step)
        self._rows.insert(place, step)
        self._order.insert(place, size)
        self._curve.insert(place, seconds)
        self._repair()

    def _settle(self, size: _Size) -> None:
        """Bring the curve up to date with an estimate that moved."""
        if self._contradicted:
            if not self._runs % _REPAIR_EVERY or size.count <= _SINGLE:
                self._repair()
            return
        curve = self._curve
        place = bisect_left(self._rows, size.rows)
        curve[place] = seconds = size.seconds
        if (place and curve[place - 1] > seconds) or (
            place + 1 < len(curve) and curve[place + 1] < seconds
        ):
            self._repair()

    def _repair(self) -> None:
        """Pool neighbours that contradict each other: many runs and late ones weigh most."""
        pools: list[tuple[float, float, int]] = []  # weighted seconds, weight, sizes
        for size in self._order:
            weight = min(size.count, 16) / (1.0 + (self._runs - size.seen) / 64)
            total, sizes = weight * size.seconds, 1
            while pools and pools[-1][0] * weight > total * pools[-1][1]:
                below = pools.pop()
                total, weight, sizes = total + below[0], weight + below[1], sizes + below[2]
            pools.append((total, weight, sizes))
        self._contradicted = len(pools) < len(self._order)
        self._curve = [total / weight for total, weight, sizes in pools for _ in range(sizes)]
