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
            if self._closed and not self._active:
                self._drained.set()

    def close(self, drain: float) -> bool:
        """Admit nobody any more and wait for the streams under way; returns whether they ended."""
        with self._lock:
            self._closed = True
            refusal = ModelNotReady(f'model "{self._model}" is being unloaded')
            while self._waiting:
                self._waiting.popleft().wake(refusal)
            if not self._active:
                return True
        return self._drained.wait(drain)


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
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield what a streaming backend yields.

    Args:
        backend: Has `stream`.
        traits: Its traits.
        inputs: One request's tensors, or those of many where `traits.takes_stream`.
        context: The `Context`, passed on where `traits.context`.
        loop_thread: Where asynchronous generators run.

    Raises:
        ServeError: As raised by the generator; anything else it raises is a `BackendError`.
    """
    if traits.asynchronous:
        assert loop_thread is not None
        stream = _from_loop(backend, traits, inputs, context, loop_thread)
    else:
        stream = _from_thread(backend, traits, inputs, context)
    try:
        async for item in stream:
            yield item
    finally:
        await stream.aclose()


async def _from_thread(
    backend: Any, traits: Traits, inputs: Any, context: Any
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Run a generator on a thread of its own and read it from the caller's loop."""
    worker = WorkerThread("modelserve-stream")
    caller = asyncio.get_running_loop()
    pull = _Pull(inputs, caller) if isinstance(inputs, AsyncIterable) else None
    source: Any = inputs if pull is None else iter(pull)
    arguments = (source, context) if traits.context else (source,)
    generator: Any = None

    def advance() -> Any:
        nonlocal generator
        if generator is None:
            generator = backend.stream(*arguments)
        return next(generator, _END)

    def end() -> None:
        close = getattr(generator, "close", None)
        try:
            if close is not None:
                close()
        except BaseException:
            _log.exception("a stream's generator failed when it was closed")

    try:
        while True:
            item = await _on_worker(worker, caller, advance)
            if item is _END:
                return
            yield item
    finally:
        if pull is not None:
            pull.cancel()
        if worker.started:
            worker.submit(end)
            worker.stop()


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
        self._cancelled = False
        self._pending: Future[Any] | None = None

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        while True:
            with self._lock:
                if self._cancelled:
                    raise Cancelled("the reader of the stream left")
                self._pending = asyncio.run_coroutine_threadsafe(self._step(), self._loop)
            try:
                item = self._pending.result()
            except CancelledError:
                raise Cancelled("the reader of the stream left") from None
            if item is _END:
                return
            yield item

    async def _step(self) -> Any:
        return await anext(self._iterator, _END)

    def cancel(self) -> None:
        """Let the generator wait no longer: who would read its answers has left."""
        with self._lock:
            self._cancelled = True
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
    """An asynchronous generator of user code, advanced and closed on the loop it runs on."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        # A cancelled step may still be cleaning up when the generator is closed.
        self._turn = asyncio.Lock()

    async def step(self) -> tuple[Any, ServeError | None]:
        """Return the next item, or the error there was instead."""
        async with self._turn:
            try:
                return await anext(self._generator, _END), None
            except BaseException as error:  # the boundary around user code
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # the reader left
                return None, _classified(error)

    async def close(self) -> None:
        """Let the generator clean up."""
        async with self._turn:
            try:
                await self._generator.aclose()
            except BaseException:
                _log.exception("a stream's generator failed when it was closed")


async def _from_loop(
    backend: Any, traits: Traits, inputs: Any, context: Any, loop_thread: LoopThread
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Run an asynchronous generator on its own loop and read it from the caller's."""
    here = asyncio.get_running_loop()
    there = loop_thread.loop()
    source = _across(inputs, here) if isinstance(inputs, AsyncIterable) else inputs
    arguments = (source, context) if traits.context else (source,)
    remote = _Remote(backend.stream(*arguments))
    try:
        while True:
            future = asyncio.run_coroutine_threadsafe(remote.step(), there)
            try:
                item, failure = await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                if loop_thread.serves(there):
                    raise
                raise ModelNotReady("the model was unloaded during the stream") from None
            if failure is not None:
                raise failure
            if item is _END:
                return
            yield item
    finally:
        if loop_thread.serves(there):  # else the end of the loop closed it
            closing = asyncio.run_coroutine_threadsafe(remote.close(), there)
            await asyncio.wrap_future(closing)
