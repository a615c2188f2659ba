"""Batchers as other servers have them, for comparison: none, a fixed window, AIMD under an SLO.

As bare as they can be: no validation, deadlines, metrics or bounds. Requests of one row each,
from one event loop. The model runs on the loop where it is short and else on one worker thread,
which wakes the loop once for each batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from queue import SimpleQueue
from time import perf_counter

import numpy as np

from modelserve.protocols import Backend

Arrays = Mapping[str, np.ndarray]


class RivalBatcher:
    """First come, first served, one run at a time.

    Args:
        backend: Runs a batch.
        inline: Run on the event loop.
        most: Rows of a batch, at most; 1 is no batching.
        delay: Seconds the first request of a batch waits for others; 0 takes what is there.
        slo: Seconds a run may take. The size of batches grows by one with each full batch that
            keeps to it, and shrinks by a tenth with each run that does not, as in Clipper.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        inline: bool,
        most: int = 64,
        delay: float = 0.0,
        slo: float | None = None,
    ) -> None:
        self._backend = backend
        self._inline = inline
        self._most = most
        self._delay = delay
        self._slo = slo
        self._size = float(most if slo is None else 1)
        self._waiting: deque[tuple[Arrays, asyncio.Future[Arrays], float]] = deque()
        self._busy = self._considering = False
        self._work: SimpleQueue[Arrays | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batch: list[asyncio.Future[Arrays]] = []
        self._thread = threading.Thread(target=self._serve)
        if not inline:
            self._thread.start()

    async def submit(self, inputs: Arrays) -> Arrays:
        """Run a request of one row and return its outputs."""
        loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Arrays] = loop.create_future()
        self._waiting.append((inputs, future, perf_counter()))
        self._consider_soon()
        return await future

    def close(self) -> None:
        """End the thread."""
        if not self._inline:
            self._work.put(None)
            self._thread.join()

    def _consider_soon(self) -> None:
        # One turn later, so that what one turn brings shares a batch.
        if not self._considering and not self._busy and self._waiting:
            self._considering = True
            assert self._loop is not None
            self._loop.call_soon(self._consider)

    def _consider(self) -> None:
        self._considering = False
        if self._busy or not self._waiting:
            return
        left = self._waiting[0][2] + self._delay - perf_counter()
        if len(self._waiting) >= int(self._size) or left <= 0:
            self._send()
        else:
            # Loops have timers of a millisecond, as long as a window: the rest of it is spun.
            self._considering = True
            assert self._loop is not None
            if left > 0.002:
                self._loop.call_later(left - 0.002, self._consider)
            else:
                self._loop.call_soon(self._consider)

    def _send(self) -> None:
        count = min(len(self._waiting), int(self._size))
        taken = [self._waiting.popleft() for _ in range(count)]
        self._batch = [future for _, future, _ in taken]
        if count == 1:
            batch = taken[0][0]
        else:
            names = taken[0][0]
            batch = {
                name: np.concatenate([inputs[name] for inputs, _, _ in taken]) for name in names
            }
        self._busy = True
        if self._inline:
            started = perf_counter()
            self._done(self._backend.run(batch), perf_counter() - started)
        else:
            self._work.put(batch)

    def _serve(self) -> None:
        while (batch := self._work.get()) is not None:
            started = perf_counter()
            outputs = self._backend.run(batch)
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._done, outputs, perf_counter() - started)

    def _done(self, outputs: Arrays, seconds: float) -> None:
        self._busy = False
        if self._slo is not None:
            if seconds > self._slo:
                self._size = max(1.0, self._size * 0.9)
            elif len(self._batch) >= int(self._size):
                self._size = min(float(self._most), self._size + 1)
        for row, future in enumerate(self._batch):
            if not future.done():
                future.set_result({name: array[row : row + 1] for name, array in outputs.items()})
        self._consider_soon()
