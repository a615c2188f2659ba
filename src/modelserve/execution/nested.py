"""Requests that a model's own code makes: which lanes wait for them, and where they may run.

A lane whose code asks a model is blocked until it is answered. What it asks must therefore not wait
for that lane, nor for lanes that wait for it in turn; it runs on the backend of such a lane, which
does nothing else meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING

from modelserve.execution.batch import Batch, arun_batch, fail_batch, run_batch
from modelserve.execution.lanes import Lane

if TYPE_CHECKING:
    from modelserve.execution.dispatch import Dispatcher
    from modelserve.execution.queue import Pending

__all__ = [
    "Run",
    "arun_nested",
    "chain",
    "entered",
    "nesting",
    "on_its_loop",
    "run_nested",
    "waiting_lane",
]


class Run:
    """One batch in user code."""

    __slots__ = ("active", "awaiting", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.active = True
        """False once the code returned; a task it left behind may still know this run."""
        self.awaiting: list[tuple[Dispatcher, Pending]] = []
        """What its code asked for and has no answer to."""


chain: ContextVar[tuple[Run, ...]] = ContextVar("modelserve_chain", default=())
"""Runs whose user code the present thread or task is in, the outermost first."""

nesting = threading.Lock()
"""Held while a nested request looks for a circle of waiting lanes and becomes part of one."""


def entered(entries: Sequence[Pending], run: Run) -> tuple[Run, ...]:
    """Note that `run` runs these requests; return the chain its code is in."""
    outer: tuple[Run, ...] = ()
    for entry in entries:
        entry.run = run
        if entry.chain:
            outer += tuple(known for known in entry.chain if known not in outer)
    return (*outer, run)


def on_its_loop(runs: tuple[Run, ...]) -> bool:
    """Tell whether the calling thread is the event loop that one of the runs needs."""
    return any(run.lane.loop is not None and run.lane.loop.here for run in runs)


def waiting_lane(batcher: Dispatcher, asking: tuple[Run, ...]) -> Lane | None:
    """Return a lane of `batcher` that cannot go on before what `asking` asks for is answered.

    That is a lane of `asking` itself, or any lane where all of them wait in a circle.
    """
    for run in reversed(asking):
        if run.active and run.lane in batcher.lanes:
            return run.lane
    if _stuck(batcher, asking, set()):
        return next(iter(batcher.runs), None)
    return None


def _stuck(batcher: Dispatcher, asking: tuple[Run, ...], seen: set[Dispatcher]) -> bool:
    if batcher in seen:
        return True
    seen.add(batcher)
    runs = list(batcher.runs.values())
    # A lane without a run is idle, or about to begin.
    return len(runs) == len(batcher.lanes) and all(_blocked(run, asking, seen) for run in runs)


def _blocked(run: Run, asking: tuple[Run, ...], seen: set[Dispatcher]) -> bool:
    if run in asking:
        return True
    if not run.awaiting:
        return False
    for batcher, pending in list(run.awaiting):
        inner = pending.run
        if pending.queued:
            if not _stuck(batcher, asking, seen):
                return False
        elif inner is None or not inner.active or not _blocked(inner, asking, seen):
            return False
    return True


# ---------------------------------------------------------------------- running on a waiting lane


async def arun_nested(lane: Lane, batch: Batch) -> None:
    """Run what the lane's own code awaits, on the lane's backend, which waits for it."""
    if lane.loop is None:
        # A function blocks, and may start a loop of its own: it cannot run on this one.
        executor = ThreadPoolExecutor(1, f"modelserve-{batch.model}-nested")
        try:
            call = partial(copy_context().run, _run_guest, lane, batch)
            await asyncio.get_running_loop().run_in_executor(executor, call)
        finally:
            executor.shutdown(wait=False)
    elif lane.loop.here:
        await _arun_guest(lane, batch)
    else:
        coroutine = _arun_guest(lane, batch)
        there = lane.loop.loop()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, there))


def run_nested(lane: Lane, batch: Batch) -> None:
    """Do as `arun_nested` for code that blocks."""
    if lane.loop is not None:
        lane.loop.call(partial(_arun_guest, lane, batch))
    else:
        _run_guest(lane, batch)


async def _arun_guest(lane: Lane, batch: Batch) -> None:
    run = Run(lane)
    token = chain.set(entered(batch.entries, run))
    try:
        await arun_batch(batch, lane.backend, lane.traits)
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise  # the asking code was cancelled
        fail_batch(batch, error)
    finally:
        run.active = False
        chain.reset(token)


def _run_guest(lane: Lane, batch: Batch) -> None:
    run = Run(lane)
    token = chain.set(entered(batch.entries, run))
    try:
        run_batch(batch, lane.backend, lane.traits)
    except BaseException as error:  # SystemExit and the like are the model's failure here too
        fail_batch(batch, error)
    finally:
        run.active = False
        chain.reset(token)
