"""What a load measures: times in bounded memory, answers by kind. Nothing here sends or prints."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Measurement", "Tally", "Times"]

_FINENESS: Final = 500
"""Buckets for each factor of e: a quantile is within 0.1 % of the true one."""
_LEAST: Final = 1e-7
_BUCKETS: Final = 26 * _FINENESS  # up to five hours
_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)
_TEXTS: Final = 20
"""Kinds of failure of which the first text is kept."""


class Times:
    """Times in seconds, counted in buckets 0.2 % wide; memory does not grow with their number.

    Example:
        >>> times = Times()
        >>> times.add([0.001, 0.002, 0.003])
        >>> times.count, times.maximum, round(times.quantile(0.5), 4)
        (3, 0.003, 0.002)
    """

    __slots__ = ("_buckets", "count", "maximum", "total")

    def __init__(self) -> None:
        self._buckets = np.zeros(_BUCKETS, np.int64)
        self.count = 0
        self.total = 0.0
        self.maximum = 0.0

    @property
    def mean(self) -> float:
        """Seconds on average; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def add(self, times: Any) -> None:
        """Count times: an array, or anything that becomes one."""
        seconds: NDArray[np.float64] = np.asarray(times, np.float64)
        if not seconds.size:
            return
        self.count += seconds.size
        self.total += float(seconds.sum())
        self.maximum = max(self.maximum, float(seconds.max()))
        places = (np.log(np.maximum(seconds, _LEAST) / _LEAST) * _FINENESS).astype(np.int64)
        np.add.at(self._buckets, np.minimum(places, _BUCKETS - 1), 1)

    def quantile(self, share: float) -> float:
        """Return the time that this share (0 to 1) of all did not exceed; 0 of none."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._buckets), max(1.0, share * self.count)))
        return min(_LEAST * float(np.exp((place + 0.5) / _FINENESS)), self.maximum)

    def document(self) -> dict[str, float]:
        """Return mean, quantiles and maximum in seconds, for JSON."""
        quantiles = {f"p{100 * share:g}": self.quantile(share) for share in _QUANTILES}
        return {"count": self.count, "mean": self.mean, **quantiles, "max": self.maximum}


class Tally:
    """What happens while a load runs, as it is noted on the way: appended, folded now and then.

    Args:
        deadline: Seconds within which an answer counts as in time; None where there is none.
    """

    __slots__ = (
        "_deadline",
        "answered",
        "failures",
        "held",
        "held_times",
        "in_time",
        "lateness",
        "lateness_times",
        "recent",
        "reconnects",
        "refused",
        "refused_times",
        "retry_after",
        "right",
        "right_times",
        "sent",
        "server",
        "server_timings",
        "texts",
    )

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self.sent = 0
        self.answered = 0
        """Whole answers of any kind."""
        self.reconnects = 0
        self.right = array("d")
        self.refused = array("d")
        self.lateness = array("d")
        self.held = array("d")
        self.right_times = Times()
        self.refused_times = Times()
        self.lateness_times = Times()
        self.held_times = Times()
        self.in_time = 0
        self.recent: list[array[float]] = []
        """Latencies of right answers since whoever shows progress emptied this."""
        self.failures: Counter[str] = Counter()
        """Requests without a right answer, by kind: a status, or a word."""
        self.texts: dict[str, str] = {}
        """What the first failure of each kind said."""
        self.retry_after: str = ""
        """What the first answer with such a header asked for."""
        self.server_timings: list[str] = []
        self.server: dict[str, tuple[int, float]] = {}
        """Count and sum of seconds of each metric that answers carried in `Server-Timing`."""

    def fail(self, kind: str, text: str = "") -> None:
        """Count a request without a right answer."""
        self.failures[kind] += 1
        if kind not in self.texts and len(self.texts) < _TEXTS:
            self.texts[kind] = text

    def fold(self) -> None:
        """Move what was noted into counts. Costs some tens of microseconds for a thousand."""
        if self.right:
            if self._deadline is None:
                self.in_time += len(self.right)
            else:
                self.in_time += int((np.asarray(self.right) <= self._deadline).sum())
            self.right_times.add(self.right)
            self.recent.append(self.right)
            self.right = array("d")
        for name in ("refused", "lateness", "held"):
            noted = getattr(self, name)
            if noted:
                getattr(self, f"{name}_times").add(noted)
                setattr(self, name, array("d"))
        timings, self.server_timings = self.server_timings, []
        for timing in timings:
            self._add_server_timing(timing)

    def _add_server_timing(self, timing: str) -> None:
        """Read a header such as ``queue;dur=0.21, run;dur=1.4`` (milliseconds)."""
        for metric in timing.split(",")[:16]:
            name, *parameters = (part.strip() for part in metric.split(";"))
            for parameter in parameters:
                key, _, value = parameter.partition("=")
                try:
                    seconds = float(value.strip('" ')) / 1e3
                except ValueError:
                    continue
                if key.strip().lower() == "dur" and (name in self.server or len(self.server) < 16):
                    count, total = self.server.get(name, (0, 0.0))
                    self.server[name] = (count + 1, total + seconds)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of a load.

    Args:
        tally: All that was noted; folded.
        seconds: How long requests were made, without warm-up.
        sent: Requests sent in that time.
        completed: Whole answers that came in that time, whenever they were asked for.
        rows: Rows of a request, on average.
        connections: Connections used.
        rate: Requests a second asked for; None in a closed loop.
        deadline: Seconds every request had, or None.
        ended: Why it ended early; empty where it did not.
    """

    tally: Tally
    seconds: float
    sent: int
    completed: int
    rows: float
    connections: int
    rate: float | None
    deadline: float | None
    ended: str

    @property
    def requests(self) -> int:
        """Requests measured, whatever came of them."""
        return self.tally.right_times.count + sum(self.tally.failures.values())

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return sum(self.tally.failures.values())

    @property
    def sent_rate(self) -> float:
        """Requests sent a second."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def completed_rate(self) -> float:
        """Answers a second of any kind."""
        return self.completed / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Right answers a second that were in time, of the requests that were due in the time."""
        return self.tally.in_time / self.seconds if self.seconds else 0.0

    def document(self) -> dict[str, Any]:
        """Return everything in seconds and counts, for JSON."""
        tally = self.tally
        return {
            "loop": "closed" if self.rate is None else "open",
            "connections": self.connections,
            "reconnects": tally.reconnects,
            "seconds": self.seconds,
            "requests": self.requests,
            "right": tally.right_times.count,
            "in_time": tally.in_time,
            "failed": self.failed,
            "failures": dict(tally.failures),
            "texts": dict(tally.texts),
            "deadline": self.deadline,
            "rate_asked": self.rate,
            "rate_sent": self.sent_rate,
            "answers_per_second": self.completed_rate,
            "goodput": self.goodput,
            "rows": self.rows,
            "latency": tally.right_times.document(),
            "latency_of_failures": tally.refused_times.document(),
            "lateness": None if self.rate is None else tally.lateness_times.document(),
            "waited_for_connection": None if self.rate is None else tally.held_times.document(),
            "server_timing": {name: total / n for name, (n, total) in tally.server.items()},
            "retry_after": tally.retry_after,
            "ended": self.ended,
        }
