"""Memory that the processes of one server share, so that the metrics of each tell of all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from modelserve.observe.columns import Columns
from modelserve.observe.ledger import Ledger, Reading

__all__ = ["DURATION_BUCKETS", "MAX_SERIES", "Pool", "Share"]

DURATION_BUCKETS: Final[tuple[float, ...]] = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of the duration histograms, in seconds."""

MAX_SERIES: Final = 1000
"""Pairs of model and version counted apart where nothing else is said."""


class Share(NamedTuple):
    """What one process has put into the pool.

    Args:
        alive: Whether the process is there; of one that ended, the counts stay.
        reading: Its counts.
        gauges: Its gauges, as `Metrics` wrote them.
    """

    alive: bool
    reading: Reading
    gauges: list[Any]


class Pool:
    """Slots in a buffer, one for the metrics of each process; give one to `Metrics.share`.

    A slot has one process at a time. The next one in it goes on counting where the last one ended,
    however that was, so that no count gets lost with a process.

    Args:
        buffer: `Pool.size` bytes, zero when the first process comes; such as an `mmap` they share.
        slots: How many processes there may be at once.
        buckets: Upper bounds of the duration histograms in seconds, as the processes' `Metrics`
            have them.
        max_series: As the processes' `Metrics` have it.

    Example:
        >>> from modelserve.observe.metrics import Metrics
        >>> pool = Pool(bytearray(Pool.size(2)), 2)
        >>> one, two = Metrics(), Metrics()
        >>> one.share(pool, 0)
        >>> two.share(pool, 1)
    """

    def __init__(
        self,
        buffer: Any,
        slots: int,
        *,
        buckets: Sequence[float] = DURATION_BUCKETS,
        max_series: int = MAX_SERIES,
    ) -> None:
        columns = Columns(np.array(buckets, np.float64))
        size = Ledger.size(columns, rows_for(max_series))
        view = memoryview(buffer)
        self.buckets = tuple(buckets)
        self.max_series = max_series
        self.ledgers: tuple[Ledger, ...] = tuple(
            Ledger(columns, rows_for(max_series), view[slot * size : (slot + 1) * size])
            for slot in range(slots)
        )
        """One for each slot."""

    @staticmethod
    def size(
        slots: int,
        *,
        buckets: Sequence[float] = DURATION_BUCKETS,
        max_series: int = MAX_SERIES,
    ) -> int:
        """Bytes of the buffer; most of them are never touched, and need no memory until then."""
        return slots * Ledger.size(Columns(np.array(buckets, np.float64)), rows_for(max_series))

    def release(self, slot: int) -> None:
        """Say that the process of a slot has ended; its counts stay."""
        self.ledgers[slot].owner = 0

    def shares(self, but: int) -> Iterator[Share]:
        """Yield what is in the slots that were ever taken, but for one."""
        for slot, ledger in enumerate(self.ledgers):
            if slot == but:
                continue
            reading = ledger.read()
            if reading.directory["series"]:
                alive = bool(ledger.owner)
                text = ledger.read_gauges() if alive else b""
                yield Share(alive, reading, json.loads(text) if text else [])


def rows_for(max_series: int) -> int:
    """Return how many rows a ledger needs: beside each series, its model's without a version."""
    return 2 * max_series + 2
