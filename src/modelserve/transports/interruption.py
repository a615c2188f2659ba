"""Waiting for a limited time, or for as long as the client of an ASGI request is there.

Both cost next to nothing while an answer is there soon: no task, and one timer of the loop's for
all who wait.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Task, TimerHandle, current_task
from collections import deque
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

__all__ = ["Interrupted", "Interruptible", "Message", "Receive", "Timers", "Watches"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

_T = TypeVar("_T")

# Loops call a timer up to their clock's resolution before its time.
_EARLY: Final = 1e-3

_WATCH_AFTER: Final = 0.05
"""Seconds an answer may take before its client is watched. Watching costs a task; most answers
are there sooner."""


class Interrupted(Exception):
    """The time was up, or the client went away."""


class Timers:
    """Calls everyone who waits when so many seconds have passed, with one timer of the loop's.

    A timer for each would cost more than half of an answer; most are over before it runs out.

    Args:
        delay: The seconds, the same for all.
    """

    __slots__ = ("_delay", "_timer", "_waiting")

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._waiting: deque[tuple[float, Interruptible[Any]]] = deque()
        self._timer: TimerHandle | None = None

    def add(self, waiting: Interruptible[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Have `ring` called later, unless it is over by then."""
        self._waiting.append((loop.time() + self._delay, waiting))
        if self._timer is None:
            self._timer = loop.call_later(self._delay, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time() + _EARLY
        waiting = self._waiting
        while waiting and (waiting[0][0] <= now or waiting[0][1].over):
            waiting.popleft()[1].ring()
        left = waiting[0][0] - now if waiting else 0.0
        self._timer = loop.call_later(left, self._ring, loop) if waiting else None


class Interruptible(Generic[_T]):
    """Awaits something for a limited time; costs nothing when that is done without suspending.

    With `receive`, the end of the time does not interrupt it but begins to watch the client,
    whose disconnection does. Never longer than the awaitable: an adapter may wait for a pending
    `receive` after the response for ever.
    """

    __slots__ = (
        "_awaitable",
        "_cancelling",
        "_interrupted",
        "_receive",
        "_task",
        "_timers",
        "_watch",
        "over",
    )

    def __init__(
        self, awaitable: Awaitable[_T], timers: Timers, receive: Receive | None = None
    ) -> None:
        self._awaitable: Awaitable[_T] | None = awaitable
        self._timers = timers
        self._receive = receive
        self._interrupted = False
        self.over = False
        self._watch: Task[Message] | None = None

    def __await__(self) -> Generator[Any, None, _T]:
        assert self._awaitable is not None
        iterator = self._awaitable.__await__()
        try:
            step = next(iterator)
        except StopIteration as done:
            return cast(_T, done.value)
        self._arm()
        try:
            while True:
                try:
                    yield step
                except BaseException as error:  # not caught: passed on into the awaitable
                    step = iterator.throw(error)
                else:
                    step = next(iterator)
        except StopIteration as done:
            return cast(_T, done.value)
        except CancelledError:
            if self._settle():
                raise Interrupted from None
            raise
        finally:
            self._settle()
            self.over = True
            self._awaitable = None  # the timers keep this for a while
            if self._watch is not None:
                self._watch.cancel()

    def _settle(self) -> bool:
        """Take our own cancellation back; tell whether the task is to go on."""
        if not self._interrupted:
            return False
        self._interrupted = False
        return self._task.uncancel() <= self._cancelling

    def _arm(self) -> None:
        task = current_task()
        if task is None:
            raise RuntimeError("an ASGI application runs in an asyncio task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timers.add(self, task.get_loop())

    def ring(self) -> None:
        """Take note that the time is up."""
        if not self.over:
            if self._receive is None:
                self._interrupt()
            else:
                self._look()

    def _interrupt(self) -> None:
        if not self.over:
            self._interrupted = True
            self._task.cancel()

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(cast(Receive, self._receive)())
        self._watch.add_done_callback(self._seen)

    def _seen(self, watch: Task[Message]) -> None:
        # A server whose `receive` fails here cannot tell; the answer is made all the same.
        if watch.cancelled() or watch.exception() is not None:
            return
        if watch.result()["type"] == "http.disconnect":
            self._interrupt()


class Watches:
    """Awaits answers, and watches the clients of those that take long; on any event loop."""

    __slots__ = ("_timers",)

    def __init__(self) -> None:
        self._timers: dict[asyncio.AbstractEventLoop, Timers] = {}

    def watched(self, answer: Awaitable[_T], receive: Receive) -> Interruptible[_T]:
        """Return what awaits an answer for as long as its client is there.

        Args:
            answer: What is to be awaited.
            receive: The request's ASGI channel, out of which the body has been read.

        Raises:
            Interrupted: The client went away; the answer was cancelled.
        """
        loop = asyncio.get_running_loop()
        timers = self._timers.get(loop)
        if timers is None:
            for known in [known for known in self._timers if known.is_closed()]:
                del self._timers[known]
            timers = self._timers[loop] = Timers(_WATCH_AFTER)
        return Interruptible(answer, timers, receive)
