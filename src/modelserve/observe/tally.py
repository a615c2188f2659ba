"""Adds up what the ledgers of one or several processes hold, by model and version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, time
from typing import Any, Final

import numpy as np

from modelserve.messages import BatchStatistics, ModelStatistics, Spent
from modelserve.observe.columns import BatchSums, Columns
from modelserve.observe.ledger import Reading
from modelserve.observe.pool import Share

__all__ = ["Tally", "printable"]

_NANOSECONDS: Final = 1e9


class Tally:
    """Adds up what several ledgers hold, by the names their writers gave."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.cells: dict[tuple[str, str], Any] = {}
        self.requests: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        self.reasons: dict[tuple[str, str], dict[str, float]] = {}
        self._batches: dict[tuple[str, str], dict[int, Any]] = {}

    def add(self, reading: Reading) -> None:
        """Add a ledger of a process that is there."""
        self._add(reading, lambda key, held: held)

    def add_shares(self, shares: Sequence[Share]) -> None:
        """Add those of other processes; what ended ones held, as far as it is still served."""
        for share in shares:
            if share.alive:
                self.add(share.reading)
        keys = set(self.cells)
        models = {model for model, _ in keys} | {""}

        def served(key: tuple[str, str]) -> bool:
            return key in keys or (not key[1] and key[0] in models)

        for share in shares:
            if share.alive:
                self._add(share.reading, lambda key, held: not held and served(key))
            else:
                self._add(share.reading, lambda key, held: served(key))

    def _add(self, reading: Reading, wanted: Callable[[tuple[str, str], bool], bool]) -> None:
        directory = reading.directory
        requests = [(protocol, code) for protocol, code in directory["requests"]]
        reasons: list[str] = directory["reasons"]
        sizes: list[int] = directory["sizes"]
        for names, cells in zip(directory["series"], reading.cells, strict=False):
            if names is None:
                continue
            model, version, held = names
            key = (model, version)
            if not wanted(key, held):
                continue
            known = self.cells.get(key)
            self.cells[key] = cells if known is None else self._columns.merged(known, cells)
            _count(self.requests.setdefault(key, {}), requests, cells)
            _count(self.reasons.setdefault(key, {}), reasons, cells[self._columns.reasons :])
            self._add_batches(self._batches.setdefault(key, {}), sizes, cells)

    def _add_batches(self, batches: dict[int, Any], sizes: Sequence[int], cells: Any) -> None:
        sums = self._columns.batch_sums_of(cells)[: len(sizes)]
        for column in np.flatnonzero(sums.any(axis=1)).tolist():
            size = sizes[column]
            batches[size] = batches.get(size, 0.0) + sums[column]

    def statistics(self, model: str, version: str) -> ModelStatistics:
        """Return the statistics of one version; all zero where nothing is known of it."""
        key = (model, version)
        cells = self.cells.get(key)
        if cells is None:
            return ModelStatistics(model, version)
        columns, sums = self._columns, self._columns.sums_of(cells)
        well = failed = 0.0
        for (_, code), count in self.requests[key].items():
            if code == "OK":
                well += count
            else:
                failed += count
        total, queue, run = (
            float(cells[at + len(columns.edges) + 1])
            for at in (columns.total, columns.queue, columns.run)
        )
        executions = float(cells[columns.sizes : columns.rows].sum()) + sums.unbatched
        return ModelStatistics(
            model,
            version,
            last_inference=round((sums.last - perf_counter() + time()) * 1e3) if sums.last else 0,
            inference_count=round(sums.inferences),
            execution_count=round(executions),
            success=_spent(well, total - sums.failed),
            fail=_spent(failed, sums.failed),
            queue=_spent(well, queue - sums.failed_queue),
            compute_input=_spent(well, sums.input),
            compute_infer=_spent(well, run - sums.failed_run - sums.join),
            compute_output=_spent(well, sums.output),
            batches=tuple(self._batch_statistics(key)),
        )

    def _batch_statistics(self, key: tuple[str, str]) -> Iterator[BatchStatistics]:
        for size, found in sorted(self._batches[key].items()):
            sums = BatchSums(*found.tolist())
            if size and sums.ran:  # 0 stands for the sizes that had no column of their own
                yield BatchStatistics(
                    size,
                    compute_input=_spent(sums.ran, sums.input),
                    compute_infer=_spent(sums.ran, sums.infer),
                    compute_output=_spent(sums.ran, sums.output),
                )


def _spent(count: float, seconds: float) -> Spent:
    # A difference of sums may be a little less than nothing.
    return Spent(round(count), max(0, round(seconds * _NANOSECONDS)))


def _count(counts: dict[Any, float], names: Sequence[Any], cells: Any) -> None:
    for column in np.flatnonzero(cells[: len(names)]).tolist():
        name = names[column]
        counts[name] = counts.get(name, 0.0) + float(cells[column])


def printable(label: str) -> str:
    """Return the label as the exposition can encode it."""
    # A name taken from a URL may hold lone surrogates.
    return label.encode("utf-8", "backslashreplace").decode()
