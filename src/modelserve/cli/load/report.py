"""What a load came to, for a person: a line while it runs, two tables at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

import numpy as np

from modelserve.cli.load.measurements import Measurement, Tally

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress", "print_tables"]

_EVERY: Final = 0.5
_TEXT: Final = 160
_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)
_ROWS: Final = ("", "count", "mean", *(f"p{100 * share:g}" for share in _QUANTILES), "max")

Fact: TypeAlias = tuple[str, str, bool]
"""Label, text, and whether it says that something is wrong."""
Row: TypeAlias = tuple[str, ...]


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
        self._live = stream.isatty()
        self._tally: Tally | None = None
        self._shown = 0.0
        self._answered = 0

    def __call__(self, tally: Tally, seconds: float) -> None:
        """Show how things are, twice a second; `seconds` is below 0 while it warms up."""
        now = perf_counter()
        if not self._live:
            tally.recent.clear()
            return
        if tally is not self._tally:
            self._tally, self._shown, self._answered = tally, now, tally.answered
        passed = now - self._shown
        if passed >= _EVERY:
            self._show(tally, seconds, (tally.answered - self._answered) / passed)
            self._shown, self._answered = now, tally.answered

    def _show(self, tally: Tally, seconds: float, rate: float) -> None:
        latency = ""
        if tally.recent:
            p50, p99 = np.percentile(np.concatenate(tally.recent), (50, 99))
            latency = f"   p50 {_time(p50)}   p99 {_time(p99)}"
            tally.recent.clear()
        failed = sum(tally.failures.values())
        when = "warming up" if seconds < 0 else f"{seconds:.1f} of {self._duration:g} s"
        text = f"{when}   {rate:,.0f} requests/s{latency}   {failed:,} failed"
        self._stream.write(f"\r\x1b[K{text[:79]}")
        self._stream.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"


def print_tables(found: Measurement) -> None:
    """Print what happened and how long it took, with rich where it is installed and seen."""
    facts, columns = list(_facts(found)), list(_columns(found.tally))
    rows = list(zip(_ROWS, *columns, strict=True)) if columns else []
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            _print_richly(Console(), facts, rows)
            return
    width = max(len(label) for label, _, _ in facts)
    for label, text, _ in facts:
        print(f"{label:<{width}}  {text}")
    if rows:
        print()
    for row in rows:
        print(f"{row[0]:<5}" + "".join(f"{cell:>14}" for cell in row[1:]))


def _print_richly(console: Console, facts: Sequence[Fact], rows: Sequence[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    first = Table(box=None, show_header=False, pad_edge=False)
    for label, text, wrong in facts:
        first.add_row(Text(label, "bold"), Text(text, "bold red" if wrong else ""))
    console.print(first)
    if not rows:
        return
    second = Table(box=None, pad_edge=False)
    for name in rows[0]:
        second.add_column(name, justify="right" if name else "left", min_width=12 * bool(name))
    for row in rows[1:]:
        second.add_row(Text(row[0], "bold"), *row[1:])
    console.print()
    console.print(second)


def _facts(found: Measurement) -> Iterator[Fact]:
    tally = found.tally
    how = "asking again when answered" if found.rate is None else "requests at random moments"
    yield (
        "requests",
        f"{found.requests:,} in {found.seconds:.1f} s, {found.connections} connections, {how}",
        False,
    )
    yield from _failures(tally)
    if found.ended:
        yield "ended early", found.ended, True
    yield "requests/s", f"{found.completed_rate:,.1f}", False
    yield "rows/s", f"{found.completed_rate * found.rows:,.1f}", False
    if found.rate is not None:
        sent = found.sent_rate
        spread = 3 * (found.rate / found.seconds) ** 0.5 if found.seconds else 0.0
        behind = sent < 0.95 * found.rate - spread and not found.ended
        yield "rate", f"asked {found.rate:,.1f}/s, sent {sent:,.1f}/s", behind
    if found.deadline is not None:
        late = tally.right_times.count - tally.in_time
        text = f"{found.goodput:,.1f}/s within {_time(found.deadline)}; {late:,} right but late"
        yield "goodput", text, False
    yield from _doubts(found)
    if tally.server:
        means = ((name, total / count) for name, (count, total) in tally.server.items())
        text = ", ".join(f"{name} {_time(mean)}" for name, mean in means)
        yield "server's own", f"{text} on average", False
    if tally.reconnects:
        yield "reconnects", f"{tally.reconnects:,}", False


def _failures(tally: Tally) -> Iterator[Fact]:
    for kind, count in tally.failures.most_common():
        again = f", Retry-After: {tally.retry_after}" if kind in ("429", "503") else ""
        text = f"{count:,}{again if tally.retry_after else ''}; the first: "
        first = "".join(c if c.isprintable() else " " for c in tally.texts.get(kind, ""))
        yield f"  {kind}", text + " ".join(first.split())[:_TEXT], True


def _doubts(found: Measurement) -> Iterator[Fact]:
    """Say where the generator, and not the server, may be what was measured."""
    tally = found.tally
    late = tally.lateness_times
    if late.quantile(0.99) > max(0.001, 0.2 * tally.right_times.quantile(0.5)):
        text = "it was late itself: it needs a core of its own, or a lower rate"
        yield "generator", text, True
    if tally.held_times.count:
        text = f"{tally.held_times.count:,} requests waited for one: give more"
        yield "connections", text, True


def _columns(tally: Tally) -> Iterator[Row]:
    for name, times in (
        ("latency", tally.right_times),
        ("of failures", tally.refused_times),
        ("sent late by", tally.lateness_times),
        ("held back", tally.held_times),
    ):
        if times.count:
            quantiles = (_time(times.quantile(share)) for share in _QUANTILES)
            mean, maximum = _time(times.mean), _time(times.maximum)
            yield (name, f"{times.count:,}", mean, *quantiles, maximum)
