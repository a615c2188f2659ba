"""Where and when batches run: on idle lanes, on event loops, on threads; until the last one ended.

What callers see is in `batcher`, which also decides what is let in. A batch is taken in one place,
`_take`. How large it is, where it runs and what it waits for is judged in `pacing`, which is told
of every run.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic, perf_counter
from typing import Final, Literal

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
from modelserve.execution.pacing import BatchBounds, Pacing
from modelserve.execution.ports import LoopPort, deliver, hand_over, wake
from modelserve.execution.queue import BatchKey, Pending, PendingQueue
from modelserve.execution.waiting import Expiring
from modelserve.messages import BatchRecord, InferRequest
from modelserve.protocols import Backend, Traits
from modelserve.tensors import Tensor

__all__ = ["SHORT_ID", "Dispatcher", "check_batcher", "forks"]

# A hold ends so many runs, and so many seconds, before a deadline of those who wait.
_RUNS_BEFORE: Final = 2.0
_LATE: Final = 2e-3

# After a run that took longer than so many seconds an event loop gets so much of its time to tell
# those who are answered, before the lane goes on.
_LONG: Final = 0.5e-3
_TURN: Final = 0.05

# A coroutine that is alone runs its requests where it makes them; after so many seconds of it one
# takes a turn of the loop, so that others get theirs and are seen.
_LONGEST_ALONE: Final = 1e-3


SHORT_ID: Final = 64
"""Bytes that a request's id counts at least where requests are queued without a look at each."""


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


