"""A batcher's end in one event loop: waking coroutines there, and their deadlines' timers.

Which requests run, and where, is decided in `batcher`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelserve.execution.queue import Pending
from modelserve.execution.waiting import Expiring

if TYPE_CHECKING:
    from modelserve.execution.dispatch import Dispatcher

__all__ = ["LoopPort", "deliver"]


class LoopPort:
    """A batcher's end in one event loop.

    Args:
        batcher: Whose end it is.
        loop: The loop.
    """

    __slots__ = (
        "_clock",
        "_expire",
        "alone",
        "flushing",
        "loop",
        "model",
        "timed",
        "version",
        "withdraw",
    )

    def __init__(self, batcher: Dispatcher, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.model = batcher.model
        self.version = batcher.version
        self.withdraw = batcher.withdraw
        """Take a request out of the queue that nobody waits for any more."""
        self._expire = batcher.expire
        self._clock = batcher.clock
        self.timed: list[Expiring] = []
        """Requests with a deadline that get a timer unless the next sending answers them."""
        self.flushing = False
        """Whether the loop is to send what waits, in this turn or the next."""
        self.alone = 0.0
        """Seconds for which requests may still run where they are made, without a turn."""

    def post(self, entries: Sequence[Pending]) -> None:
        """Settle entries on the loop's thread, from any other: one wake-up for all of them."""
        try:
            self.loop.call_soon_threadsafe(deliver, entries, self)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            # Nobody is left to be told: the loop ended while its requests ran.

    def set_timers(self, entries: Sequence[Expiring]) -> None:
        """Set a timer for every one of these requests that is still to be answered in time."""
        now = self._clock()
        for pending in entries:
            if pending.waits and pending.deadline is not None:
                left = max(0.0, pending.deadline - now)
                pending.timer = self.loop.call_later(left, self._expire, pending)


def deliver(entries: Sequence[Pending], here: LoopPort | None) -> None:
    """Wake everyone: directly where allowed, else with one wake-up per event loop.

    Args:
        entries: Requests that are answered.
        here: The port of the loop this is called on; None on any other thread.
    """
    elsewhere: dict[LoopPort, list[Pending]] = {}
    for number, entry in enumerate(entries):
        port = entry.port
        if port is not None and port is not here:
            elsewhere.setdefault(port, []).append(entry)
            continue
        try:
            entry.settle()
        except BaseException:  # e.g. a KeyboardInterrupt: the others are told all the same
            if here is not None:
                here.loop.call_soon(deliver, entries[number + 1 :], here)
            raise
    for port, theirs in elsewhere.items():
        port.post(theirs)
