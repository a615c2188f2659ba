"""Streams of responses from generator backends, with back-pressure.

The caller pulls: a generator is advanced only when its next item is asked for, so a slow reader
holds it, and a reader that leaves stops it. Streams are not batched.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
)
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any

from modelserve.errors import BackendError, Cancelled, ModelNotReady, ServeError
from modelserve.execution.lanes import LoopThread, WorkerThread
from modelserve.protocols import Traits
from modelserve.tensors import Tensor

__all__ = ["StreamSlots", "open_stream"]

_log = logging.getLogger("modelserve.execution")

_END = object()


class StreamSlots:
    """Bounds how many streams run at once; the rest wait in order, on whichever loop they are.

    A stream is under way until its generator has ended, however early its reader leaves.

    Args:
        slots: Most streams under way.
        model: Name for messages.
    """

    def __init__(self, slots: int, *, model: str) -> None:
        self._lock = threading.Lock()
        self._free = slots
        self._active = 0
        self._closed = False
        self._model = model
        self._waiting: deque[_Waiter] = deque()
        self._drained = threading.Event()
        self._cuts: set[Callable[[], None]] = set()
        self._over = False
        self._afterwards: Callable[[], object] | None = None

    @property
    def active(self) -> int:
        """Streams under way."""
        return self._active

    async def acquire(self) -> None:
        """Wait for a slot.

        Raises:
            ModelNotReady: The version is being unloaded.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise ModelNotReady(f'model "{self._model}" is being unloaded')
            if self._free and not self._waiting:
                self._free -= 1
                self._active += 1
                return
            waiter = _Waiter(loop)
            self._waiting.append(waiter)
        try:
            await waiter.future
        except BaseException:
            with self._lock:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
            if waiter.granted:  # given in the same turn in which the caller left
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back; the next in line gets it."""
        with self._lock:
            self._active -= 1
            self._free += 1
            while self._free and self._waiting:
                if self._waiting.popleft().wake(None):
                    self._free -= 1
                    self._active += 1
            if not self._closed or self._active:
                return
            self._drained.set()
            afterwards, self._afterwards = self._afterwards, None
        if afterwards is not None:
            # Not here: this may be the event loop on which the backend is to be closed.
            threading.Thread(target=afterwards, daemon=True).start()

    def begin(self, cut: Callable[[], None]) -> None:
        """Note, for a slot that was acquired, how to end its stream when `close` waited enough."""
        with self._lock:
            self._cuts.add(cut)
            over = self._over
        if over:
            cut()

    def end(self, cut: Callable[[], None]) -> None:
        """Give back the slot of a stream that began with `cut`; does nothing the second time."""
        with self._lock:
            if cut not in self._cuts:
                return
            self._cuts.remove(cut)
        self.release()

    def close(self, drain: float) -> bool:
        """Admit nobody any more and wait for the streams under way; returns whether they ended.

        Those left after `drain` seconds are cut: their readers get `ModelNotReady`, and their
        generators are closed, each after the step it is in. That is not waited for.
        """
        with self._lock:
            self._closed = True
            refusal = ModelNotReady(f'model "{self._model}" is being unloaded')
            while self._waiting:
                self._waiting.popleft().wake(refusal)
            if not self._active:
                return True
        if self._drained.wait(min(drain, threading.TIMEOUT_MAX)):
            return True
        with self._lock:
            self._over = True
            cuts = list(self._cuts)
        for cut in cuts:
            cut()
        return False

    def afterwards(self, call: Callable[[], object]) -> None:
        """Do something when the last stream has ended, on a thread of its own; or now, if it has.

        Args:
            call: What to do, after `close`; it must not raise.
        """
        with self._lock:
            if self._active:
                self._afterwards = call
                return
        call()


class _Waiter:
    """One caller in line for a slot."""

    __slots__ = ("future", "granted", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.granted = False

    def wake(self, error: Exception | None) -> bool:
        """Grant the slot, or refuse it; returns whether there is anyone to be told."""
        try:
            self.loop.call_soon_threadsafe(self._settle, error)
        except RuntimeError:
            return False  # its loop is gone, and with it whoever waited
        self.granted = error is None
        return True

    def _settle(self, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


async def open_stream(
    backend: Any,
    traits: Traits,
    inputs: Mapping[str, Tensor] | AsyncIterable[Mapping[str, Tensor]],
    context: Any,
    loop_thread: LoopThread | None,
    slots: StreamSlots,
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield what a streaming backend yields.

    Args:
        backend: Has `stream`.
        traits: Its traits.
        inputs: One request's tensors, or those of many where `traits.takes_stream`.
        context: The `Context`, passed on where `traits.context`.
        loop_thread: Where asynchronous generators run.
        slots: Where a slot was acquired for it; given back when the generator has ended.

    Raises:
        ServeError: As raised by the generator; anything else it raises is a `BackendError`.
        ModelNotReady: The slots were closed, and the stream had not ended in the time it had.
    """
    if traits.asynchronous:
        assert loop_thread is not None
        stream = _from_loop(backend, traits, inputs, context, loop_thread, slots)
    else:
        stream = _from_thread(backend, traits, inputs, context, slots)
    try:
        async for item in stream:
            yield item
    finally:
        await stream.aclose()