def check_batcher(name: str) -> str:
    """Return the name of a way of batching, if there is one of that name."""
    if name not in ("adaptive", "simple"):
        raise ValueError(f'batcher must be "adaptive" or "simple", got {name!r}')
    return name


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
        max_queue_delay: Seconds a request may be held for others to join its batch.
        max_batch_cost: Most units of `cost` in a batch; 0 where only rows count.
        cost: Tells the units of a request from its inputs.
        batcher: ``"adaptive"``, or ``"simple"``: full batches of what waits, and nothing learned.
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
        max_queue_delay: float = 0.0,
        max_batch_cost: int = 0,
        cost: Callable[[Mapping[str, Tensor]], float] | None = None,
        batcher: Literal["adaptive", "simple"] = "adaptive",
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
        self.bounds = BatchBounds(max_batch_size, max_batch_cost, cost)
        self.max_queue_delay = max_queue_delay
        self.simple = check_batcher(batcher) == "simple"
        self.traits: Traits = getattr(backends[0], "traits", Traits())
        self.backends = tuple(backends)
        self.clock = clock
        self._key = BatchKey(
            backends[0].signature, batched=max_batch_size > 0, parameters=self.traits.context
        )
        self._by_shape = self._key.shapes
        self._costed = cost is not None
        self._row_bytes = -1 if self._costed else self._key.row_bytes
        self._alone = self.traits.inline and not self._costed
        # Half, so that loops that do this at the same moment stay within the bounds together.
        room = min(max_queue_size, max_queue_bytes // (self._row_bytes + SHORT_ID))
        plain = self._alone and self._row_bytes >= 0 and not self.traits.context
        self._most_fresh = room // 2 if plain and max_batch_size else 0
        self._rows_of = backends[0].signature.rows_of
        self._closed = False
        self._abandoned = False
        self._released = False
        self._beginning = threading.Lock()
        forks.watch()
        self._begin(PendingQueue(max_queue_size, max_queue_bytes, model, self._costed))

    def _begin(self, queue: PendingQueue) -> None:
        """Set up what belongs to one process: locks, lanes, who waits."""
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        """Tells lanes that hold a batch back that more came."""
        self._holding = 0
        self._queue = queue
        self._ports: dict[asyncio.AbstractEventLoop, LoopPort] = {}
        self.loop_thread = (
            LoopThread(f"modelserve-{self.model}-loop") if self.traits.asynchronous else None
        )
        self.lanes = self._make_lanes()
        self._idle = list(reversed(self.lanes))
        self.runs: dict[Lane, Run] = {}
        """What runs in user code, by lane."""
        self.pacing = Pacing(
            self.bounds,
            lanes=len(self.lanes),
            max_queue_delay=self.max_queue_delay,
            inline=self.traits.inline,
            simple=self.simple,
        )
        self.crowded = True
        """Whether several came in the last turn of an event loop: only then it pays a coroutine's
        request to be offered to `join`."""
        self._running = 0
        self._vacant: set[Lane] = set()
        """Lanes that are not idle yet, and whose batch is answered or not taken yet."""
        self._drained = threading.Event()
        self._process = forks.count

    def _begin_after_fork(self) -> None:
        """Begin anew in a forked child, which has the parent's objects and none of its threads."""
        with self._beginning:
            if self._process != forks.count:
                queue = self._queue
                self._begin(
                    PendingQueue(queue.max_requests, queue.max_bytes, self.model, queue.costed)
                )

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
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches running; one whose callers are being told of it does not count."""
        with self._lock:
            return self._running - len(self._vacant)

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
        queue = self._queue
        pacing = self.pacing
        most = limit = pacing.bounds.most
        now = self.clock()
        if queue.fresh:
            taken = queue.take_fresh(most) if pacing.tiny else None
            if taken is not None:
                return self._taken(*taken, "full" if taken[1] >= most > 1 else reason)
            queue.sort_in()
        if not queue.count:
            return None
        if queue.waiting > 1 and most > 1 and not pacing.tiny:
            key, waiting, _ = queue.head()
            shape = self._shape(key)
            limit = pacing.limit(waiting, shape)
            if reason == "next":
                # What would be too late when it is done costs no compute either.
                now += pacing.lead(min(limit, waiting), shape)
        if self._costed:
            entries, rows, expired = queue.take(self.max_batch_size or 1, now, limit)
        else:
            entries, rows, expired = queue.take(limit, now)
        if pacing.tiny:
            reason = "full" if rows >= most > 1 else reason
        elif entries:
            left = limit < most and queue.holds(entries[0].key)
            size = sum(entry.cost for entry in entries) if self._costed else rows
            reason = pacing.reason(reason, size, limit, left=left)
        return self._taken(entries, rows, expired, reason)

    def _taken(
        self, entries: Sequence[Pending], rows: int, expired: Sequence[Pending], reason: str
    ) -> Batch | None:
        """Return what was taken as a batch, if it is one, and tell those who are too late."""
        if expired:
            for entry in expired:
                entry.note_wait()
                entry.error = self._too_late()
            deliver(expired, None)
        return self._batch(entries, rows, reason) if entries else None

    def _batch(self, entries: Sequence[Pending], rows: int, reason: str) -> Batch:
        return Batch(entries, rows, self.model, self.version, self.max_batch_size > 0, reason)

    def _shape(self, key: Hashable) -> Hashable:
        """Return what run times are told apart by: a batch key where it tells shapes, else None."""
        return key if self._by_shape and key.__class__ is not object else None

    def _shape_of(self, request: InferRequest, inputs: Mapping[str, Tensor]) -> Hashable:
        return self._shape(self._key(request, inputs)) if self._by_shape else None

    def _size(self, batch: Batch) -> int:
        return sum(entry.cost for entry in batch.entries) if self._costed else batch.rows

    def _note_start(self, lane: Lane, batch: Batch) -> None:
        """Tell of a batch that is about to run, which is not to be short; under the lock."""
        if not self.simple:
            shape = self._shape(batch.entries[0].key)
            size = self._size(batch)
            lane.started = self.pacing.start(perf_counter(), size, batch.rows, shape)

    def _note_end(self, lane: Lane, batch: Batch, seconds: float) -> None:
        """Tell of a batch that ran; under the lock. A failed one says nothing of the model."""
        started = lane.started
        failed = seconds < 0 or batch.entries[0].outputs is None
        if started is not None:
            lane.started = None
            self.pacing.finish(started, perf_counter(), None if failed else seconds)
        elif not failed and not self.simple:
            size = self._size(batch) if self._costed else batch.rows
            shape = self._shape(batch.entries[0].key) if self._by_shape else None
            self.pacing.ran_inline(size, seconds, shape)

    def _note_answered(self, lane: Lane, batch: Batch, seconds: float) -> None:
        """Do as `_note_end` for a lane that is left idle or filled anew after its callers are told.

        They may ask at once whether anything is under way.
        """
        with self._lock:
            self._note_end(lane, batch, seconds)
            self._vacant.add(lane)

    def _await_others(self, reason: str) -> str:
        """Hold a lane back while that pays; under the lock, which others get meanwhile.

        Returns:
            Why the next batch is sent: `reason`, where it was not held.
        """
        queue, pacing = self._queue, self.pacing
        while pacing.holds and queue and not self._closed:
            now = perf_counter()
            until = self._held_until(now)
            if until <= now:
                break
            reason = pacing.why
            self._holding += 1
            self._arrival.wait(until - now)
            self._holding -= 1
        return reason

    def _to_hold(self) -> bool:
        """Tell whether the next batch is to be held back; under the lock."""
        if not self._queue or self._closed:
            return False
        now = perf_counter()
        return self._held_until(now) > now

    def _held_until(self, now: float) -> float:
        """Return until when to wait for others: while nobody's deadline is put at risk."""
        key, waiting, oldest = self._queue.head()
        shape = self._shape(key)
        until = self.pacing.hold(now, waiting, oldest, shape)
        deadline = self._queue.first_deadline() if until > now else inf
        if deadline < inf:
            run = self.pacing.expected(waiting, shape) or 0.0
            until = min(until, now + deadline - self.clock() - _RUNS_BEFORE * run - _LATE)
        return until

    def _note_arrival(self, rows: int, hurried: bool = False) -> None:
        """Tell those who watch or wait for arrivals; under the lock.

        Args:
            rows: What came.
            hurried: Whether it has a deadline, for which a hold may have to end sooner.
        """
        pacing = self.pacing
        if pacing.watching:
            pacing.arrived(perf_counter(), rows)
        if self._holding and (hurried or self._queue.waiting >= pacing.target):
            self._arrival.notify_all()

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f'model "{self.model}": the deadline passed before the answer was there'
        )

    def _free_lane(self) -> Lane | None:
        """Take an idle lane for a request that nobody waits beside, if there is one."""
        with self._lock:
            pacing, queue = self.pacing, self._queue
            if not self._idle or queue.count or queue.fresh or self._closed:
                return None
            if pacing.holds or pacing.watching:
                return None
            self._running += 1
            return self._idle.pop()

    def _next(self, lane: Lane, ended: Batch | None = None, seconds: float = -1.0) -> Batch | None:
        """Return the lane's next batch, or leave it idle.

        Args:
            lane: The lane.
            ended: The batch it ran, if that is not told of yet.
            seconds: What that took; negative where it failed.
        """
        queue = self._queue
        with self._lock:
            if ended is not None:
                self._note_end(lane, ended, seconds)
            if self._vacant:
                self._vacant.discard(lane)
            batch = self._take("next") if queue.count or queue.fresh else None
            if batch is None:
                self._leave_idle(lane)
            else:
                self._note_start(lane, batch)
        return batch

    def _gathered(self, lane: Lane, reason: str) -> Batch | None:
        """Do as `_next`, on a thread that may wait for those about to come."""
        with self._lock:
            reason = self._await_others(reason)
            self._vacant.discard(lane)
            batch = self._take(reason)
            if batch is None:
                self._leave_idle(lane)
            else:
                self._note_start(lane, batch)
        return batch

    def _leave_idle(self, lane: Lane) -> None:
        self._running -= 1
        self._idle.append(lane)
        if self._closed:
            self._note_drained()

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
                held = self.pacing.holds and self._to_hold()
                batch = None if held else self._take("idle")
                if batch is None and not held:
                    self._note_drained()
                    return
                lane = self._idle.pop()
                self._running += 1
                short = batch is not None and (self.pacing.tiny or self._short(batch))
                if batch is None:
                    self._vacant.add(lane)
                elif not short:
                    self._note_start(lane, batch)
            if batch is not None and short:
                self._run_inline(lane, batch, port)
                # A caller that had the turn to itself may do without: saves 8 of 20 us.
                single = len(batch.entries) == 1 and self._alone
                port.alone = _LONGEST_ALONE if single else 0.0
                self.crowded = not single
                return
            port.alone = 0.0
            if batch is None:
                self._hold(lane)
            else:
                self._start(lane, batch)

    def _short(self, batch: Batch) -> bool:
        shape = self._shape(batch.entries[0].key) if self._by_shape else None
        return self.pacing.inline(self._size(batch), shape)

    def _run_inline(self, lane: Lane, batch: Batch, port: LoopPort) -> None:
        """Run on the event loop; the loop gets a turn before the next batch."""
        seconds = -1.0
        try:
            seconds = self._run(lane, batch)
        finally:
            following = None
            with self._lock:
                self._note_end(lane, batch, seconds)
                # What waits for others must not depend on this loop having another turn.
                queue = self._queue
                waiting = bool(queue.count or queue.fresh)
                if waiting and not queue.only_from(port):
                    following = self._take("next")
                if following is not None:
                    self._note_start(lane, following)
                else:
                    self._running -= 1
                    self._idle.append(lane)
                    if waiting and not port.flushing:
                        port.flushing = True
                        port.loop.call_soon(self.flush, port)
                    self._note_drained()
            if following is not None:
                self._start(lane, following)
            wake(batch.entries, port)

    # ------------------------------------------------------------------ on a caller's thread

    def _run_alone(self, lane: Lane, pending: Pending) -> float:
        """Run one request where it was made; what came meanwhile goes to the lane's thread."""
        batch = self._batch((pending,), pending.rows, "idle")
        if self._by_shape:
            pending.key = self._key(pending.request, pending.inputs)
        if not self.pacing.brief and not self.simple:
            with self._lock:
                self._note_start(lane, batch)
        seconds = -1.0
        try:
            seconds = self._run(lane, batch)
            return seconds
        finally:
            following = self._next(lane, batch, seconds)
            if following is not None:
                self._start(lane, following)

    def _run_here(self, lane: Lane, batch: Batch) -> None:
        """Run on a caller's thread, which waits anyway; what follows goes to the lane's thread."""
        seconds = -1.0
        try:
            seconds = self._run(lane, batch)
        finally:
            self._note_answered(lane, batch, seconds)
            deliver(batch.entries, None)
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    # ------------------------------------------------------------------ rows gathered elsewhere

    @property
    def most_rows(self) -> int:
        """How many rows `run_rows` would take now: 0 where it would refuse one."""
        queue = self._queue
        idle = self._idle and not (queue.count or queue.fresh or self._closed)
        if not idle or self._costed or not self.traits.repeatable or self.pacing.holds:
            return 0
        return self.max_batch_size if self.pacing.tiny or self.pacing.inline(1) else 0

    def run_rows(
        self, inputs: Mapping[str, Tensor], rows: int
    ) -> tuple[Mapping[str, Tensor], BatchRecord] | None:
        """Run, on this thread, rows that a transport gathered in one turn of its event loop.

        Only where nothing waits before them, and only what may hold a loop up: ONNX Runtime,
        measured short. None says that the requests are to go the usual way, after a failure, too:
        there each is told what was wrong with it.
        """
        if rows > self.max_batch_size or self._costed or not self.traits.repeatable:
            return None
        if not self.pacing.tiny and not self.pacing.inline(rows):
            return None
        lane = self._free_lane() if self._process == forks.count else None
        if lane is None:
            return None
        started = perf_counter()
        took = -1.0
        try:
            outputs = lane.backend.run(inputs)
        except Exception:  # the boundary of model code; it is run again where it is told
            return None
        else:
            took = perf_counter() - started
            reason = "full" if rows == self.max_batch_size > 1 else "idle"
            return outputs, BatchRecord(rows, rows, reason, started, took)
        finally:
            if took >= 0:
                with self._lock:
                    self.pacing.ran_inline(rows, took)
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
                self._note_answered(lane, following, -1.0)
                deliver(following.entries, None)
                following = self._next(lane)
            else:
                return

    def _hold(self, lane: Lane) -> None:
        """Let the lane's thread wait for those about to come, and run them with those who wait."""
        try:
            lane.worker.submit(partial(self._work, lane, None))
        except RuntimeError:  # the process cannot start a thread any more: nobody is waited for
            following = self._next(lane)
            if following is not None:
                self._start(lane, following)

    def _work(self, lane: Lane, batch: Batch | None) -> None:
        """Run batches on the lane's thread until none waits; None: first wait for one."""
        if batch is None:
            batch = self._gathered(lane, "idle")
        while batch is not None:
            if lane.loop is not None:
                self._start(lane, batch)
                return
            seconds = -1.0
            # SystemExit and the like of user code is its failure, and `_run` told the callers.
            with suppress(BaseException):
                seconds = self._run(lane, batch)
            # Told of before the callers are woken, some of whom ask again at once.
            if seconds > _LONG and self._queue and (lane.started is not None or self.simple):
                self._answer_first(lane, batch, seconds)
            else:
                self._note_answered(lane, batch, seconds)
                deliver(batch.entries, None)
            batch = self._gathered(lane, "next")

    def _answer_first(self, lane: Lane, batch: Batch, seconds: float) -> None:
        """Do as `_note_answered` and `deliver` where more waits, and learn from the run after that.

        The next run would begin at once, and before it the batch for it is made, all with the
        interpreter's lock held: those who are answered would wait for it, 0.1 ms, for a model
        that reads its weights leaves nothing of this code in the caches.
        """
        started, lane.started = lane.started, None
        with self._lock:
            now = perf_counter()
            if started is not None:
                self.pacing.finish(started, now, None)
            self._vacant.add(lane)
        hand_over(batch.entries, _TURN * seconds)
        if started is not None and batch.entries[0].outputs is not None:
            with self._lock:
                self.pacing.judge(started, now, seconds)

    async def _work_async(self, lane: Lane, batch: Batch | None) -> None:
        while batch is not None:
            run = self.runs[lane] = Run(lane)
            token = chain.set(entered(batch.entries, run))
            seconds = -1.0
            try:
                seconds = await arun_batch(batch, lane.backend, self.traits)
            except BaseException as error:  # a CancelledError of user code's own making included
                fail_batch(batch, error)
            run.active = False
            del self.runs[lane]
            chain.reset(token)
            self._note_answered(lane, batch, seconds)
            with self._lock:
                held = self.pacing.holds and self._to_hold()
            deliver(batch.entries, None)
            if held:
                self._hold(lane)
                return
            batch = self._next(lane)

    def _run(self, lane: Lane, batch: Batch) -> float:
        run = None
        if not self.traits.inline:
            run = self.runs[lane] = Run(lane)
        token = None if run is None else chain.set(entered(batch.entries, run))
        try:
            return run_batch(batch, lane.backend, self.traits)
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
            self._arrival.notify_all()
            jobs = []
            # Entries may count on the next turn of a loop that will have none.
            while self._idle and (batch := self._take("idle")) is not None:
                self._running += 1
                lane = self._idle.pop()
                self._note_start(lane, batch)
                jobs.append((lane, batch))
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
