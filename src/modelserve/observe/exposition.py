"""The metric families of one scrape, from ledgers and gauges; loads prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias

from modelserve.observe.columns import SIZE_EDGES, Columns
from modelserve.observe.tally import Tally

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Families", "missing"]

Labels: TypeAlias = Sequence[str]
Samples: TypeAlias = Iterable[tuple[Labels, float]]

_MODEL: Final = ("model", "version")
# Why requests fail, as Triton tells it apart, by code.
_REASONS: Final = {
    "UNAVAILABLE": "REJECTED",
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
    "UNKNOWN": "OTHER",
}


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
        # Triton's counters have no "_total" at the end, so prometheus_client cannot write them as
        # counters; what asks for them does not look at the type.
        self._triton = {
            name: metrics_core.UnknownMetricFamily(f"nv_inference_{name}", text, labels=labels)
            for name, text, labels in (
                ("request_success", "Requests that succeeded.", _MODEL),
                ("request_failure", "Requests that failed.", (*_MODEL, "reason")),
                ("count", "Rows of requests that succeeded.", _MODEL),
                ("exec_count", "Batches run.", _MODEL),
                *(
                    (f"{name}_duration_us", f"Microseconds of {text}.", _MODEL)
                    for name, text in (
                        ("request", "requests that succeeded"),
                        ("queue", "their waiting"),
                        ("compute_input", "decoding and joining them"),
                        ("compute_infer", "running them"),
                        ("compute_output", "handing out rows and encoding them"),
                    )
                ),
            )
        }

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
            if labels[1]:
                self._add_triton(labels, tally)

    def _add_triton(self, labels: tuple[str, str], tally: Tally) -> None:
        """Add what Triton calls the same in other words; of versions, as there."""
        counts = tally.statistics(*labels)
        for name, number in (
            ("request_success", counts.success.count),
            ("count", counts.inference_count),
            ("exec_count", counts.execution_count),
            ("request_duration_us", counts.success.ns // 1000),
            ("queue_duration_us", counts.queue.ns // 1000),
            ("compute_input_duration_us", counts.compute_input.ns // 1000),
            ("compute_infer_duration_us", counts.compute_infer.ns // 1000),
            ("compute_output_duration_us", counts.compute_output.ns // 1000),
        ):
            self._triton[name].add_metric(labels, number)
        failures = dict.fromkeys(_REASONS.values(), 0.0)
        for (_, code), count in tally.requests[labels].items():
            if code != "OK":
                failures[_REASONS.get(code, "OTHER")] += count
        for reason, count in failures.items():
            self._triton["request_failure"].add_metric([*labels, reason], count)

    def all(self) -> Iterator[Metric]:
        """Yield counters and histograms."""
        yield self._requests
        yield from self._durations.values()
        yield self._sizes
        yield self._batches
        yield from self._triton.values()

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


def missing() -> ImportError:
    """Return the error that says what to install."""
    return ImportError('metrics need prometheus_client: pip install "modelserve[serve]"')
