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
import threading
from asyncio import get_running_loop
from collections.abc import Mapping
from time import perf_counter
from typing import Final

from modelserve.errors import BackendError, DeadlineExceeded
from modelserve.execution.batch import Batch, arun_batch, run_batch
from modelserve.execution.dispatch import Dispatcher, forks
from modelserve.execution.lanes import Lane
from modelserve.execution.nested import (
    Run,
    arun_nested,
    chain,
    nesting,
    on_its_loop,
    run_nested,
    waiting_lane,
)
from modelserve.execution.ports import LoopPort
from modelserve.execution.queue import Pending, size_of
from modelserve.execution.waiting import Awaited, Blocked, Called, Done, Expiring
from modelserve.messages import InferRequest
from modelserve.tensors import Tensor

__all__ = ["AdaptiveBatcher", "BatcherClosed"]

# Event loops differ in how far ahead they can set a timer; a deadline beyond this needs none.
_LONGEST_TIMER: Final = 365 * 86_400.0

# What making a request takes, about: it counts for one that runs without a turn of the loop.
_ASKING: Final = 10e-6


class BatcherClosed(Exception):
    """The version is being unloaded: the request belongs to another one. Never reaches a caller."""


class AdaptiveBatcher(Dispatcher):
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
        return pending.result()

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
        self, request: InferRequest, inputs: Mapping[str, Tensor], rows: int, plain: bool = False
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
        if self._process != forks.count:
            self._begin_after_fork()
        pending = Awaited(request, inputs, rows, None, perf_counter())
        pending.timer = None
        loop = get_running_loop()
        port = self._ports.get(loop) or self._open_port(loop)
        if port.alone > 0.0 and self._short(rows):
            if pending.deadline is not None:
                self._check_deadline(pending.deadline)
            lane = self._free_lane()
            if lane is not None:
                port.alone -= self._run_alone(lane, pending) + _ASKING
                pending.result()
                return pending
        pending.future = loop.create_future()
        self._put(pending, port, plain)
        return pending

    def begin(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        done: Done,
        plain: bool = False,
    ) -> Called:
        """Run a validated request and call `done`, on the running loop; see `protocols.Servable`.

        Not for a model's own code (`chain`).

        Raises:
            ServeError: The request is refused at once, as by `submit`.
        """
        if self._process != forks.count:
            self._begin_after_fork()
        pending = Called(request, inputs, rows, None, perf_counter())
        pending.timer = None
        pending.done = done
        loop = get_running_loop()
        self._put(pending, self._ports.get(loop) or self._open_port(loop), plain)
        return pending

    def submit_blocking(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        plain: bool = False,
    ) -> Mapping[str, Tensor]:
        """Do as `submit`, for a thread; runs the model on this thread where it may.

        Raises:
            BackendError: Also when a coroutine of a model calls this: it would hold the loop that
                answers, so it has to await `submit`.
        """
        if self._process != forks.count:
            self._begin_after_fork()
        pending = Blocked(request, inputs, rows, None, perf_counter(), chain.get())
        if pending.chain and not self.traits.inline and on_its_loop(pending.chain):
            raise BackendError(
                f'model "{self.model}" was asked by a coroutine with the blocking predict, which '
                "holds the loop that answers; await infer instead"
            )
        if pending.deadline is not None:
            self._check_deadline(pending.deadline)
        # The short way of a thread that nobody else waits beside: no gate, and no entry queued.
        lane = self._free_lane() if self.traits.inline else None
        if lane is not None:
            self._run_alone(lane, pending)
            return pending.result()
        self._classify(pending)
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

    # ------------------------------------------------------------------ admission

    def _classify(self, pending: Pending) -> None:
        """Note what the request may share a batch with, and what it takes up in the queue."""
        pending.key = self._key(pending.request, pending.inputs)
        pending.size = size_of(pending.request, pending.inputs)

    def _admit(self, pending: Pending) -> None:
        """Queue a request; under the lock. The one place where requests are let in."""
        if self._closed:
            raise BatcherClosed
        self._queue.push(pending)

    def _put(
        self, pending: Expiring, port: LoopPort, plain: bool, waiting: Lane | None = None
    ) -> Lane | None:
        """Queue a loop's request; or return `waiting`, where no other lane is free.

        Where a lane is idle, the loop sends what waits when the callers of this turn had theirs.
        """
        port.arrivals += 1
        pending.port = port
        left = _LONGEST_TIMER
        if pending.deadline is not None:
            left = self._check_deadline(pending.deadline)
        if plain and self._row_bytes >= 0 and not pending.request.parameters:
            # What `_classify` finds out, without asking an array: saves 0.2 us.
            pending.size = pending.rows * self._row_bytes + len(pending.request.id)
        else:
            self._classify(pending)
        with self._lock:
            if waiting is not None and (self._closed or not self._idle):
                return waiting
            self._admit(pending)
            if self._idle and not port.flushing:
                port.flushing = True
                port.loop.call_soon(self.flush, port)
        if left < _LONGEST_TIMER:
            if port.flushing:
                # Most are answered when the loop has sent what waits: saves a timer, 1 us.
                port.timed.append(pending)
            else:
                port.set_timers((pending,))
        return None

    def _enter_blocking(
        self, pending: Pending, waiting: Lane | None
    ) -> tuple[Lane | None, Batch | None]:
        """Queue a thread's request; or return a lane, with the batch it is to run or `waiting`."""
        with self._lock:
            if self._idle and not self._closed:
                batch: Batch | None
                if self._queue.count:
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

    def _open_port(self, loop: asyncio.AbstractEventLoop) -> LoopPort:
        with self._lock:
            for known in [known for known in self._ports if known.is_closed()]:
                del self._ports[known]
            port = self._ports[loop] = LoopPort(self, loop)
        return port

    # ------------------------------------------------------------------ waiting

    async def _submit_nested(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        asking: tuple[Run, ...],
    ) -> Mapping[str, Tensor]:
        """Do as `submit` for a model's own code: on a lane that waits for it, if none is idle."""
        if self._process != forks.count:
            self._begin_after_fork()
        pending = Awaited(request, inputs, rows, None, perf_counter(), asking)
        pending.timer = None
        loop = get_running_loop()
        port = self._ports.get(loop) or self._open_port(loop)
        future = pending.future = loop.create_future()
        with nesting:
            lane = self._put(pending, port, False, waiting_lane(self, asking))
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

    def _wait(self, pending: Blocked) -> None:
        gate = pending.gate
        try:
            if pending.deadline is None:
                gate.acquire()
            else:
                left = max(0.0, pending.deadline - self.clock())
                if not gate.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                    raise self._too_late()
        except BaseException:
            self.withdraw(pending)  # e.g. KeyboardInterrupt: nobody wants the answer any more
            raise

    def _check_deadline(self, deadline: float) -> float:
        left = deadline - self.clock()
        if left <= 0:
            raise DeadlineExceeded(
                f'model "{self.model}": the deadline passed before the request came'
            )
        return left
