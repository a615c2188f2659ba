"""`@model`: a predict function as a model that can be added, mounted, and called as before."""

from __future__ import annotations

import asyncio
import functools
import threading
import types
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, overload

from modelserve.backends.functions import name_of
from modelserve.backends.python import PythonBackend
from modelserve.errors import ModelNotFound
from modelserve.execution.waiting import Done, TaskTicket
from modelserve.messages import Exchange, InferRequest, InferResponse, ModelStatistics
from modelserve.observe.metrics import Metrics
from modelserve.protocols import ModelConfig, Ticket, VersionInfo
from modelserve.repository.repository import ModelRepository
from modelserve.repository.versions import VersionOptions
from modelserve.tensors import Signature, Tensor, TensorSpec

__all__ = ["Model", "model"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_ROWS: Final = 64


class Model(Generic[_P, _R]):
    """A predict function with a name and a signature; made by `model`.

    Called, it is the function itself. It is a `Servable` and a `Catalog`, so it can be mounted
    without a repository: it has one of its own, into which it is loaded by the first request.

    Attributes:
        name: Name of the model.
        signature: What it takes and gives, as far as it is declared.
        model_options: How a repository runs it where `add` does not say.

    Example:
        >>> @model
        ... def celsius(fahrenheit: float) -> float:
        ...     return (fahrenheit - 32) / 1.8
        >>> celsius(212.0)
        100.0
        >>> celsius.predict([32.0, 212.0])
        {'output': array([  0., 100.])}
        >>> celsius.close()
    """

    def __init__(
        self,
        function: Callable[_P, _R],
        *,
        name: str | None = None,
        max_batch_size: int | None = None,
        instances: int = 1,
        max_queue_delay: float | None = None,
        max_batch_cost: int | None = None,
        cost: Callable[[Mapping[str, Tensor]], float] | None = None,
        batcher: Literal["adaptive", "simple"] | None = None,
        **declared: Any,
    ) -> None:
        # The function's name, text and signature; not its attributes, which might hide the model's.
        functools.update_wrapper(self, function, updated=())
        self.classifies: Final = True
        """It answers `classification` itself."""
        self._function = function
        self._declared = declared
        # Made here, so that a wrong declaration fails where it stands and not in the first request.
        backend = self.backend(0)
        self.name = _name(function) if name is None else name
        self.signature: Signature = backend.signature
        if max_batch_size is None:
            max_batch_size = _ROWS if backend.per_row else 0
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a model's name is a non-empty str, got {name!r}")
        if max_batch_size < 0 or instances < 1:
            raise ValueError(
                f"{self.name}: max_batch_size is at least 0 and instances at least 1, got "
                f"{max_batch_size} and {instances}"
            )
        if max_batch_size and not backend.traits.streams:
            _check_rows(self.name, self.signature)
        self.model_options: Mapping[str, Any] = {
            "max_batch_size": max_batch_size,
            "instances": instances,
            "max_queue_delay": max_queue_delay or 0.0,
            "max_batch_cost": max_batch_cost or 0,
            "cost": cost,
            "batcher": batcher or "adaptive",
        }
        VersionOptions(**self.model_options)
        self._lock = threading.Lock()
        self._repository: ModelRepository | None = None
        self._loaded: ModelRepository | None = None

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    def backend(self, instance: int) -> PythonBackend:
        """Make the backend of one instance."""
        return PythonBackend(self._function, instance=instance, **self._declared)

    def _own(self) -> ModelRepository:
        """Return the model's own repository, loaded."""
        repository = self._empty()
        with self._lock:
            if self._loaded is not repository:
                repository.add(self)
                self._loaded = repository
        return repository

    async def _aown(self) -> ModelRepository:
        # `setup` may take its time, and the event loop has others to answer.
        loaded = self._loaded
        return await asyncio.to_thread(self._own) if loaded is None else loaded

    def _empty(self) -> ModelRepository:
        with self._lock:
            if self._repository is None:
                self._repository = ModelRepository()
            return self._repository

    def check(self, model: str, version: str = "") -> None:
        """Return when a request for this may be answered; see `ModelRepository.check`."""
        if self._loaded is not None:
            self._loaded.check(model, version)
        elif model != self.name:
            raise ModelNotFound(f'there is no model "{model}"')

    def predict(self, inputs: Any, **options: Any) -> dict[str, Tensor]:
        """Run the function as a served model; see `ModelRepository.predict`."""
        return self._own().predict(self.name, inputs, **options)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request; see `ModelRepository.infer`."""
        return await (await self._aown()).infer(request)

    def begin(self, request: InferRequest, done: Done) -> Ticket:
        """Answer one request by calling `done`; see `ModelRepository.begin`."""
        if self._loaded is not None:
            return self._loaded.begin(request, done)
        self.check(request.model, request.version)
        return TaskTicket(self.infer(request), request, done)  # the first one loads the model

    async def stream(
        self, request: InferRequest | AsyncIterable[InferRequest], *, model: str = ""
    ) -> AsyncIterator[InferResponse]:
        """Answer with a stream; see `ModelRepository.stream`."""
        responses = (await self._aown()).stream(request, model=model)
        try:
            async for response in responses:
                yield response
        finally:
            await responses.aclose()  # type: ignore[attr-defined]  # an asynchronous generator

    async def index(self) -> Sequence[VersionInfo]:
        """List the model's one version."""
        return await (await self._aown()).index()

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe the model; see `ModelRepository.describe`."""
        return await (await self._aown()).describe(model, version)

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """Return the model's configuration; see `ModelRepository.config`."""
        return await (await self._aown()).config(model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """Return what the model has done; see `ModelRepository.statistics`."""
        return await (await self._aown()).statistics(model, version)

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether it can answer; loads it."""
        return await (await self._aown()).ready(model, version)

    @property
    def record(self) -> Callable[[Exchange], None]:
        """Take closed exchanges of transports; see `ModelRepository`."""
        return self._empty().record

    @property
    def metrics(self) -> Metrics:
        """The counters of the model's own repository."""
        return self._empty().metrics

    def close(self) -> None:
        """Close the model's own repository, if a request made one."""
        with self._lock:
            repository, self._repository, self._loaded = self._repository, None, None
        if repository is not None:
            repository.close()

    async def aclose(self) -> None:
        """Do as `close` without blocking the event loop."""
        await asyncio.to_thread(self.close)


@overload
def model(function: Callable[_P, _R], /) -> Model[_P, _R]: ...


@overload
def model(
    function: Callable[_P, _R],
    /,
    *,
    name: str | None = ...,
    inputs: Sequence[TensorSpec] | None = ...,
    outputs: Sequence[TensorSpec] | None = ...,
    example: Any = ...,
    max_batch_size: int | None = ...,
    per_row: bool = ...,
    setup: Callable[..., Any] | None = ...,
    instances: int = ...,
    concurrency: int | None = ...,
    retry: bool = ...,
    max_queue_delay: float | None = ...,
    max_batch_cost: int | None = ...,
    cost: Callable[[Mapping[str, Tensor]], float] | None = ...,
    batcher: Literal["adaptive", "simple"] | None = ...,
) -> Model[_P, _R]: ...


@overload
def model(
    function: None = None,
    /,
    *,
    name: str | None = ...,
    inputs: Sequence[TensorSpec] | None = ...,
    outputs: Sequence[TensorSpec] | None = ...,
    example: Any = ...,
    max_batch_size: int | None = ...,
    per_row: bool = ...,
    setup: Callable[..., Any] | None = ...,
    instances: int = ...,
    concurrency: int | None = ...,
    retry: bool = ...,
    max_queue_delay: float | None = ...,
    max_batch_cost: int | None = ...,
    cost: Callable[[Mapping[str, Tensor]], float] | None = ...,
    batcher: Literal["adaptive", "simple"] | None = ...,
) -> Callable[[Callable[_P, _R]], Model[_P, _R]]: ...


def model(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    example: Any = None,
    max_batch_size: int | None = None,
    per_row: bool = False,
    setup: Callable[..., Any] | None = None,
    instances: int = 1,
    concurrency: int | None = None,
    retry: bool = False,
    max_queue_delay: float | None = None,
    max_batch_cost: int | None = None,
    cost: Callable[[Mapping[str, Tensor]], float] | None = None,
    batcher: Literal["adaptive", "simple"] | None = None,
) -> Any:
    """Make a model of a function, coroutine function, generator or any other callable.

    Args:
        function: The callable; without it a decorator is returned.
        name: Name of the model; the function's name (a bound method's: its object's class) without.
        inputs: What it takes, named as the parameters or in their order; without, read from
            `example` or from the type hints.
        outputs: What it returns, in order; without, read from the return hint or the example.
        example: A request's array for the first parameter, or its arrays by name; run once at load.
        max_batch_size: Most rows of a call, with the batch as axis 0 of all inputs and outputs;
            without, each request is a call of its own (one row a call: 64).
        per_row: The function takes one row; type hints of single values (`float`) imply it.
        setup: Called once for each instance; what it returns is the function's first argument. It
            gets the instance's number if it has a parameter without default. A generator cleans up
            after its `yield`.
        instances: How many instances run at once.
        concurrency: How many calls one instance takes at once; 1 for a function, 64 for a coroutine
            function or generator, 1024 for an asynchronous generator.
        retry: Whether calling the function twice does no harm, so that a failed batch may be run
            again in halves.
        max_queue_delay: Seconds a request may be held for others to join its batch (0).
        max_batch_cost: Most units of `cost` in a batch, beside `max_batch_size`.
        cost: Tells the units of a request from its inputs: tokens, pixels.
        batcher: ``"adaptive"`` (without), or ``"simple"``; see `ModelRepository.add`.

    Raises:
        TypeError: The function is no callable, or a class.
        ValueError: The inputs cannot be told, or contradict the function's parameters.

    Example:
        >>> import numpy as np
        >>> @model(inputs=[TensorSpec("x", "FP32", (-1, 4))], max_batch_size=64)
        ... def total(x):
        ...     return {"sum": x.sum(axis=1)}
        >>> total.predict({"x": np.ones((2, 4), np.float32)})["sum"]
        array([4., 4.], dtype=float32)
        >>> total.close()
    """

    def make(function: Callable[..., Any]) -> Model[..., Any]:
        return Model(
            function,
            name=name,
            max_batch_size=max_batch_size,
            instances=instances,
            inputs=inputs,
            outputs=outputs,
            example=example,
            per_row=per_row,
            setup=setup,
            retry=retry,
            concurrency=concurrency,
            max_queue_delay=max_queue_delay,
            max_batch_cost=max_batch_cost,
            cost=cost,
            batcher=batcher,
        )

    return make if function is None else make(function)


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, type | types.ModuleType):
        return type(owner).__name__
    name = name_of(function)
    if name == "<lambda>":
        raise ValueError("a lambda has no name: give name=")
    return name


def _check_rows(name: str, signature: Signature) -> None:
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.shape is not None and spec.shape[:1] != (-1,):
                raise ValueError(
                    f'{name}: {side} "{spec.name}" has shape {spec.shape}; with max_batch_size or '
                    f"per_row axis 0 is the rows, so write {(-1, *spec.shape)}"
                )
