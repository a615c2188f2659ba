"""The one batcher for all callers of a model version: coroutines, threads and transports alike.

Natural batching: an idle lane takes what arrived within one turn of the event loop; while all lanes
are busy, arrivals wait and become the next batch. There is no timer. One refinement: coroutines
that ask again as soon as they are answered would split into two halves that alternate; where that
was seen, and a larger batch saves more than the wait costs, a lane waits for the one turn of the
loop in which they come back. A coroutine that is the only caller does not even take a turn of the
loop: its request runs where it is made.

How requests become arrays and back is in `batch`; the order of waiting is in `queue`, the ways of
waiting in `waiting`; threads are in `lanes`, and what a model's own code asks for is in `nested`.

Why a batch was sent is recorded in its exchanges as `reason`:

``idle``    a lane was free when the requests came
``next``    a lane became free while they waited
``full``    it held `max_batch_size` rows
``nested``  the model's own code asked for it, and waiting for a lane would have been for ever
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

from modelserve.errors import BackendError, DeadlineExceeded, ModelNotReady
from modelserve.execution.batch import Batch, arun_batch, fail_batch, run_batch
from modelserve.execution.lanes import (
    Lane,
    LoopThread,
    WorkerThread,
    close_backends,
    open_backends,
)
from modelserve.execution.nested import (
    Run,
    arun_nested,
    chain,
    entered,
    nesting,
    on_its_loop,
    run_nested,
    waiting_lane,
)
from modelserve.execution.ports import LoopPort, deliver
from modelserve.execution.queue import BatchKey, Pending, PendingQueue
from modelserve.execution.service_time import ServiceTime
from modelserve.execution.waiting import Awaited, Blocked, Called, Done, Expiring
from modelserve.messages import InferRequest
from modelserve.protocols import Backend, Traits
from modelserve.tensors import Tensor

__all__ = ["AdaptiveBatcher", "BatcherClosed"]

# An event loop is blocked by an inline run for no longer than about this; two bounds, so that a
# model near one does not change sides with every batch.
_INLINE_BELOW: Final = 100e-6
_INLINE_UNTIL: Final = 200e-6

# Event loops differ in how far ahead they can set a timer; a deadline beyond this needs none.
_LONGEST_TIMER: Final = 365 * 86_400.0

# A coroutine that is alone runs its requests where it makes them; after so many seconds of it one
# takes a turn of the loop, so that others get theirs and are seen. A request counts for its run and
# for about as long as it takes to ask.
_LONGEST_ALONE: Final = 1e-3
_ASKING: Final = 10e-6


class BatcherClosed(Exception):
    """The version is being unloaded: the request belongs to another one. Never reaches a caller."""


class _Forks:
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


_forks = _Forks()


class AdaptiveBatcher:
    """Runs the requests of all callers on a model version's instances, batched where that is right.

    Safe to use from any thread and from several event loops at once.

    Args:
        backends: One backend for each instance. A `shared` one may be named several times.
        max_batch_size: Most rows of a batch; 0 runs each request by itself.
        max_queue_size: Most requests that may wait for a lane.
        max_queue_bytes: Most bytes of input that may wait.
        model: Name for messages and threads.
        version: Version for messages.
        clock: Time by which deadlines are judged, in seconds.

    Example:
        >>> import numpy as np
        >>> from modelserve.backends.python import PythonBackend
        >>> from modelserve.tensors import TensorSpec
        >>> double = PythonBackend(lambda x: x * 2, inputs=[TensorSpec("x", "FP32", (-1, 4))])
        >>> batcher = AdaptiveBatcher([double], max_batch_size=8)
        >>> x = {"x": np.ones((2, 4), np.float32)}
        >>> batcher.submit_blocking(InferRequest("double", x), x, rows=2)["output"].shape
        (2, 4)
        >>> batcher.close()
        True
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
        self._clock = clock
        self._key = BatchKey(
            backends[0].signature, batched=max_batch_size > 0, parameters=self.traits.context
        )
        self._inline = self.traits.inline
        self._closed = False
        self._abandoned = False
        self._released = False
        self._beginning = threading.Lock()
        _forks.watch()
        self._begin(PendingQueue(max_queue_size, max_queue_bytes))

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
        self._process = _forks.count

    def _begin_after_fork(self) -> None:
        """Begin anew in a forked child, which has the parent's objects and none of its threads."""
        with self._beginning:
            if self._process != _forks.count:
                self._begin(PendingQueue(self._queue.max_requests, self._queue.max_bytes))

    def _make_lanes(self) -> list[Lane]:
        lanes = []
        for number, backend in enumerate(self.backends):
            for _ in range(self.traits.concurrency):
                worker = WorkerThread(f"modelserve-{self.model}-{number}")
                lanes.append(Lane(backend, self.traits, worker, self.loop_thread))
        return lanes

    # ------------------------------------------------------------------ what callers see

    @property
    def queue_depth(self) -> int:
        """Requests waiting for a lane."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches running."""
        return self._running

    def run_at_load(
        self, request: InferRequest, inputs: Mapping[str, Tensor], rows: int
    ) -> Mapping[str, Tensor]:
        """Run a request before there are others: it takes no lane and starts no thread needlessly.

        Raises:
            ServeError: As `submit`; nothing is logged.
        """
        lane = self.lanes[0]
        pending = Pending(request, inputs, rows, None, perf_counter(), ())
        batch = self._batch((pending,), rows, "load")
        if lane.loop is not None:
            lane.loop.call(lambda: arun_batch(batch, lane.backend, self.traits))
        elif self.traits.opens:
            lane.worker.call(lambda: run_batch(batch, lane.backend, self.traits))
        else:
            self.service_time.update(rows, run_batch(batch, lane.backend, self.traits))
        if pending.error is not None:
            raise pending.error
        assert pending.outputs is not None
        return pending.outputs

    async def submit(
        self, request: InferRequest, inputs: Mapping[str, Tensor], rows: int
    ) -> Mapping[str, Tensor]:
        """Run a validated request and return its outputs.

        Args:
            request: The request.
            inputs: Its inputs as `Signature.validate` returned them.
            rows: Their rows.

        Raises:
            QueueFull: Too much waits already.
            DeadlineExceeded: The deadline passed first.
            BackendError: Model code failed.
        """
        asking = chain.get()
        if asking:
            return await self._submit_nested(request, inputs, rows, asking)
        pending = self.enqueue(request, inputs, rows)
        if pending.outputs is not None:
            return pending.outputs
        assert pending.future is not None
        try:
            return await pending.future
        except BaseException:
            pending.leave()
            raise

    def enqueue(
        self, request: InferRequest, inputs: Mapping[str, Tensor], rows: int, *, plain: bool = False
    ) -> Awaited:
        """Do the part of `submit` that needs no coroutine; not for a model's own code (`chain`).

        Args:
            request: The request.
            inputs: Its inputs as `Signature.validate` returned them.
            rows: Their rows.
            plain: Whether they are just as `Signature.rows_of` expects, and all outputs are wanted.

        Returns:
            An entry that has its outputs already, or whose future is to be awaited. Whoever stops
            waiting calls its `leave`.

        Raises:
            ServeError: As `submit`.
        """
        pending = Awaited(request, inputs, rows, None, perf_counter())
        port = self._prepare(pending, plain)
        if port.alone > 0.0 and self._short(rows):
            lane = self._free_lane()
            if lane is not None:
                port.alone -= self._run_alone(lane, pending) + _ASKING
                pending.result()
                return pending
        pending.future = port.loop.create_future()
        self._put(pending, port)
        return pending

    def begin(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        done: Done,
        *,
        plain: bool = False,
    ) -> Called:
        """Run a validated request and call `done`, on the running loop; see `protocols.Servable`.

        Not for a model's own code (`chain`).

        Raises:
            ServeError: The request is refused at once, as by `submit`.
        """
        pending = Called(request, inputs, rows, None, perf_counter())
        pending.done = done
        self._put(pending, self._prepare(pending, plain))
        return pending

    def submit_blocking(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        *,
        plain: bool = False,
    ) -> Mapping[str, Tensor]:
        """Do as `submit`, for a thread; runs the model on this thread where it may.

        Raises:
            BackendError: Also when a coroutine of a model calls this: it would hold the loop that
                answers, so it has to await `submit`.
        """
        if self._process != _forks.count:
            self._begin_after_fork()
        pending = Blocked(request, inputs, rows, None, perf_counter(), chain.get())
        self._classify(pending, plain)
        if pending.chain and not self.traits.inline and on_its_loop(pending.chain):
            raise BackendError(
                f'model "{self.model}" was asked by a coroutine with the blocking predict, which '
                "holds the loop that answers; await infer instead"
            )
        if pending.deadline is not None:
            self._check_deadline(pending)
        # The short way of a thread that nobody else waits beside: no gate, and no entry queued.
        lane = self._free_lane() if self.traits.inline else None
        if lane is not None:
            self._run_alone(lane, pending)
            return pending.result()
        gate = pending.gate = threading.Lock()
        gate.acquire()
        if not pending.chain:
            self._perform(pending, *self._enter_blocking(pending, None))
        else:
            with nesting:
                work = self._enter_blocking(pending, waiting_lane(self, pending.chain))
                pending.chain[-1].awaiting.append((self, pending))
            try:
                self._perform(pending, *work)
            finally:
                pending.chain[-1].awaiting.remove((self, pending))
        return pending.result()

    def close(self, *, drain: float = 30.0) -> bool:
        """Take no more requests, wait for those there are, then close the backends.

        What still waits after `drain` seconds gets `ModelNotReady`; a run that does not end is left
        to end by itself, and its backend is closed then.

        Returns:
            Whether everything was answered in time.
        """
        if self._process != _forks.count:
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

    def open(self) -> None:
        """Let every backend that wants to prepare itself do so, on the thread it will run on."""
        if self.traits.opens:
            open_backends(self.lanes)

    # ------------------------------------------------------------------ admission

    def _prepare(self, pending: Expiring, plain: bool) -> LoopPort:
        """Make a request of the running loop ready to be queued; returns the loop's port."""
        if self._process != _forks.count:
            self._begin_after_fork()
        loop = asyncio.get_running_loop()
        port = pending.port = self._ports.get(loop) or self._open_port(loop)
        port.arrivals += 1
        pending.timer = None
        self._classify(pending, plain)
        if pending.deadline is not None:
            self._check_deadline(pending)
        return port

    def _classify(self, pending: Pending, plain: bool) -> None:
        """Note what the request may share a batch with, and what it takes up in the queue."""
        request, key = pending.request, self._key
        if plain and key.row_bytes >= 0 and not request.parameters:
            # All alike, and no array has to be asked: saves 0.3 us.
            pending.size = pending.rows * key.row_bytes + len(request.id)
        else:
            pending.key = key(request, pending.inputs)

    def _admit(self, pending: Pending) -> None:
        """Queue a request; under the lock. The one place where requests are let in."""
        if self._closed:
            raise BatcherClosed
        self._queue.push(pending, model=self.model)

    def _put(self, pending: Expiring, port: LoopPort, waiting: Lane | None = None) -> Lane | None:
        """Queue a loop's request; or return `waiting`, where no other lane is free.

        Where a lane is idle, the loop sends what waits when the callers of this turn had theirs.
        """
        with self._lock:
            if waiting is not None and (self._closed or not self._idle):
                return waiting
            self._admit(pending)
            if self._idle and not port.flushing:
                port.flushing = True
                port.loop.call_soon(port.flush)
        if pending.deadline is not None:
            left = pending.deadline - self._clock()
            if left < _LONGEST_TIMER:
                pending.timer = port.loop.call_later(max(0.0, left), self._expire, pending)
        return None

    def _free_lane(self) -> Lane | None:
        """Take an idle lane for a request that nobody waits beside, if there is one."""
        with self._lock:
            if not self._idle or self._queue or self._closed:
                return None
            self._running += 1
            return self._idle.pop()

    async def _submit_nested(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        asking: tuple[Run, ...],
    ) -> Mapping[str, Tensor]:
        """Do as `submit` for a model's own code: on a lane that waits for it, if none is idle."""
        pending = Awaited(request, inputs, rows, None, perf_counter(), asking)
        port = self._prepare(pending, False)
        future = pending.future = port.loop.create_future()
        with nesting:
            lane = self._put(pending, port, waiting_lane(self, asking))
            asking[-1].awaiting.append((self, pending))
        try:
            if lane is not None:
                await arun_nested(lane, self._batch((pending,), rows, "nested"))
                return pending.result()
            outputs: Mapping[str, Tensor] = await future
            return outputs
        except BaseException:
            pending.leave()
            raise
        finally:
            asking[-1].awaiting.remove((self, pending))

    def _enter_blocking(
        self, pending: Pending, waiting: Lane | None
    ) -> tuple[Lane | None, Batch | None]:
        """Queue a thread's request; or return a lane, with the batch it is to run or `waiting`."""
        with self._lock:
            if self._idle and not self._closed:
                batch: Batch | None
                if self._queue:
                    self._admit(pending)
                    batch = self._take("idle")
                else:
                    batch = self._batch((pending,), pending.rows, "idle")
                if batch is None:
                    return None, None
                self._running += 1
                return self._idle.pop(), batch
            if waiting is not None:
                return waiting, None
            self._admit(pending)
        return None, None

    def _perform(self, pending: Blocked, lane: Lane | None, batch: Batch | None) -> None:
        if batch is not None:
            assert lane is not None
            if self.traits.inline:
                self._run_here(lane, batch)
            else:
                self._start(lane, batch)
        elif lane is not None:
            run_nested(lane, self._batch((pending,), pending.rows, "nested"))
            return
        self._wait(pending)

    def _check_deadline(self, pending: Pending) -> float:
        assert pending.deadline is not None
        left = pending.deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded(
                f'model "{self.model}": the deadline passed before the request came'
            )
        return left

    def _open_port(self, loop: asyncio.AbstractEventLoop) -> LoopPort:
        with self._lock:
            for known in [known for known in self._ports if known.is_closed()]:
                del self._ports[known]
            port = self._ports[loop] = LoopPort(self, loop)
        return port

    def _expire(self, pending: Expiring) -> None:
        self.withdraw(pending)
        pending.end(self._too_late())

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f'model "{self.model}": the deadline passed before the answer was there'
        )

    def withdraw(self, pending: Pending) -> None:
        """Take a request out of the queue, if it still waits, because nobody wants its answer."""
        with self._lock:
            if self._queue.remove(pending):
                pending.note_wait()
            self._note_drained()

    def _wait(self, pending: Blocked) -> None:
        gate = pending.gate
        try:
            if pending.deadline is None:
                gate.acquire()
            else:
                left = max(0.0, pending.deadline - self._clock())
                if not gate.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                    raise self._too_late()
        except BaseException:
            self.withdraw(pending)  # e.g. KeyboardInterrupt: nobody wants the answer any more
            raise

    # ------------------------------------------------------------------ dispatch

    def _take(self, reason: str) -> Batch | None:
        """Take the next batch; under the lock. Entries past their deadline are told so."""
        if not self._queue:
            return None
        entries, rows, expired = self._queue.take(self.max_batch_size or 1, self._clock())
        if expired:
            for entry in expired:
                entry.note_wait()
                entry.error = self._too_late()
            deliver(expired, None)
        return self._batch(entries, rows, reason) if entries else None

    def _batch(self, entries: Sequence[Pending], rows: int, reason: str) -> Batch:
        size = self.max_batch_size
        return Batch(
            entries,
            rows,
            model=self.model,
            version=self.version,
            batched=size > 0,
            reason="full" if size and rows >= size and len(entries) > 1 else reason,
        )

    def flush(self, port: LoopPort) -> None:
        """Send what waits, as far as lanes are idle; on the port's event loop."""
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

    def _run_alone(self, lane: Lane, pending: Pending) -> float:
        """Run one request where it was made; what came meanwhile goes to the lane's thread."""
        try:
            return self._run(lane, self._batch((pending,), pending.rows, "idle"))
        finally:
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    def _run_inline(self, lane: Lane, batch: Batch, port: LoopPort) -> None:
        """Run on the event loop; the loop gets a turn before the next batch."""
        try:
            self._run(lane, batch)
        finally:
            following = None
            with self._lock:
                self._running -= 1
                # What waits for others must not depend on this loop having another turn.
                if self._queue and not self._queue.only_from(port):
                    following = self._take("next")
                if following is not None:
                    self._running += 1
                else:
                    self._idle.append(lane)
                    if self._queue and not port.flushing:
                        port.flushing = True
                        port.loop.call_soon(port.flush)
                    self._note_drained()
            if following is not None:
                self._start(lane, following)
            deliver(batch.entries, port)

    def _run_here(self, lane: Lane, batch: Batch) -> None:
        """Run on a caller's thread, which waits anyway; what follows goes to the lane's thread."""
        try:
            self._run(lane, batch)
        finally:
            deliver(batch.entries, None)
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

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

    def _worth_a_turn(self, port: LoopPort, batch: Batch) -> bool:
        """Tell whether waiting for the coroutines just answered makes up for the idle lane.

        Joining two batches into one saves the fixed part of a run, 2 S(n) - S(2n).
        """
        waiting = len(self._queue)
        if not waiting or port.returning < 0.5 or waiting >= self.max_batch_size:
            return False
        short = self.service_time.predict(batch.rows)
        if short is None:
            return False
        saved = 2 * short - (self.service_time.known(2 * batch.rows) or 1.5 * short)
        return saved > 2 * port.turn

    def _next(self, lane: Lane) -> Batch | None:
        """Return the lane's next batch, or leave it idle."""
        with self._lock:
            batch = self._take("next")
            if batch is None:
                self._running -= 1
                self._idle.append(lane)
                self._note_drained()
        return batch

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

    def _note_drained(self) -> None:
        """Under the lock, whenever something left: tell `close` when nothing is left."""
        if self._closed and not self._queue and not self._running:
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
