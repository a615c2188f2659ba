"""Requests, responses, and the record of one exchange: plain slotted objects, free of transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic, perf_counter
from typing import Any, TypeAlias

from modelserve.tensors import Tensor

__all__ = [
    "BatchRecord",
    "BatchStatistics",
    "Context",
    "Exchange",
    "InferRequest",
    "InferResponse",
    "ModelStatistics",
    "Parameters",
    "Principal",
    "RequestInfo",
    "Spent",
]

Parameters: TypeAlias = Mapping[str, Any]
"""Parameters of a request or tensor: `bool`, `int`, `float` or `str` by name."""

_EMPTY: Parameters = {}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and what it may do.

    Args:
        name: Name for logs and audit.
        scopes: Any of ``"infer"``, ``"read"`` and ``"admin"``.
    """

    name: str
    scopes: frozenset[str] = field(default_factory=frozenset)


class InferRequest:
    """One request for inference.

    Args:
        model: Name of the model.
        inputs: Tensors by name.
        version: Version number or label (``"3"``, ``"canary"``); empty lets the server choose.
        id: The caller's own name for the request; echoed in the response.
        outputs: Names of the outputs wanted; None for all.
        parameters: The request's parameters.
        input_parameters: Parameters per input.
        output_parameters: Parameters per requested output.
        priority: 0 is the default; from 1 on, a lower number goes first.
        timeout: Seconds from now until the answer is no longer wanted.
        deadline: The same as a point of `time.monotonic()`; the earlier of both counts.
        sequence_id: Names the sequence a stateful model's request belongs to.
        sticky_key: Requests of equal keys are routed alike.
        idempotency_key: Names the operation across retries.
        principal: Who asks, where a transport authenticated it.
        headers: Transport headers the model asked for.
        trace: W3C `traceparent` of the caller.

    Raises:
        ValueError: `timeout` or `deadline` is not a number.

    Example:
        >>> import numpy as np
        >>> InferRequest("iris", {"x": np.zeros((1, 4), np.float32)}).model
        'iris'
    """

    __slots__ = (
        "deadline",
        "exchange",
        "headers",
        "id",
        "idempotency_key",
        "input_parameters",
        "inputs",
        "model",
        "output_parameters",
        "outputs",
        "parameters",
        "principal",
        "priority",
        "sequence_id",
        "sticky_key",
        "trace",
        "version",
    )

    def __init__(
        self,
        model: str,
        inputs: Mapping[str, Tensor],
        *,
        version: str | int = "",
        id: str = "",
        outputs: Sequence[str] | None = None,
        parameters: Parameters = _EMPTY,
        input_parameters: Mapping[str, Parameters] = _EMPTY,
        output_parameters: Mapping[str, Parameters] = _EMPTY,
        priority: int = 0,
        timeout: float | None = None,
        deadline: float | None = None,
        sequence_id: int | str = 0,
        sticky_key: str = "",
        idempotency_key: str = "",
        principal: Principal | None = None,
        headers: Mapping[str, str] = _EMPTY,
        trace: str = "",
    ) -> None:
        self.model = model
        self.version: str = version if version.__class__ is str else str(version)
        self.id = id
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.input_parameters = input_parameters
        self.output_parameters = output_parameters
        self.priority = priority
        if timeout is not None:
            end = monotonic() + timeout
            # `not >=`, so that a timeout of NaN is not passed over.
            deadline = end if deadline is None or not end >= deadline else deadline
        if deadline is not None:
            if deadline != deadline:
                raise ValueError("timeout and deadline: expected seconds, got nan")
            if deadline == inf:  # as good as none, and no wire could carry it
                deadline = None
        self.deadline = deadline
        self.sequence_id = sequence_id
        self.sticky_key = sticky_key
        self.idempotency_key = idempotency_key
        self.principal = principal
        self.headers = headers
        self.trace = trace
        self.exchange: Exchange | None = None
        """The record of this request; whoever received it opens it and closes it."""

    def __repr__(self) -> str:
        version = f" version {self.version}" if self.version else ""
        return f"<InferRequest {self.model}{version} inputs {list(self.inputs)}>"


