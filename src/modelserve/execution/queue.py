"""The bounded queue of one model version: who waits, in which order, and who may share a batch.

Not thread-safe: the batcher calls it under its lock. It starts nothing and wakes nobody.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Hashable, Mapping, Sequence
from math import inf, prod
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from modelserve.errors import QueueFull
from modelserve.messages import BatchRecord, InferRequest
from modelserve.tensors import Signature, Tensor, numpy_dtype

if TYPE_CHECKING:
    from modelserve.execution.nested import Run
    from modelserve.execution.ports import LoopPort

__all__ = ["DEFAULT_PRIORITY", "BatchKey", "Pending", "PendingQueue", "size_of"]

DEFAULT_PRIORITY: Final = 100
"""Where priority 0 stands among the numbers from 1 on; lower goes first."""

_ORDER = attrgetter("order")
# Priority in the high part, arrival in the low one: one integer comparison orders two entries.
_ARRIVALS: Final = 1 << 48
_NORMAL: Final = DEFAULT_PRIORITY * _ARRIVALS


class Pending:
    """One request on its way through a batcher; who waits for it, and how, is in `waiting`.

    Args:
        request: The request.
        inputs: Its inputs as `Signature.validate` returned them.
        rows: Their rows.
        key: What must be equal for another request to share its batch.
        enqueued: When it came; a point of `time.perf_counter()`.
        chain: Runs whose user code this request was made from, the outermost first.
    """

    __slots__ = (
        "chain",
        "cost",
        "deadline",
        "enqueued",
        "error",
        "future",
        "inputs",
        "key",
        "order",
        "outputs",
        "port",
        "queued",
        "request",
        "rows",
        "run",
        "size",
    )

    def __init__(
        self,
        request: InferRequest,
        inputs: Mapping[str, Tensor],
        rows: int,
        key: Hashable,
        enqueued: float,
        chain: tuple[Run, ...] = (),
    ) -> None:
        self.request = request
        self.inputs = inputs
        self.rows = rows
        self.key = key
        self.enqueued = enqueued
        self.chain = chain
        self.deadline = request.deadline
        self.order = 0
        self.size = -1
        """Bytes by which the queue is bounded; -1 until they were counted."""
        self.cost = 0
        """Units by which a batch is bounded, where those are not its rows."""
        self.queued = False
        self.run: Run | None = None
        """The run of user code it became part of."""
        self.outputs: Mapping[str, Tensor] | None = None
        self.error: BaseException | None = None
        self.port: LoopPort | None = None
        """Where it has to be told, if that is an event loop."""
        self.future: asyncio.Future[Mapping[str, Tensor]] | None = None
        """What a coroutine waits at; done, when the coroutine was cancelled."""

    def note_wait(self) -> None:
        """Record the wait of a request that never ran: those are the longest ones."""
        exchange = self.request.exchange
        if exchange is not None:
            exchange.rows = self.rows
            exchange.enqueued = self.enqueued
            exchange.batch = BatchRecord(0, 0, "", perf_counter(), 0.0)

    def settle(self) -> None:
        """Tell whoever waits what became of it. For event loops: on the loop's own thread only."""

    def result(self) -> Mapping[str, Tensor]:
        """Return the outputs, or raise the error there is instead."""
        if self.error is not None:
            raise self.error
        assert self.outputs is not None
        return self.outputs


class BatchKey:
    """Tells what must be equal for two requests to share a batch.

    Args:
        signature: What the model takes.
        batched: Whether axis 0 is a batch; otherwise nobody shares.
        parameters: Whether the model reads the request's parameters.
    """

    __slots__ = ("_parameters", "row_bytes", "shapes")

    def __init__(self, signature: Signature, *, batched: bool, parameters: bool) -> None:
        self._parameters = parameters
        self.shapes = batched and any(
            spec.optional or spec.shape is None or -1 in spec.shape[1:] for spec in signature.inputs
        )
        """Whether the shapes of a batch's rows differ from those of another's."""
        self.row_bytes = -1 if self.shapes or not batched else _row_bytes(signature)
        """Bytes of a row where all rows have as many, else -1."""

    def __call__(self, request: InferRequest, inputs: Mapping[str, Tensor]) -> Hashable:
        """Return the key of a request; None where all may run together."""
        for tensor in inputs.values():
            if not isinstance(tensor, np.ndarray):
                return object()  # arrays on a device run as they come
        shapes: Hashable = None
        if self.shapes:
            shapes = frozenset((name, tensor.shape[1:]) for name, tensor in inputs.items())
        if request.outputs is None and not (self._parameters and request.parameters):
            return shapes
        outputs = None if request.outputs is None else tuple(request.outputs)
        if not self._parameters:
            return (shapes, outputs)
        try:
            # 1, 1.0 and True are equal to Python, and not to a model.
            return (
                shapes,
                outputs,
                frozenset((k, type(v), v) for k, v in request.parameters.items()),
            )
        except TypeError:  # a value that cannot be hashed is compared with nothing
            return object()


