"""`@model`: a predict function as a model that can be added, mounted, and called as before."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from modelserve.backends.python import PythonBackend
from modelserve.messages import InferRequest, InferResponse
from modelserve.protocols import VersionInfo
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import Signature, Tensor, TensorSpec

__all__ = ["Model", "model"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Model(Generic[_P, _R]):
    """A predict function with a name and a signature; made by `model`.

    Called, it is the function itself. It is a `Servable` and a `Catalog`, so it can be mounted
    without a repository; the first request makes one that holds just this model.

    Attributes:
        name: Name of the model.
        signature: What it takes and gives.
        model_options: How a repository runs it where `add` does not say.
    """

    def __init__(
        self,
        function: Callable[_P, _R],
        *,
        name: str,
        model_options: Mapping[str, Any],
        **declared: Any,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.name = name
        self.model_options = dict(model_options)
        self._declared = declared
        # Made here, so that a wrong declaration fails where it stands and not in the first request.
        self.signature: Signature = self.backend(0).signature
        self._repository: ModelRepository | None = None
        self._making = threading.Lock()

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    def backend(self, instance: int) -> PythonBackend:
        """Make the backend of one instance."""
        return PythonBackend(self._function, instance=instance, **self._declared)

    def _own(self) -> ModelRepository:
        with self._making:
            if self._repository is None:
                repository = ModelRepository()
                repository.add(self)
                self._repository = repository
        return self._repository

    def predict(self, inputs: Any, **options: Any) -> dict[str, Tensor]:
        """Run the function as a served model; see `ModelRepository.predict`."""
        return self._own().predict(self.name, inputs, **options)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request; see `ModelRepository.infer`."""
        return await self._own().infer(request)

    def stream(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncIterator[InferResponse]:
        """Answer with a stream; see `ModelRepository.stream`."""
        return self._own().stream(request)

    async def index(self) -> Sequence[VersionInfo]:
        """List the model's one version."""
        return await self._own().index()

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe the model; see `ModelRepository.describe`."""
        return await self._own().describe(model, version)

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether it can answer."""
        return await self._own().ready(model, version)

    @property
    def record(self) -> Any:
        """Take closed exchanges of transports; see `ModelRepository`."""
        return self._own().record

    @property
    def metrics(self) -> Any:
        """The counters of the model's own repository."""
        return self._own().metrics

    def close(self) -> None:
        """Close the model's own repository, if a request made one."""
        with self._making:
            repository, self._repository = self._repository, None
        if repository is not None:
            repository.close()


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
) -> Any:
    """Make a model of a function, coroutine function, generator or any other callable.

    Args:
        function: The callable; without it a decorator is returned.
        name: Name of the model; the function's name (a bound method's: its object's class) without.
        inputs: What it takes; without, read from `example` or from the type hints.
        outputs: What it returns, in order; without, read from the return hint or the example.
        example: An array for the first parameter, or arrays by name; run once at load.
        max_batch_size: Most rows of a call, with the batch as axis 0 of all inputs and outputs;
            without, each request is a call of its own (with `per_row`: 64).
        per_row: The function takes one row; type hints of single values (`float`) imply it.
        setup: Called once for each instance; what it returns is the function's first argument.
            A generator cleans up after its `yield`.
        instances: How many instances run at once.
        concurrency: How many calls one instance takes at once; 1 for a function, 64 for a coroutine
            function or generator, 1024 for an asynchronous generator.
        retry: Whether calling the function twice does no harm, so that a failed batch may be run
            again in halves.

    Raises:
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
        declared = {
            "inputs": inputs,
            "outputs": outputs,
            "example": example,
            "per_row": per_row,
            "setup": setup,
            "retry": retry,
            "concurrency": concurrency,
        }
        size = max_batch_size
        if size is None:
            by_row = PythonBackend(function, **declared).per_row
            size = 64 if by_row else 0
        return Model(
            function,
            name=_name(function) if name is None else name,
            model_options={"max_batch_size": size, "instances": instances},
            max_batch_size=size,
            **declared,
        )

    return make if function is None else make(function)


def _name(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, type):
        return type(owner).__name__
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    if name == "<lambda>":
        raise ValueError("a lambda has no name: give name=")
    return str(name)
