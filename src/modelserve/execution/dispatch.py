"""Where and when batches run: on idle lanes, on event loops, on threads; until the last one ended.

What callers see is in `batcher`, which also decides what is let in. A batch is taken in one place,
`_take`, and what a run took is learned in one, `_run`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, perf_counter
from typing import Final

from modelserve.errors import DeadlineExceeded, ModelNotReady
from modelserve.execution.batch import Batch, arun_batch, fail_batch, run_batch
from modelserve.execution.lanes import (
    Lane,
    LoopThread,
    WorkerThread,
    close_backends,
    open_backends,
)
from modelserve.execution.nested import Run, chain, entered
from modelserve.execution.ports import LoopPort, deliver
from modelserve.execution.queue import BatchKey, Pending, PendingQueue
from modelserve.execution.service_time import ServiceTime
from modelserve.execution.waiting import Expiring
from modelserve.messages import BatchRecord
from modelserve.protocols import Backend, Traits
from modelserve.tensors import Tensor

__all__ = ["Dispatcher", "forks"]

# An event loop is blocked by an inline run for no longer than about this; two bounds, so that a
# model near one does not change sides with every batch.
_INLINE_BELOW: Final = 100e-6
_INLINE_UNTIL: Final = 200e-6

# A coroutine that is alone runs its requests where it makes them; after so many seconds of it one
# takes a turn of the loop, so that others get theirs and are seen.
_LONGEST_ALONE: Final = 1e-3


class Forks:
    """Counts the forks that led to this process; asking the system for its number costs 0.15 us."""

    __slots__ = ("count", "watched")

    def __init__(self) -> None:
        self.count = 0
        self.watched = False

    def watch(self) -> None:
        if not self.watched and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note)
        self.watched = True

    def _note(self) -> None:
        self.count += 1


forks = Forks()


class Dispatcher:
    """Keeps the queue and the lanes of a model version, and runs on the lanes what waits.

    Args:
        backends: One backend for each instance. A `shared` one may be named several times.
        max_batch_size: Most rows of a batch; 0 runs each request by itself.
        max_queue_size: Most requests that may wait for a lane.
        max_queue_bytes: Most bytes of input that may wait.
        model: Name for messages and threads.
        version: Version for messages.
        clock: Time by which deadlines are judged, in seconds.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        max_batch_size: int = 0,
        max_queue_size: int = 1024,
        max_queue_bytes: int = 1 << 30,
        model: str = "",
        version: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not backends:
            raise ValueError("a batcher needs at least one backend")
        for name, value, least in (
            ("max_batch_size", max_batch_size, 0),
            ("max_queue_size", max_queue_size, 1),
            ("max_queue_bytes", max_queue_bytes, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.model = model
        self.version = version
        self.max_batch_size = max_batch_size
        self.service_time = ServiceTime()
        self.traits: Traits = getattr(backends[0], "traits", Traits())
        self.backends = tuple(backends)
        self.clock = clock
        self._key = BatchKey(
            backends[0].signature, batched=max_batch_size > 0, parameters=self.traits.context
        )
        self._row_bytes = self._key.row_bytes
        self._inline = self.traits.inline
        self._closed = False
        self._abandoned = False
        self._released = False
        self._beginning = threading.Lock()
        forks.watch()
        self._begin(PendingQueue(max_queue_size, max_queue_bytes, model))

    def _begin(self, queue: PendingQueue) -> None:
        """Set up what belongs to one process: locks, lanes, who waits."""
        self._lock = threading.Lock()
        self._queue = queue
        self._ports: dict[asyncio.AbstractEventLoop, LoopPort] = {}
        self.loop_thread = (
            LoopThread(f"modelserve-{self.model}-loop") if self.traits.asynchronous else None
        )
        self.lanes = self._make_lanes()
        self._idle = list(reversed(self.lanes))
        self.runs: dict[Lane, Run] = {}
        """What runs in user code, by lane."""
        self._running = 0
        self._drained = threading.Event()
        self._process = forks.count

    def _begin_after_fork(self) -> None:
        """Begin anew in a forked child, which has the parent's objects and none of its threads."""
        with self._beginning:
            if self._process != forks.count:
                queue = self._queue
                self._begin(PendingQueue(queue.max_requests, queue.max_bytes, self.model))

    def _make_lanes(self) -> list[Lane]:
        lanes = []
        for number, backend in enumerate(self.backends):
            for _ in range(self.traits.concurrency):
                worker = WorkerThread(f"modelserve-{self.model}-{number}")
                lanes.append(Lane(backend, self.traits, worker, self.loop_thread))
        return lanes

    @property
    def queue_depth(self) -> int:
        """Requests waiting for a lane."""
        return self._queue.count

    @property
    def in_flight(self) -> int:
        """Batches running."""
        return self._running

    def open(self) -> None:
        """Let every backend that wants to prepare itself do so, on the thread it will run on."""
        if self.traits.opens:
            open_backends(self.lanes)

    def expire(self, pending: Expiring) -> None:
        """Tell a request of an event loop that its deadline passed; on the loop's thread."""
        self.withdraw(pending)
        pending.end(self._too_late())

    def withdraw(self, pending: Pending) -> None:
        """Take a request out of the queue, if it still waits, because nobody wants its answer."""
        with self._lock:
            if self._queue.remove(pending):
                pending.note_wait()
            self._note_drained()

    # ------------------------------------------------------------------ taking

    def _take(self, reason: str) -> Batch | None:
        """Take the next batch; under the lock. Entries past their deadline are told so."""
        if not self._queue.count:
            return None
        entries, rows, expired = self._queue.take(self.max_batch_size or 1, self.clock())
        if expired:
            for entry in expired:
                entry.note_wait()
                entry.error = self._too_late()
            deliver(expired, None)
        return self._batch(entries, rows, reason) if entries else None

    def _batch(self, entries: Sequence[Pending], rows: int, reason: str) -> Batch:
        if len(entries) > 1 and rows >= self.max_batch_size > 0:
            reason = "full"
        return Batch(entries, rows, self.model, self.version, self.max_batch_size > 0, reason)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f'model "{self.model}": the deadline passed before the answer was there'
        )

    def _free_lane(self) -> Lane | None:
        """Take an idle lane for a request that nobody waits beside, if there is one."""
        with self._lock:
            if not self._idle or self._queue.count or self._closed:
                return None
            self._running += 1
            return self._idle.pop()

    def _next(self, lane: Lane) -> Batch | None:
        """Return the lane's next batch, or leave it idle."""
        with self._lock:
            batch = self._take("next") if self._queue.count else None
            if batch is None:
                self._running -= 1
                self._idle.append(lane)
                if self._closed:
                    self._note_drained()
        return batch

    # ------------------------------------------------------------------ on an event loop

    def flush(self, port: LoopPort) -> None:
        """Send what waits, as far as lanes are idle; on the port's event loop."""
        port.flushing = False
        timed, port.timed = port.timed, []
        try:
            self._send(port)
        finally:
            if timed:
                port.set_timers(timed)

    def _send(self, port: LoopPort) -> None:
        while True:
            with self._lock:
                if not self._idle:
                    return
                batch = self._take("idle")
                if batch is None:
                    self._note_drained()
                    return
                lane = self._idle.pop()
                self._running += 1
            if self._short(batch.rows):
                self._run_inline(lane, batch, port)
                # A caller that had the turn to itself may do without: saves 8 of 20 us.
                port.alone = _LONGEST_ALONE if len(batch.entries) == 1 else 0.0
                return
            port.alone = 0.0
            self._start(lane, batch)

    def _short(self, rows: int) -> bool:
        if not self.traits.inline:
            return False
        seconds = self.service_time.predict(rows)
        if seconds is None:
            return False
        self._inline = seconds < (_INLINE_UNTIL if self._inline else _INLINE_BELOW)
        return self._inline

    def _run_inline(self, lane: Lane, batch: Batch, port: LoopPort) -> None:
        """Run on the event loop; the loop gets a turn before the next batch."""
        try:
            self._run(lane, batch)
        finally:
            following = None
            with self._lock:
                self._running -= 1
                # What waits for others must not depend on this loop having another turn.
                if self._queue.count and not self._queue.only_from(port):
                    following = self._take("next")
                if following is not None:
                    self._running += 1
                else:
                    self._idle.append(lane)
                    if self._queue.count and not port.flushing:
                        port.flushing = True
                        port.loop.call_soon(self.flush, port)
                    self._note_drained()
            if following is not None:
                self._start(lane, following)
            deliver(batch.entries, port)

    # ------------------------------------------------------------------ on a caller's thread

    def _run_alone(self, lane: Lane, pending: Pending) -> float:
        """Run one request where it was made; what came meanwhile goes to the lane's thread."""
        try:
            return self._run(lane, self._batch((pending,), pending.rows, "idle"))
        finally:
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    def _run_here(self, lane: Lane, batch: Batch) -> None:
        """Run on a caller's thread, which waits anyway; what follows goes to the lane's thread."""
        try:
            self._run(lane, batch)
        finally:
            deliver(batch.entries, None)
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    # ------------------------------------------------------------------ rows gathered elsewhere

    @property
    def most_rows(self) -> int:
        """How many rows `run_rows` would take now: 0 where it would refuse one."""
        idle = self._idle and not self._queue.count and not self._closed
        return self.max_batch_size if idle and self.traits.repeatable and self._short(1) else 0

    def run_rows(
        self, inputs: Mapping[str, Tensor], rows: int
    ) -> tuple[Mapping[str, Tensor], BatchRecord] | None:
        """Run, on this thread, rows that a transport gathered in one turn of its event loop.

        Only where nothing waits before them, and only what may hold a loop up: ONNX Runtime,
        measured short. None says that the requests are to go the usual way, after a failure, too:
        there each is told what was wrong with it.
        """
        if rows > self.max_batch_size or not self.traits.repeatable or not self._short(rows):
            return None
        lane = self._free_lane() if self._process == forks.count else None
        if lane is None:
            return None
        started = perf_counter()
        try:
            outputs = lane.backend.run(inputs)
        except Exception:  # the boundary of model code; it is run again where it is told
            return None
        else:
            took = perf_counter() - started
            self.service_time.update(rows, took)
            reason = "full" if rows == self.max_batch_size > 1 else "idle"
            return outputs, BatchRecord(rows, rows, reason, started, took)
        finally:
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    # ------------------------------------------------------------------ on a thread of the lane's

    def _start(self, lane: Lane, batch: Batch) -> None:
        following: Batch | None = batch
        while following is not None:
            try:
                if lane.loop is not None:
                    lane.loop.submit(partial(self._work_async, lane, following))
                else:
                    lane.worker.submit(partial(self._work, lane, following))
            except RuntimeError as error:  # the process cannot start a thread any more
                fail_batch(following, error)
                deliver(following.entries, None)
                following = self._next(lane)
            else:
                return

    def _work(self, lane: Lane, batch: Batch | None) -> None:
        """Run batches on the lane's thread until none waits."""
        while batch is not None:
            # SystemExit and the like of user code is its failure, and `_run` told the callers.
            with suppress(BaseException):
                self._run(lane, batch)
            port = deliver(batch.entries, None)
            if port is not None and self._worth_a_turn(port, batch):
                port.turned.wait(2 * port.turn)
            batch = self._next(lane)

    def _worth_a_turn(self, port: LoopPort, batch: Batch) -> bool:
        """Tell whether waiting for the coroutines just answered makes up for the idle lane.

        Joining two batches into one saves the fixed part of a run, 2 S(n) - S(2n).
        """
        waiting = self._queue.count
        if not waiting or port.returning < 0.5 or waiting >= self.max_batch_size:
            return False
        short = self.service_time.predict(batch.rows)
        if short is None:
            return False
        saved = 2 * short - (self.service_time.known(2 * batch.rows) or 1.5 * short)
        return saved > 2 * port.turn

    async def _work_async(self, lane: Lane, batch: Batch | None) -> None:
        while batch is not None:
            run = self.runs[lane] = Run(lane)
            token = chain.set(entered(batch.entries, run))
            try:
                await arun_batch(batch, lane.backend, self.traits)
            except BaseException as error:  # a CancelledError of user code's own making included
                fail_batch(batch, error)
            run.active = False
            del self.runs[lane]
            chain.reset(token)
            deliver(batch.entries, None)
            batch = self._next(lane)

    def _run(self, lane: Lane, batch: Batch) -> float:
        run = None
        if not self.traits.inline:
            run = self.runs[lane] = Run(lane)
        token = None if run is None else chain.set(entered(batch.entries, run))
        try:
            took = run_batch(batch, lane.backend, self.traits)
            self.service_time.update(batch.rows, took)
            return took
        except BaseException as error:
            fail_batch(batch, error)
            raise
        finally:
            if run is not None and token is not None:
                run.active = False
                del self.runs[lane]
                chain.reset(token)

    # ------------------------------------------------------------------ the end

    def close(self, *, drain: float = 30.0) -> bool:
        """Take no more requests, wait for those there are, then close the backends.

        What still waits after `drain` seconds gets `ModelNotReady`; a run that does not end is left
        to end by itself, and its backend is closed then.

        Returns:
            Whether everything was answered in time.
        """
        if self._process != forks.count:
            self._begin_after_fork()
        with self._lock:
            self._closed = True
            jobs = []
            # Entries may count on the next turn of a loop that will have none.
            while self._idle and (batch := self._take("idle")) is not None:
                self._running += 1
                jobs.append((self._idle.pop(), batch))
            self._note_drained()
        for lane, batch in jobs:
            self._start(lane, batch)
        answered = self._drained.wait(min(drain, threading.TIMEOUT_MAX))
        with self._lock:
            left = self._queue.drain()
            mine = not self._released and not self._running
            self._released = self._released or mine
            self._abandoned = not self._released
        for entry in left:
            entry.error = ModelNotReady(f'model "{self.model}" version {self.version} was unloaded')
        deliver(left, None)
        if mine:
            self._release()
        return answered

    def _note_drained(self) -> None:
        """Under the lock, whenever something left: tell `close` when nothing is left."""
        if self._closed and not self._queue.count and not self._running:
            self._drained.set()
            if self._abandoned:
                self._abandoned = False
                self._released = True
                threading.Thread(target=self._release, daemon=True).start()

    def _release(self) -> None:
        """Close the backends, each on the thread it ran on, and let the threads end."""
        close_backends(self.lanes, f"model {self.model} version {self.version}")
        if self.loop_thread is not None:
            self.loop_thread.stop()