class PendingQueue:
    """Waiting requests by batch key, each key's in order of priority and arrival.

    Args:
        max_requests: Most requests that may wait.
        max_bytes: Most bytes of input that may wait.
        model: Name of the model, for messages.
        costed: Whether a batch is bounded by its entries' `cost`, too, and not by rows alone.
    """

    __slots__ = (
        "_arrivals",
        "_groups",
        "_model",
        "bytes",
        "costed",
        "count",
        "fresh",
        "max_bytes",
        "max_requests",
        "waiting",
    )

    def __init__(
        self, max_requests: int, max_bytes: int, model: str = "", costed: bool = False
    ) -> None:
        self._model = model
        self.costed = costed
        self.fresh: list[Pending] = []
        """The last to come, in order: one row each, of key None and the default priority. Whoever
        appends to it holds no lock, and keeps to the bounds; the list itself is never replaced."""
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.bytes = 0
        self.count = 0
        """Entries that wait, but for the fresh ones."""
        self.waiting = 0
        """Their rows or, if costed, what they cost."""
        self._arrivals = 0
        self._groups: dict[Hashable, list[Pending]] = {}

    def __len__(self) -> int:
        return self.count + len(self.fresh)

    def push(self, pending: Pending) -> None:
        """Add an entry.

        Raises:
            QueueFull: A bound is reached.
        """
        if self.fresh:
            self.sort_in()
        size = pending.size
        if size < 0:
            size = pending.size = size_of(pending.request, pending.inputs)
        if self.count >= self.max_requests or (self.bytes + size > self.max_bytes and self.count):
            raise self._full(size)
        self._push(pending, size)

    def sort_in(self) -> None:
        """Put the fresh entries where they belong: behind all that came before."""
        fresh = self.fresh
        count = len(fresh)  # more may be appended meanwhile
        entries = fresh[:count]
        del fresh[:count]
        for pending in entries:
            pending.size = size_of(pending.request, pending.inputs)
            self._push(pending, pending.size)

    def _push(self, pending: Pending, size: int) -> None:
        priority = pending.request.priority
        self._arrivals += 1
        pending.order = self._arrivals + (priority * _ARRIVALS if priority else _NORMAL)
        pending.queued = True
        self.bytes += size
        self.count += 1
        self.waiting += pending.cost if self.costed else pending.rows
        group = self._groups.get(pending.key)
        if group is None:
            self._groups[pending.key] = [pending]
        elif group[-1].order < pending.order:
            group.append(pending)
        else:
            insort(group, pending, key=_ORDER)

    def _full(self, size: int) -> QueueFull:
        if self.count >= self.max_requests:
            return QueueFull(
                f'model "{self._model}": {self.count} requests wait already (max_queue_size '
                f"{self.max_requests})",
                retry_after=1.0,
            )
        return QueueFull(
            f'model "{self._model}": {self.bytes} bytes of input wait already, {size} more would '
            f"pass max_queue_bytes {self.max_bytes}",
            retry_after=1.0,
        )

    def remove(self, pending: Pending) -> bool:
        """Take an entry out, if it still waits."""
        if not pending.queued:
            return False
        if self.fresh:
            self.sort_in()
        group = self._groups[pending.key]
        del group[bisect_left(group, pending.order, key=_ORDER)]
        if not group:
            del self._groups[pending.key]
        self._leave(pending)
        return True

    def head(self) -> tuple[Hashable, int, float]:
        """Return of those whose turn is next: their key, their rows or cost, and when they came."""
        if self.fresh:
            self.sort_in()
        if len(self._groups) == 1:
            key, group = next(iter(self._groups.items()))
            waiting = self.waiting
        else:
            key, group = min(self._groups.items(), key=_head_order)
            waiting = self._sum(group)
        if group[-1].order - group[0].order < _ARRIVALS:
            return key, waiting, group[0].enqueued
        return key, waiting, min(entry.enqueued for entry in group)

    def ahead(self, priority: int, batch: int) -> int:
        """Return the rows or cost of what would go before a request that came now.

        Args:
            priority: Its priority.
            batch: The usual size of a batch. Where several keys wait, none of their batches counts
                for less.
        """
        if self.fresh:
            self.sort_in()
        first = (priority or DEFAULT_PRIORITY) * _ARRIVALS + self._arrivals + 1
        waiting = self.waiting
        keys = len(self._groups)
        for group in self._groups.values():
            if group[-1].order > first:
                after = group[bisect_left(group, first, key=_ORDER) :]
                waiting -= self._sum(after)
                keys -= len(after) == len(group)
        return waiting if keys < 2 else max(waiting, (keys - 1) * batch)

    def _sum(self, entries: Sequence[Pending]) -> int:
        if self.costed:
            return sum(entry.cost for entry in entries)
        return sum(entry.rows for entry in entries)

    def holds(self, key: Hashable) -> bool:
        """Tell whether something waits that could share a batch with this key."""
        return key in self._groups

    def take(
        self, max_rows: int, now: float, max_cost: int = 0
    ) -> tuple[list[Pending], int, list[Pending]]:
        """Take the next batch: the first in order and all that may run with it.

        Args:
            max_rows: Most rows of the batch; a single entry may have as many.
            now: Time by the deadlines' clock.
            max_cost: Most cost of the batch, if costed; the first entry may have more.

        Returns:
            Entries of the batch, its rows, and entries that nobody waits for any
            more, their deadlines being past or their callers gone. The batch is
            empty where nothing (alive) waits.
        """
        if self.fresh:
            self.sort_in()
        expired: list[Pending] = []
        batch: list[Pending] = []
        rows = known = 0
        while self._groups and not batch:
            if len(self._groups) == 1:
                key, group = next(iter(self._groups.items()))
            else:
                key, group = min(self._groups.items(), key=_head_order)
            if self.costed:
                batch, rows, size = _fill_by_cost(group, max_rows, max_cost, now, expired)
            else:
                batch, rows, size = _fill(group, max_rows, now, expired)
            used = len(batch) + len(expired) - known
            if used == len(group):
                del self._groups[key]
            else:
                del group[:used]
            self.waiting -= self._sum(batch) if self.costed else rows
            if len(expired) > known:
                self.waiting -= self._sum(expired[known:])
            known = len(expired)
            self.count -= used
            self.bytes -= size
        return batch, rows, expired

    def take_fresh(self, max_rows: int) -> tuple[list[Pending], int, list[Pending]] | None:
        """Do as `take` where nobody waits but fresh entries; None where others do.

        Saves what it takes to sort in and out again: 0.6 us an entry.
        """
        if self._groups:
            return None
        batch = self.fresh[:max_rows]
        del self.fresh[: len(batch)]
        expired: list[Pending] = []
        port: LoopPort | None = None
        for pending in batch:
            pending.queued = False
            future = pending.future
            if future is not None and future.done():  # cancelled in this very turn
                expired.append(pending)
            elif pending.port is not port:
                port = pending.port
                if port is not None and port.loop.is_closed():
                    expired.append(pending)
                    port = None
        if expired:
            batch = [pending for pending in batch if pending not in expired]
        return batch, len(batch), expired

    def only_from(self, port: LoopPort) -> bool:
        """Tell whether nobody waits but requests of this event loop."""
        groups = (self.fresh, *self._groups.values())
        return all(entry.port is port for group in groups for entry in group)

    def first_deadline(self) -> float:
        """Return the earliest deadline of all that wait; infinity where nobody has one.

        A fresh entry has none.
        """
        return min(
            (
                pending.deadline
                for group in self._groups.values()
                for pending in group
                if pending.deadline is not None
            ),
            default=inf,
        )

    def drain(self) -> list[Pending]:
        """Take everything out, in order."""
        if self.fresh:
            self.sort_in()
        everything = sorted(
            (pending for group in self._groups.values() for pending in group), key=_ORDER
        )
        self._groups.clear()
        for pending in everything:
            self._leave(pending)
        return everything

    def _leave(self, pending: Pending) -> None:
        pending.queued = False
        self.count -= 1
        self.bytes -= pending.size
        self.waiting -= pending.cost if self.costed else pending.rows


