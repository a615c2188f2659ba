"""Counts and times of requests and batches, exposed as Prometheus metric families.

Exchanges are folded into plain numbers here; prometheus_client is loaded only to expose them, and
its global registry is never touched.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import nan
from os import getpid
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from modelserve.messages import BatchRecord, Exchange, ModelStatistics
from modelserve.observe.columns import (
    MOST_REASONS,
    MOST_REQUEST_LABELS,
    MOST_SIZES,
    Columns,
    kind_of,
)
from modelserve.observe.exposition import Families, missing
from modelserve.observe.ledger import LOG_SIZE, MOST_TOUCHED, Ledger
from modelserve.observe.pool import DURATION_BUCKETS, MAX_SERIES, Pool, Share, rows_for
from modelserve.observe.tally import Tally, printable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["DURATION_BUCKETS", "Metrics"]

_LOG = logging.getLogger(__name__)

_MOST_CELLS: Final = 1024
_MOST_KINDS: Final = 4096

_Samples: TypeAlias = Callable[[], Iterable[tuple[Sequence[str], float]]]
_Key: TypeAlias = tuple[str, str, str, str]


class _Kind:
    """Batches of a series that are alike, counted from their members' exchanges, each batch once.

    A batch of k requests is counted with the first of its members, and the next k - 1 members of
    such batches are taken for its others: in integers, so that no sum of k times 1/k drifts. A
    member that was closed before its batch ran, its caller gone, is missing: another batch's first
    member then stands in for it.
    """

    __slots__ = ("left", "members", "more", "plain", "rows")

    def __init__(self, members: int, rows: int, reason: int, size: int) -> None:
        self.members = members
        # What is written to the log is made a float once.
        self.rows = float(rows)
        self.plain = float(kind_of(reason, size, members, more=False))
        self.more = float(kind_of(reason, size, members, more=True))
        self.left = 0

    def see(self, members: int) -> int:
        """Return how many batches begin with these members."""
        if not self.members:
            return 0
        left = self.left - members
        if left >= 0:
            self.left = left
            return 0
        begun, self.left = divmod(-left, self.members)
        if self.left:
            begun += 1
            self.left = self.members - self.left
        return begun


class _Series:
    """One pair of model and version."""

    __slots__ = ("kinds", "place", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        self.place = -1
        """Where its numbers begin in what is logged now; -1 where it is not in it."""
        self.kinds: dict[tuple[int, int, str], _Kind] = {}


class _Cell:
    """Exchanges of one series, protocol and code."""

    __slots__ = ("request", "series")

    def __init__(self, series: _Series, request: int) -> None:
        self.series = series
        self.request = float(request)


_NO_KIND: Final = _Kind(0, 0, 0, 0)
_NO_CELL: Final = _Cell(_Series(0), 0)
_END: Final = Exchange("")
"""Stands behind the last of the exchanges that are folded; it is like none of them."""
_NEVER: Final = BatchRecord(0, 0, "", 0.0, 0.0)
_END.batch = BatchRecord(0, 0, "", 0.0, 0.0)


class _Gauge:
    __slots__ = ("help", "labels", "name", "sources")

    def __init__(self, name: str, help: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.sources: list[_Samples] = []

    def read(self) -> list[tuple[tuple[str, ...], float]]:
        samples: list[tuple[tuple[str, ...], float]] = []
        for source in tuple(self.sources):
            try:
                samples += [(tuple(map(printable, labels)), value) for labels, value in source()]
            except Exception:
                _LOG.exception("gauge %s could not be read", self.name)
        return samples


class Metrics:
    """Fold closed exchanges into counters and histograms; an `Observer` and a collector.

    Register it with a `prometheus_client.CollectorRegistry`, or call `render`. Any number of
    them live in one process. All methods may be called from any thread.

    In a server of several processes each shares its numbers with the others (`share`): then what
    any of them exposes is the sum of all.

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
        self, *, buckets: Sequence[float] = DURATION_BUCKETS, max_series: int = MAX_SERIES
    ) -> None:
        edges = np.array(buckets, np.float64)
        if not len(edges) or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
            raise ValueError(f"buckets: expected finite ascending numbers, got {tuple(buckets)}")
        self._buckets = tuple(edges.tolist())
        self._columns = Columns(edges)
        self._max_series = max_series
        self._lock = Lock()
        self._ledger = Ledger(self._columns, rows_for(max_series))
        self._pool: Pool | None = None
        self._slot = 0
        self._leaving = False
        self._cells: dict[_Key, _Cell] = {}
        self._kinds = 0
        self._placed: list[_Series] = []
        self._series: dict[tuple[str, str], _Series] = {}
        self._models: dict[str, set[str]] = {}
        self._gauges: dict[str, _Gauge] = {}
        self._before: list[Callable[[], None]] = []
        self._registry: CollectorRegistry | None = None

    def share(self, pool: Pool, slot: int) -> None:
        """Keep the numbers in a pool from now on, and expose those of all its processes as one.

        Args:
            pool: Memory shared with other processes.
            slot: Which part of it is this process's alone.

        Raises:
            ValueError: The pool is for other buckets, or another number of series.
            RuntimeError: There are numbers already; share before a model is loaded.
        """
        if (pool.buckets, pool.max_series) != (self._buckets, self._max_series):
            raise ValueError("the pool's buckets and max_series must be those of the metrics")
        with self._lock:
            if self._series:
                raise RuntimeError("there are numbers already; share before a model is loaded")
            ledger = pool.ledgers[slot]
            ledger.adopt(getpid())
            self._ledger, self._pool, self._slot = ledger, pool, slot

    def leave(self) -> None:
        """Let what was counted stay in the pool, whatever is forgotten from now on.

        A process that ends calls it before its models are closed.
        """
        self._leaving = self._pool is not None

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Fold closed exchanges; quickest where those of a batch come one after the other."""
        with self._lock:
            while exchanges:
                some = exchanges if len(exchanges) <= LOG_SIZE else exchanges[:LOG_SIZE]
                if len(some) > self._ledger.room:
                    self._settle()
                done = self._fold(some)
                if done == len(exchanges):
                    return
                self._settle()
                exchanges = exchanges[done:]

    def _fold(self, exchanges: Sequence[Exchange]) -> int:
        """Append exchanges to the log; returns how many had room."""
        groups: list[float] = []
        more: list[float] = []
        done = count = place = 0
        cell, kind, first = _NO_CELL, _NO_KIND, _END
        started = run = nan
        batch = _NEVER
        protocol = model = version = code = ""
        for x in (*exchanges, _END):
            shared = x.batch
            # A batch has one model and version.
            if shared is batch and x.code is code and x.protocol is protocol:
                count += 1
                continue
            if count:
                tag, begun = kind.plain, 1.0
                if kind.members != 1:
                    tag = kind.more
                    whole = count == kind.members
                    begun = 1.0 if whole and not kind.left else kind.see(count)
                    rows = kind.rows if whole else 0.0
                    more += _more(exchanges[done : done + count], batch, rows)
                elif first.decode:
                    tag = kind.more
                    more += (kind.rows, first.decode, first.encode, 0.0, 0.0)
                groups += (float(count), started, run, place + cell.request, kind.rows, begun, tag)
                done += count
                count = 0
            if x is _END:
                break
            if (
                x.code is not code
                or x.version is not version
                or x.model is not model
                or x.protocol is not protocol
            ):
                protocol, model, version, code = x.protocol, x.model, x.version, x.code
                cell = self._cells.get((model, version, protocol, code)) or self._open(x)
                place = cell.series.place
                if place < 0 and (place := self._place(cell.series)) < 0:
                    break
            first = x
            if shared is not None and x.rows:
                batch, started, run = shared, shared.started, shared.run
                shape = (shared.requests, shared.rows, shared.reason)
                kind = cell.series.kinds.get(shape) or self._kind(cell.series, shape)
                if not kind.members:
                    run = nan
            else:
                batch, kind = _NEVER, _NO_KIND
                started, run = x.enqueued if x.rows else nan, nan
            count = 1
        some = exchanges if done == len(exchanges) else exchanges[:done]
        self._ledger.append([x.total for x in some], [x.enqueued for x in some], groups, more)
        return done

    def _place(self, series: _Series) -> int:
        """Give a series a place in the log and return it; -1 where there is none left."""
        if self._ledger.touched < MOST_TOUCHED:
            series.place = self._ledger.place(series.row)
            self._placed.append(series)
        return series.place

    def declare(self, model: str, version: str) -> None:
        """Make a version known, with counts of zero; call it when the version is loaded."""
        with self._lock:
            self._know(model, version)

    def forget(self, model: str, version: str) -> None:
        """Drop a version's series; call it when the version is gone for good."""
        with self._lock:
            if self._leaving:
                return
            self._settle()
            self._cells.clear()
            self._drop(model, version)
            versions = self._models.get(model, set())
            versions.discard(version)
            if not versions:
                self._models.pop(model, None)
                self._drop(model, "")

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

    def flush(self) -> None:
        """Take in what recorders hold back, so that other processes see it; and the gauges.

        A process that shares its numbers calls it several times a second.
        """
        with self._lock:
            before = tuple(self._before)
        for call in before:
            call()
        if self._pool is not None:
            gauges = [(g.name, g.help, g.labels, g.read()) for g in self._all_gauges()]
            text = json.dumps(gauges).encode()
            with self._lock:
                if not self._ledger.write_gauges(text):
                    self._ledger.write_gauges(b"")

    def statistics(self, versions: Iterable[tuple[str, str]]) -> list[ModelStatistics]:
        """Return what versions have done since they were declared, in all processes together.

        What other processes counted shows up when they `flush`.

        Args:
            versions: Names of models and versions.
        """
        tally, _ = self._tally()
        return [tally.statistics(printable(model), version) for model, version in versions]

    def _tally(self) -> tuple[Tally, list[Share]]:
        """Add up what this process and those beside it have counted."""
        with self._lock:
            before = tuple(self._before)
        for call in before:
            call()
        shares = [] if self._pool is None else list(self._pool.shares(self._slot))
        tally = Tally(self._columns)
        with self._lock:
            self._settle()
            tally.add(self._ledger.read())
        tally.add_shares(shares)
        return tally, shares

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as `prometheus_client` wants them.

        Raises:
            ImportError: prometheus_client is not installed.
        """
        families = Families()
        tally, shares = self._tally()
        families.add(tally, self._columns)
        yield from families.all()
        # Outside the lock: a gauge may take locks of its own, whose holders may observe.
        gauges = {
            gauge.name: (gauge.help, gauge.labels, gauge.read()) for gauge in self._all_gauges()
        }
        for share in shares:
            for name, help, labels, samples in share.gauges:
                known = gauges.setdefault(name, (help, tuple(labels), []))
                known[2].extend((tuple(values), number) for values, number in samples)
        for name, (help, labels, samples) in gauges.items():
            yield families.gauge(name, help, labels, samples)

    def _all_gauges(self) -> tuple[_Gauge, ...]:
        with self._lock:
            return tuple(self._gauges.values())

    def describe(self) -> Iterator[Metric]:
        """Yield the families without samples, so that a registry sees clashing names."""
        families = Families()
        yield from families.all()
        for gauge in self._all_gauges():
            yield families.gauge(gauge.name, gauge.help, gauge.labels, ())

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
            raise missing() from error
        if self._registry is None:
            registry = CollectorRegistry()
            registry.register(self)
            self._registry = registry
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _open(self, x: Exchange) -> _Cell:
        model, version, protocol, code = key = (x.model, x.version, x.protocol, x.code)
        if (code == "OK" or x.rows) and (model, version) not in self._series:
            self._know(model, version)
        versions = self._models.get(model)
        if versions is None:
            model = version = ""
        elif version not in versions:
            version = ""
        if len(self._cells) >= _MOST_CELLS:
            self._cells.clear()
        names = [printable(protocol), printable(code)]
        rest = ["other", "UNKNOWN"]
        request = self._ledger.open_column("requests", names, MOST_REQUEST_LABELS, rest)
        cell = self._cells[key] = _Cell(self._at(model, version), request)
        return cell

    def _kind(self, series: _Series, shape: tuple[int, int, str]) -> _Kind:
        if self._kinds >= _MOST_KINDS:
            self._forget_kinds()
        members, rows, reason = shape
        if members and rows:
            column = self._ledger.open_column("reasons", printable(reason), MOST_REASONS, "other")
            size = self._ledger.open_column("sizes", rows, MOST_SIZES, 0)
            kind = _Kind(members, rows, column, size)
        else:
            kind = _NO_KIND
        series.kinds[shape] = kind
        self._kinds += 1
        return kind

    def _forget_kinds(self) -> None:
        # Of batches whose members were all seen there is nothing to remember.
        self._kinds = 0
        for series in self._series.values():
            kinds = {shape: kind for shape, kind in series.kinds.items() if kind.left}
            series.kinds = kinds if len(kinds) < _MOST_KINDS // 2 else {}
            self._kinds += len(series.kinds)

    def _know(self, model: str, version: str) -> None:
        if (model, version) in self._series or len(self._series) >= self._max_series:
            return
        # Cells opened while the model was unknown point at the unknown model's series.
        self._cells.clear()
        self._models.setdefault(model, set()).add(version)
        self._at(model, version)

    def _at(self, model: str, version: str) -> _Series:
        series = self._series.get((model, version))
        if series is None:
            row = self._ledger.open_row(printable(model), printable(version))
            if row is None:
                return self._at("", "")
            series = self._series[model, version] = _Series(row)
        return series

    def _drop(self, model: str, version: str) -> None:
        series = self._series.pop((model, version), None)
        if series is not None:
            self._kinds -= len(series.kinds)
            self._ledger.close_row(series.row)

    def _settle(self) -> None:
        self._ledger.settle()
        for series in self._placed:
            series.place = -1
        self._placed.clear()


def _more(
    exchanges: Sequence[Exchange], batch: BatchRecord, rows: float
) -> tuple[float, float, float, float, float]:
    """Return what more there is to say of exchanges that shared a batch; see `columns.Log`.

    Args:
        exchanges: The exchanges.
        batch: Their batch.
        rows: Rows of all of them, where they are known; else 0.
    """
    rows = rows or sum([x.rows for x in exchanges]) or 1.0
    if not exchanges[0].decode:  # made in this process: there was nothing to decode or encode
        return rows, 0.0, 0.0, batch.join, batch.split
    decode, encode = sum([x.decode for x in exchanges]), sum([x.encode for x in exchanges])
    return rows, decode, encode, batch.join, batch.split
