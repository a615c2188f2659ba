"""Lanes: the places where batches run. A lane runs one batch at a time.

A lane's thread or event loop is started when first needed, never keeps its batcher alive, and ends
with it: when it is stopped, or when nobody refers to it any more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Final

from modelserve.execution.pacing import Started
from modelserve.protocols import Backend, Traits

__all__ = ["Lane", "LoopThread", "WorkerThread", "close_backends", "open_backends"]

_log = logging.getLogger("modelserve.execution")

_LAST_STEPS: Final = 5.0
"""Seconds that coroutines cancelled at the end have to clean up."""


class WorkerThread:
    """A daemon thread that runs what it is given, in order; started by the first `submit`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` on the thread; it must not raise."""
        thread = self._thread
        # A forked child has the object and not the thread.
        if thread is None or not thread.is_alive():
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(
                        target=_work, args=(self._jobs,), name=self.name, daemon=True
                    )
                    self._thread.start()
                    weakref.finalize(self, self._jobs.put, None).atexit = False
        self._jobs.put(job)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the thread and return what it returns, or raise what it raises."""
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def job() -> None:
            try:
                outcome.put((function(), None))
            except BaseException as error:
                outcome.put((None, error))

        self.submit(job)
        value, error = outcome.get()
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """Let the thread end after what was submitted; does not wait."""
        if self._thread is not None:
            self._jobs.put(None)


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # an idle thread must not keep its last batch alive


class LoopThread:
    """An event loop in a daemon thread of its own, for coroutine functions; started when needed.

    One loop for all callers: what a user's coroutine opened once (sessions, pools) stays usable,
    whichever thread or loop the next request comes from.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def here(self) -> bool:
        """Whether the calling code runs on this thread."""
        return self._thread is threading.current_thread()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        with self._starting:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._loop, self._ended = asyncio.new_event_loop(), threading.Event()
                self._thread = threading.Thread(
                    target=_run_loop, args=(self._loop, self._ended), name=self.name, daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _end_loop, self._loop, self._ended).atexit = False
            return self._loop

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether `loop` is the present one and was not stopped."""
        return self._loop is loop

    def submit(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the coroutine `start()` makes; it must not raise."""
        loop = self.loop()
        loop.call_soon_threadsafe(self._spawn, loop, start)

    def _spawn(
        self, loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        task = loop.create_task(start())
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)

    def call(self, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine and wait, from any other thread, for what it returns."""
        return asyncio.run_coroutine_threadsafe(start(), self.loop()).result()

    def stop(self) -> None:
        """End the loop and its thread; what still runs is cancelled. Does not wait."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            _end_loop(loop, self._ended)


def _end_loop(loop: asyncio.AbstractEventLoop, ended: threading.Event) -> None:
    if ended.is_set():  # a second stop would cut the clean-up short
        return
    ended.set()
    with suppress(RuntimeError):  # closed already
        loop.call_soon_threadsafe(loop.stop)


def _run_loop(loop: asyncio.AbstractEventLoop, ended: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    try:
        while True:
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # Raised in a task of the user's own; the others' requests go on.
                _log.exception("a task of user code tried to end the process")
                if ended.is_set():  # its `stop` may have been in the turn that was cut short
                    loop.call_soon(loop.stop)
            else:
                if ended.is_set():
                    break
        loop.run_until_complete(_finish())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _finish() -> None:
    """Cancel what runs, and what is begun by those who were waiting for it."""
    for _ in range(3):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_LAST_STEPS)
        await asyncio.sleep(0)


class Lane:
    """One place where one batch at a time may run.

    Args:
        backend: What runs it; lanes of one instance share it.
        traits: The backend's traits.
        worker: The thread of this lane. Without `traits.inline` nothing runs anywhere else.
        loop: For asynchronous backends: the loop all lanes of the version share.
    """

    __slots__ = ("backend", "loop", "started", "traits", "worker")

    def __init__(
        self, backend: Backend, traits: Traits, worker: WorkerThread, loop: LoopThread | None
    ) -> None:
        self.backend = backend
        self.traits = traits
        self.worker = worker
        self.loop = loop
        self.started: Started | None = None
        """The batch it runs, as `pacing` was told of it; None where that is too short to tell."""


def open_backends(lanes: Sequence[Lane]) -> None:
    """Let every backend prepare itself, on the thread it will run on."""
    for lane in _one_each(lanes):
        prepare: Callable[[], Any] = lane.backend.open  # type: ignore[attr-defined]  # by its traits
        if lane.loop is not None:
            lane.loop.call(prepare)
        elif lane.traits.inline:
            prepare()
        else:
            lane.worker.call(prepare)


def close_backends(lanes: Sequence[Lane], what: str) -> None:
    """Close every backend once, on the thread it ran on, and let the threads end.

    Args:
        lanes: All lanes of a version.
        what: What is being closed, for the log.
    """
    for lane in _one_each(lanes):
        try:
            if lane.loop is not None:
                lane.loop.call(partial(_aclose, lane.backend))
            elif lane.worker.started:
                lane.worker.call(lane.backend.close)
            else:
                lane.backend.close()
        except Exception:
            _log.exception("%s: close failed", what)
    for lane in lanes:
        lane.worker.stop()


def _one_each(lanes: Sequence[Lane]) -> Iterable[Lane]:
    """Return the first lane of each backend, in order."""
    firsts: dict[int, Lane] = {}
    for lane in lanes:
        firsts.setdefault(id(lane.backend), lane)
    return firsts.values()


async def _aclose(backend: Backend) -> None:
    closing: Any = backend.close()  # type: ignore[func-returns-value]  # may be a coroutine
    if closing is not None:
        await closing