def size_of(request: InferRequest, inputs: Mapping[str, Tensor]) -> int:
    """Return the bytes that a waiting request holds."""
    size = len(request.id)
    if request.parameters:
        size += sum(len(v) for v in request.parameters.values() if isinstance(v, str))
    for tensor in inputs.values():
        size += tensor.nbytes
        if tensor.dtype.kind == "O":  # BYTES: the array itself holds pointers
            size += sum(map(len, tensor.ravel().tolist()))
    return size


def _row_bytes(signature: Signature) -> int:
    size = 0
    for spec in signature.inputs:
        if spec.datatype == "BYTES" or not spec.shape:
            return -1
        size += prod(spec.shape[1:]) * numpy_dtype(spec.datatype).itemsize
    return size


def _head_order(item: tuple[Any, list[Pending]]) -> int:
    return item[1][0].order


def _fill(
    group: list[Pending], max_rows: int, now: float, expired: list[Pending]
) -> tuple[list[Pending], int, int]:
    """Take entries off a group's head; returns the batch, its rows, and the bytes of all taken.

    One loop without calls, since every request goes through it: all are taken out here, too.
    """
    batch: list[Pending] = []
    rows = size = 0
    port: LoopPort | None = None
    dead = False
    for pending in group:
        if pending.port is not port:
            port = pending.port
            dead = port is not None and port.loop.is_closed()
        deadline = pending.deadline
        future = pending.future
        if (
            (deadline is not None and deadline <= now)
            or dead
            or (future is not None and future.done())  # cancelled in this very turn
        ):
            expired.append(pending)
        elif batch and rows + pending.rows > max_rows:
            break
        else:
            batch.append(pending)
            rows += pending.rows
        pending.queued = False
        size += pending.size
    return batch, rows, size


def _fill_by_cost(
    group: list[Pending], max_rows: int, max_cost: int, now: float, expired: list[Pending]
) -> tuple[list[Pending], int, int]:
    """Do as `_fill` with a bound on cost, too: over the part of the group that is within it."""
    cost = 0
    fitting = 0
    for pending in group:
        cost += pending.cost
        if fitting and cost > max_cost:
            break
        fitting += 1
    return _fill(group[:fitting], max_rows, now, expired)
