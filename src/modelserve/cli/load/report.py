"""What a load came to, for a person: a line while it runs, a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Final, TextIO

import numpy as np

from modelserve.cli.load.measurements import Measurement, Tally, Times

__all__ = ["Progress", "lines", "print_table"]

_EVERY: Final = 0.5
_WIDTH: Final = 20
_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)

Lines = Iterator[tuple[str, str, bool]]


class Progress:
    """A line that says how it goes, on a terminal; nothing anywhere else.

    Plain text, since whatever draws it keeps the generator from its requests for as long.

    Args:
        stream: Where to.
        duration: Seconds to measure.
    """

    def __init__(self, stream: TextIO, duration: float) -> None:
        self._stream = stream
        self._duration = duration
        self._shown = self._answered = 0.0
        self._live = stream.isatty()

    def __call__(self, tally: Tally, seconds: float) -> None:
        """Show how things are, twice a second."""
        now = perf_counter()
        passed = now - self._shown
        if not self._live or passed < _EVERY:
            tally.recent.clear()
            return
        self._shown = now
        latency = ""
        if tally.recent:
            p50, p99 = np.percentile(np.concatenate(tally.recent), (50, 99))
            latency = f"   p50 {duration(p50)}   p99 {duration(p99)}"
        tally.recent.clear()
        rate = max(0.0, tally.answered - self._answered) / passed
        self._answered = tally.answered
        failed = sum(tally.failures.values())
        when = "warming up" if seconds < 0 else f"{seconds:5.1f} of {self._duration:g} s"
        text = f"{when}   {rate:,.0f} requests/s{latency}   {failed:,} failed"
        self._stream.write(f"\r\x1b[K{text[:100]}")
        self._stream.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"


def lines(found: Measurement) -> Lines:
    """Return the table: label, text, and whether it says that something is wrong."""
    tally = found.tally
    yield "requests", f"{found.requests:,} in {found.seconds:.1f} s{_loop(found)}", False
    yield from _failures(tally)
    if found.ended:
        yield "ended early", found.ended, True
    yield "requests/s", f"{found.completed_rate:,.1f}", False
    yield "rows/s", f"{found.completed_rate * found.rows:,.1f}", False
    if found.rate is not None:
        sent = tally.sent / found.seconds if found.seconds else 0.0
        text = f"asked {found.rate:,.1f}/s, sent {sent:,.1f}/s"
        yield "rate", text, sent < 0.95 * found.rate and not found.ended
    if found.deadline is not None:
        late = tally.right_times.count - tally.in_time
        text = f"{found.goodput:,.1f}/s within {duration(found.deadline)}; {late:,} right but late"
        yield "goodput", text, False
    if tally.right_times.count:
        yield "latency", _spread(tally.right_times), False
    if tally.refused_times.count:
        yield "  of failures", _spread(tally.refused_times), False
    if found.rate is not None:
        yield from _generator(tally)
    if tally.server:
        yield "server's own share", _server(tally), False
    if tally.reconnects:
        yield "reconnects", f"{tally.reconnects:,}", False


def _loop(found: Measurement) -> str:
    if found.rate is None:
        return f", {found.connections} connections, each asking again when answered"
    return f", {found.connections} connections, at random moments"


def _failures(tally: Tally) -> Lines:
    for kind, count in tally.failures.most_common():
        text = tally.texts.get(kind, "")
        if kind == "wrong":
            text = f"differs from the answer checked first: {text}"
        again = f" (Retry-After: {tally.retry_after})" if kind in ("503", "429") else ""
        again = again if tally.retry_after else ""
        first = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        yield f"  {kind}", f"{count:,}{again}; first: {first[:160]}", True


def _spread(times: Times) -> str:
    quantiles = (f"p{100 * q:g} {duration(times.quantile(q))}" for q in _QUANTILES)
    return ", ".join((f"mean {duration(times.mean)}", *quantiles, f"max {duration(times.maximum)}"))


def _generator(tally: Tally) -> Lines:
    times = tally.lateness_times
    if not times.count:
        return
    parts = [f"p{q:g} {duration(times.quantile(q / 100))}" for q in (50, 99)]
    text = f"sent late by {', '.join(parts)}, max {duration(times.maximum)}"
    # A generator that is itself behind measures itself.
    wrong = times.quantile(0.99) > max(0.001, 0.2 * tally.right_times.quantile(0.5))
    yield "generator", text, wrong
    held = tally.held_times
    if held.count:
        text = f"{held.count:,} for up to {duration(held.maximum)}: give more --connections"
        yield "  no connection free", text, True


def _server(tally: Tally) -> str:
    means = {name: total / count for name, (count, total) in tally.server.items()}
    return ", ".join(f"{name} {duration(mean)}" for name, mean in means.items())


def print_table(found: Measurement) -> None:
    """Print the table, with rich where that is installed and somebody looks."""
    rows = list(lines(found))
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            table = Table(box=None, show_header=False, pad_edge=False)
            for label, text, wrong in rows:
                style = "bold red" if wrong else ""
                table.add_row(Text(label, style="bold"), Text(text, style=style))
            Console().print(table)
            return
    for label, text, _ in rows:
        print(f"{label:<{_WIDTH}} {text}")
