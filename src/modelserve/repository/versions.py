"""One loaded version of a model: its backends, its batcher, its life from LOADING to the end.

Which versions there are, and which one answers, is `repository.models`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from modelserve.errors import InvalidInput, LoadError, ModelNotReady, ServeError, Unsupported
from modelserve.execution.batcher import AdaptiveBatcher, BatcherClosed
from modelserve.execution.classification import Classes, classifies
from modelserve.execution.dispatch import check_batcher
from modelserve.execution.nested import chain
from modelserve.execution.pacing import BatchBounds
from modelserve.execution.proof import prove_batch_axis, synthetic_inputs
from modelserve.execution.streams import StreamSlots, open_stream
from modelserve.execution.waiting import Awaited, Done, TaskTicket
from modelserve.messages import BatchRecord, Context, InferRequest, InferResponse, RequestInfo
from modelserve.protocols import Backend, State, Ticket, Traits, VersionInfo
from modelserve.repository.class_names import names_in_files, names_in_metadata
from modelserve.tensors import Signature, Tensor, TensorSpec

__all__ = ["DeclarationError", "ModelVersion", "VersionOptions", "load_version"]

_log = logging.getLogger("modelserve.repository")

DEFAULT_BATCH_SIZE: Final = 64
"""`max_batch_size` of a model whose batch axis was proven and not declared."""
_WARM_UP_LIMIT: Final = 0.5
"""Seconds that warming up may take, beyond the first runs of the smallest batch."""
_NO_LABELS: Final[Mapping[str, Sequence[str]]] = {}


class DeclarationError(LoadError):
    """A model does not take or give what its configuration declares."""


@dataclass(frozen=True, slots=True)
class VersionOptions:
    """How a version is run.

    Args:
        max_batch_size: Most rows of a batch; 0 runs each request alone; None batches where that is
            proven to be right.
        instances: How many instances run at once.
        max_queue_size: Most requests that may wait.
        max_queue_bytes: Most bytes of input that may wait.
        max_queue_delay: Seconds a request may be held for others to join its batch.
        max_batch_cost: Most units of `cost` in a batch; 0 where only rows count.
        cost: Tells the units of a request from its inputs: tokens, pixels.
        batcher: ``"adaptive"``, or ``"simple"``: full batches of what waits, and nothing learned.
        providers: Execution providers for ONNX models; None takes the best available.
        warm_up: Whether to run the model once before it is ready.
        warm_up_inputs: Inputs to do so with; made up from the signature where there are none.
        declared: Inputs and outputs that a configuration file promises.
        label_files: Files with the names of classes, by output.
        config: What a configuration file says, in the form of Triton's JSON.
    """

    max_batch_size: int | None = None
    instances: int = 1
    max_queue_size: int = 1024
    max_queue_bytes: int = 1 << 30
    max_queue_delay: float = 0.0
    max_batch_cost: int = 0
    cost: Callable[[Mapping[str, Tensor]], float] | None = None
    batcher: Literal["adaptive", "simple"] = "adaptive"
    providers: tuple[Any, ...] | None = None
    warm_up: bool = True
    warm_up_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    declared: Signature | None = None
    label_files: Mapping[str, Path] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ValueError(f"instances must be at least 1, got {self.instances}")
        if self.max_batch_size is not None and self.max_batch_size < 0:
            raise ValueError(f"max_batch_size must be at least 0, got {self.max_batch_size}")
        if self.max_queue_delay < 0:
            raise ValueError(f"max_queue_delay must be at least 0 s, got {self.max_queue_delay}")
        BatchBounds(self.max_batch_size or 0, self.max_batch_cost, self.cost)
        check_batcher(self.batcher)


class ModelVersion:
    """One loaded version.

    Args:
        model: Name of the model.
        version: Version number as text.
        batcher: What runs its requests.
        signature: What it takes and gives.
        platform: What runs it, in words for clients.
        batching: Why requests share batches, or why not.
        options: How it is run.
        filename: Name of the model's file, where it is one.
        labels: Names of classes, by output.
    """

    def __init__(
        self,
        model: str,
        version: str,
        batcher: AdaptiveBatcher,
        *,
        signature: Signature,
        platform: str,
        batching: str,
        options: VersionOptions | None = None,
        filename: str = "",
        labels: Mapping[str, Sequence[str]] = _NO_LABELS,
    ) -> None:
        self.model = model
        self.version = version
        self.batcher = batcher
        self.signature = signature
        self.platform = platform
        self.batching = batching
        self.options = VersionOptions() if options is None else options
        self.filename = filename
        self.state: State = "LOADING"
        self.class_names: tuple[str, ...] = ()
        """Names of its classes that stand in a file beside it."""
        self._turn = 0
        self.batched = batcher.max_batch_size > 0
        self._classes = Classes(signature.outputs, batched=self.batched, labels=labels)
        self._output_names = frozenset(spec.name for spec in signature.outputs)
        traits = batcher.traits
        # Exact arrays, within this bound, for all outputs: they need no further look, and share
        # batches without one. Saves 0.5 us of validation and batch key.
        self._plain_rows = signature.rows_of
        plain = signature.regular and not traits.streams and not traits.context
        self._most_plain = batcher.max_batch_size if plain else 0
        self._streams = (
            StreamSlots(traits.concurrency * len(batcher.backends), model=model)
            if traits.streams
            else None
        )

    def info(self, labels: tuple[str, ...] = (), versions: tuple[str, ...] = ()) -> VersionInfo:
        """Describe it."""
        return VersionInfo(
            self.model,
            self.version,
            self.state,
            signature=self.signature,
            platform=self.platform,
            max_batch_size=self.batcher.max_batch_size,
            batching=self.batching,
            labels=labels,
            versions=versions or (self.version,),
            metadata=self._metadata,
            class_names=self._names,
            streams=self._streams is not None,
        )

    @cached_property
    def _metadata(self) -> Mapping[str, str]:
        try:
            found = getattr(self.batcher.backends[0], "metadata", None)
        except ServeError:  # it was closed before anybody asked
            found = None
        known = found if isinstance(found, Mapping) else {}
        return MappingProxyType({str(name): str(value) for name, value in known.items()})

    @property
    def _names(self) -> tuple[str, ...]:
        return self.class_names or self._own_class_names

    @cached_property
    def _own_class_names(self) -> tuple[str, ...]:
        return names_in_metadata(self._metadata)

    # ------------------------------------------------------------------ requests

    async def infer(self, request: InferRequest) -> Mapping[str, Tensor]:
        """Validate a request, run it, return its outputs; raises as `AdaptiveBatcher.submit`."""
        inputs, rows = self._validate(request)
        wanted = self._classes.wanted(request) if classifies(request) else None
        outputs = await self.batcher.submit(request, inputs, rows)
        if wanted is None:
            return outputs
        return self._classes.best(outputs, request, wanted, self._names)

    def enqueue(self, request: InferRequest) -> Awaited | None:
        """Do the part of `infer` that needs no coroutine; see `AdaptiveBatcher.enqueue`.

        Returns:
            What is to be awaited; None for what takes `infer`: a request of a model's own code, or
            for classes.
        """
        if chain.get():
            return None
        rows = self._plain_rows(request.inputs)
        if 0 < rows <= self._most_plain and request.outputs is None:
            return self.batcher.enqueue(request, request.inputs, rows, True)
        if classifies(request):
            return None
        inputs, rows = self._validate(request)
        return self.batcher.enqueue(request, inputs, rows)

    def begin(self, request: InferRequest, done: Done) -> Ticket:
        """Validate a request and call `done` with the answer; see `protocols.Servable`.

        Raises:
            BatcherClosed: It is being unloaded; the request belongs to its successor.
            ServeError: The request is refused at once.
        """
        if chain.get():
            return TaskTicket(self._answer(request), request, done)
        joined = self.batcher.join(request, done)
        if joined is not None:
            return joined
        rows = self._plain_rows(request.inputs)
        if 0 < rows <= self._most_plain and request.outputs is None:
            return self.batcher.begin(request, request.inputs, rows, done, True)
        inputs, rows = self._validate(request)
        if classifies(request):
            done = self._classifying(request, done)
        return self.batcher.begin(request, inputs, rows, done)

    def _classifying(self, request: InferRequest, done: Done) -> Done:
        """Return what calls `done` with classes in place of numbers."""
        wanted = self._classes.wanted(request)

        def classify(response: InferResponse | None, error: BaseException | None) -> None:
            if response is not None:
                try:
                    response.outputs = self._classes.best(
                        response.outputs, request, wanted, self._names
                    )
                except Exception as failure:  # `done` has to be called
                    response, error = None, failure
            done(response, error)

        return classify

    async def _answer(self, request: InferRequest) -> InferResponse:
        outputs = await self.infer(request)
        return InferResponse(self.model, self.version, outputs, id=request.id)

    def infer_blocking(self, request: InferRequest) -> Mapping[str, Tensor]:
        """Do as `infer` on a thread."""
        rows = self._plain_rows(request.inputs)
        if 0 < rows <= self._most_plain and request.outputs is None:
            return self.batcher.submit_blocking(request, request.inputs, rows, True)
        inputs, rows = self._validate(request)
        return self.batcher.submit_blocking(request, inputs, rows)

    @property
    def most_rows(self) -> int:
        """How many gathered rows may run at once now, on an event loop."""
        return min(self._most_plain, self.batcher.most_rows)

    def run_rows(
        self, inputs: Mapping[str, Tensor], rows: int
    ) -> tuple[Mapping[str, Tensor], BatchRecord] | None:
        """Run rows that a transport gathered; see `AdaptiveBatcher.run_rows`."""
        if rows > self._most_plain or self._plain_rows(inputs) != rows:
            return None
        return self.batcher.run_rows(inputs, rows)

    def _validate(self, request: InferRequest) -> tuple[Mapping[str, Tensor], int]:
        if self._streams is not None:
            raise Unsupported(
                f'model "{self.model}" answers with a stream, not with one response: call '
                "stream(), or over HTTP generate_stream"
            )
        inputs, rows = self.signature.validate(request.inputs, batched=self.batched)
        if request.outputs is not None and self._output_names:
            self._check_outputs(request.outputs)
        if not self.batched:
            return inputs, 1
        most = self.batcher.max_batch_size
        if not 1 <= rows <= most:
            raise InvalidInput(
                f"expected 1 to {most} rows (max_batch_size), got {rows}", path="inputs"
            )
        return inputs, rows

    def _check_outputs(self, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            if name not in self._output_names:
                raise InvalidInput(
                    f"unknown output; the model gives {', '.join(sorted(self._output_names))}",
                    path=f'outputs[{index}] "{name[:80]}"',
                )

    @property
    def takes_stream(self) -> bool:
        """Whether one stream consumes many requests."""
        return self.batcher.traits.takes_stream

    async def stream(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncGenerator[InferResponse, None]:
        """Answer with a stream; a model that answers once yields that one response.

        Args:
            request: One request; or many, where `takes_stream`.

        Raises:
            BatcherClosed: It is being unloaded; nothing was yielded and no request consumed.
        """
        if self._streams is None:
            assert isinstance(request, InferRequest)
            yield InferResponse(self.model, self.version, await self.infer(request), id=request.id)
            return
        first = request if isinstance(request, InferRequest) else None
        wanted = {} if first is None else self._classes.wanted(first)
        try:
            await self._streams.acquire()
        except ModelNotReady as error:
            raise BatcherClosed from error
        try:
            source: Any
            if self.takes_stream:
                source = self._inputs_of(request)
            else:
                assert first is not None
                source, _ = self.signature.validate(first.inputs, batched=False)
            context = self._context(first)
        except BaseException:
            self._streams.release()
            raise
        outputs = open_stream(
            self._next_backend(),
            self.batcher.traits,
            source,
            context,
            self.batcher.loop_thread,
            self._streams,  # gets the slot back when the generator has ended
        )
        try:
            async for tensors in outputs:
                if first is not None and wanted:
                    tensors = self._classes.best(tensors, first, wanted, self._names)
                yield InferResponse(self.model, self.version, tensors, id=first.id if first else "")
        finally:
            await outputs.aclose()

    def _next_backend(self) -> Backend:
        self._turn += 1
        return self.batcher.backends[self._turn % len(self.batcher.backends)]

    async def _inputs_of(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncIterator[Mapping[str, Tensor]]:
        if isinstance(request, InferRequest):
            yield self.signature.validate(request.inputs, batched=False)[0]
            return
        async for one in request:
            yield self.signature.validate(one.inputs, batched=False)[0]

    def _context(self, request: InferRequest | None) -> Context:
        if request is None:
            return Context(self.model, self.version)
        info = RequestInfo(
            request.id, 0, 1, request.principal, request.headers, request.deadline, request.trace
        )
        return Context(self.model, self.version, request.parameters, (info,))

    # ------------------------------------------------------------------ the end

    @property
    def outstanding(self) -> int:
        """Requests waiting, batches running and streams under way."""
        streams = self._streams.active if self._streams is not None else 0
        return self.batcher.queue_depth + self.batcher.in_flight + streams

    def close(self, *, drain: float) -> bool:
        """Take no more, wait up to `drain` seconds for what is under way, release everything.

        What still runs after that ends by itself, and its backend is closed then.
        """
        self.state = "UNLOADING"
        if self._streams is None:
            answered = self.batcher.close(drain=drain)
        else:
            answered = self._streams.close(drain)
            # No backend is closed under a generator that still runs.
            self._streams.afterwards(self.batcher.close)
        self.state = "UNAVAILABLE"
        return answered


# ---------------------------------------------------------------------- loading


def load_version(
    model: str,
    version: str,
    source: Any,
    options: VersionOptions,
) -> ModelVersion:
    """Load a version until it can answer: backends, `setup`, proof of the batch axis, warm-up.

    Args:
        model: Name of the model.
        version: Version number as text.
        source: Path or bytes of an ONNX model, a backend, or a factory that makes the backend of
            the instance whose number it is given.
        options: How to run it.

    Raises:
        LoadError: It cannot be loaded.
    """
    try:
        backends = _backends(source, options)
    except (ServeError, ImportError, ValueError, TypeError):
        raise
    except Exception as error:
        raise LoadError(
            f'model "{model}" version {version}: {type(error).__name__}: {error}'
        ) from error
    path = model_file(Path(source)) if isinstance(source, str | os.PathLike) else None
    mine = backends[0] is not source  # made here, and of no use to anyone if this fails
    try:
        batcher, batching = _batcher(model, version, backends, options)
    except BaseException:
        if mine:
            for backend in {id(b): b for b in backends}.values():
                backend.close()
        raise
    try:
        return _ready(batcher, batching, options, path)
    except BaseException:
        if mine:
            batcher.close(drain=0.0)  # each backend where it was opened
        raise


def _backends(source: Any, options: VersionOptions) -> list[Backend]:
    if isinstance(source, str | os.PathLike | bytes):
        from modelserve.backends.onnxruntime import InferenceSession

        path: Any = source if isinstance(source, bytes) else model_file(Path(source))

        def session() -> InferenceSession:
            return InferenceSession(
                path, providers=None if options.providers is None else list(options.providers)
            )

        first = session()
        if first.traits.shared:  # one copy of the weights serves every instance
            return [first] * options.instances
        return [first, *(session() for _ in range(options.instances - 1))]
    if hasattr(source, "run") or hasattr(source, "stream"):
        traits: Traits = getattr(source, "traits", Traits())
        if options.instances > 1 and not traits.shared:
            raise ValueError(
                f"{options.instances} instances of one {type(source).__name__} object, which may "
                "not run twice at once; give a function that makes one for each instance"
            )
        return [source] * options.instances
    if callable(source):
        return [_made(source, instance) for instance in range(options.instances)]
    raise TypeError(
        "a model is a path, bytes, a backend, or a function that makes a backend for an instance; "
        f"got {type(source).__name__}. To serve a predict method, add "
        "modelserve.model(object.predict, ...)"
    )


def _made(factory: Callable[[int], Any], instance: int) -> Backend:
    name = getattr(factory, "__name__", type(factory).__name__)
    hint = f"to serve a predict function, add modelserve.model({name}, ...)"
    try:
        made = factory(instance)
    except (ServeError, ImportError):
        raise
    except Exception as error:
        raise LoadError(
            f"{name}({instance}), called to make the backend of an instance, raised "
            f"{type(error).__name__}: {error}; {hint}"
        ) from error
    if hasattr(made, "signature") and (hasattr(made, "run") or hasattr(made, "stream")):
        return cast(Backend, made)
    raise TypeError(
        f"{name}({instance}), called to make the backend of an instance, returned "
        f"{type(made).__name__}; {hint}"
    )


def model_file(path: Path) -> Path:
    """Return the ONNX file of a version directory; any other path is returned as it is."""
    return path / "model.onnx" if path.is_dir() else path


def _batcher(
    model: str, version: str, backends: list[Backend], options: VersionOptions
) -> tuple[AdaptiveBatcher, str]:
    backend = backends[0]
    traits: Traits = getattr(backend, "traits", Traits())
    if options.declared is not None:
        _check_declared(model, backend.signature, options.declared)
    size, batching = _batch_size(backend, traits, options)
    batcher = AdaptiveBatcher(
        backends,
        max_batch_size=size,
        max_queue_size=options.max_queue_size,
        max_queue_bytes=options.max_queue_bytes,
        max_queue_delay=options.max_queue_delay,
        max_batch_cost=options.max_batch_cost,
        cost=options.cost,
        batcher=options.batcher,
        model=model,
        version=version,
    )
    return batcher, batching


def _ready(
    batcher: AdaptiveBatcher, batching: str, options: VersionOptions, path: Path | None
) -> ModelVersion:
    backend, traits = batcher.backends[0], batcher.traits
    batcher.open()
    _try_example(batcher.model, backend, batcher)
    loaded = ModelVersion(
        batcher.model,
        batcher.version,
        batcher,
        signature=backend.signature,
        platform=getattr(backend, "platform", type(backend).__name__),
        batching=batching,
        options=options,
        filename="" if path is None else path.name,
        labels=names_in_files(options.label_files),
    )
    if options.warm_up and traits.synthetic and not traits.streams:
        _warm_up(batcher, backend, options)
    loaded.state = "READY"
    return loaded


def _check_declared(model: str, signature: Signature, declared: Signature) -> None:
    for side, there, said in (
        ("input", signature.inputs, declared.inputs),
        ("output", signature.outputs, declared.outputs),
    ):
        known = {spec.name: spec for spec in there}
        for spec in said:
            found = known.get(spec.name)
            if found is None or found.datatype != spec.datatype or not _fits(found, spec):
                has = ", ".join(_described(each) for each in there)
                raise DeclarationError(
                    f'model "{model}": its configuration declares {side} {_described(spec)}; '
                    f"the model has {has or 'none'}"
                )


def _fits(found: TensorSpec, said: TensorSpec) -> bool:
    if found.shape is None or said.shape is None:
        return True
    return len(found.shape) == len(said.shape) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(found.shape, said.shape, strict=True)
    )


def _described(spec: TensorSpec) -> str:
    shape = "" if spec.shape is None else f" {spec.shape}"
    return f'"{spec.name}" {spec.datatype}{shape}'


def _batch_size(backend: Backend, traits: Traits, options: VersionOptions) -> tuple[int, str]:
    if traits.streams:
        return 0, "off: streams are not batched"
    declared = options.max_batch_size
    if declared is not None:
        if declared and getattr(backend, "per_row", False):
            return declared, f"declared: up to {declared} rows, one call a row"
        return declared, f"declared: up to {declared} rows" if declared else "off: declared"
    if not traits.synthetic:
        return 0, "off: max_batch_size is not declared"
    refusal = prove_batch_axis(backend, options.warm_up_inputs or None)
    if refusal:
        return 0, f"off: {refusal}"
    return DEFAULT_BATCH_SIZE, (
        f"proven: up to {DEFAULT_BATCH_SIZE} rows, which give the same answers alone, together and "
        "beside larger ones"
    )


def _try_example(model: str, backend: Any, batcher: AdaptiveBatcher) -> None:
    """Run a function on the example it was declared with, which also shows its outputs."""
    example = getattr(backend, "example", None)
    if example is None or batcher.traits.streams:
        return
    try:
        rows = len(next(iter(example.values()))) if batcher.max_batch_size else 1
        outputs = batcher.run_at_load(InferRequest(model, example), example, rows)
    except ServeError as error:
        raise LoadError(f'model "{model}" fails on its example: {error}') from error
    for instance in batcher.backends:
        instance.learn_outputs(outputs)  # type: ignore[attr-defined]  # it has an example


def _warm_up(batcher: AdaptiveBatcher, backend: Backend, options: VersionOptions) -> None:
    """Run one row and, where that is quick, more and more: the first caller finds it warm.

    What the runs take is where the batcher's learning begins.
    """
    rows = 1
    inputs: Mapping[str, Tensor] = options.warm_up_inputs or synthetic_inputs(backend.signature, 1)
    if options.warm_up_inputs and batcher.max_batch_size:
        rows = len(next(iter(inputs.values())))
    request = InferRequest(batcher.model, inputs)
    try:
        batcher.run_at_load(request, inputs, rows)  # allocates and selects kernels
        batcher.run_at_load(request, inputs, rows)
        if not options.warm_up_inputs and batcher.bounds.cost is None:
            _measure_sizes(batcher, backend)
    except ServeError as error:
        _log.warning(
            "model %s version %s was not warmed up: %s", batcher.model, batcher.version, error
        )


def _measure_sizes(batcher: AdaptiveBatcher, backend: Backend) -> None:
    """Run batches of 2, 4, 8, ... rows, each twice, as far as there is time."""
    most = batcher.max_batch_size
    left = _WARM_UP_LIMIT
    rows = 1
    while rows < most:
        rows = min(2 * rows, most)
        inputs = synthetic_inputs(backend.signature, rows)
        for _ in range(2):
            expected = batcher.pacing.expected(rows)
            if expected is None or expected > left:
                return
            began = perf_counter()
            batcher.run_at_load(InferRequest(batcher.model, inputs), inputs, rows)
            left -= perf_counter() - began
