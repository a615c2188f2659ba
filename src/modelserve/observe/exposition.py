"""The metric families of one scrape, from ledgers and gauges; loads prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from modelserve.observe.ledger import SIZE_EDGES, Columns, Reading
from modelserve.observe.pool import Share

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Families", "Tally", "missing", "printable"]

Labels: TypeAlias = Sequence[str]
Samples: TypeAlias = Iterable[tuple[Labels, float]]

_MODEL: Final = ("model", "version")


class Tally:
    """Adds up what several ledgers hold, by the names their writers gave."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.cells: dict[tuple[str, str], Any] = {}
        self.requests: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        self.reasons: dict[tuple[str, str], dict[str, float]] = {}

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
        for names, cells in zip(directory["series"], reading.cells, strict=False):
            if names is None:
                continue
            model, version, held = names
            key = (model, version)
            if not wanted(key, held):
                continue
            known = self.cells.get(key)
            self.cells[key] = cells if known is None else known + cells
            _count(self.requests.setdefault(key, {}), requests, cells)
            _count(self.reasons.setdefault(key, {}), reasons, cells[self._columns.reasons :])


def _count(counts: dict[Any, float], names: Sequence[Any], cells: Any) -> None:
    for column in np.flatnonzero(cells[: len(names)]).tolist():
        name = names[column]
        counts[name] = counts.get(name, 0.0) + float(cells[column])


class Families:
    """The families of one scrape.

    Raises:
        ImportError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import metrics_core
        except ImportError as error:
            raise missing() from error
        histogram, counter = metrics_core.HistogramMetricFamily, metrics_core.CounterMetricFamily
        self._gauge = metrics_core.GaugeMetricFamily
        self._requests = counter(
            "modelserve_requests_total", "Requests answered.", labels=[*_MODEL, "protocol", "code"]
        )
        self._durations = {
            name: histogram(
                f"modelserve_{name}_duration_seconds", text, labels=_MODEL, unit="seconds"
            )
            for name, text in (
                ("request", "Time from the receipt of a request until its answer was written."),
                ("queue", "Time a request waited for its batch."),
                ("run", "Time a request's batch ran."),
            )
        }
        self._sizes = histogram(
            "modelserve_batch_size", "Rows per batch, each batch counted once.", labels=_MODEL
        )
        self._batches = counter(
            "modelserve_batches_total",
            "Batches run, by what made them start.",
            labels=[*_MODEL, "reason"],
        )

    def add(self, tally: Tally, columns: Columns) -> None:
        """Add counters and histograms."""
        edges = columns.edges
        bounds = [*map(repr, edges.tolist()), "+Inf"]
        size_bounds = [*map(repr, SIZE_EDGES.tolist()), "+Inf"]
        for labels, cells in sorted(tally.cells.items(), key=lambda item: item[0]):
            for (protocol, code), count in sorted(tally.requests[labels].items()):
                self._requests.add_metric([*labels, protocol, code], count)
            for name, at in (
                ("request", columns.total),
                ("queue", columns.queue),
                ("run", columns.run),
            ):
                end = at + len(bounds)
                counts = accumulate(cells[at:end].tolist())
                self._durations[name].add_metric(
                    labels, list(zip(bounds, counts, strict=True)), float(cells[end])
                )
            end = columns.sizes + len(size_bounds)
            counts = accumulate(cells[columns.sizes : end].tolist())
            self._sizes.add_metric(
                labels, list(zip(size_bounds, counts, strict=True)), float(cells[columns.rows])
            )
            for reason, count in sorted(tally.reasons[labels].items()):
                self._batches.add_metric([*labels, reason], count)

    def all(self) -> Iterator[Metric]:
        """Yield counters and histograms."""
        yield self._requests
        yield from self._durations.values()
        yield self._sizes
        yield self._batches

    def gauge(self, name: str, help: str, labels: Labels, samples: Samples) -> Metric:
        """Return a gauge; samples of equal labels are added up."""
        family = self._gauge(name, help, labels=list(labels))
        sums: dict[tuple[str, ...], float] = {}
        for values, number in samples:
            key = tuple(values)
            sums[key] = sums.get(key, 0.0) + number
        for key, number in sums.items():
            family.add_metric(key, number)
        return family


def printable(label: str) -> str:
    """Return the label as the exposition can encode it."""
    # A name taken from a URL may hold lone surrogates.
    return label.encode("utf-8", "backslashreplace").decode()


def missing() -> ImportError:
    """Return the error that says what to install."""
    return ImportError('metrics need prometheus_client: pip install "modelserve[serve]"')
