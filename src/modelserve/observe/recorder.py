"""Collects closed exchanges and hands them to observers, several at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from threading import Lock, get_ident
from time import perf_counter
from typing import Final

from modelserve.messages import Exchange
from modelserve.protocols import Observer

__all__ = ["Recorder"]

_LOG = logging.getLogger(__name__)
_FOLD: Final = 64
_INTERVAL: Final = 0.1
_MOST_PENDING: Final = 4096
_LOG_INTERVAL: Final = 60.0
_ROUNDS: Final = 8
"""Folds in a row, as an observer may cause exchanges of its own."""


class Recorder:
    """Close exchanges and pass them on: 64 at a time, or after 0.1 s, or on `flush`.

    All methods may be called from any thread. Every recorded exchange reaches every observer
    exactly once. No thread is started: what is left over waits for the next `record` or `flush`.

    Args:
        observers: Who gets the exchanges. One that raises is logged, at most once a minute, and
            keeps nothing from the others.
        clock: Seconds, as `time.perf_counter` counts them.

    Example:
        >>> from modelserve.observe.metrics import Metrics
        >>> recorder = Recorder([Metrics()])
        >>> recorder.record(Exchange("inprocess", "iris"))
        >>> recorder.flush()
    """

    __slots__ = (
        "_clock",
        "_due",
        "_eager",
        "_folder",
        "_interval",
        "_lock",
        "_log_after",
        "_observers",
        "_pending",
    )

    def __init__(
        self, observers: Iterable[Observer] = (), *, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._observers = tuple(observers)
        self._clock = clock
        self._pending: list[Exchange] = []
        self._lock = Lock()
        self._folder = 0
        self._interval = _INTERVAL
        self._due = clock() + _INTERVAL
        self._eager: tuple[Observer, ...] = ()
        self._log_after: dict[int, float] = {}

    def record(self, exchange: Exchange) -> None:
        """Set the exchange's total time and keep it until the next fold."""
        now = self._clock()
        exchange.total = now - exchange.started
        pending = self._pending
        pending.append(exchange)
        if now >= self._due or len(pending) >= _FOLD:
            # While another thread folds there is nothing to wait for; only when the observers
            # cannot keep up do callers wait, so that what is pending stays bounded.
            self._fold(wait=len(pending) >= _MOST_PENDING)

    def record_all(self, exchanges: Sequence[Exchange]) -> bool:
        """Do as `record` for exchanges that end at the same moment, at a tenth of the time.

        They are folded with the next ones or a `flush`, not before: until then whoever opened one
        may still say that it became of no use (`code`).

        Returns:
            Whether that was done. Not where an eager observer is told of each one at once.
        """
        if self._eager:
            return False
        now = self._clock()
        for exchange in exchanges:
            exchange.total = now - exchange.started
        pending = self._pending
        if now >= self._due or len(pending) >= _FOLD:
            self._fold(wait=len(pending) >= _MOST_PENDING)
        pending += exchanges
        return True

    def flush(self) -> None:
        """Pass on everything recorded before; call it before a scrape and on close.

        Called by an observer while it observes, it does nothing.
        """
        self._fold(wait=True)

    def add(self, observer: Observer, *, eager: bool = False) -> None:
        """Add an observer; it gets what is folded from now on.

        Args:
            observer: The observer.
            eager: Whether every exchange is passed on as soon as it is recorded, to all observers.
        """
        with self._lock:
            self._observers = (*self._observers, observer)
            if eager:
                self._eager = (*self._eager, observer)
            self._set_interval()

    def remove(self, observer: Observer) -> None:
        """Take an observer away; it gets nothing from now on. Not to be called while it observes.

        One that was never added may be removed, too.
        """
        with self._lock:
            self._observers = tuple(known for known in self._observers if known is not observer)
            self._eager = tuple(known for known in self._eager if known is not observer)
            self._set_interval()

    @property
    def observed(self) -> bool:
        """Whether there is any observer."""
        return bool(self._observers)

    def _set_interval(self) -> None:
        self._interval = 0.0 if self._eager else _INTERVAL
        self._due = self._clock() + self._interval

    def _fold(self, *, wait: bool) -> None:
        for _ in range(_ROUNDS):
            if not self._fold_once(wait=wait):
                return
            wait = False

    def _fold_once(self, *, wait: bool) -> bool:
        """Pass on what is pending; returns whether there is more that must not wait."""
        me = get_ident()
        if self._folder == me or not self._lock.acquire(blocking=wait):
            return False
        try:
            self._folder = me
            self._due = self._clock() + self._interval
            # The list itself is never swapped: a thread may have read the attribute and not yet
            # appended. Appends go to its end, so the first `size` stay where they are.
            size = len(self._pending)
            exchanges = self._pending[:size]
            del self._pending[:size]
            if exchanges:
                for observer in self._observers:
                    self._observe(observer, exchanges)
        finally:
            self._folder = 0
            self._lock.release()
        # Of a thread that could not get the lock, which nobody else would pass on soon.
        return bool(self._eager and self._pending)

    def _observe(self, observer: Observer, exchanges: list[Exchange]) -> None:
        try:
            observer.observe(exchanges)
        except Exception:
            now = self._clock()
            if now >= self._log_after.get(id(observer), now):
                self._log_after[id(observer)] = now + _LOG_INTERVAL
                _LOG.exception(
                    "observer %s failed; %d exchanges are missing from it",
                    type(observer).__name__,
                    len(exchanges),
                )
