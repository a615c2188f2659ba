"""Lanes: the places where batches run. A lane runs one batch at a time.

A lane's thread or event loop is started when first needed and never keeps its batcher alive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any

from modelserve.protocols import Backend, Traits

__all__ = ["Lane", "LoopThread", "WorkerThread"]


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
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        with self._starting:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name=self.name, daemon=True
                )
                self._thread.start()
            return self._loop

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
            loop.call_soon_threadsafe(loop.stop)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        # One more turn, in which the cancelled tasks end.
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


class Lane:
    """One place where one batch at a time may run.

    Args:
        backend: What runs it; lanes of one instance share it.
        traits: The backend's traits.
        worker: The thread of this lane. Without `traits.inline` nothing runs anywhere else.
        loop: For asynchronous backends: the loop all lanes of the version share.
    """

    __slots__ = ("backend", "loop", "traits", "worker")

    def __init__(
        self, backend: Backend, traits: Traits, worker: WorkerThread, loop: LoopThread | None
    ) -> None:
        self.backend = backend
        self.traits = traits
        self.worker = worker
        self.loop = loop