def _unloaded() -> ModelNotReady:
    return ModelNotReady("the model was unloaded during the stream")


async def _from_thread(
    backend: Any, traits: Traits, inputs: Any, context: Any, slots: StreamSlots
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Run a generator on a thread of its own and read it from the caller's loop."""
    try:
        caller = asyncio.get_running_loop()
        pull = _Pull(inputs, caller) if isinstance(inputs, AsyncIterable) else None
        source: Any = inputs if pull is None else iter(pull)
        arguments = (source, context) if traits.context else (source,)
        local = _Local(partial(backend.stream, *arguments), pull, slots)
    except BaseException:
        slots.release()
        raise
    slots.begin(local.cut)
    try:
        while True:
            item = await _on_worker(local.worker, caller, local.advance)
            if item is _END:
                return
            yield item
    finally:
        local.leave(Cancelled("the reader of the stream left"))
        local.worker.stop()


class _Local:
    """A generator of user code, begun, advanced and closed on a thread of its own.

    Args:
        begin: Makes the generator.
        pull: What it reads, where that is a stream.
        slots: Told when it has ended.
    """

    def __init__(self, begin: Callable[[], Any], pull: _Pull | None, slots: StreamSlots) -> None:
        self.worker = WorkerThread("modelserve-stream")
        self._begin = begin
        self._pull = pull
        self._slots = slots
        self._generator: Any = None
        self._refusal: ServeError | None = None

    def advance(self) -> Any:
        """Return the next item, or `_END`; on the thread."""
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._generator is None:
                self._generator = self._begin()
            item = next(self._generator, _END)
        except BaseException:
            self._end()
            raise
        if item is _END:
            self._end()
        return item

    def cut(self) -> None:
        """End the stream, because its model is being unloaded; from any thread."""
        self.leave(_unloaded())

    def leave(self, refusal: ServeError) -> None:
        """Let no further step begin, and close the generator after the one it is in."""
        if self._refusal is None:
            self._refusal = refusal
        if self._pull is not None:
            self._pull.cancel(refusal)
        try:
            self.worker.submit(self._end)
        except RuntimeError:  # no thread can be started, so none is in the generator
            self._end()

    def _end(self) -> None:
        generator, self._generator = self._generator, None
        try:
            close = getattr(generator, "close", None)
            if close is not None:
                close()
        except BaseException:
            _log.exception("a stream's generator failed when it was closed")
        finally:
            self._slots.end(self.cut)


async def _on_worker(
    worker: WorkerThread, loop: asyncio.AbstractEventLoop, step: Callable[[], Any]
) -> Any:
    """Do one step on the thread and return what it returns."""
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def job() -> None:
        value, failure = None, None
        try:
            value = step()
        except BaseException as error:  # the boundary around user code
            failure = _classified(error)
        with suppress(RuntimeError):  # the reader's loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(settle, value, failure)

    worker.submit(job)
    return await future


def _classified(error: BaseException) -> ServeError:
    if isinstance(error, ServeError):
        return error
    failure = BackendError(f"the stream failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class _Pull:
    """Reads an asynchronous iterator of the caller's loop from a generator's thread."""

    def __init__(
        self, requests: AsyncIterable[Mapping[str, Tensor]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._iterator = aiter(requests)
        self._loop = loop
        self._lock = threading.Lock()
        self._refusal: ServeError | None = None
        self._pending: Future[Any] | None = None

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        while True:
            with self._lock:
                if self._refusal is not None:
                    raise self._refusal
                self._pending = asyncio.run_coroutine_threadsafe(self._step(), self._loop)
            try:
                item = self._pending.result()
            except CancelledError:
                raise self._refusal or Cancelled("the requests were cancelled") from None
            if item is _END:
                return
            yield item

    async def _step(self) -> Any:
        return await anext(self._iterator, _END)

    def cancel(self, refusal: ServeError) -> None:
        """Let the generator wait no longer: nobody will read its answers."""
        with self._lock:
            if self._refusal is None:
                self._refusal = refusal
            if self._pending is not None:
                self._pending.cancel()


async def _across(
    requests: AsyncIterable[Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Any]:
    """Read an asynchronous iterator of another loop."""
    iterator = aiter(requests)

    async def step() -> Any:
        return await anext(iterator, _END)

    while True:
        item = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step(), loop))
        if item is _END:
            return
        yield item


class _Remote:
    """An asynchronous generator of user code, advanced and closed on the loop it runs on.

    Args:
        generator: The generator.
        loop_thread: Where it runs.
        slots: Told when it has ended.
    """

    def __init__(self, generator: Any, loop_thread: LoopThread, slots: StreamSlots) -> None:
        self._generator = generator
        self._thread = loop_thread
        self._there = loop_thread.loop()
        self._slots = slots
        # A cancelled step may still be cleaning up when the generator is closed.
        self._turn = asyncio.Lock()
        self._step: asyncio.Task[Any] | None = None
        self._cut = False
        self._leaving = threading.Lock()
        self._closing: Future[None] | None = None

    async def advance(self) -> Any:
        """Return the next item, or `_END`; from the reader's loop."""
        if self._cut or not self._thread.serves(self._there):
            raise _unloaded()
        step = self._advance()
        try:
            future = asyncio.run_coroutine_threadsafe(step, self._there)
        except RuntimeError:  # the loop was closed just now
            step.close()
            raise _unloaded() from None
        try:
            item, failure = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._thread.serves(self._there):
                raise
            raise _unloaded() from None
        if failure is not None:
            raise failure
        return item

    async def _advance(self) -> tuple[Any, ServeError | None]:
        """Return the next item, or the error there was instead."""
        async with self._turn:
            task = self._step = asyncio.current_task()
            try:
                if self._cut:
                    return None, _unloaded()
                return await anext(self._generator, _END), None
            except BaseException as error:  # the boundary around user code
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    if self._cut:
                        return None, _unloaded()
                    raise  # the reader left
                return None, _classified(error)
            finally:
                self._step = None

    def cut(self) -> None:
        """End the stream, because its model is being unloaded; from any thread."""
        self._cut = True
        self._close_soon()

    async def leave(self) -> None:
        """Close the generator and wait for that; who waits no longer does not keep it from it."""
        closing = self._close_soon()
        if closing is not None:
            await asyncio.shield(asyncio.wrap_future(closing))

    def _close_soon(self) -> Future[None] | None:
        with self._leaving:
            if self._closing is None and self._thread.serves(self._there):
                closing = self._close()
                try:
                    self._closing = asyncio.run_coroutine_threadsafe(closing, self._there)
                except RuntimeError:
                    closing.close()
            if self._closing is not None:
                return self._closing
        self._slots.end(self.cut)  # the end of the loop closed it
        return None

    async def _close(self) -> None:
        try:
            if self._cut and self._step is not None and not self._step.cancelling():
                self._step.cancel()
            async with self._turn:
                await self._generator.aclose()
        except BaseException:
            _log.exception("a stream's generator failed when it was closed")
        finally:
            self._slots.end(self.cut)


async def _from_loop(
    backend: Any,
    traits: Traits,
    inputs: Any,
    context: Any,
    loop_thread: LoopThread,
    slots: StreamSlots,
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Run an asynchronous generator on its own loop and read it from the caller's."""
    try:
        here = asyncio.get_running_loop()
        source = _across(inputs, here) if isinstance(inputs, AsyncIterable) else inputs
        arguments = (source, context) if traits.context else (source,)
        remote = _Remote(backend.stream(*arguments), loop_thread, slots)
    except BaseException:
        slots.release()
        raise
    slots.begin(remote.cut)
    try:
        while True:
            item = await remote.advance()
            if item is _END:
                return
            yield item
    finally:
        await remote.leave()
