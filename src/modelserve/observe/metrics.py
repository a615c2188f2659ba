"""Counts and times of requests and batches, exposed as Prometheus metric families.

Exchanges are folded into plain numbers here; prometheus_client is loaded only to expose them, and
its global registry is never touched.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from modelserve.messages import Exchange

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["DURATION_BUCKETS", "Metrics"]

_LOG = logging.getLogger(__name__)

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

_SIZE_EDGES: Final = 15
"""Batch sizes are counted up to 1, 2, 4, ... 2**14 rows, and over."""

_MOST_CELLS: Final = 1024
_MOST_VALUES: Final = 1024

_Samples: TypeAlias = Callable[[], Iterable[tuple[Sequence[str], float]]]
_Key: TypeAlias = tuple[str, str, str, str, int, int, str]
_MODEL: Final = ("model", "version")


class _Histogram:
    """Counts values per bucket; the values wait in an array, so that adding one is an append."""

    __slots__ = ("_edges", "add", "counts", "sum", "values")

    def __init__(self, edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        self._edges = edges
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.sum = 0.0
        self.values = array("d")
        self.add = self.values.append

    def settle(self) -> None:
        if not self.values:
            return
        places = self._edges.searchsorted(np.array(self.values), "left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.sum += sum(self.values)
        del self.values[:]


class _Batches:
    """Counts batches from their members' exchanges, each batch once.

    A batch of k requests is counted when k members of such batches were seen: in integers, so
    that no sum of k times 1/k drifts. A member that was closed before its batch ran, its caller
    gone, is missing: such a batch counts only together with others of its size.
    """

    __slots__ = ("_reasons", "_rows", "_sizes")

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], int] = {}
        self._reasons: dict[tuple[str, int], int] = {}
        self._rows: dict[int, int] = {}

    def add(self, members: int, rows: int, reason: str, seen: int) -> None:
        size = (min((rows - 1).bit_length(), _SIZE_EDGES), members)
        self._sizes[size] = self._sizes.get(size, 0) + seen
        why = (reason, members)
        self._reasons[why] = self._reasons.get(why, 0) + seen
        self._rows[members] = self._rows.get(members, 0) + seen * rows

    def counts(self) -> list[int]:
        counts = [0] * (_SIZE_EDGES + 1)
        for (bucket, members), seen in self._sizes.items():
            counts[bucket] += seen // members
        return counts

    def rows(self) -> float:
        return sum(rows / members for members, rows in self._rows.items())

    def reasons(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for (reason, members), seen in self._reasons.items():
            counts[reason] = counts.get(reason, 0) + seen // members
        return counts


class _Series:
    """Everything counted under one pair of model and version."""

    __slots__ = ("batches", "labels", "queue", "requests", "run", "total")

    def __init__(
        self, labels: tuple[str, str], edges: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        self.labels = labels
        self.requests: dict[tuple[str, str], int] = {}
        self.total = _Histogram(edges)
        self.queue = _Histogram(edges)
        self.run = _Histogram(edges)
        self.batches = _Batches()


class _Cell:
    """Exchanges that are alike in all but their times, not yet added to their series."""

    __slots__ = ("count", "queue", "run", "series", "total", "values")

    def __init__(self, series: _Series) -> None:
        self.count = 0
        self.series = series
        self.total = series.total.add
        self.queue = series.queue.add
        self.run = series.run.add
        self.values = series.total.values


class _Gauge:
    __slots__ = ("help", "labels", "name", "sources")

    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.sources: list[_Samples] = []


class Metrics:
    """Fold closed exchanges into counters and histograms; an `Observer` and a collector.

    Register it with a `prometheus_client.CollectorRegistry`, or call `render`. Any number of
    them live in one process. All methods may be called from any thread.

    Requests that name no model known to exist are counted under ``model=""``, so that a caller
    cannot make series by inventing names: a model is known once declared, or once it answered.

    Args:
        buckets: Upper bounds of the duration histograms in seconds, ascending.
        max_series: Pairs of model and version counted apart; further ones count under
            ``model=""``.

    Raises:
        ValueError: The buckets are not ascending.

    Example:
        >>> metrics = Metrics()
        >>> metrics.observe([Exchange("http", "iris")])
        >>> text, content_type = metrics.render()
        >>> b'modelserve_requests_total{code="OK",model="iris"' in text
        True
    """

    def __init__(
        self, *, buckets: Sequence[float] = DURATION_BUCKETS, max_series: int = 1000
    ) -> None:
        edges = np.array(buckets, np.float64)
        if not len(edges) or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
            raise ValueError(f"buckets: expected finite ascending numbers, got {tuple(buckets)}")
        self._edges = edges
        self._max_series = max_series
        self._lock = Lock()
        self._cells: dict[_Key, _Cell] = {}
        self._series: dict[tuple[str, str], _Series] = {}
        self._models: dict[str, set[str]] = {}
        self._gauges: dict[str, _Gauge] = {}
        self._before: list[Callable[[], None]] = []
        self._registry: CollectorRegistry | None = None

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Fold closed exchanges."""
        with self._lock:
            cells = self._cells
            for x in exchanges:
                batched = x.batch_rows
                key = (x.model, x.version, x.protocol, x.code, x.batch_requests, batched, x.reason)
                cell = cells.get(key)
                if cell is None:
                    cell = self._open(key, x.rows)
                cell.count += 1
                cell.total(x.total)
                if x.rows:
                    cell.queue(x.queue)
                    if batched:
                        cell.run(x.run)
                if len(cell.values) >= _MOST_VALUES:
                    self._settle_times(cell.series)

    def declare(self, model: str, version: str) -> None:
        """Make a version known, with counts of zero; call it when the version is loaded."""
        with self._lock:
            self._know(model, version)

    def forget(self, model: str, version: str) -> None:
        """Drop a version's series; call it when the version is gone for good."""
        with self._lock:
            self._settle()
            self._series.pop((model, version), None)
            versions = self._models.get(model, set())
            versions.discard(version)
            if not versions:
                self._models.pop(model, None)
                self._series.pop((model, ""), None)

    def add_gauge(
        self, name: str, help: str, labels: Sequence[str], samples: _Samples
    ) -> Callable[[], None]:
        """Expose numbers that are read when scraped.

        Args:
            name: Name of the family, e.g. ``"modelserve_queue_depth"``.
            help: One sentence.
            labels: Names of the labels.
            samples: Returns pairs of label values and number; called in the scraping thread.
                Several may share a family. One that raises is logged and left out.

        Returns:
            A function that takes the numbers away again.

        Raises:
            ValueError: The name exists with other labels.
        """
        with self._lock:
            gauge = self._gauges.setdefault(name, _Gauge(name, help, tuple(labels)))
            if gauge.labels != tuple(labels):
                raise ValueError(f"gauge {name} has labels {gauge.labels}, not {tuple(labels)}")
            gauge.sources.append(samples)

        def remove() -> None:
            with self._lock:
                if samples in gauge.sources:
                    gauge.sources.remove(samples)
                if not gauge.sources and self._gauges.get(name) is gauge:
                    del self._gauges[name]

        return remove

    def before_collect(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called before every scrape (a recorder's `flush`); returns its removal."""
        with self._lock:
            self._before.append(call)

        def remove() -> None:
            with self._lock:
                if call in self._before:
                    self._before.remove(call)

        return remove

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as `prometheus_client` wants them.

        Raises:
            ImportError: prometheus_client is not installed.
        """
        families = _Families()
        with self._lock:
            before = tuple(self._before)
        for call in before:
            call()
        with self._lock:
            self._settle()
            for _, series in sorted(self._series.items()):
                families.add(series, self._edges)
            gauges = [(gauge, tuple(gauge.sources)) for gauge in self._gauges.values()]
        yield from families.all()
        # Outside the lock: a gauge may take locks of its own, whose holders may observe.
        for gauge, sources in gauges:
            yield families.gauge(gauge, sources)

    def describe(self) -> Iterator[Metric]:
        """Yield the families without samples, so that a registry sees clashing names."""
        families = _Families()
        yield from families.all()
        with self._lock:
            gauges = tuple(self._gauges.values())
        for gauge in gauges:
            yield families.gauge(gauge, ())

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type.

        Args:
            accept: The scraper's `Accept` header; OpenMetrics is written where it is asked for.

        Raises:
            ImportError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import choose_encoder
        except ImportError as error:
            raise _missing() from error
        if self._registry is None:
            registry = CollectorRegistry()
            registry.register(self)
            self._registry = registry
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _open(self, key: _Key, rows: int) -> _Cell:
        model, version, _, code = key[:4]
        if (code == "OK" or rows) and (model, version) not in self._series:
            self._know(model, version)
        versions = self._models.get(model)
        if versions is None:
            model = version = ""
        elif version not in versions:
            version = ""
        if len(self._cells) >= _MOST_CELLS:
            self._settle()
        cell = self._cells[key] = _Cell(self._at(model, version))
        return cell

    def _know(self, model: str, version: str) -> None:
        if (model, version) in self._series or len(self._series) >= self._max_series:
            return
        # Cells opened while the model was unknown point at the unknown model's series.
        self._settle()
        self._models.setdefault(model, set()).add(version)
        self._at(model, version)

    def _at(self, model: str, version: str) -> _Series:
        series = self._series.get((model, version))
        if series is None:
            labels = (_printable(model), _printable(version))
            series = self._series[model, version] = _Series(labels, self._edges)
        return series

    def _settle(self) -> None:
        for key, cell in self._cells.items():
            protocol, code, members, rows, reason = key[2:]
            requests = cell.series.requests
            requests[protocol, code] = requests.get((protocol, code), 0) + cell.count
            if rows and members:
                cell.series.batches.add(members, rows, reason, cell.count)
        self._cells.clear()
        for series in self._series.values():
            self._settle_times(series)

    def _settle_times(self, series: _Series) -> None:
        series.total.settle()
        series.queue.settle()
        series.run.settle()


class _Families:
    """The families of one scrape."""

    def __init__(self) -> None:
        try:
            from prometheus_client import metrics_core
        except ImportError as error:
            raise _missing() from error
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

    def add(self, series: _Series, edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        for (protocol, code), count in sorted(series.requests.items()):
            self._requests.add_metric([*series.labels, protocol, code], count)
        bounds = [*map(repr, edges.tolist()), "+Inf"]
        for name, times in (
            ("request", series.total),
            ("queue", series.queue),
            ("run", series.run),
        ):
            self._durations[name].add_metric(
                series.labels,
                list(zip(bounds, accumulate(times.counts.tolist()), strict=True)),
                times.sum,
            )
        bounds = [*(repr(float(1 << i)) for i in range(_SIZE_EDGES)), "+Inf"]
        self._sizes.add_metric(
            series.labels,
            list(zip(bounds, accumulate(series.batches.counts()), strict=True)),
            series.batches.rows(),
        )
        for reason, count in sorted(series.batches.reasons().items()):
            self._batches.add_metric([*series.labels, reason], count)

    def all(self) -> Iterator[Metric]:
        yield self._requests
        yield from self._durations.values()
        yield self._sizes
        yield self._batches

    def gauge(self, gauge: _Gauge, sources: Iterable[_Samples]) -> Metric:
        family = self._gauge(gauge.name, gauge.help, labels=gauge.labels)
        for source in sources:
            try:
                samples = [(list(map(_printable, labels)), value) for labels, value in source()]
            except Exception:
                _LOG.exception("gauge %s could not be read", gauge.name)
                continue
            for labels, value in samples:
                family.add_metric(labels, value)
        return family


def _printable(label: str) -> str:
    # A name taken from a URL may hold lone surrogates, which the exposition cannot encode.
    return label.encode("utf-8", "backslashreplace").decode()


def _missing() -> ImportError:
    return ImportError('metrics need prometheus_client: pip install "modelserve[serve]"')
