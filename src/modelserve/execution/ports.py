"""A batcher's end in one event loop: waking coroutines there, and their deadlines' timers.

Which requests run, and where, is decided in `batcher`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from modelserve.execution.queue import Pending
from modelserve.execution.waiting import Expiring, Joined, RecordAll
from modelserve.messages import Exchange

if TYPE_CHECKING:
    from modelserve.execution.dispatch import Dispatcher

__all__ = ["LoopPort", "deliver", "hand_over", "wake"]


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
        "create_future",
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
        self.create_future: Callable[[], asyncio.Future[Any]] = loop.create_future
        if type(loop).create_future is asyncio.BaseEventLoop.create_future:
            self.create_future = partial(asyncio.Future, loop=loop)  # the same, a call less
        self.flushing = False
        """Whether the loop is to send what waits, in this turn or the next."""
        self.alone = 0.0
        """Seconds for which requests may still run where they are made, without a turn."""

    def post(
        self, entries: Sequence[Pending], settle: Callable[..., None] | None = None, *more: Any
    ) -> bool:
        """Settle entries on the loop's thread, from any other: one wake-up for all of them.

        Args:
            entries: The entries.
            settle: Does it, instead of `deliver`, given the entries, this port and `more`.
            more: See `settle`.

        Returns:
            Whether there is anybody left to be told; not where the loop was closed meanwhile.
        """
        try:
            self.loop.call_soon_threadsafe(settle or deliver, entries, self, *more)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            return False
        return True

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


def hand_over(entries: Sequence[Pending], longest: float) -> None:
    """Do as `deliver` from a thread with more to run, and let the event loop tell them first.

    Where both share a core, or only the interpreter's lock, a run that began at once would keep
    those who are answered waiting for their answers.

    Args:
        entries: Requests that are answered.
        longest: Seconds to wait for the loop, at most.
    """
    port = entries[0].port
    if port is None or any(entry.port is not port for entry in entries):
        deliver(entries, None)
        return
    told = Lock()
    told.acquire()
    if port.post(entries, _tell, told):
        told.acquire(timeout=longest)


def _tell(entries: Sequence[Pending], here: LoopPort, told: Lock) -> None:
    try:
        deliver(entries, here)
    finally:
        told.release()


def wake(entries: Sequence[Pending], here: LoopPort) -> None:
    """Do as `deliver` on a loop's own thread, in one step for most: those that came by `join`.

    Their exchanges are closed together, before any of their coroutines goes on.
    """
    others: list[Pending] = []
    ended: list[Exchange] = []
    record: RecordAll | None = None
    for entry in entries:
        if entry.__class__ is not Joined or entry.error is not None or entry.port is not here:
            others.append(entry)
            continue
        if entry.record is not None:
            record, entry.record = entry.record, None
            ended.append(entry.request.exchange)  # type: ignore[arg-type]  # it is there then
        future = entry.future
        if not future.done():  # type: ignore[union-attr]  # there is one
            future.set_result(entry.outputs)  # type: ignore[union-attr, arg-type]  # and they are
    if record is not None and not record(ended):
        for entry in entries:
            if entry.__class__ is Joined:
                entry.record = record  # whoever waits for it closes its exchange
    if others:
        deliver(others, here)
