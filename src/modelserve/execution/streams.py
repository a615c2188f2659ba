"""Streams of responses from generator backends, with back-pressure.

The caller pulls: a generator is advanced only when its next item is asked for, so a slow reader
holds it, and a reader that leaves stops it. Streams are not batched.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from typing import Any

from modelserve.errors import ModelNotReady
from modelserve.execution.lanes import LoopThread, WorkerThread
from modelserve.protocols import Traits
from modelserve.tensors import Tensor

__all__ = ["StreamSlots", "open_stream"]

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
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
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
            future = loop.create_future()
            self._waiting.append((loop, future))
        try:
            await future
        except BaseException:
            with self._lock:
                granted = (loop, future) not in self._waiting
                if not granted:
                    self._waiting.remove((loop, future))
            if granted and future.done() and not future.cancelled() and not future.exception():
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back; the next in line gets it."""
        with self._lock:
            self._active -= 1
            self._free += 1
            while self._free and self._waiting:
                loop, future = self._waiting.popleft()
                if self._wake(loop, future, None):
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
                self._wake(*self._waiting.popleft(), refusal)
            if not self._active:
                return True
        return self._drained.wait(drain)

    @staticmethod
    def _wake(
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[None],
        error: Exception | None,
    ) -> bool:
        def settle() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return False  # its loop is gone, and with it whoever waited
        return True


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
    """
    if traits.asynchronous:
        assert loop_thread is not None
        async for item in _from_loop(backend, traits, inputs, context, loop_thread):
            yield item
        return
    worker = WorkerThread("modelserve-stream")
    caller = asyncio.get_running_loop()
    source: Any = _pull(inputs, caller) if isinstance(inputs, AsyncIterable) else inputs
    arguments = (source, context) if traits.context else (source,)
    generator = backend.stream(*arguments)
    try:
        while True:
            item = await _on_worker(worker, caller, generator)
            if item is _END:
                return
            yield item
    finally:
        worker.submit(generator.close)
        worker.stop()


async def _on_worker(
    worker: WorkerThread, loop: asyncio.AbstractEventLoop, generator: Iterator[Any]
) -> Any:
    """Advance a generator by one on its thread."""
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def advance() -> None:
        value, failure = None, None
        try:
            value = next(generator, _END)
        except Exception as error:  # the boundary around user code
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, failure)

    worker.submit(advance)
    return await future


def _pull(
    requests: AsyncIterable[Mapping[str, Tensor]], loop: asyncio.AbstractEventLoop
) -> Iterator[Mapping[str, Tensor]]:
    """Read an asynchronous iterator of the caller's loop from a generator's thread."""
    iterator = aiter(requests)

    async def step() -> Any:
        return await anext(iterator, _END)

    while True:
        item = asyncio.run_coroutine_threadsafe(step(), loop).result()
        if item is _END:
            return
        yield item


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


async def _from_loop(
    backend: Any, traits: Traits, inputs: Any, context: Any, loop_thread: LoopThread
) -> AsyncIterator[Any]:
    """Run an asynchronous generator on its own loop and read it from the caller's."""
    here = asyncio.get_running_loop()
    there = loop_thread.loop()
    source = _across(inputs, here) if isinstance(inputs, AsyncIterable) else inputs
    arguments = (source, context) if traits.context else (source,)
    generator = backend.stream(*arguments)

    turn = asyncio.Lock()  # a cancelled step may still be cleaning up when the generator is closed

    async def step() -> Any:
        async with turn:
            return await anext(generator, _END)

    async def close() -> None:
        async with turn:
            await generator.aclose()

    try:
        while True:
            item = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step(), there))
            if item is _END:
                return
            yield item
    finally:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(close(), there))