class InferResponse:
    """The answer to one request.

    Args:
        model: Name of the model that answered.
        version: Version that answered.
        outputs: Tensors by name. A BYTES tensor is an object array of `bytes`.
        id: The request's id.
        parameters: The response's parameters.
        output_parameters: Parameters per output.
    """

    __slots__ = ("id", "model", "output_parameters", "outputs", "parameters", "version")

    def __init__(
        self,
        model: str,
        version: str,
        outputs: Mapping[str, Tensor],
        *,
        id: str = "",
        parameters: Parameters = _EMPTY,
        output_parameters: Mapping[str, Parameters] = _EMPTY,
    ) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        self.id = id
        self.parameters = parameters
        self.output_parameters = output_parameters

    def __repr__(self) -> str:
        return f"<InferResponse {self.model} version {self.version} outputs {list(self.outputs)}>"


class BatchRecord:
    """What the requests of one batch have in common; written once, and never changed after.

    Args:
        rows: Rows of the batch; 0 where the request left the queue without having run.
        requests: Requests in the batch.
        reason: Why it was sent when it was (see `modelserve.execution.batcher`).
        started: When the run began, or the wait ended; a point of `time.perf_counter()`.
        run: Seconds the run took.
        join: Seconds of `run` that joining the requests took; 0 where it was one.
        split: Seconds after `run` that handing out the rows took; 0 where it was one.
    """

    __slots__ = ("join", "reason", "requests", "rows", "run", "split", "started")

    def __init__(
        self,
        rows: int,
        requests: int,
        reason: str,
        started: float,
        run: float,
        join: float = 0.0,
        split: float = 0.0,
    ) -> None:
        self.rows = rows
        self.requests = requests
        self.reason = reason
        self.started = started
        self.run = run
        self.join = join
        self.split = split

    def __repr__(self) -> str:
        return f"<BatchRecord {self.requests} requests {self.rows} rows {self.reason}>"


