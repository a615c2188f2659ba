"""The one batcher for all callers of a model version: coroutines, threads and transports alike.

An idle lane takes what arrived within one turn of the event loop; while all lanes are busy,
arrivals wait and become the next batch. How many of them, and whether more are waited for, is
judged in `pacing` by what runs took. A coroutine that is the only caller does not even take a turn
of the loop: its request runs where it is made.

How requests become arrays and back is in `batch`; the order of waiting is in `queue`, the ways of
waiting in `waiting`; threads are in `lanes`, and what a model's own code asks for is in `nested`.

Why a batch was sent is recorded in its exchanges as `reason`:

``idle``    a lane was free when the requests came
``next``    a lane became free while they waited
``full``    it held `max_batch_size` rows, or what `max_batch_cost` allows
``best``    it held as many as serve best, and more waits
``gather``  callers that were expected back at once were waited for
``delay``   it was held back by `max_queue_delay`
``nested``  the model's own code asked for it, and waiting for a lane would have been for ever
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import get_running_loop
from collections.abc import Mapping
from time import perf_counter
from typing import Final, overload

from modelserve.errors import BackendError, DeadlineExceeded, Overloaded, ServeError
from modelserve.execution.batch import Batch, arun_batch, run_batch
from modelserve.execution.dispatch import SHORT_ID, Dispatcher, forks
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
from modelserve.execution.waiting import Awaited, Blocked, Called, Done, Expiring, Joined, RecordAll
from modelserve.messages import InferRequest
from modelserve.tensors import Tensor

__all__ = ["AdaptiveBatcher", "BatcherClosed"]

# Event loops differ in how far ahead they can set a timer; a deadline beyond this needs none.
_LONGEST_TIMER: Final = 365 * 86_400.0

# What making a request takes, about: it counts for one that runs without a turn of the loop.
_ASKING: Final = 10e-6


class BatcherClosed(Exception):
    """The version is being unloaded: the request belongs to another one. Never reaches a caller."""


_ONE_ROW: Final = Pending(InferRequest("", {}), {}, 1, None, 0.0)
"""Stands for a request of which nothing is known yet."""


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
        max_queue_delay: Seconds a request may be held for others to join its batch.
        max_batch_cost: Most units of `cost` in a batch; 0 where only rows count.
        cost: Tells the units of a request from its inputs.
        batcher: ``"adaptive"``, or ``"simple"``: full batches of what waits, and nothing learned.

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
            seconds = run_batch(batch, lane.backend, self.traits)
            if pending.outputs is not None:
                self._classify(pending)
                self.pacing.learn(self._size(batch), seconds, self._shape(pending.key))
        return pending.result()

    async def submit(
        self, request: InferRequest, inputs: Mapping[str, Tensor], rows: int, plain: bool = False
    ) -> Mapping[str, Tensor]:
        """Run a validated request and return its outputs.

        Args:
            request: The request.
            inputs: Its inputs as `Signature.validate` returned them.
            rows: Their rows.
            plain: As for `enqueue`.

        Raises:
            QueueFull: Too much waits already.
            DeadlineExceeded: The deadline passed first.
            BackendError: Model code failed.
        """
        asking = chain.get()
        if asking:
            return await self._submit_nested(request, inputs, rows, asking)
        pending = self.enqueue(request, inputs, rows, plain)
        if pending.outputs is not None:
            return pending.outputs
        assert pending.future is not None
        try:
            return await pending.future
        except BaseException:
            pending.leave()
            raise

    @overload
    def join(
        self, request: InferRequest, done: None = None, record: RecordAll | None = None
    ) -> Joined | None: ...

    @overload
    def join(self, request: InferRequest, done: Done) -> Called | None: ...

    # One function without calls that could be spared, since most requests for small models take it.
    def join(
        self,
        request: InferRequest,
        done: Done | None = None,
        record: RecordAll | None = None,
    ) -> Joined | Called | None:
        """Queue a plain request for the loop's next turn, without a lock, if all is as usual.

        Usual is a request of one row, just as specified, without anything that would set it apart
        from its neighbours, on an event loop that has others, for a model of some microseconds
        that is idle.

        Args:
            request: The request, not validated yet; not of a model's own code (`chain`).
            done: What is to be called; None for a coroutine that awaits the entry's future.
            record: Closes the coroutine's exchange, if it is answered, with those of its batch.

        Returns:
            What `enqueue` or `begin` would; None says that the request is to go that way.

        Raises:
            BatcherClosed: As by `enqueue`.
        """
        queue = self._queue
        fresh = queue.fresh
        if fresh:  # others came in this turn: all is as it was found for the first
            if len(fresh) >= self._most_fresh:
                return None
        elif not self._opens():
            return None
        if (
            request.deadline is not None
            or request.outputs is not None
            or request.priority
            or request.parameters
            or len(request.id) > SHORT_ID
            or self._rows_of(request.inputs) != 1
            or self._process != forks.count
        ):
            return None
        loop = get_running_loop()
        port = self._ports.get(loop)
        if port is None:
            return None
        pending: Joined | Called
        if done is None:
            if port.alone > 0.0:
                return None
            pending = Joined(request, perf_counter(), port, port.create_future(), record)
        else:
            pending = Called(request, request.inputs, 1, None, perf_counter())
            pending.done = done
            pending.timer = None
            pending.port = port
            pending.queued = True
        fresh.append(pending)
        # Asked afterwards: a `close` from now on finds it in the queue.
        if self._closed:
            self._turn_away(pending)
        if not port.flushing:
            port.flushing = True
            loop.call_soon(self.flush, port)
        return pending

    def _opens(self) -> bool:
        """Tell whether plain requests may be queued without a lock from here on."""
        pacing = self.pacing
        return bool(
            self._idle
            and pacing.tiny
            and self._most_fresh
            and not (self._queue.count or pacing.holds or pacing.watching)
        )

    def _turn_away(self, pending: Pending) -> None:
        """Take back what was queued when the batcher was closed already, if it is still there."""
        with self._lock:
            if pending.queued:
                self._queue.remove(pending)
                self._note_drained()
                raise BatcherClosed

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
        pacing = self.pacing
        if port.alone > 0.0 and (
            pacing.tiny or pacing.inline(rows, self._shape_of(request, inputs))
        ):
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
        left = _LONGEST_TIMER
        if pending.deadline is not None:
            left = self._check_deadline(pending.deadline)
        # The short way of a thread that nobody else waits beside: no gate, and no entry queued.
        lane = self._free_lane() if self._alone else None
        if lane is not None:
            self._run_alone(lane, pending)
            return pending.result()
        self._classify(pending)
        gate = pending.gate = threading.Lock()
        gate.acquire()
        if not pending.chain:
            lane, batch = self._enter_blocking(pending, left, None)
            self._perform(pending, lane, batch, batch is None)
        else:
            with nesting:
                guest = waiting_lane(self, pending.chain)
                lane, batch = self._enter_blocking(pending, left, guest)
                pending.chain[-1].awaiting.append((self, pending))
            try:
                self._perform(pending, lane, batch, batch is None and lane is not guest)
            finally:
                pending.chain[-1].awaiting.remove((self, pending))
        return pending.result()

    # ------------------------------------------------------------------ admission

    def _classify(self, pending: Pending) -> None:
        """Note what the request may share a batch with, and what it takes up in the queue."""
        pending.key = self._key(pending.request, pending.inputs)
        pending.size = size_of(pending.request, pending.inputs)
        if self._costed:
            try:
                pending.cost = self.bounds.measure(pending.inputs, pending.rows)
            except ServeError:
                raise
            except Exception as error:  # the boundary of the user's function
                raise BackendError(
                    f'model "{self.model}": cost failed: {type(error).__name__}: {error}'
                ) from error

    def _admit(self, pending: Pending, left: float) -> None:
        """Queue a request that has `left` seconds; under the lock. Others are let in nowhere."""
        if self._closed:
            raise BatcherClosed
        pacing = self.pacing
        if left < _LONGEST_TIMER and not self.simple:
            self._judge(pending, left)
        self._queue.push(pending)
        if pacing.watching or self._holding:
            rows = pending.cost if self._costed else pending.rows
            self._note_arrival(rows, pending.deadline is not None)

    def check(self, deadline: float) -> None:
        """Refuse what cannot be answered by a deadline; cheap, so ask before a body is decoded.

        Of what comes it is assumed that it is one row, and goes before nobody.

        Args:
            deadline: A point of `time.monotonic()`.

        Raises:
            DeadlineExceeded: It is past.
            Overloaded: What runs and waits would not be done by then.
        """
        error = self.late(deadline)
        if error is not None:
            raise error

    def late(self, deadline: float) -> ServeError | None:
        """Return what `check` would raise; None where that is nothing."""
        left = deadline - self.clock()
        if left <= 0:
            return self._come_too_late()
        if left >= _LONGEST_TIMER or self.simple or self._idle:
            return None
        with self._lock:
            return self._judged(_ONE_ROW, left)

    def _judge(self, pending: Pending, left: float) -> None:
        """Refuse a request that would not be answered in time, as far as that can be known."""
        error = self._judged(pending, left)
        if error is not None:
            raise error

    def _judged(self, pending: Pending, left: float) -> Overloaded | None:
        pacing = self.pacing
        now = perf_counter()
        shape = self._shape(pending.key)
        size = pending.cost if self._costed else pending.rows
        ahead = 0
        if self._queue:
            ahead = self._queue.ahead(pending.request.priority, pacing.best(shape))
        if pacing.admits(now, left, ahead, size, shape):
            return None
        finish = pacing.finish_in(now, ahead, size, shape)
        wait = left if finish is None else finish.expected
        return Overloaded(
            f'model "{self.model}": the answer would take {wait:.3g} s, and the deadline is in '
            f"{left:.3g} s",
            retry_after=wait,
        )

    def _put(
        self, pending: Expiring, port: LoopPort, plain: bool, waiting: Lane | None = None
    ) -> Lane | None:
        """Queue a loop's request; or return `waiting`, where no other lane is free.

        Where a lane is idle, the loop sends what waits when the callers of this turn had theirs.
        """
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
            self._admit(pending, left)
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
        self, pending: Pending, left: float, waiting: Lane | None
    ) -> tuple[Lane | None, Batch | None]:
        """Queue a thread's request; or return a lane, with the batch it is to run or `waiting`.

        A lane without a batch that is not `waiting` is to be held.
        """
        with self._lock:
            if self._idle and not self._closed:
                batch: Batch | None
                if self._queue or self.pacing.holds:
                    self._admit(pending, left)
                    if self.pacing.holds and self._to_hold():
                        self._running += 1
                        lane = self._idle.pop()
                        self._vacant.add(lane)
                        return lane, None
                    batch = self._take("idle")
                else:
                    if self.pacing.watching:
                        self._note_arrival(pending.cost if self._costed else pending.rows)
                    batch = self._batch((pending,), pending.rows, "idle")
                if batch is None:
                    return None, None
                lane = self._idle.pop()
                self._running += 1
                if not self.pacing.brief:
                    self._note_start(lane, batch)
                return lane, batch
            if waiting is not None:
                return waiting, None
            self._admit(pending, left)
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

    def _perform(
        self, pending: Blocked, lane: Lane | None, batch: Batch | None, held: bool
    ) -> None:
        if batch is not None:
            assert lane is not None
            if self.traits.inline:
                self._run_here(lane, batch)
            else:
                self._start(lane, batch)
        elif lane is not None and held:
            self._hold(lane)
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
            raise self._come_too_late()
        return left

    def _come_too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f'model "{self.model}": the deadline passed before the request came'
        )