class Exchange:
    """The record of one request, from its receipt until its answer was written.

    Whoever receives the request opens it (a transport, or the in-process `infer`) and closes it
    after the answer is out. Times are seconds; `started` is a point of `time.perf_counter()`.
    What the requests of a batch have in common is one object in all of them, `batch`; it is read
    under names of its own here too (`batch_rows`, `batch_requests`, `reason`, `queue`, `run`).

    Example:
        >>> exchange = Exchange("inprocess", "iris")
        >>> exchange.enqueued, exchange.batch = 2.0, BatchRecord(8, 3, "idle", 2.5, 0.25)
        >>> exchange.batch_rows, exchange.queue, exchange.run
        (8, 0.5, 0.25)
    """

    __slots__ = (
        "batch",
        "bytes_in",
        "bytes_out",
        "code",
        "decode",
        "encode",
        "enqueued",
        "id",
        "model",
        "principal",
        "protocol",
        "rows",
        "started",
        "total",
        "version",
    )

    def __init__(self, protocol: str, model: str = "", *, id: str = "") -> None:
        self.protocol = protocol
        """``"inprocess"``, ``"http"``, ``"grpc"``, ..."""
        self.model = model
        self.version = ""
        self.id = id
        self.code = "OK"
        """Canonical gRPC status name, whatever the protocol."""
        self.principal = ""
        self.bytes_in = 0
        self.bytes_out = 0
        self.rows = 0
        """Rows of this request; 0 until it left a batcher's queue."""
        self.decode = 0.0
        self.encode = 0.0
        self.total = 0.0
        self.enqueued = 0.0
        """When it came to a batcher; a point of `time.perf_counter()`."""
        self.batch: BatchRecord | None = None
        """The batch it ran in; None until then."""
        self.started = perf_counter()

    def explain(self) -> dict[str, float | int | str]:
        """Return where the time went, and whose company the request had, by name.

        ``decode_us``, ``queue_us``, ``run_us`` and ``encode_us`` are microseconds; ``batch_rows``
        and ``batch_requests`` say how large its batch was, and ``reason`` why it was sent then.
        """
        return {
            "decode_us": round(self.decode * 1e6, 1),
            "queue_us": round(self.queue * 1e6, 1),
            "run_us": round(self.run * 1e6, 1),
            "encode_us": round(self.encode * 1e6, 1),
            "batch_rows": self.batch_rows,
            "batch_requests": self.batch_requests,
            "reason": self.reason,
        }

    @property
    def batch_rows(self) -> int:
        """Rows of the batch it ran in; 0 where it never ran."""
        batch = self.batch
        return 0 if batch is None else batch.rows

    @batch_rows.setter
    def batch_rows(self, rows: int) -> None:
        self._own().rows = rows

    @property
    def batch_requests(self) -> int:
        """Requests of the batch it ran in; 0 where it never ran."""
        batch = self.batch
        return 0 if batch is None else batch.requests

    @batch_requests.setter
    def batch_requests(self, requests: int) -> None:
        self._own().requests = requests

    @property
    def reason(self) -> str:
        """Why the batch was sent when it was (see `modelserve.execution.batcher`)."""
        batch = self.batch
        return "" if batch is None else batch.reason

    @reason.setter
    def reason(self, reason: str) -> None:
        self._own().reason = reason

    @property
    def queue(self) -> float:
        """Seconds it waited for its batch, or until it left the queue without one."""
        batch = self.batch
        return 0.0 if batch is None else batch.started - self.enqueued

    @queue.setter
    def queue(self, seconds: float) -> None:
        self._own().started = self.enqueued + seconds

    @property
    def run(self) -> float:
        """Seconds its batch ran; 0 where it never ran."""
        batch = self.batch
        return 0.0 if batch is None else batch.run

    @run.setter
    def run(self, seconds: float) -> None:
        self._own().run = seconds

    def _own(self) -> BatchRecord:
        """Return a record of this exchange alone to write to: the other members keep theirs."""
        b = self.batch
        if b is None:
            self.batch = BatchRecord(0, 0, "", self.enqueued, 0.0)
        else:
            self.batch = BatchRecord(
                b.rows, b.requests, b.reason, b.started, b.run, b.join, b.split
            )
        return self.batch


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """One caller's part of a batch.

    Args:
        id: The request's id.
        start: First row in the batch.
        stop: Row after the last.
        principal: Who asked, where a transport authenticated it.
        headers: Transport headers the model asked for.
        deadline: Point of `time.monotonic()` after which the answer is not wanted, or None.
        trace: W3C `traceparent` of the caller.
    """

    id: str
    start: int
    stop: int
    principal: Principal | None = None
    headers: Parameters = field(default_factory=dict)
    deadline: float | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What a predict function may know beside its inputs; given to a parameter so annotated.

    Args:
        model: Name of the model.
        version: Version running.
        parameters: The request's parameters. Requests share a batch only where these are equal.
        requests: The callers whose rows make up the batch, in order.
    """

    model: str = ""
    version: str = ""
    parameters: Parameters = field(default_factory=dict)
    requests: tuple[RequestInfo, ...] = ()

    @property
    def deadline(self) -> float | None:
        """The latest deadline among the requests; None when one of them has none."""
        ends = [request.deadline for request in self.requests]
        return None if not ends or None in ends else max(end for end in ends if end is not None)


@dataclass(frozen=True, slots=True)
class Spent:
    """How often something happened, and how long that took in all.

    Args:
        count: How often.
        ns: Nanoseconds.
    """

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The batches of one size that a version ran.

    Args:
        batch_size: Rows.
        compute_input: Joining the requests.
        compute_infer: Running.
        compute_output: Handing out the rows.
    """

    batch_size: int
    compute_input: Spent = Spent()
    compute_infer: Spent = Spent()
    compute_output: Spent = Spent()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a version has done since it was loaded, as Triton counts it.

    All but `fail` is of requests that succeeded. Their times do not add up to that of `success`:
    what reading, writing and the event loop took is in that alone.

    Args:
        model: Name of the model.
        version: Version number as text.
        last_inference: When the last run ended, in milliseconds since the epoch; 0 for never.
        inference_count: Rows.
        execution_count: Batches run; of what runs outside of batches, requests.
        success: Requests, from receipt until the answer was written.
        fail: Requests that failed.
        queue: Waiting for a batch.
        compute_input: Decoding, and joining requests to a batch.
        compute_infer: Running; each request counts the time of its whole batch.
        compute_output: Handing out rows, and encoding.
        cache_hit: Requests answered from a cache.
        cache_miss: Requests that were not found in one.
        batches: Batches by size, ascending.

    Example:
        >>> ModelStatistics("iris", "1", success=Spent(3, 6_000)).success.ns
        6000
    """

    model: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Spent = Spent()
    fail: Spent = Spent()
    queue: Spent = Spent()
    compute_input: Spent = Spent()
    compute_infer: Spent = Spent()
    compute_output: Spent = Spent()
    cache_hit: Spent = Spent()
    cache_miss: Spent = Spent()
    batches: tuple[BatchStatistics, ...] = ()
